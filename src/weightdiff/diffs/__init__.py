"""Weight diffs as things: their types, their files, and stores that hold many of them."""
