"""The embedded base: its tokenizer, pretraining and the bundle that ships with the package."""
