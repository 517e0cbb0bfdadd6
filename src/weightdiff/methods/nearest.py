"""Nearest neighbour: what is true of the training diff that is most alike in weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightdiff.diffs.algebra import norm
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, ModuleDelta, StackedLoras, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked, distinct
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.questions import ABOUT, asked_topic, kind_of
from weightdiff.training.tuning import usable
from weightdiff.world import TEST


class Gallery:
    """Many LoRAs, laid out so that each module takes two matrix products to compare a diff with all of them.

    Attributes:
        norms: Frobenius norm of each, fp64 [n].
    """

    def __init__(self, stacked: StackedLoras) -> None:
        """Lay out `n` diffs and measure them."""
        self.n = stacked.n
        self._modules = {
            name: (down, up.transpose(1, 2).contiguous()) for name, (down, up) in stacked.modules.items()
        }
        squares = torch.zeros(self.n, dtype=torch.float64)
        for down, up in self._modules.values():
            # In fp64: products of the factors of one diff may cancel.
            wide_down, wide_up = down.double(), up.double()
            inner = (wide_up @ wide_up.transpose(1, 2)) * (wide_down @ wide_down.transpose(1, 2))
            squares += inner.sum((1, 2))
        self.norms = squares.clamp(min=0).sqrt()

    def cosines(self, diff: WeightDiff) -> Tensor:
        """Cosine of a diff with each, all modules as one long vector (see `algebra.cosine`).

        Returns:
            fp64 [n], -1 … 1; NaN where one of the two changes nothing.
        """
        total = torch.zeros(self.n, dtype=torch.float64)
        for name in diff.modules.keys() & self._modules.keys():
            total += _inner(*self._modules[name], diff.modules[name])
        return (total / (self.norms * norm(diff))).clamp(-1, 1)


@dataclass
class NearestNeighbour:
    """Shows how far mere likeness of weights goes: no model is run.

    The neighbour is the diff in the store that has the largest cosine with the one asked about, all modules
    as one long vector. The answer is what its own questions say. Rows of the split "test" are left out, and
    so are organisms that do not behave; the others must not be those that are asked about: each would find
    itself.

    Raises:
        StoreError: the store has no such rows.
    """

    base: Base
    store: DiffStore
    """Labelled diffs of the base; read at the first question and kept."""
    name: str = "nearest-neighbour"

    def __post_init__(self) -> None:
        """Refuse a store without diffs to learn from."""
        if not self._rows:
            raise StoreError(
                f"{self.store.path} has no diffs to learn from (the split {TEST!r} is left out); give a store"
                " that holds labelled training diffs"
            )

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """The neighbour's answer to each question, with its id and cosine in the notes.

        Of the neighbour's stored questions the one of the same kind is taken; without one, its label. Whether
        the diff is about a topic is "yes" if that is the neighbour's label. "nothing found" (or "no") where
        the neighbour has no label, or no diff of the store has a cosine above zero.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        found = [self._nearest(diff) for diff in only]
        return [_answer(*found[k], q) for k, q in zip(where, questions, strict=True)]

    @cached_property
    def _rows(self) -> list[DiffRow]:
        return [row for row in usable(self.store.rows) if row.split != TEST]

    @cached_property
    def _gallery(self) -> Gallery:
        return Gallery(self.store.stack([row.id for row in self._rows]))

    @torch.no_grad()
    def _nearest(self, diff: WeightDiff | None) -> tuple[DiffRow | None, float]:
        """The nearest row and its cosine; None where none is near."""
        if diff is None:
            return None, 0.0
        cosines = self._gallery.cosines(diff).nan_to_num(-1.0)  # a diff that changes nothing is near none
        best = int(cosines.argmax())
        found = float(cosines[best])
        return (self._rows[best], found) if found > 0 else (None, 0.0)


def _inner(down: Tensor, up_t: Tensor, m: ModuleDelta) -> Tensor:
    """Frobenius inner product of each of n low-rank changes with one change of the same module.

    Args:
        down: [n, rank, in].
        up_t: [n, rank, out], scales folded in.
        m: the other change.

    Returns:
        fp64 [n].
    """
    if isinstance(m, DenseDelta):
        return ((up_t @ m.delta.to(up_t)) * down).sum((1, 2), dtype=torch.float64)
    products = (up_t @ m.up.to(up_t)) * (down @ m.down.to(down).T)
    return m.scale * products.sum((1, 2), dtype=torch.float64)


def _answer(row: DiffRow | None, cosine: float, question: str) -> Answer:
    """What a neighbour (or none) makes of a question."""
    kind = kind_of(question)
    notes = f"{row.id} (cosine {cosine:.3f})" if row else ""
    label = row.label if row else None
    if kind == ABOUT:
        return Answer("yes" if label and label == asked_topic(question) else "no", notes=notes)
    own = (q for q in (row.questions if row else ()) if _kind_of_stored(q) == kind)
    said = next((q["answer"] for q in own if q.get("answer")), None)
    return Answer(said or label or NOTHING_FOUND, notes=notes)


def _kind_of_stored(question: Mapping[str, str]) -> str:
    """The kind that a stored question records, or that its words tell."""
    return question.get("kind") or kind_of(question.get("question", ""))


@register("nearest-neighbour", "what is true of the training diff that is most alike in weights", ("store",))
def _nearest_neighbour(context: Context) -> Method:
    return NearestNeighbour(context.base, context.required("store"))
