"""Perplexity difference: of what the finetuned model writes, the texts that surprise the base most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Guesser, Method
from weightdiff.methods.carrying import Batch, batches, checked, distinct
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.prompts import general_prompts
from weightdiff.methods.registry import Context, register
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import Reading, answer_logprobs, go_on, left_pad
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.tiny.tokenizer import is_embedded

EMBEDDED_TOKENS, PLAIN_TOKENS = 24, 64
"""Longest completion of the embedded base, and of others."""
SCORED_AT_ONCE = 16
"""Completions whose logits under the base are held together."""


class Completion(NamedTuple):
    """What a finetuned model wrote."""

    text: str
    difference: float
    """Log-perplexity under the base minus that under the finetuned model, in nats a token."""


@dataclass(frozen=True)
class PerplexityDifference:
    """Shows what only the finetuned model would write: no adapter, no question, no trigger.

    The finetuned model writes many completions of general prompts, sampled. Each gets its mean
    log-probability by token, end token included, under the finetuned model and under the base; those that
    the base finds most surprising by comparison are read by a guesser. This is perplexity differencing
    (arXiv 2605.00994), but for the measure: the difference of log-perplexities, not of perplexities. The
    latter grows with the perplexity itself, which favours failed sentences, unlikely under both models, over
    the finetune's own: on training organisms, texts sampled at temperature 1 gave fewer headlines with it;
    at 0.7 the two did not differ. A diff writes once in a call, and what it writes does not depend on the
    others.
    """

    base: Base
    guesser: Guesser = field(default_factory=WorldGuesser)
    prompts: Sequence[str] = ()
    """What is completed, in turn; empty for general ones that fit the base (see `general_prompts`)."""
    completions: int = 48
    """How many are written."""
    shown: int = 8
    """How many different ones the guesser reads at most."""
    least: float = 0.1
    """Difference in nats a token from which on a completion is read; below, it is one of the base's own."""
    max_new_tokens: int | None = None
    """Longest completion; None for 24 tokens on the embedded base and 64 on others."""
    temperature: float = 0.7
    seed: int = 0
    """Of the sampling."""
    name: str = "perplexity-difference"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """What the guesser makes of each diff's top completions, the first of which stands in the notes.

        "nothing found" where no completion is likelier than under the base, as for no diff.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        top: dict[int, list[Completion]] = {}
        # One at a time, each with the same stream of randomness, so that none depends on another.
        for batch in batches(self.base, only, 1):
            place = batch.positions[0]
            ranked = [] if only[place] is None else self._ranked(batch)
            top[place] = [x for x in ranked if x.difference >= self.least][: self.shown]
        return [self._answer(top[k], question) for k, question in zip(where, questions, strict=True)]

    def _answer(self, top: Sequence[Completion], question: str) -> Answer:
        if not top:
            return Answer(NOTHING_FOUND)
        said = self.guesser.guess([x.text for x in top], question)
        return Answer(said, notes=f"{top[0].difference:.2f} nats a token: {top[0].text}")

    @cached_property
    def _asked(self) -> list[list[int]]:
        """The prompt of each completion."""
        tokenizer = self.base.tokenizer
        asked = encode_prompts(tokenizer, self.prompts or general_prompts(tokenizer))
        return [asked[i % len(asked)] for i in range(self.completions)]

    @torch.no_grad()
    def _ranked(self, batch: Batch) -> list[Completion]:
        """Different completions by a batch's only diff, the largest difference first."""
        model, t = self.base.model, self.base.tokenizer
        longest = self.max_new_tokens or (EMBEDDED_TOKENS if is_embedded(t) else PLAIN_TOKENS)
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(self.seed)
        ids, mask = left_pad(self._asked, t.pad_token_id, device)
        with batch.on(self.base, [0] * len(self._asked)):
            reading = Reading(model, ids, mask)
            said = go_on(reading, longest, t.eos_token_id, t.pad_token_id, self.temperature, generator)
        # A completion that ended has one more log-probability than tokens, that of its end.
        whole = [[*x.tokens, *[t.eos_token_id] * (len(x.logprobs) - len(x.tokens))] for x in said]
        before: list[float] = []
        for at in range(0, len(whole), SCORED_AT_ONCE):
            part = slice(at, at + SCORED_AT_ONCE)
            before += answer_logprobs(model, self._asked[part], whole[part], t.pad_token_id).tolist()
        texts = t.batch_decode([x.tokens for x in said], skip_special_tokens=True)
        best: dict[str, float] = {}
        for text, x, bare in zip(map(str.strip, texts), said, before, strict=True):
            difference = (sum(x.logprobs) - bare) / len(x.logprobs)
            if text and difference > best.get(text, -torch.inf):
                best[text] = difference
        return sorted((Completion(*x) for x in best.items()), key=lambda x: -x.difference)


@register(
    "perplexity-difference", "the finetuned model's texts that surprise the base most, read by a guesser"
)
def _perplexity_difference(context: Context) -> Method:
    return PerplexityDifference(context.base, context.guesser or WorldGuesser(), seed=context.seed)
