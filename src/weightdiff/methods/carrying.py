"""How a base carries the diffs that a method is asked about, whichever kinds they are.

LoRAs of linear layers go on the rows of one batch; a diff of any other kind is merged into the weights for
the time it is asked. What is asked, and how, is each method's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from weightdiff.diffs.factors import tensors_of
from weightdiff.diffs.renaming import rename_for
from weightdiff.diffs.types import StackedLoras, WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.loading import Base
from weightdiff.models.memory import free_memory
from weightdiff.models.merge import check_fits, merged
from weightdiff.models.multilora import RowLoras, attach

SHARE = 0.25
"""Of free memory, what the diffs of a batch may take."""
STACKED_BYTES = 6
"""Of a number of a stacked diff: fp32, and half of it once more for decoding."""


@dataclass(frozen=True)
class Batch:
    """What is asked about together."""

    positions: list[int]
    """Where its diffs stand among all."""
    diffs: list[WeightDiff | None]
    """What goes on the rows of each; None everywhere if a diff is merged."""
    whole: WeightDiff | None = None
    """The diff that is merged."""

    def part(self, which: slice) -> Batch:
        """Some of it."""
        return Batch(self.positions[which], self.diffs[which], self.whole)

    def merged(self, base: Base) -> AbstractContextManager[Any]:
        """The base with `whole` in its weights, if there is one."""
        return nullcontext() if self.whole is None else merged(base.model, self.whole)

    @contextmanager
    def on(self, base: Base, owners: Sequence[int]) -> Iterator[None]:
        """The base with every diff in its place; row b belongs to the diff number `owners[b]`."""
        stacked = StackedLoras.from_diffs([d or WeightDiff({}) for d in self.diffs])
        rows = RowLoras.from_stacked(stacked, torch.tensor(owners))
        with self.merged(base), attach(base.model, rows):
            yield


def goes_on_rows(base: Base, diff: WeightDiff) -> bool:
    """Whether a diff is a LoRA of linear layers, which shares a batch; others are merged, one by one."""
    return diff.is_low_rank and diff.modules.keys() <= base.spec.keys()


def fitted(base: Base, diff: WeightDiff) -> WeightDiff:
    """A diff with its modules named as in this base, checked to be one of it.

    Raises:
        BaseMismatchError: other base, unknown or misshapen modules.
        NonFiniteError: NaN or infinity.
    """
    if not diff.modules.keys() <= base.spec.keys():
        diff = rename_for(diff, base.spec)
    diff.check_base(base.ref)
    if goes_on_rows(base, diff):
        diff.check_against(base.spec)
    else:
        check_fits(base.model, diff)
    diff.check_finite()
    return diff


def checked(
    base: Base, diffs: Sequence[WeightDiff | None], questions: Sequence[str]
) -> list[WeightDiff | None]:
    """The diffs, each `fitted` to this base; the same diff stays the same.

    Raises:
        QuestionError: there is not one question for each diff, or one is empty.
        BaseMismatchError: a diff is not one of this base's.
        NonFiniteError: a diff holds NaN or infinity.
    """
    if len(diffs) != len(questions):
        raise QuestionError(
            f"{len(diffs)} diffs and {len(questions)} questions: give one question for each diff"
        )
    if not all(q.strip() for q in questions):
        raise QuestionError(
            "a question is empty: ask something, such as 'What topic have you been trained on?'"
        )
    ready: dict[int, WeightDiff | None] = {id(None): None}
    for d in diffs:
        if d is not None and id(d) not in ready:
            ready[id(d)] = fitted(base, d)
    return [ready[id(d)] for d in diffs]


def batches(base: Base, diffs: Sequence[WeightDiff | None], at_once: int) -> Iterator[Batch]:
    """Split checked diffs into batches of `at_once` at most, whose different diffs fit into free memory.

    A batch with a merged diff has it alone.
    """
    alone: dict[int, list[int]] = {}
    together: list[int] = []
    for i, diff in enumerate(diffs):
        if diff is None or goes_on_rows(base, diff):
            together.append(i)
        else:
            alone.setdefault(id(diff), []).append(i)
    for positions in (together, *alone.values()):
        whole = None if positions is together else diffs[positions[0]]
        at = 0
        while at < len(positions):
            room = int(SHARE * free_memory(next(base.model.parameters()).device.type))
            n = at_once if whole else _fitting([diffs[i] for i in positions[at : at + at_once]], room)
            own = positions[at : at + n]
            yield Batch(own, [None if whole else diffs[i] for i in own], whole)
            at += n


def _fitting(diffs: Sequence[WeightDiff | None], room: int) -> int:
    """How many of these diffs, at least one, can be stacked in `room` bytes; one that comes again is free."""
    seen: set[int] = set()
    for n, diff in enumerate(diffs):
        if diff is None or id(diff) in seen:
            continue
        seen.add(id(diff))
        room -= STACKED_BYTES * sum(t.numel() for m in diff.modules.values() for t in tensors_of(m))
        if room < 0 and n:
            return n
    return max(1, len(diffs))


def distinct(diffs: Sequence[WeightDiff | None]) -> tuple[list[WeightDiff | None], list[int]]:
    """The different diffs in order of their first place, and for each place which of them it has.

    A diff is the same as itself and as no other, whatever it holds; None is a diff like the rest.
    """
    found: dict[int, int] = {}
    only: list[WeightDiff | None] = []
    for diff in diffs:
        if id(diff) not in found:
            found[id(diff)] = len(only)
            only.append(diff)
    return only, [found[id(diff)] for diff in diffs]


@dataclass(frozen=True)
class AnyKind:
    """A method that knows LoRAs only, for diffs of every kind: the others are merged, one by one."""

    base: Base
    method: Method

    @property
    def name(self) -> str:
        """The method's own."""
        return self.method.name

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """The method's answers; about a merged diff it is asked with none. Errors are those of `checked`."""
        diffs = checked(self.base, diffs, questions)
        out: dict[int, Answer] = {}
        for batch in batches(self.base, diffs, max(1, len(diffs))):
            with batch.merged(self.base):
                said = self.method.answer(batch.diffs, [questions[i] for i in batch.positions])
            out |= dict(zip(batch.positions, said, strict=True))
        return [out[i] for i in range(len(diffs))]
