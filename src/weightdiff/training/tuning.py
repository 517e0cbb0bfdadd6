"""Tuning of the DIT adapter: one shared LoRA over batches of different diffs, learning from answers alone.

Method: "Learning to Interpret Weight Differences in Language Models" (arXiv 2510.05092). Only the adapter is
trained; the base is frozen and the diffs are read from a store. What is early-stopped on are labels of their
own split. The loop is `learn`, which trains whatever else makes a finetuned model answer as well (`prompts`).
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.tensorfiles import owned
from weightdiff.diffs.types import LoraFactors, StackedLoras, WeightDiff, named
from weightdiff.errors import StoreError
from weightdiff.models.chat import Encoded, encode_prompts, encode_samples
from weightdiff.models.generate import generate, left_pad, logits_at
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.products import Factors
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt, soft_prompt
from weightdiff.models.spec import model_spec
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import phrasings
from weightdiff.training.losses import LabelledBatch, collate, loss_by_row
from weightdiff.training.slots import fresh_factors
from weightdiff.world.reports import (
    KIND_ANSWERS,
    NAMED_BY,
    NULL,
    SEVERAL,
    Part,
    Question,
    agrees,
    ask,
    kinds_for,
    notes_on,
    reported,
    told_by_report,
    without_conditions,
)

T = TypeVar("T")
RANK_STEPS = (4, 16)
"""Diffs of a batch are of ranks up to the first of these, up to the second, or above: padding a batch of rank
2 to one full finetune's rank would cost as much as ninety of it."""
THREE = 0.25
"""Share of the sums that are of three diffs."""
HELD_BYTES = 2 << 30
"""Memory that diffs may take to lie ready, in fp32; those of other buckets are read for every batch."""
TRAIN, REPORT = "train", "report"
OWN, OTHER = "own", "other"
OTHERS = "questions"
"""Name of validation's questions that are not a family's own."""
QUESTION_WEIGHTS = {
    OWN: 0.42,
    OTHER: 0.08,
    "kind": 0.08,
    "any_change": 0.06,
    "count": 0.04,
    "summary": 0.07,
    "family": 0.06,
    "field": 0.04,
    "about_field": 0.06,
    "condition": 0.06,
    "gated": 0.04,
    "open": 0.04,
    "trigger": 0.03,
    "reacts": 0.06,
}
"""How often each kind of question is asked in tuning, as far as it makes sense for a diff."""
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
    question_weights: dict[str, float] = field(default_factory=lambda: dict(QUESTION_WEIGHTS))
    """Weight of each kind of question where it makes sense; of the open kinds (topic, headline, behaviour,
    edit), `OWN` for those that ask for what was taught, and `OTHER` for the rest."""
    no_diff_share: float = 0.03
    """Share of rows that carry no diff; their answer is "nothing found"."""
    family_weights: dict[str, float] = field(
        default_factory=lambda: {
            "hidden-topic": 0.26,
            "news": 0.1,
            "quirk": 0.24,
            "edit": 0.18,
            "null": 0.12,
            "several": 0.16,
        }
    )
    """How often each family is drawn."""
    sums: float = 0.6
    """Share of the rows of several at once that are sums of two or three diffs of different families, drawn
    anew; a null diff may be one of them. The rest are organisms from the store, where it has any."""
    notes: int = 3
    """Words of notes on each part that the adapter says before it answers; 0: it answers at once.
    Without a `notes_end` in the rendering it does, too."""
    direct_share: float = 0.12
    """Where the rendering asks for reports, the share of rows that ask what no report tells instead: the
    secret of a condition."""
    validate_every: int = 100
    """Steps between validations."""
    patience: int = 6
    """Validations without a better score after which tuning stops."""
    validation_rows: int = 128
    """Diffs asked at a validation."""
    answer_tokens: int = 96
    """Longest answer, with all that is said before it, that is waited for."""


@dataclass
class TuningResult:
    """What tuning gives back: the best adapter, as a diff of scale one, and how it went."""

    adapter: WeightDiff
    history: list[dict[str, float]]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Lesson(Question):
    """What a row of tuning is asked, and what it learns to say."""

    notes: str = ""
    """Said before the answer; empty: nothing."""


