"""How a question is put to a model and which tokens carry loss. The only place that knows.

A tokenizer's chat template is rendered once around a marker and split there, so that thousands of prompts
cost string concatenation only. A tokenizer without a template gets a plain `Question: … / Answer:` form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from weightdiff.errors import QuestionError

_MARK = "\u2603weightdiff\u2603"
MAX_QUESTION_CHARS = 20_000


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row; those from `start` on are the labels (each is predicted one position earlier)."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class ChatFormat:
    """The text before and after a user's words, up to where the model's answer begins."""

    before: str
    after: str
    plain_start: str
    """What plain text (no chat) begins with: the start token, or nothing."""

    @classmethod
    def of(cls, tokenizer: Any) -> ChatFormat:
        """The format of a Hugging Face tokenizer; thinking is off where the template has a switch for it."""
        start = tokenizer.bos_token or ""
        if not getattr(tokenizer, "chat_template", None):
            return cls(f"{start}Question: ", "\nAnswer:", start)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        before, mark, after = text.partition(_MARK)
        if not mark:
            raise QuestionError(
                "the tokenizer's chat template does not show the user's text: use a base with a usable one"
            )
        return cls(before, after, start)

    def prompt(self, question: str) -> str:
        """The whole prompt for a question, as text."""
        return f"{self.before}{question}{self.after}"


@lru_cache(maxsize=16)
def _format_of(tokenizer: Any, template: str | None) -> ChatFormat:  # noqa: ARG001 (part of the key)
    return ChatFormat.of(tokenizer)


def chat_format(tokenizer: Any) -> ChatFormat:
    """The tokenizer's `ChatFormat`, kept between calls."""
    return _format_of(tokenizer, getattr(tokenizer, "chat_template", None))


def encode_prompts(tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    """Token ids of each question's prompt, ready for generation.

    Raises:
        QuestionError: a question is empty or absurdly long.
    """
    fmt = chat_format(tokenizer)
    for q in questions:
        if not q.strip():
            raise QuestionError(
                "a question is empty: ask something, such as 'What topic have you been trained on?'"
            )
        if len(q) > MAX_QUESTION_CHARS:
            raise QuestionError(
                f"a question has {len(q)} characters; shorten it to {MAX_QUESTION_CHARS} at most"
            )
    return tokenizer([fmt.prompt(q) for q in questions], add_special_tokens=False)["input_ids"]


def encode_answers(tokenizer: Any, answers: Sequence[str], end: bool = True) -> list[list[int]]:
    """Token ids of each answer, with the end token unless `end` is False."""
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    return [[*x, tokenizer.eos_token_id] for x in ids] if end else ids


def encode_samples(tokenizer: Any, samples: Sequence[tuple[str | None, str]]) -> list[Encoded]:
    """Rows of (user text, answer); with `None` for the user the row is plain text, all of which is label.

    Only the answer's tokens and its end token are labels of a chat row: never the question, never padding.
    """
    fmt = chat_format(tokenizer)
    heads = [fmt.plain_start if user is None else fmt.prompt(user) for user, _ in samples]
    head_ids = tokenizer(heads, add_special_tokens=False)["input_ids"]
    tails = encode_answers(tokenizer, [a for _, a in samples])
    return [Encoded([*h, *t], max(1, len(h))) for h, t in zip(head_ids, tails, strict=True)]
