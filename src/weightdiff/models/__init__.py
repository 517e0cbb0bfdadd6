"""The base model: its linear layers, how diffs are put on it, and how it is asked."""
