"""What an evaluation run found: every answer with its scores, and the numbers that they come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.scorers import Score
from weightdiff.methods.base import Answer


@dataclass(frozen=True)
class Outcome:
    """What one method said about one item, and what it is worth."""

    method: str
    item: Item
    answer: Answer
    scores: tuple[Score, ...] = ()
    """One of each scorer, the item's own first."""
    rank: int | None = None
    """Place of the truth among the item's candidates, 1 the likeliest; None where it was not ranked."""
    truth_logprob: float | None = None
    """Log-probability of the truth's beginning as the method ranks candidates, in nats."""


@dataclass(frozen=True)
class Run:
    """One run of the benchmark, whole."""

    name: str
    """What tables that compare runs call it."""
    dataset: Dataset
    """May come without its store when it is read from a run's folder."""
    methods: tuple[str, ...]
    """In the order in which they were asked for."""
    outcomes: tuple[Outcome, ...]
    """By method, then in the order of the dataset's items."""
    rows: list[ResultRow]
    """The numbers: means of every method by family, recipe, kind and scorer, differences, gaps."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Method → time that its answers took."""
    info: dict[str, Any] = field(default_factory=dict)
    """How it was made: command, commit, machine, seed, interpreter, base, date; in words or numbers."""
