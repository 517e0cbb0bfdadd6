"""Training: the factory that makes organisms, and the tuning of an interpreter over them."""
