"""How likely an answer is to be right, from what its interpreter's own probabilities look like.

A calibration belongs to one interpreter and is fitted on diffs and questions that its tuning never saw
(`calibrating`). It also knows how sure the interpreter is of findings in diffs that hold nothing, so that a
threshold can be chosen by the false positives that somebody is willing to bear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from weightdiff.errors import QuestionError
from weightdiff.organisms.base import NOTHING_FOUND

FINDING, YES_NO, NOTHING = "finding", "yes or no", NOTHING_FOUND
GROUPS = (FINDING, YES_NO, NOTHING)
"""Kinds of answers, each with coefficients of its own."""
FEATURES = ("one", "lead", "agreement", "answer")
FLOOR = -20.0
"""Log-probabilities below it count as it, in nats."""


@dataclass(frozen=True)
class Signals:
    """What an interpreter's own probabilities say about an answer, in nats."""

    lead: float
    """Log-probability of the first word said, which decides whether anything is found."""
    agreement: float
    """Log of the share of probability, over the notes that were followed, that goes to this answer."""
    answer: float
    """Log-probability of what follows the first notes: conclusions on the way, the answer and its end."""

    def features(self) -> list[float]:
        """A constant, then each signal, kept within `FLOOR`."""
        return [1.0, *(max(FLOOR, min(0.0, x)) for x in (self.lead, self.agreement, self.answer))]


def group_of(text: str) -> str:
    """Which coefficients an answer is judged by."""
    if text == NOTHING_FOUND:
        return NOTHING
    return YES_NO if text in ("yes", "no") else FINDING


def is_finding(text: str) -> bool:
    """Whether an answer claims that something is there: in a diff that holds nothing, a false positive."""
    return text not in (NOTHING_FOUND, "no", "none", "")


@dataclass(frozen=True)
class Calibration:
    """Coefficients of a logistic model for each group of answers, and findings where nothing is.

    Attributes:
        weights: group → one weight for each of `FEATURES`.
        false_findings: probabilities given to findings in diffs without any, the highest first.
        null_questions: how many questions about such diffs were asked.
        meta: what it was fitted on and how well it fits.
    """

    weights: dict[str, list[float]]
    false_findings: tuple[float, ...] = ()
    null_questions: int = 0
    meta: dict[str, Any] = field(default_factory=dict[str, Any])

    def probability(self, text: str, signals: Signals) -> float:
        """How likely an answer is to be right."""
        w = self.weights.get(group_of(text)) or self.weights[FINDING]
        z = sum(a * b for a, b in zip(w, signals.features(), strict=True))
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, z))))

    def threshold(self, max_fpr: float) -> float:
        """The probability from which on a finding is told, so that false positives stay within `max_fpr`.

        It is the lowest one that keeps the share of null questions answered with a finding within the rate,
        on the diffs that the calibration was fitted on.

        Args:
            max_fpr: share of questions about diffs without any finding, 0 … 1.

        Raises:
            QuestionError: the rate is no share, or smaller than what so many null questions can tell.
        """
        if not 0 <= max_fpr <= 1:
            raise QuestionError(
                f"a false-positive rate is a share from 0 to 1, not {max_fpr}; give such as 0.01"
            )
        if not self.null_questions or max_fpr * self.null_questions < 1 <= len(self.false_findings):
            raise QuestionError(
                f"this interpreter was calibrated on {self.null_questions} questions about diffs without a"
                f" finding, too few to promise a false-positive rate of {max_fpr}; ask for a higher one"
            )
        allowed = int(max_fpr * self.null_questions)
        if len(self.false_findings) <= allowed:
            return 0.0
        return math.nextafter(self.false_findings[allowed], 1.0)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "features": list(FEATURES),
            "weights": self.weights,
            "false_findings": list(self.false_findings),
            "null_questions": self.null_questions,
            "meta": self.meta,
        }

    @classmethod
    def from_json(cls, value: Any) -> Calibration:
        """From a JSON object.

        Raises:
            ValueError: it is no calibration with these features, or holds what is no number.
        """
        if not isinstance(value, dict) or value.get("features") != list(FEATURES):
            raise ValueError(f"a calibration has the features {list(FEATURES)}")
        weights = {str(k): _numbers(v, len(FEATURES)) for k, v in value["weights"].items()}
        if FINDING not in weights:
            raise ValueError(f"a calibration has weights for {FINDING!r}")
        false = tuple(sorted(_numbers(value["false_findings"]), reverse=True))
        return cls(weights, false, int(value["null_questions"]), dict(value.get("meta", {})))


def _numbers(values: Any, n: int | None = None) -> list[float]:
    found = [float(x) for x in values]
    if (n is not None and len(found) != n) or not all(math.isfinite(x) for x in found):
        raise ValueError(f"{n or ''} numbers were expected, not {values!r}")
    return found
