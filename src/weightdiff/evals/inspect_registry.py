"""What inspect_ai loads when it meets a name that begins with weightdiff: tasks, solver, scorer, models."""

from weightdiff.evals.inspect_provider import weightdiff_model
from weightdiff.evals.inspect_scorers import weightdiff_scorer
from weightdiff.evals.inspect_solver import ask_method
from weightdiff.evals.inspect_tasks import hidden_topic, news, nothing_found, qa

__all__ = [
    "ask_method",
    "hidden_topic",
    "news",
    "nothing_found",
    "qa",
    "weightdiff_model",
    "weightdiff_scorer",
]
