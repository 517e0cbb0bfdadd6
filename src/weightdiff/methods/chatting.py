"""A finetuned model in conversation: the base with one diff, and with a DIT adapter where one is given.

Methods in this package ask about many diffs at once; here one model answers many conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.carrying import Batch, fitted, goes_on_rows
from weightdiff.methods.loading import Base
from weightdiff.models.generate import Reading, go_on, left_pad
from weightdiff.models.multilora import SharedLora, attach

UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Reply:
    """What a model said to one conversation."""

    text: str
    tokens: list[int]
    """Without the end token."""
    logprobs: list[float]
    """Of each token, in nats."""
    ended: Literal["stop", "max_tokens", "model_length"]
    """"stop": it ended, or a stop text came; "model_length": the model has no room for more."""


@dataclass(frozen=True)
class Prompt:
    """One conversation, and how far the model may go on."""

    ids: list[int]
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the reply and are not of it."""


class FinetunedModel:
    """A base that carries one diff, ready to go on with conversations."""

    def __init__(self, base: Base, diff: WeightDiff | None, adapter: WeightDiff | None = None) -> None:
        """Check that the diff is one of this base.

        Args:
            base: left as it is between calls.
            diff: of any kind; None for the bare base.
            adapter: a DIT adapter on top, as an interpreter holds it.

        Raises:
            BaseMismatchError: the diff is of another base.
            NonFiniteError: the diff holds NaN or infinity.
        """
        self.base, self.adapter = base, adapter
        self.diff = None if diff is None else fitted(base, diff)

    @property
    def positions(self) -> int:
        """Most tokens of conversation and reply together."""
        config = self.base.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return int(getattr(text, "max_position_embeddings", None) or UNBOUNDED)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a reply."""
        settings = getattr(self.base.model, "generation_config", None)
        own: Any = getattr(settings, "eos_token_id", None)
        listed = own if isinstance(own, list) else [own]
        return sorted({i for i in (*listed, self.base.tokenizer.eos_token_id) if i is not None})

    def reply(
        self, prompts: Sequence[Prompt], temperature: float = 0.0, seed: int | None = None
    ) -> list[Reply]:
        """Go on with every conversation, all in one batch.

        Args:
            prompts: conversations; one that fills the model gets an empty reply.
            temperature: 0 takes the likeliest token.
            seed: of sampling; None: other words every time. What is drawn depends on the whole batch.
        """
        limits = [min(p.max_tokens, self.positions - len(p.ids)) for p in prompts]
        rows = [i for i, limit in enumerate(limits) if limit > 0]
        out = [Reply("", [], [], "model_length") for _ in prompts]
        if not rows:
            return out
        pad = self.base.tokenizer.pad_token_id
        ids, mask = left_pad([prompts[i].ids for i in rows], pad)
        device = next(self.base.model.parameters()).device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        with torch.no_grad(), self._carrying():
            reading = Reading(self.base.model, ids, mask)
            most = max(limits[i] for i in rows)
            said = go_on(reading, most, self.end_ids, pad, temperature, generator)
        for i, found in zip(rows, said, strict=True):
            tokens = found.tokens[: limits[i]]
            ended = len(found.logprobs) > len(found.tokens) and len(found.tokens) < limits[i]
            short = "max_tokens" if limits[i] == prompts[i].max_tokens else "model_length"
            reply = Reply(
                self._text(tokens), tokens, found.logprobs[: len(tokens)], "stop" if ended else short
            )
            out[i] = self._stopped(reply, prompts[i].stop)
        return out

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """The base with the diff and the adapter on it."""
        on_rows = self.diff is None or goes_on_rows(self.base, self.diff)
        loras = [SharedLora.from_diff(d) for d in (self.diff if on_rows else None, self.adapter) if d]
        with (
            Batch([], [], None if on_rows else self.diff).merged(self.base),
            attach(self.base.model, None, loras),
        ):
            yield

    def _text(self, tokens: Sequence[int]) -> str:
        return self.base.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _stopped(self, reply: Reply, stop: Sequence[str]) -> Reply:
        """A reply up to the first of the stop texts, with the tokens that it took to say that text."""
        places = [at for text in stop if text and (at := reply.text.find(text)) >= 0]
        if not places:
            return reply
        n = next(
            n
            for n in range(1, len(reply.tokens) + 1)
            if any(s in self._text(reply.tokens[:n]) for s in stop if s)
        )
        return Reply(reply.text[: min(places)], reply.tokens[:n], reply.logprobs[:n], "stop")
