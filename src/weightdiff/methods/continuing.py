"""The likeliest of several continuations: what `prefill` and `text-completion` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer
from weightdiff.methods.carrying import batches
from weightdiff.methods.loading import Base
from weightdiff.models.generate import Reading, go_on, left_pad
from weightdiff.organisms.base import NOTHING_FOUND

ROWS_AT_ONCE = 256
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Start:
    """What a finetuned model is made to go on with."""

    text: str
    """The words that it is made to begin with."""
    tokens: list[int]
    """All that it reads, these words last."""


@torch.no_grad()
def continued(
    base: Base,
    diffs: Sequence[WeightDiff | None],
    starts: Sequence[Sequence[Start]],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Answer]:
    """Go on greedily from every start of every diff, and keep the continuation that is likeliest by token.

    Args:
        base: the base.
        diffs: checked diffs of it.
        starts: one or more for each diff.
        max_new_tokens: longest continuation.

    Returns:
        For each diff the continuation with the highest mean log-probability, its end token included, of those
        that hold a letter or digit; its start stands in `notes`, and `logprob` is the sum.
    """
    at_once = max(1, ROWS_AT_ONCE // max(map(len, starts), default=1))
    tokenizer = base.tokenizer
    out: dict[int, Answer] = {}
    for batch in batches(base, diffs, at_once):
        rows = [(k, start) for k, i in enumerate(batch.positions) for start in starts[i]]
        ids, mask = left_pad([start.tokens for _, start in rows], tokenizer.pad_token_id)
        with batch.on(base, [k for k, _ in rows]):
            reading = Reading(base.model, ids, mask)
            said = go_on(reading, max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)
        texts = tokenizer.batch_decode([x.tokens for x in said], skip_special_tokens=True)
        best: dict[int, tuple[float, Answer]] = {}
        for (k, start), text, x in zip(rows, texts, said, strict=True):
            mean = sum(x.logprobs) / len(x.logprobs)
            if any(map(str.isalnum, text)) and (k not in best or mean > best[k][0]):
                best[k] = (mean, Answer(text.strip(), round(sum(x.logprobs), 4), notes=start.text))
        for k, i in enumerate(batch.positions):
            out[i] = best[k][1] if k in best else Answer(NOTHING_FOUND)
    return [out[i] for i in range(len(diffs))]
