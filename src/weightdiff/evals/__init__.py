"""Evaluation: which questions go to which methods, how answers are scored, what the tables say."""