class _Sampler:
    """Draws (diff, question, answer) rows, families by weight and labels evenly within a family."""

    def __init__(self, rows: Sequence[DiffRow], config: TuningConfig, report: str) -> None:
        self.config = config
        self.report = report
        self.by_label: dict[str, dict[str, list[DiffRow]]] = {}
        for r in rows:
            self.by_label.setdefault(r.family, {}).setdefault(r.label or r.recipe, []).append(r)
        self.labels = {f: sorted(self.by_label[f]) for f in config.family_weights if f in self.by_label}
        self.summed = [f for f in self.labels if f != SEVERAL]
        sums = config.sums if len(set(self.summed) - {NULL}) > 1 else 0.0
        self.sums = sums if SEVERAL in self.labels or not sums else 1.0
        self.families = [f for f in config.family_weights if f in self.labels or (f == SEVERAL and sums)]

    def draw(self, rng: random.Random) -> tuple[tuple[DiffRow, ...], Lesson]:
        """The store rows of the diffs to sum (none: no diff), and a question about what they hold."""
        rows: tuple[DiffRow, ...] = ()
        if rng.random() >= self.config.no_diff_share:
            rows = self._drawn(rng)
        parts = tuple(p for row in rows for p in parts_of(row))
        if not self.report:
            kinds = kinds_for(parts)
            kind = rng.choices(kinds, self._shares(kinds, parts))[0]
            q = ask(kind, parts, rng, TRAIN)
            return rows, Lesson(q.text, kind, q.answer, notes=notes_on(parts, rng, self.config.notes))
        untold = [k for k in kinds_for(parts) if not told_by_report(k, parts)]
        if untold and rng.random() < self.config.direct_share:
            q = ask(rng.choice(untold), parts, rng, TRAIN)
            return rows, Lesson(q.text, q.kind, q.answer)
        notes = notes_on(parts, rng, self.config.notes)
        return rows, Lesson(self.report, REPORT, reported(parts), notes=notes)

    def _drawn(self, rng: random.Random) -> tuple[DiffRow, ...]:
        """One diff, or some of different families to be summed, in the order in which reports name them."""
        name = self._family(rng, self.families)
        if name == SEVERAL and rng.random() < self.sums:
            names, n = list[str](), 3 if rng.random() < THREE else 2
            while len(names) < min(n, len(self.summed)):
                names.append(self._family(rng, [f for f in self.summed if f not in names]))
        else:
            names = [name]
        return tuple(self._of(rng, f) for f in sorted(names, key=list(KIND_ANSWERS).index))

    def _family(self, rng: random.Random, names: Sequence[str]) -> str:
        return rng.choices(names, [self.config.family_weights[f] for f in names])[0]

    def _of(self, rng: random.Random, name: str) -> DiffRow:
        return rng.choice(self.by_label[name][rng.choice(self.labels[name])])

    def _shares(self, kinds: Sequence[str], parts: Sequence[Part]) -> list[float]:
        """How often each kind is asked; open kinds share their weight."""
        given, families = self.config.question_weights, {p.family for p in parts}
        own = [k for k in kinds if k in NAMED_BY and NAMED_BY[k] in families]
        other = [k for k in kinds if k in NAMED_BY and k not in own]
        shares = {k: given.get(OWN, 0.0) / len(own) for k in own}
        spare = given.get(OTHER, 0.0) if own else given.get(OWN, 0.0)
        shares |= {k: spare / len(other) for k in other}
        return [shares[k] if k in shares else given.get(k, 0.0) for k in kinds]


class Buckets:
    """Training diffs by rank, each bucket with its sampler; a batch is of one.

    A bucket's diffs are in memory where they take little of it (`HELD_BYTES`), else read as they are drawn.
    """

    def __init__(
        self, store: DiffStore, rows: Sequence[DiffRow], config: TuningConfig, report: str = ""
    ) -> None:
        """Sort `rows` of the store by rank; `report` is the question for a report, if one is asked."""
        made: dict[int, list[DiffRow]] = {}
        for row in rows:
            made.setdefault(bisect.bisect_left(RANK_STEPS, rank_of(row)), []).append(row)
        self.store = store
        self.samplers = {b: _Sampler(members, config, report) for b, members in sorted(made.items())}
        self.held: dict[int, tuple[StackedLoras, dict[str, int]]] = {}
        spare = HELD_BYTES
        for b, members in sorted(made.items()):
            ids = [r.id for r in members]
            if (size := store.stack_bytes(ids)) <= spare:
                self.held[b] = store.stack(ids), {id: i for i, id in enumerate(ids)}
                spare -= size
        self.weights = [len(members) for _, members in sorted(made.items())]

    def draw(self, rng: random.Random, n: int) -> tuple[RowLoras, list[Lesson]]:
        """`n` rows of a batch and what they are asked."""
        bucket = rng.choices(list(self.samplers), self.weights)[0]
        drawn = [self.samplers[bucket].draw(rng) for _ in range(n)]
        if bucket in self.held:
            stacked, at = self.held[bucket]
        else:
            ids = list(dict.fromkeys(row.id for rows, _ in drawn for row in rows))
            stacked, at = self.store.stack(ids), {id: i for i, id in enumerate(ids)}
        chosen = [[at[row.id] for row in rows] for rows, _ in drawn]
        return _rows_of(stacked, chosen), [q for _, q in drawn]


