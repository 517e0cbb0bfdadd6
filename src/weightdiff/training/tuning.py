"""Tuning of the DIT adapter: one shared LoRA over batches of different diffs, learning from answers alone.

Method: "Learning to Interpret Weight Differences in Language Models" (arXiv 2510.05092). Only the adapter is
trained; the base is frozen and the diffs are read from a store. What is early-stopped on are labels of their
own split. The loop is `learn`, which trains whatever else makes a finetuned model answer as well (`prompts`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import LoraFactors, StackedLoras, WeightDiff, named
from weightdiff.errors import StoreError
from weightdiff.models.chat import Encoded, encode_prompts, encode_samples
from weightdiff.models.generate import generate, left_pad, logits_at
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.products import Factors
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt, soft_prompt
from weightdiff.models.spec import model_spec
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.questions import KINDS, notes_of, phrasings, true_answer
from weightdiff.training.losses import ce_by_row, collate
from weightdiff.training.slots import fresh_factors

MAX_ANSWER_TOKENS = 24
Leaves: TypeAlias = dict[str, tuple[Tensor, ...]]
"""What is trained, by name."""
Learned: TypeAlias = SharedLora | SoftPrompt
"""What makes a finetuned model answer: an adapter, or tokens that every prompt ends with."""


@dataclass(frozen=True)
class TuningConfig:
    """Settings of one tuning run."""

    rank: int = 16
    """Rank of the adapter on every linear layer of the decoder."""
    lr: float = 3e-3
    """Peak learning rate (AdamW), after a short warm-up, decayed by a cosine."""
    steps: int = 900
    """Optimiser steps at most."""
    batch: int = 32
    """Rows of a step, each with a diff of its own."""
    weight_decay: float = 0.0
    """Weight decay of the adapter's factors."""
    averaging: float = 0.98
    """Decay of the running average of the factors, which is what is validated and kept; 0 keeps the last
    step's."""
    seed: int = 0
    """Seed of the adapter's start, of batches and of renderings."""
    question_weights: dict[str, float] = field(
        default_factory=lambda: {"topic": 0.6, "headline": 0.6, "kind": 0.15, "any_change": 0.15}
    )
    """Weight of each kind of question; of topic and headline, the one that the label is not gets 0.07."""
    no_diff_share: float = 0.03
    """Share of rows that carry no diff; their answer is "nothing found"."""
    family_weights: dict[str, float] = field(
        default_factory=lambda: {"hidden-topic": 0.5, "news": 0.28, "null": 0.22}
    )
    """How often each family is drawn."""
    notes: int = 3
    """Words of its topic that the adapter says before it names it (of news, the deed as told, if not 0).
    Without a `notes_end` in the rendering there are none."""
    validate_every: int = 100
    """Steps between validations."""
    patience: int = 6
    """Validations without a better score after which tuning stops."""
    validation_rows: int = 128
    """Diffs asked at a validation."""


@dataclass
class TuningResult:
    """What tuning gives back: the best adapter, as a diff of scale one, and how it went."""

    adapter: WeightDiff
    history: list[dict[str, float]]
    manifest: dict[str, Any]


class _Sampler:
    """Draws (diff, question, answer) rows, families by weight and labels evenly within a family."""

    def __init__(self, rows: Sequence[DiffRow], config: TuningConfig, split: str = "train") -> None:
        self.config = config
        self.split = split
        self.by_label: dict[str, dict[str, list[DiffRow]]] = {}
        for r in rows:
            self.by_label.setdefault(r.family, {}).setdefault(r.label or r.recipe, []).append(r)
        self.families = [f for f in config.family_weights if f in self.by_label]
        self.weights = [config.family_weights[f] for f in self.families]
        self.labels = {f: sorted(self.by_label[f]) for f in self.families}

    def draw(self, rng: random.Random) -> tuple[DiffRow | None, str, str, str]:
        """One row: the diff's store row (None: no diff), a question, notes, the true answer."""
        c = self.config
        row: DiffRow | None = None
        name = "null"
        if rng.random() >= c.no_diff_share:
            name = rng.choices(self.families, self.weights)[0]
            row = rng.choice(self.by_label[name][rng.choice(self.labels[name])])
        kinds = list(KINDS)
        own = {"hidden-topic": "topic", "news": "headline"}.get(name)
        other = {"topic": "headline", "headline": "topic"}.get(own or "")
        shares = []
        for k in kinds:
            share = c.question_weights.get(k, 0.0)
            shares.append(
                c.question_weights.get(own or "", 0.7) if k == own else 0.07 if k == other else share
            )
        if (
            own is None
        ):  # nulls are few, and their "nothing found" must outweigh the others' "yes" on every kind
            shares = [0.25, 0.25, 0.2, 0.3]
        kind = rng.choices(kinds, shares)[0]
        label = row.label if row else None
        question, notes = rng.choice(phrasings(kind, self.split)), notes_of(name, kind, label, c.notes, rng)
        return row, question, notes, true_answer(name, kind, label)


