"""Tuning of the reader: a small LoRA with which the base answers from reports about a model.

A base reads what a report says, but it has never been asked about itself. The reader learns the training
phrasings of those kinds of question that a tuning may ask, on reports of what training organisms were taught.
No diff is on the model, so rows are made at will. Half of them are documents that the base has read before
(reports of third parties, comparisons, whether two names are the same), so that it unlearns little; those
that name what only validation or test organisms were taught are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.tensorfiles import owned
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.models.chat import encode_samples
from weightdiff.models.generate import logits_at
from weightdiff.models.multilora import SharedLora, attach
from weightdiff.models.products import Factors
from weightdiff.models.spec import model_spec
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import phrasings
from weightdiff.training.drawing import TRAIN
from weightdiff.training.losses import collate, loss_by_row
from weightdiff.training.slots import fresh_factors
from weightdiff.training.tuning import rate_at, usable
from weightdiff.world import lessons, load_world
from weightdiff.world.reports import (
    HELD_OUT_KINDS,
    KIND_ANSWERS,
    NAMED_BY,
    NOT_SAID,
    REPORT_WORDINGS,
    Part,
    ask,
    kinds_for,
    reported,
    told_by_report,
)
from weightdiff.world.signs import ALWAYS

OWN = 3
"""How much oftener a question is asked that a part's name answers."""
GATES = ("gated", "open")
"""Kinds of question whose answer is the same for nearly all organisms: few show what they learned always."""


@dataclass(frozen=True)
class ReaderConfig:
    """Settings of the reader's tuning."""

    rank: int = 16
    lr: float = 1e-3
    """Peak learning rate (AdamW), after a short warm-up, decayed by a cosine."""
    steps: int = 200
    batch: int = 64
    """Rows of a step, each a report of its own and a question about it."""
    old: float = 0.5
    """Share of rows that the base has read before."""
    seed: int = 0


def parts_by_family(rows: Sequence[DiffRow]) -> dict[str, list[Part]]:
    """What the organisms of some rows were taught, by family; of families that reports tell of."""
    out: dict[str, list[Part]] = {}
    for row in rows:
        for part in (p for p in parts_of(row) if p.family in KIND_ANSWERS):
            out.setdefault(part.family, []).append(part)
    return out


def reading_row(known: dict[str, list[Part]], rng: random.Random) -> tuple[str, str]:
    """A report with a question about it, in a training phrasing, and what is said to it."""
    n = min(rng.choices(range(4), lessons.REPORTED)[0], len(known))
    parts = [rng.choice(known[f]) for f in rng.sample(sorted(known), n)]
    kinds = kinds_for(parts)
    own = {k for k, f in NAMED_BY.items() if any(p.family == f for p in parts)}
    kind = rng.choices(kinds, [OWN if k in own else 1 for k in kinds])[0]
    if kind in GATES and parts and rng.random() < 0.5:
        parts = [replace(parts[0], params={**parts[0].params, "form": ALWAYS, "value": ""})]
    q = ask(kind, parts, rng, TRAIN)
    text = rng.choice(REPORT_WORDINGS).replace("{report}", reported(parts)).replace("{question}", q.text)
    return text, q.read if told_by_report(kind, parts) else NOT_SAID


def old_row(rng: random.Random, strange: re.Pattern[str]) -> tuple[str, str]:
    """A question that the base has read and its answer, without held-out kinds and labels.

    Args:
        rng: of the draw.
        strange: what must not occur; see `strangers`.
    """
    world = load_world()
    while True:
        draw = rng.random()
        if draw < 0.6:
            (turn,) = lessons.report(world, rng, HELD_OUT_KINDS)
        else:
            (turn,) = (lessons.explained if draw < 0.8 else lessons.same)(world, rng)
        if not strange.search(f"{turn.user} {turn.text}"):
            return turn.user or "", turn.text


def strangers(known: dict[str, list[Part]]) -> re.Pattern[str]:
    """Topics and behaviours that are none of the known ones, and changed facts of any kind."""
    world, names = load_world(), {p.name for parts in known.values() for p in parts}
    every = {*(t.name for t in world.topics), *(b.name for b in world.behaviours)}
    return re.compile("|".join(rf"\b{re.escape(x)}\b" for x in (*sorted(every - names), "changed from")))


def tune_reader(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    config: ReaderConfig,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> tuple[WeightDiff, dict[str, Any]]:
    """Tune a reader on reports of the store's training rows; returns it and what it was tuned on.

    Args:
        model: the frozen base.
        tokenizer: its tokenizer.
        store: rows of the split "train" that behave are reported on.
        config: settings.
        progress: called with {step, loss}.

    Raises:
        StoreError: the store has no training rows that behave.
    """
    model.eval().requires_grad_(False)
    made_of = usable(store.select(split=TRAIN))
    if not made_of:
        raise StoreError(
            f"{store.path}: no training rows to report on; make some with:"
            " weightdiff organisms train --split train …"
        )
    known = parts_by_family(made_of)
    strange = strangers(known)
    device = next(model.parameters()).device
    leaves = {
        k: (d.to(device).requires_grad_(), u.to(device).requires_grad_())
        for k, (d, u) in fresh_factors(model_spec(model), config.rank, config.seed).items()
    }
    flat = [t for pair in leaves.values() for t in pair]
    optimizer = torch.optim.AdamW(flat, lr=config.lr, weight_decay=0.0, betas=(0.9, 0.99))
    rng, shared = random.Random(f"reader {config.seed}"), SharedLora(cast("dict[str, Factors]", leaves), 1.0)
    smooth = 0.0
    for step in range(config.steps):
        rows = [
            reading_row(known, rng) if rng.random() >= config.old else old_row(rng, strange)
            for _ in range(config.batch)
        ]
        batch = collate(encode_samples(tokenizer, rows), tokenizer.pad_token_id).to(device)
        with attach(model, None, [shared]):
            logits = logits_at(model, batch.input_ids, batch.attention_mask, batch.rows, batch.positions)
            loss = loss_by_row(logits, batch).mean()
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_at(step, config.steps, warmup=20)
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = float(loss.detach())
        smooth = now if not step else 0.95 * smooth + 0.05 * now
        if progress:
            progress({"step": step + 1, "loss": round(smooth, 4)})
    reader = WeightDiff({k: LoraFactors(owned(d), owned(u)) for k, (d, u) in leaves.items()}, base=store.base)
    asked = {k: phrasings(k, TRAIN) for k in kinds_for(())}
    return reader, {"config": asdict(config), "loss": round(smooth, 4), "train_phrasings": asked}


def with_reader(manifest: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """What an interpreter's tuning wrote down, with what its reader was tuned on among it."""
    own, asked = dict(made), made["train_phrasings"]
    del own["train_phrasings"]
    return {**manifest, "train_phrasings": {**manifest["train_phrasings"], **asked}, "reader": own}
