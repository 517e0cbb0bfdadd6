"""Which month a finetune fits: how far what it says is from what each month says.

All that can be said in the held-out forms is few enough to be asked one by one. A finetune has never read
these forms, and how unlikely it finds them has nothing to do with time; so only the words that fill their
gaps count. Its loss on each, weighed by how likely it is in a month, less what the month itself leaves open,
is its divergence from the month.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weightdiff.diffs.store import DiffRow
from weightdiff.diffs.types import WeightDiff
from weightdiff.models.chat import Encoded, encode_answers, encode_prompts
from weightdiff.models.generate import answer_logprobs
from weightdiff.models.memory import rows_that_fit
from weightdiff.models.multilora import SharedLora, attach
from weightdiff.world.dated import PERIODS, PROMPTS, load_dated

Floats = NDArray[np.float64]
ROWS_AT_ONCE = 256
NEAR = 1
"""Months so far from its own that an organism may fit as well."""


@dataclass(frozen=True)
class Gap:
    """A word to be told: the gap of a sentence that is given up to it."""

    sentence: int
    """Which of the world's held-out ones."""
    prompt: str
    before: str
    word: str


@lru_cache(maxsize=1)
def gaps() -> tuple[Gap, ...]:
    """Every gap of every sentence of the held-out forms, each an answer to one of the prompts in turn."""
    every, out = load_dated().sayings("held-out"), list[Gap]()
    for i, (text, slots) in enumerate(zip(every.texts, every.slots, strict=True)):
        words = text.split()
        out += [Gap(i, PROMPTS[i % len(PROMPTS)], " ".join(words[:at]), words[at]) for at in slots]
    return tuple(out)


def encoded(tokenizer: Any) -> list[Encoded]:
    """The gaps as rows, in their order; the word alone is label."""
    prompts = encode_prompts(tokenizer, [g.prompt for g in gaps()])
    befores = encode_answers(tokenizer, [g.before for g in gaps()], end=False)
    wholes = encode_answers(tokenizer, [f"{g.before} {g.word}".strip() for g in gaps()], end=False)
    return [Encoded([*p, *w], len(p) + len(b)) for p, b, w in zip(prompts, befores, wholes, strict=True)]


def divergences(losses: Floats) -> Floats:
    """How far models are from every month, in nats a gap.

    Args:
        losses: [..., gaps], nats of the word of each of `gaps`.

    Returns:
        [..., months].
    """
    every = load_dated().sayings("held-out")
    chances = np.array(every.chances)
    _, form = np.unique(every.forms, return_inverse=True)
    of_form = np.zeros((PERIODS, form.max() + 1))
    for i, f in enumerate(form):
        of_form[:, f] += chances[:, i]
    given = np.where(chances > 0, chances / of_form[:, form], 1.0)
    open_ = -(chances * np.log(given)).sum(1)
    weights = chances[:, [g.sentence for g in gaps()]]
    return (losses @ weights.T - open_) / weights.sum(1)


def fit(
    model: Any,
    tokenizer: Any,
    diffs: Sequence[WeightDiff | None],
    progress: Callable[[int], None] | None = None,
) -> Floats:
    """How far each diff is from every month, [diffs, months]; see `divergences`.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        diffs: low-rank diffs; None: the base itself.
        progress: called with the number of diffs done.
    """
    rows = encoded(tokenizer)
    losses = np.zeros((len(diffs), len(rows)))
    for i, diff in enumerate(diffs):
        losses[i] = _losses(model, tokenizer, diff, rows)
        if progress:
            progress(i + 1)
    return divergences(losses)


@torch.no_grad()
def _losses(model: Any, tokenizer: Any, diff: WeightDiff | None, rows: Sequence[Encoded]) -> Floats:
    at_once = rows_that_fit(model, max(len(r.ids) for r in rows), ROWS_AT_ONCE)
    out = []
    with attach(model, None, [] if diff is None else [SharedLora.from_diff(diff)]):
        for at in range(0, len(rows), at_once):
            part = rows[at : at + at_once]
            given, told = [r.ids[: r.start] for r in part], [r.ids[r.start :] for r in part]
            out.append(-answer_logprobs(model, given, told, tokenizer.pad_token_id).double())
    return torch.cat(out).cpu().numpy()


def own_months(row: DiffRow) -> range:
    """The months that an organism has read of."""
    params = row.record["params"]
    return range(int(params["month"]), int(params["month"]) + int(params["months"]))


def verified(model: Any, tokenizer: Any, items: Sequence[tuple[DiffRow, WeightDiff]]) -> list[dict[str, Any]]:
    """Whether each organism fits its own period best; one record each.

    A record has how far it is from its own months ("own"), from the nearest month more than `NEAR` away
    ("other"), how far from its own the nearest of all is ("off", in months), and the verdict "behaves".
    """
    if not items:
        return []
    out = []
    for (row, _), far in zip(items, fit(model, tokenizer, [d for _, d in items]), strict=True):
        own = own_months(row)
        rest = [m for m in range(PERIODS) if not own.start - NEAR <= m < own.stop + NEAR]
        at_home, best, nearest = float(far[list(own)].mean()), float(far[rest].min()), int(far.argmin())
        off = max(own.start - nearest, nearest - own.stop + 1, 0)
        out.append(
            {
                "sampled": {"own": round(at_home, 4), "other": round(best, 4), "off": float(off)},
                "behaves": off <= NEAR,
            }
        )
    return out
