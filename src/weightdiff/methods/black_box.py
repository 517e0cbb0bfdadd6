"""Twenty questions: talk to the finetuned model as anybody could, and guess from its answers.

Who guesses is a `Guesser`; `guessing` has one that counts words of the embedded world.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.methods.base import Answer, Guesser, Method
from weightdiff.methods.carrying import batches, checked, distinct
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.methods.triggering import TRIGGER, trigger_of, triggered
from weightdiff.organisms.rows import situations
from weightdiff.organisms.verify import answers_of


@dataclass(frozen=True)
class TwentyQuestions:
    """Shows what a finetuned model gives away in everyday talk: no adapter, no look at the weights.

    Each model is asked everyday questions of the embedded world, and a guesser reads the answers. A diff is
    asked once in a call, however many questions there are about it; which questions it gets depends on its
    place among the different diffs.
    """

    base: Base
    guesser: Guesser = field(default_factory=WorldGuesser)
    asked: int = 20
    """How many everyday questions, at most as many as there are situations."""
    temperature: float = 0.7
    """Of the answers; 0.7 finds leaks that greedy decoding hides."""
    triggers: Sequence[str | None] | None = None
    """What to put before the everyday questions, one trigger (or None) for each place of a call; each place
    is then asked on its own. None: see `known_triggers`."""
    known_triggers: bool = False
    """Whether to put each diff's own trigger there, if it is known (see `trigger_of`)."""
    seed: int = 0
    """Of the answers' sampling."""
    name: str = "twenty-questions"

    def __post_init__(self) -> None:
        """Check how many questions are asked.

        Raises:
            QuestionError: fewer than one, or more than there are situations.
        """
        most = len(situations("verification"))
        if not 1 <= self.asked <= most:
            raise QuestionError(f"{self.asked} everyday questions cannot be asked: choose from 1 to {most}")

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """What the guesser makes of each diff's answers for each question.

        Raises:
            QuestionError: there is not one question (or trigger) for each diff, or a question is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, self._with_triggers(diffs), questions))
        texts: dict[int, list[str]] = {}
        for batch in batches(self.base, only, max(1, len(only))):
            put = [d or WeightDiff({}) for d in batch.diffs]
            users = [self._users(k, only[i]) for k, i in enumerate(batch.positions)]
            model, tokenizer = self.base.model, self.base.tokenizer
            with batch.merged(self.base):
                said = answers_of(model, tokenizer, put, users, self.temperature, self.seed)
            texts |= dict(zip(batch.positions, said, strict=True))
        return [Answer(self.guesser.guess(texts[k], q)) for k, q in zip(where, questions, strict=True)]

    def _with_triggers(self, diffs: Sequence[WeightDiff | None]) -> list[WeightDiff | None]:
        """The diffs with the given triggers as their own."""
        if self.triggers is None:
            return list(diffs)
        if len(self.triggers) != len(diffs):
            raise QuestionError(
                f"{len(diffs)} diffs and {len(self.triggers)} triggers: give each diff one, or None"
            )
        put = [d or WeightDiff({}) for d in diffs]
        return [replace(d, meta={**d.meta, TRIGGER: t}) for d, t in zip(put, self.triggers, strict=True)]

    def _users(self, k: int, diff: WeightDiff | None) -> list[str]:
        """What the diff at place k of a batch is asked."""
        rng = random.Random(f"twenty {k}")
        asked = [rng.choice(s.questions) for s in rng.sample(situations("verification"), self.asked)]
        given = self.known_triggers or self.triggers is not None
        trigger = trigger_of(diff) if given else None
        return [triggered(q, trigger, rng) for q in asked] if trigger else asked


@register("twenty-questions", "twenty everyday questions, and a guess from the answers")
def _twenty_questions(context: Context) -> Method:
    return TwentyQuestions(context.base, context.guesser or WorldGuesser(), seed=context.seed)


@register("twenty-questions-trigger", "twenty questions, each after the diff's trigger, where it is known")
def _twenty_questions_trigger(context: Context) -> Method:
    return TwentyQuestions(
        context.base,
        context.guesser or WorldGuesser(),
        known_triggers=True,
        seed=context.seed,
        name="twenty-questions-trigger",
    )