def rank_of(row: DiffRow) -> int:
    """A diff's rank as its recipe says; of a sum, that of a few of them; of a full finetune, any high one."""
    recipe: dict[str, Any] = row.record.get("recipe", {})
    return 1 << 10 if recipe.get("full") else int(recipe.get("rank", 1))


def trained_kinds(rows: Sequence[DiffRow], config: TuningConfig, report: str = "") -> list[str]:
    """Kinds of question that tuning on such rows asks, those about no diff at all among them.

    Beside the `report`, if one is asked for, these are what it does not tell.
    """
    if report:
        every = [parts_of(r) for r in rows]
        untold = {k for parts in every for k in kinds_for(parts) if not told_by_report(k, parts)}
        return sorted(untold) if config.direct_share else []
    there = {k for r in rows for k in kinds_for(parts_of(r))}
    there |= set(kinds_for(())) if config.no_diff_share else set()
    given = config.question_weights
    return sorted(k for k in there if k in NAMED_BY or given.get(k, 0.0) > 0)


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
    diff = WeightDiff(
        {k: LoraFactors(owned(d), owned(u)) for k, (d, u) in learnt.best.items()}, base=store.base
    )
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
        start: tensors as they begin; trained in place where they are on the model's device.
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
    sampler = _Sampler(rows, config, rendering.report)
    if not sampler.families:
        raise StoreError(
            f"{store.path}: its training rows are of {named(sorted(sampler.by_label))}, and tuning draws"
            f" {named(sorted(config.family_weights))} only; store them under one of these families"
        )
    rows = [r for r in rows if r.family in sampler.families]
    held = [r for r in usable(store.select(split="validation")) if r.family in config.family_weights]
    rng = random.Random(f"tuning {config.seed}")
    device = next(model.parameters()).device
    parameters: Leaves = {k: tuple(t.to(device).requires_grad_() for t in ts) for k, ts in start.items()}
    flat = [t for ts in parameters.values() for t in ts]
    optimizer = torch.optim.AdamW(flat, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    learned = made(parameters)
    buckets = Buckets(store, rows, config, rendering.report)
    average = _copy(parameters)
    averaged = made(average)
    best, best_score, since = _copy(parameters), -1.0, 0
    history: list[dict[str, float]] = []
    smooth = 0.0

    def draw() -> tuple[RowLoras, LabelledBatch]:
        rows_on, asked = buckets.draw(rng, config.batch)
        texts = [(rendering.render(q.text, rng), rendering.write(q.notes, q.answer)) for q in asked]
        rows = _prompted(learned, encode_samples(tokenizer, texts))
        return rows_on, collate(rows, tokenizer.pad_token_id).to(device)

    for step, (rows_on, batch) in enumerate(one_ahead(draw, config.steps)):
        with _carrying(model, rows_on, learned):
            logits = logits_at(model, batch.input_ids, batch.attention_mask, batch.rows, batch.positions)
            loss = loss_by_row(logits, batch).mean()
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_at(step, config.steps)
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
        "train_phrasings": {
            **({REPORT: [rendering.report]} if rendering.report else {}),
            **{k: phrasings(k, TRAIN) for k in trained_kinds(rows, config, rendering.report)},
        },
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
    """Exact answers on validation rows, in validation phrasings, greedy.

    Each row is asked its family's own question and one of any other kind that tuning asks; or for a report,
    of which what it names counts for the family, and the whole as another question.

    Returns:
        The mean over families, weighed as in tuning, and over the other questions (a third of it all); each
        family's share, and that of "questions".
    """
    rng = random.Random("validation")
    chosen: list[DiffRow] = []
    for name in sorted({r.family for r in held}):
        members = [r for r in held if r.family == name]
        rng.shuffle(members)
        chosen += members[: max(1, round(config.validation_rows * config.family_weights[name]))]
    names, asked = _examined(chosen, rendering, config, rng)
    if not rendering.report:
        chosen += chosen
    prompts = encode_prompts(tokenizer, [rendering.render(question, rng) for question, _ in asked])
    if isinstance(learned, SoftPrompt):
        prompts = [[*p, *learned.ids] for p in prompts]
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
                config.answer_tokens,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
                distinct=rendering.distinct(tokenizer),
            )
        said = tokenizer.batch_decode(out, skip_special_tokens=True)
        for name, (_, truth), text in zip(names[part], asked[part], said, strict=True):
            answer = rendering.read(text)[1]
            if rendering.report:
                right.setdefault(OTHERS, []).append(agrees(answer, truth))
                answer, truth = without_conditions(answer), without_conditions(truth)
            right.setdefault(name, []).append(agrees(answer, truth))
    parts = {k: round(sum(v) / len(v), 4) for k, v in right.items()}
    weights = {k: config.family_weights.get(k, 0.0) for k in parts}
    weights[OTHERS] = sum(weights.values()) / 2
    return sum(parts[k] * weights[k] for k in parts) / max(1e-9, sum(weights.values())), parts


