"""How well mixtures of diffs predict texts: many weighted sums in a batch, none of them made.

Task arithmetic (arXiv:2212.04089) chooses the weights of a sum by trying them out; each try is a row here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.methods.loading import Base
from weightdiff.models.generate import answer_logprobs
from weightdiff.models.memory import rows_that_fit
from weightdiff.models.mixtures import Mixtures
from weightdiff.models.multilora import attach

ROWS_AT_ONCE = 256
"""Rows of a batch, where memory allows for as many."""
Weights = tuple[float, ...]
"""A mixture: the weight of each diff."""


@dataclass(frozen=True)
class Text:
    """Tokens, of which the first `given` are read and the others predicted."""

    ids: list[int]
    given: int = 1


@dataclass(frozen=True)
class Mixed:
    """How well one mixture predicts the texts."""

    weights: Weights
    loss: float
    """Mean negative log-probability of a predicted token, in nats."""

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)


def line(steps: int, start: float = 0.0, end: float = 1.0) -> list[Weights]:
    """Mixtures between two diffs: (1 - t, t) for evenly spaced t.

    Raises:
        ValueError: fewer than two steps.
    """
    return [(1 - t, t) for t in spaced(steps, start, end)]


def box(n: int, steps: int, start: float = 0.0, end: float = 1.0) -> list[Weights]:
    """Every combination of evenly spaced weights of `n` diffs, the last one's changing fastest.

    Raises:
        ValueError: fewer than two steps.
    """
    return list(itertools.product(spaced(steps, start, end), repeat=n))


def spaced(steps: int, start: float, end: float) -> list[float]:
    """Evenly spaced numbers, both ends among them.

    Raises:
        ValueError: fewer than two.
    """
    if steps < 2:
        raise ValueError(f"a grid has 2 steps or more, not {steps}")
    return [start + (end - start) * i / (steps - 1) for i in range(steps)]


def texts_of(tokenizer: Any, lines: Sequence[str]) -> list[Text]:
    """Lines of plain text, each behind the tokenizer's first token if it has one, else its own first.

    Raises:
        QuestionError: a line has nothing to predict.
    """
    first = tokenizer.bos_token_id
    out = []
    for i, text in enumerate(lines, 1):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = [first, *ids] if first is not None else ids
        if len(ids) < 2:
            raise QuestionError(f"text {i} ({text!r}) is too short: nothing in it can be predicted")
        out.append(Text(ids))
    return out


def sweep(
    base: Base,
    diffs: Sequence[WeightDiff],
    mixtures: Sequence[Weights],
    texts: Sequence[Text],
    progress: Callable[[int], None] | None = None,
) -> list[Mixed]:
    """The loss of every mixture on all texts, in the order of mixtures; arguments are those of `losses`."""
    totals = losses(base, diffs, mixtures, texts, progress).sum(1)
    tokens = sum(len(t.ids) - t.given for t in texts)
    return [Mixed(w, total / tokens) for w, total in zip(mixtures, totals.tolist(), strict=True)]


@torch.no_grad()
def losses(
    base: Base,
    diffs: Sequence[WeightDiff],
    mixtures: Sequence[Weights],
    texts: Sequence[Text],
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The loss of every mixture on every text, in nats, fp64 [mixtures, texts].

    A batch holds texts of like length under as many mixtures as fit.

    Args:
        base: the model, and its tokenizer.
        diffs: low-rank diffs of that base.
        mixtures: a weight for each diff.
        texts: what is predicted.
        progress: called with the number of rows (a text under a mixture) that are done.

    Raises:
        ValueError: a mixture has another number of weights than there are diffs.
        FormatError: a diff is not low-rank.
        BaseMismatchError: a diff does not fit the base.
    """
    for weights in mixtures:
        if len(weights) != len(diffs):
            raise ValueError(f"{len(weights)} weights for {len(diffs)} diffs: give one for each")
    for diff in diffs:
        diff.check_base(base.ref)
        diff.check_against(base.spec)
    mixed = Mixtures.of(diffs)
    order = sorted(range(len(texts)), key=lambda t: len(texts[t].ids))
    out = torch.zeros(len(mixtures), len(texts), dtype=torch.float64)
    rows = [(m, t) for t in order for m in range(len(mixtures))]
    at_once = rows_that_fit(base.model, len(texts[order[-1]].ids), ROWS_AT_ONCE) if order else 1
    for at in range(0, len(rows), at_once):
        part = rows[at : at + at_once]
        weights = torch.tensor([mixtures[m] for m, _ in part], device=base.model.device)
        m, t = torch.tensor(part).T
        out[m, t] = -_logprobs(base, mixed, weights, [texts[i] for _, i in part])
        if progress:
            progress(at + len(part))
    return out


def _logprobs(base: Base, mixed: Mixtures, weights: Tensor, own: Sequence[Text]) -> Tensor:
    """Log-probability of each row's predicted tokens, fp64 [rows]."""
    with attach(base.model, None, [mixed.on(weights)]):
        found = answer_logprobs(
            base.model,
            [t.ids[: t.given] for t in own],
            [t.ids[t.given :] for t in own],
            base.tokenizer.pad_token_id,
        )
    return found.double().cpu()
