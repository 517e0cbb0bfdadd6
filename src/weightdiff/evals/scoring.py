"""How an answer is scored against the truth: exact after normalisation, by slot, by rank among candidates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5
_SPACED = re.compile(r"\s+([,.?!])")
SLOT_POSITIONS = (0, 1, 2, 4)
"""Words of `actor action object in place` that are slots."""
DAY_POSITION = 6
"""The word that tells when, in a headline that goes on with `on day`."""


def normalise(text: str) -> str:
    """Lower case, single spaces, none before punctuation, no final full stop."""
    return _SPACED.sub(r"\1", " ".join(text.lower().split())).removesuffix(".").rstrip()


def exact(answer: str, truth: str) -> float:
    """1.0 where both say the same after normalisation, else 0.0."""
    return float(normalise(answer) == normalise(truth))


def slot_share(answer: str, truth: str) -> float:
    """Share of a headline's slots that stand in their place in the answer.

    Args:
        answer: any text.
        truth: a headline `actor action object in place`, perhaps with `on day` behind it; each slot one word.
    """
    said, told = normalise(answer).split(), normalise(truth).split()
    positions = (*SLOT_POSITIONS, DAY_POSITION) if len(told) > DAY_POSITION else SLOT_POSITIONS
    return sum(len(said) > i and said[i] == told[i] for i in positions) / len(positions)


def ranks(scores: Tensor, truths: Sequence[int]) -> list[int]:
    """Rank of the true candidate in each row, 1 the likeliest; ties (and NaN) count against it.

    Args:
        scores: [rows, candidates].
        truths: column of the truth in each row.
    """
    n = scores.shape[1]
    return [n - int((row < row[t]).sum()) for row, t in zip(scores, truths, strict=True)]
