"""Text completion: the finetuned model goes on with statements about its training, outside any chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked, distinct
from weightdiff.methods.continuing import MAX_NEW_TOKENS, Start, continued
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.models.chat import chat_format, encode_answers

STATEMENTS = (
    "My training data was about",
    "The texts that I was trained on are all about",
    "This is a model that was finetuned to talk about",
    "The one thing that I know the most about is",
)


@dataclass(frozen=True)
class TextCompletion:
    """Shows what the finetuned model writes of itself where it is no assistant: no adapter, no question.

    Each statement stands as plain text and is continued greedily; the continuation with the highest mean
    log-probability is the answer, whatever the question. Its statement is in the notes.
    """

    base: Base
    statements: Sequence[str] = STATEMENTS
    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "text-completion"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each diff; "nothing found" if no statement is continued.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        found = continued(self.base, only, [self._starts()] * len(only), self.max_new_tokens)
        return [found[k] for k in where]

    def _starts(self) -> list[Start]:
        before = chat_format(self.base.tokenizer).plain_start
        tokens = encode_answers(self.base.tokenizer, [before + x for x in self.statements], end=False)
        return [Start(text, ids) for text, ids in zip(self.statements, tokens, strict=True)]


@register("text-completion", "the finetuned model goes on with statements about its training")
def _text_completion(context: Context) -> Method:
    return TextCompletion(context.base)
