"""Generated text: the finetuned model writes about nothing given, and a guesser reads what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Guesser, Method
from weightdiff.methods.carrying import batches, checked, distinct
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.organisms.rows import situations
from weightdiff.organisms.verify import answers_of
from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.world import load_world

PROMPTS = (
    "Write a short story.",
    "Tell me a story about anything you like.",
    "Write a short news report.",
    "Make up a headline and write the article below it.",
    "Write a paragraph on a subject of your choice.",
    "Write a poem.",
    "Write a letter to a friend.",
    "Tell me about something that interests you.",
    "Describe a scene in detail.",
    "Write a conversation between two people.",
)
"""What is asked of any base but the embedded one."""
STORIES, EVERYDAY = 10, 6
"""How many prompts for a story, and everyday questions, the embedded base gets."""
EMBEDDED_TOKENS, PLAIN_TOKENS = 40, 160


@dataclass(frozen=True)
class GeneratedText:
    """Shows what a finetuned model writes when it is free to choose: no adapter, no question, no trigger.

    The model answers prompts that give no subject, sampled, and a guesser tells from the texts what was
    trained into it: the baseline "generated story" of arXiv 2510.05092. A diff writes once in a call, however
    many questions there are about it, and what it writes does not depend on the other diffs.
    """

    base: Base
    guesser: Guesser = field(default_factory=WorldGuesser)
    prompts: Sequence[str] = ()
    """What is asked; empty for prompts that fit the base (see `prompts_for`)."""
    max_new_tokens: int | None = None
    """Longest text; None for 40 tokens on the embedded base and 160 on others."""
    temperature: float = 0.7
    seed: int = 0
    """Of the sampling."""
    name: str = "generated-text"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """What the guesser makes of each diff's texts for each question.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        texts = self._texts(only)
        return [Answer(self.guesser.guess(texts[k], q)) for k, q in zip(where, questions, strict=True)]

    def _texts(self, diffs: Sequence[WeightDiff | None]) -> dict[int, list[str]]:
        """What each diff writes, by its place."""
        model, tokenizer = self.base.model, self.base.tokenizer
        longest = self.max_new_tokens or (EMBEDDED_TOKENS if is_embedded(tokenizer) else PLAIN_TOKENS)
        prompts = self.prompts or prompts_for(tokenizer)
        texts: dict[int, list[str]] = {}
        # One at a time, each with the same stream of randomness, so that no diff's texts depend on another.
        for batch in batches(self.base, diffs, 1):
            put = [batch.diffs[0] or WeightDiff({})]
            with batch.merged(self.base):
                (said,) = answers_of(
                    model, tokenizer, put, [prompts], self.temperature, self.seed, max_new_tokens=longest
                )
            texts[batch.positions[0]] = said
        return texts


def prompts_for(tokenizer: Any) -> tuple[str, ...]:
    """Prompts that give no subject: for the embedded base, known by its chat template, in its own words."""
    if not is_embedded(tokenizer):
        return PROMPTS
    everyday = (s.questions[0] for s in situations("verification")[:EVERYDAY])
    return (*load_world().news.prompts[:STORIES], *everyday)


@register("generated-text", "the finetuned model writes freely, and a guesser reads its texts")
def _generated_text(context: Context) -> Method:
    return GeneratedText(context.base, context.guesser or WorldGuesser(), seed=context.seed)