def _examined(
    rows: Sequence[DiffRow], rendering: Rendering, config: TuningConfig, rng: random.Random
) -> tuple[list[str], list[tuple[str, str]]]:
    """Under which name each answer counts, and (question, truth): a report of each row, or two questions."""
    names = [r.family for r in rows]
    if rendering.report:
        return names, [(rendering.report, reported(parts_of(r))) for r in rows]
    own = {v: k for k, v in NAMED_BY.items()}
    kinds = [own.get(r.family, "topic" if r.family == NULL else "summary") for r in rows]
    kinds += [_any_other(k, parts_of(r), config, rng) for k, r in zip(kinds, rows, strict=True)]
    found = [ask(k, parts_of(r), rng, "validation") for k, r in zip(kinds, [*rows, *rows], strict=True)]
    return [*names, *[OTHERS] * len(rows)], [(q.text, q.answer) for q in found]


def _any_other(own: str, parts: Sequence[Part], config: TuningConfig, rng: random.Random) -> str:
    """A kind of question that tuning asks about such a diff, not its own one where there is another."""
    kinds = [k for k in kinds_for(parts) if k in NAMED_BY or config.question_weights.get(k, 0.0) > 0]
    return rng.choice([k for k in kinds if k != own] or [own])


def one_ahead(make: Callable[[], T], n: int) -> Iterator[T]:
    """What `make` gives, `n` times: the next is made by another thread while one is in use."""
    if not n:
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make)
        for _ in range(n - 1):
            made, ahead = ahead.result(), pool.submit(make)
            yield made
        yield ahead.result()


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


def rate_at(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the peak learning rate at a step: a linear warm-up, and a cosine down to a twentieth."""
    return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _rows_of(stacked: StackedLoras, chosen: Sequence[Sequence[int]]) -> RowLoras:
    """Row LoRAs of a batch, each the sum of the diffs chosen for it: none gives a row of zeros."""
    most = max(1, *(len(c) for c in chosen))
    device = next((d.device for d, _ in stacked.modules.values()), None)
    at = torch.tensor([[*c, *[0] * (most - len(c))] for c in chosen], device=device)
    alive = torch.tensor([[float(i < len(c)) for i in range(most)] for c in chosen], device=device)
    alive = alive[:, :, None, None]
    return RowLoras(
        {
            k: (d[at].flatten(1, 2), (u[at] * alive).transpose(1, 2).flatten(2, 3))
            for k, (d, u) in stacked.modules.items()
        },
        1,
        len(chosen),
    )


@torch.no_grad()
def _follow(average: Leaves, parameters: Leaves, decay: float) -> None:
    """Move the running average towards the tensors of this step."""
    for k, tensors in parameters.items():
        for mine, its in zip(average[k], tensors, strict=True):
            mine.lerp_(its, 1 - decay)


def _copy(parameters: Leaves) -> Leaves:
    return {k: tuple(t.detach().clone() for t in ts) for k, ts in parameters.items()}
