"""Methods: anything that answers questions about a weight diff, behind one protocol."""
