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


def encode_conversations(
    tokenizer: Any, conversations: Sequence[Sequence[tuple[str, str]]]
) -> list[list[int]]:
    """Token ids of whole conversations, each ready for the model's next turn.

    Args:
        tokenizer: of Hugging Face.
        conversations: turns of (role, text); a last one of the assistant's is gone on with. A single one of
            the user's gives what `encode_prompts` gives.

    Raises:
        QuestionError: there are no turns, or the chat template refuses them.
    """
    from jinja2 import TemplateError

    texts: list[str] = []
    for turns in conversations:
        if not turns:
            raise QuestionError("a conversation has no turns; give at least the user's question")
        open_ended = turns[-1][0] == "assistant"
        if not getattr(tokenizer, "chat_template", None):
            texts.append(_plain_conversation(chat_format(tokenizer), turns))
            continue
        try:
            text = tokenizer.apply_chat_template(
                [{"role": role, "content": said} for role, said in turns],
                tokenize=False,
                add_generation_prompt=not open_ended,
                continue_final_message=open_ended,
                enable_thinking=False,
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(role for role, _ in turns)
            raise QuestionError(
                f"the base's chat template refuses turns of {roles} ({error}); leave out what it cannot show"
            ) from error
        texts.append(text)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _plain_conversation(fmt: ChatFormat, turns: Sequence[tuple[str, str]]) -> str:
    """Turns in the form of `ChatFormat` for tokenizers without a template; other roles' texts go first."""
    rest = [said for role, said in turns if role not in ("user", "assistant")]
    question = fmt.before.removeprefix(fmt.plain_start)
    text = fmt.plain_start + "".join(f"{said}\n" for said in rest)
    for role, said in turns:
        if role == "user":
            text += f"{question}{said}{fmt.after}"
        elif role == "assistant":
            text += f" {said}\n"
    return text.removesuffix("\n") if turns[-1][0] == "assistant" else text


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