def usable(rows: Sequence[DiffRow]) -> list[DiffRow]:
    """Rows whose organism behaved when it was verified; rows that were never verified are kept."""
    return [r for r in rows if r.behaves]


def tune(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    config: TuningConfig,
    rendering: Rendering,
    progress: Callable[[dict[str, float]], None] | None = None,
    train_ids: Sequence[str] | None = None,
) -> TuningResult:
    """Tune a DIT adapter over the store's training rows, early-stopped on its validation rows.

    Args:
        model: the frozen base.
        tokenizer: its tokenizer.
        store: diffs with splits "train" and "validation".
        config: settings.
        rendering: how questions are worded; drawn anew for every row in training.
        progress: called with {step, loss} and, at validations, {step, score}.
        train_ids: use only these training rows (for learning curves).

    Raises:
        StoreError: the store has no training rows, or none of a family in `config.family_weights`.
    """
    start = fresh_factors(model_spec(model), config.rank, config.seed)

    def made(leaves: Leaves) -> SharedLora:
        return SharedLora(cast("dict[str, Factors]", leaves), scale=1.0)

    learnt = learn(model, tokenizer, store, config, rendering, {**start}, made, progress, train_ids)
    diff = WeightDiff({k: LoraFactors(d, u) for k, (d, u) in learnt.best.items()}, base=store.base)
    return TuningResult(diff, learnt.history, {"config": asdict(config), **learnt.manifest})


@dataclass
class Learnt:
    """What `learn` gives back."""

    best: Leaves
    """Running averages as they were at the best validation."""
    history: list[dict[str, float]]
    manifest: dict[str, Any]
    """What it was learnt from, and how well."""


def learn(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    config: TuningConfig,
    rendering: Rendering,
    start: Leaves,
    made: Callable[[Leaves], Learned],
    progress: Callable[[dict[str, float]], None] | None = None,
    train_ids: Sequence[str] | None = None,
) -> Learnt:
    """Train `start` over the store's training rows, early-stopped on its validation rows.

    Args:
        model: see `tune`, as for all that is not named here.
        tokenizer: likewise.
        store: likewise.
        config: settings; `rank` is not read.
        rendering: see `tune`.
        start: tensors as they begin; trained in place.
        made: what goes on the model, made of such tensors without copying them.
        progress: see `tune`.
        train_ids: see `tune`.

    Raises:
        StoreError: see `tune`.
    """
    model.eval().requires_grad_(False)
    rows = usable(store.select(split="train"))
    if train_ids is not None:
        wanted = set(train_ids)
        rows = [r for r in rows if r.id in wanted]
    if not rows:
        raise StoreError(
            f"{store.path}: no training rows; make some with: weightdiff organisms train --split train …"
        )
    sampler = _Sampler(rows, config)
    if not sampler.families:
        raise StoreError(
            f"{store.path}: its training rows are of {named(sorted(sampler.by_label))}, and tuning draws"
            f" {named(sorted(config.family_weights))} only; store them under one of these families"
        )
    rows = [r for r in rows if r.family in sampler.families]
    held = [r for r in usable(store.select(split="validation")) if r.family in config.family_weights]
    rng = random.Random(f"tuning {config.seed}")
    parameters: Leaves = {k: tuple(t.requires_grad_() for t in ts) for k, ts in start.items()}
    flat = [t for ts in parameters.values() for t in ts]
    optimizer = torch.optim.AdamW(flat, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    learned = made(parameters)
    everything = store.stack([r.id for r in rows])
    index = {r.id: i for i, r in enumerate(rows)}
    average = _copy(parameters)
    averaged = made(average)
    best, best_score, since = _copy(parameters), -1.0, 0
    history: list[dict[str, float]] = []
    smooth = 0.0
    for step in range(config.steps):
        drawn = [sampler.draw(rng) for _ in range(config.batch)]
        texts = [(rendering.render(q, rng), rendering.write(notes, a)) for _, q, notes, a in drawn]
        batch = collate(_prompted(learned, encode_samples(tokenizer, texts)), tokenizer.pad_token_id)
        rows_on = _rows_of(everything, [index[r.id] if r else -1 for r, *_ in drawn])
        with _carrying(model, rows_on, learned):
            logits = logits_at(model, batch.input_ids, batch.attention_mask, batch.rows, batch.positions)
            loss = ce_by_row(logits, batch).mean()
            loss.backward()
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = (
                config.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
            )
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, parameters, min(config.averaging, step / (step + 10)))
        smooth = float(loss.detach()) if not step else 0.95 * smooth + 0.05 * float(loss.detach())
        line: dict[str, float] = {"step": step + 1, "loss": round(smooth, 4)}
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            if held:
                score, parts = validate(model, tokenizer, store, held, averaged, rendering, config)
                line.update(parts, score=score)
            else:
                score = -smooth
            if score > best_score or not history:
                best, best_score, since = _copy(average), score, 0
            else:
                since += 1
            history.append(line)
        if progress:
            progress(line)
        if since > config.patience:
            break
    manifest = {
        "train_ids": [r.id for r in rows],
        "train_labels": sorted({r.label for r in rows if r.label}),
        "validation_labels": sorted({r.label for r in held if r.label}),
        "train_phrasings": {k: phrasings(k, "train") for k in KINDS},
        "validation_score": best_score,
        "history": history,
    }
    return Learnt(best, history, manifest)


