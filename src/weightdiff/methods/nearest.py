"""Nearest neighbour: the label of the training diff that is most alike in weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from weightdiff.diffs.algebra import cosine
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import StoreError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked, distinct
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.organisms.base import NOTHING_FOUND


@dataclass
class NearestNeighbour:
    """Shows how far mere likeness of weights goes: no model is run, and no question is read.

    The answer is the label of the diff in the store that has the largest cosine with the one asked about,
    all modules as one long vector. The store must not hold the diffs that are asked about: each would find
    itself.

    Raises:
        StoreError: the store is empty.
    """

    base: Base
    store: DiffStore
    """Labelled diffs of the base; read at the first question and kept."""
    name: str = "nearest-neighbour"

    def __post_init__(self) -> None:
        """Refuse a store without diffs."""
        if not len(self.store):
            raise StoreError(f"{self.store.path} is an empty diff store; give one that holds labelled diffs")

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """The label for each diff, with the neighbour's id and cosine in the notes.

        "nothing found" where the neighbour has no label, or no diff of the store has a cosine above zero.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        found = [self._nearest(diff) for diff in only]
        return [found[k] for k in where]

    @cached_property
    def _training(self) -> list[tuple[DiffRow, WeightDiff]]:
        return [(row, self.store.read(row.id)) for row in self.store.rows]

    def _nearest(self, diff: WeightDiff | None) -> Answer:
        alike = [] if diff is None else [(cosine(diff, other), row) for row, other in self._training]
        near = [(c, row) for c, row in alike if c > 0]  # NaN, of a diff that changes nothing, is not
        if not near:
            return Answer(NOTHING_FOUND)
        c, row = max(near, key=lambda found: found[0])
        return Answer(row.label or NOTHING_FOUND, notes=f"{row.id} (cosine {c:.3f})")


@register("nearest-neighbour", "the label of the training diff that is most alike in weights", ("store",))
def _nearest_neighbour(context: Context) -> Method:
    return NearestNeighbour(context.base, context.required("store"))
