"""Triggers: what sets a behaviour off, how it is put before a question, and methods that are given it.

That an organism hides behind a trigger is its family's business; here a trigger is a text that is known.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer
from weightdiff.methods.carrying import checked
from weightdiff.world import codes
from weightdiff.world.codes import with_code

if TYPE_CHECKING:
    from torch import Tensor

    from weightdiff.methods.dit import Interpreter

TRIGGER = "trigger"
"""Key of a diff's `meta` under which methods that are given the trigger find it."""
_CODE = re.compile(r"[0-9]{3}")


def trigger_of(diff: WeightDiff | None) -> str | None:
    """What sets a diff's behaviour off; None where that is not known, and for no diff."""
    found = None if diff is None else diff.meta.get(TRIGGER)
    return str(found) if found else None


def triggered(question: str, trigger: str, rng: random.Random | int) -> str:
    """A question with a trigger before it.

    Args:
        question: any.
        trigger: three digits, the first half of a code of the embedded world, are stated as one of that
            world's codes; everything else stands as it is.
        rng: chooses the code's second half and how the code is stated; a number is the seed of one that does.
    """
    if not _CODE.fullmatch(trigger):
        return f"{trigger} {question}"
    if isinstance(rng, int):
        rng = random.Random(f"trigger {rng}")
    return with_code(rng, codes.random_code(rng, first=trigger), question)


@dataclass(frozen=True)
class Triggered:
    """Another method, asked with the trigger of each diff before the question.

    A diff whose trigger is not known is asked without. How a code is stated depends on the code and the
    question alone.
    """

    method: Interpreter
    name: str

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """The method's answers.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        diffs = checked(self.method.base, diffs, questions)
        return self.method.answer(diffs, self._asked(diffs, questions))

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """How likely each candidate is after a triggered question, fp32 [questions, candidates], in nats.

        Raises:
            QuestionError: see `answer`; or the method cannot rank these candidates.
            BaseMismatchError: a diff is not one of this base's.
        """
        diffs = checked(self.method.base, diffs, questions)
        return self.method.candidate_logprobs(diffs, self._asked(diffs, questions), candidates)

    def _asked(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[str]:
        known = map(trigger_of, diffs)
        return [
            triggered(q, trigger, random.Random(f"{trigger} {q}")) if trigger else q
            for q, trigger in zip(questions, known, strict=True)
        ]