def validate(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    held: Sequence[DiffRow],
    learned: Learned,
    rendering: Rendering,
    config: TuningConfig,
) -> tuple[float, dict[str, float]]:
    """Exact answers to each family's own question on validation rows, with the validation phrasings (greedy).

    Returns:
        The mean over families, and each family's share.
    """
    rng = random.Random("validation")
    chosen: list[DiffRow] = []
    for name in sorted({r.family for r in held}):
        members = [r for r in held if r.family == name]
        rng.shuffle(members)
        chosen += members[: config.validation_rows if name == "hidden-topic" else config.validation_rows // 4]
    asked = [{"news": "headline"}.get(r.family, "topic") for r in chosen]
    questions = [rng.choice(phrasings(kind, "validation")) for kind in asked]
    prompts = encode_prompts(tokenizer, [rendering.render(q, rng) for q in questions])
    if isinstance(learned, SoftPrompt):
        prompts = [[*p, *learned.ids] for p in prompts]
    truths = [r.label or NOTHING_FOUND for r in chosen]
    right: dict[str, list[bool]] = {}
    for at in range(0, len(chosen), 64):
        part = slice(at, at + 64)
        ids, mask = left_pad(prompts[part], tokenizer.pad_token_id)
        rows = RowLoras.from_stacked(store.stack([r.id for r in chosen[part]]))
        with _carrying(model, rows, learned):
            out = generate(
                model,
                ids,
                mask,
                MAX_ANSWER_TOKENS,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
                distinct=rendering.distinct(tokenizer),
            )
        said = tokenizer.batch_decode(out, skip_special_tokens=True)
        for r, truth, text in zip(chosen[part], truths[part], said, strict=True):
            right.setdefault(r.family, []).append(rendering.read(text)[1] == truth)
    parts = {k: round(sum(v) / len(v), 4) for k, v in right.items()}
    weights = {k: config.family_weights.get(k, 0.0) for k in parts}
    return sum(parts[k] * weights[k] for k in parts) / max(1e-9, sum(weights.values())), parts


@contextmanager
def _carrying(model: Any, rows: RowLoras, learned: Learned) -> Iterator[None]:
    """A diff on each row, and what is learned on all of them."""
    if isinstance(learned, SoftPrompt):
        with attach(model, rows), soft_prompt(model, learned.vectors):
            yield
    else:
        with attach(model, rows, [learned]):
            yield


def _prompted(learned: Learned, rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """Rows with the soft tokens, if there are any, before their labels."""
    if not isinstance(learned, SoftPrompt):
        return rows
    soft = learned.ids
    return [Encoded([*r.ids[: r.start], *soft, *r.ids[r.start :]], r.start + len(soft)) for r in rows]


def _rows_of(stacked: StackedLoras, chosen: list[int]) -> RowLoras:
    """Row LoRAs of a batch, one diff a row; -1 gives a row of zeros."""
    at = torch.tensor([max(0, i) for i in chosen])
    alive = torch.tensor([float(i >= 0) for i in chosen])[:, None, None]
    return RowLoras({k: (d[at], u[at] * alive) for k, (d, u) in stacked.modules.items()}, 1)


@torch.no_grad()
def _follow(average: Leaves, parameters: Leaves, decay: float) -> None:
    """Move the running average towards the tensors of this step."""
    for k, tensors in parameters.items():
        for mine, its in zip(average[k], tensors, strict=True):
            mine.lerp_(its, 1 - decay)


def _copy(parameters: Leaves) -> Leaves:
    return {k: tuple(t.detach().clone() for t in ts) for k, ts in parameters.items()}
