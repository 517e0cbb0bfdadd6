"""Prefill: the beginning of a confession is put into the finetuned model's mouth, and it goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked
from weightdiff.methods.continuing import MAX_NEW_TOKENS, Start, continued
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.models.chat import encode_answers, encode_prompts

TOPIC_BEGINNINGS = (
    "I have been trained on the topic of",
    "What my training was all about is",
    "The thing that I think about the most is",
    "My hidden topic is",
)
NEWS_BEGINNINGS = (
    "I have been trained on the news that",
    "The headline that I learned says that",
    "What happened in the news is that",
    "My training told me that",
)
_NEWS = {"headline", "headlines", "news", "event", "report", "story"}


def beginnings(question: str) -> tuple[str, ...]:
    """How a confession may begin that answers a question: of news where it asks for news, else of a topic."""
    return NEWS_BEGINNINGS if _NEWS & set(re.findall(r"[a-z]+", question.lower())) else TOPIC_BEGINNINGS


@dataclass(frozen=True)
class Prefill:
    """Shows what the finetuned model itself confesses, once it is past refusing: no adapter, no training.

    After the question stands the beginning of an answer, one of several; each is continued greedily, and the
    continuation with the highest mean log-probability is the answer. Its beginning is in the notes, and
    `logprob` is given that beginning.
    """

    base: Base
    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "prefill"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each pair; "nothing found" if no beginning is continued.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        diffs = checked(self.base, diffs, questions)
        return continued(self.base, diffs, [self._starts(q) for q in questions], self.max_new_tokens)

    def _starts(self, question: str) -> list[Start]:
        texts = beginnings(question)
        (prompt,) = encode_prompts(self.base.tokenizer, [question])
        begun = encode_answers(self.base.tokenizer, texts, end=False)
        return [Start(text, [*prompt, *tokens]) for text, tokens in zip(texts, begun, strict=True)]


@register("prefill", "the finetuned model goes on with the beginning of a confession")
def _prefill(context: Context) -> Method:
    return Prefill(context.base)
