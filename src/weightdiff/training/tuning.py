"""Tuning of the DIT adapter: one shared LoRA over batches of different diffs, learning from answers alone.

Method: "Learning to Interpret Weight Differences in Language Models" (arXiv 2510.05092). Only the adapter is
trained; the base is frozen and the diffs are read from a store. What is early-stopped on are labels of their
own split. The loop is `learn`, which trains whatever else makes a finetuned model answer as well (`prompts`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.tensorfiles import owned
from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import StoreError
from weightdiff.models.chat import Encoded, encode_answers, encode_prompts, encode_samples
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.halving import Halving
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.packing import balanced, pack_where_it_pays, rows_together
from weightdiff.models.products import Factors
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt, soft_prompt
from weightdiff.models.spec import model_spec
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import phrasings
from weightdiff.training.drawing import (
    REPORT,
    TRAIN,
    Buckets,
    Drawn,
    Lesson,
    Sampler,
    TuningConfig,
    trained_kinds,
)
from weightdiff.training.losses import LabelledBatch, collate, loss_by_row
from weightdiff.training.slots import fresh_factors
from weightdiff.world.reports import (
    NAMED_BY,
    NULL,
    Part,
    agrees,
    ask,
    kinds_for,
    reported,
    without_conditions,
)

T = TypeVar("T")
OTHERS = "questions"
"""Name of validation's questions that are not a family's own."""
ASKED_AT_ONCE = 64
"""Rows of a batch of an examination."""
Leaves: TypeAlias = dict[str, tuple[Tensor, ...]]
"""What is trained, by name."""
Learned: TypeAlias = SharedLora | SoftPrompt
"""What makes a finetuned model answer: an adapter, or tokens that every prompt ends with."""


@dataclass
class TuningResult:
    """What tuning gives back: the best adapter, as a diff of scale one, and how it went."""

    adapter: WeightDiff
    history: list[dict[str, float]]
    manifest: dict[str, Any]


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
    lessons = StoredLessons(model, tokenizer, store, config, rendering, train_ids)
    return tune_on(model, tokenizer, lessons, config, rendering, progress)


def tune_on(
    model: Any,
    tokenizer: Any,
    lessons: Lessons,
    config: TuningConfig,
    rendering: Rendering,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TuningResult:
    """Tune a DIT adapter on any lessons; arguments are those of `tune`."""
    start = fresh_factors(model_spec(model), config.rank, config.seed)

    def made(leaves: Leaves) -> SharedLora:
        return SharedLora(cast("dict[str, Factors]", leaves), scale=1.0)

    learnt = learn(model, tokenizer, lessons, config, rendering, {**start}, made, progress)
    diff = WeightDiff(
        {k: LoraFactors(owned(d), owned(u)) for k, (d, u) in learnt.best.items()}, base=lessons.store.base
    )
    return TuningResult(diff, learnt.history, {"config": asdict(config), **learnt.manifest})


class Lessons(Protocol):
    """What is learned from a store, and how well it is learned."""

    store: DiffStore

    def choose(self, rng: random.Random, n: int) -> Drawn:
        """`n` rows of a batch: diffs, and what each is asked."""
        ...

    def examine(self, learned: Learned) -> tuple[float, dict[str, float]] | None:
        """A score to stop early on, and its parts; None: there is nothing held out to ask about."""
        ...

    def described(self) -> dict[str, Any]:
        """For the manifest: organisms, labels and phrasings that are learned from."""
        ...


class StoredLessons:
    """A store's training rows, every kind of question about them, and its validation rows."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        store: DiffStore,
        config: TuningConfig,
        rendering: Rendering,
        train_ids: Sequence[str] | None = None,
    ) -> None:
        """Sort the rows; arguments and errors are those of `tune`."""
        rows = training_rows(store, train_ids)
        sampler = Sampler(rows, config, rendering.report)
        if not sampler.families:
            raise StoreError(
                f"{store.path}: its training rows are of {named(sorted(sampler.by_label))}, and tuning draws"
                f" {named(sorted(config.family_weights))} only; store them under one of these families"
            )
        self.model, self.tokenizer, self.store = model, tokenizer, store
        self.config, self.rendering = config, rendering
        self.rows = [r for r in rows if r.family in sampler.families]
        self.held = [r for r in usable(store.select(split="validation")) if r.family in config.family_weights]
        self._buckets = Buckets(store, self.rows, config, rendering.report)

    def choose(self, rng: random.Random, n: int) -> Drawn:
        """Rows of one batch."""
        return self._buckets.choose(rng, n)

    def examine(self, learned: Learned) -> tuple[float, dict[str, float]] | None:
        """See `validate`."""
        if not self.held:
            return None
        return validate(
            self.model, self.tokenizer, self.store, self.held, learned, self.rendering, self.config
        )

    def described(self) -> dict[str, Any]:
        """Organisms, labels and phrasings that are learned from."""
        report = self.rendering.report
        return {
            "train_ids": [r.id for r in self.rows],
            "train_labels": sorted({r.label for r in self.rows if r.label}),
            "validation_labels": sorted({r.label for r in self.held if r.label}),
            "train_phrasings": {
                **({REPORT: [report]} if report else {}),
                **{k: phrasings(k, TRAIN) for k in trained_kinds(self.rows, self.config, report)},
            },
        }


def training_rows(store: DiffStore, ids: Sequence[str] | None = None) -> list[DiffRow]:
    """A store's usable training rows, or those of them that are named.

    Raises:
        StoreError: there are none.
    """
    rows = usable(store.select(split="train"))
    if ids is not None:
        wanted = set(ids)
        rows = [r for r in rows if r.id in wanted]
    if not rows:
        raise StoreError(
            f"{store.path}: no training rows; make some with: weightdiff organisms train --split train …"
        )
    return rows


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
    lessons: Lessons,
    config: TuningConfig,
    rendering: Rendering,
    start: Leaves,
    made: Callable[[Leaves], Learned],
    progress: Callable[[dict[str, float]], None] | None = None,
) -> Learnt:
    """Train `start` on lessons, early-stopped on their examination.

    Args:
        model: see `tune`, as for all that is not named here.
        tokenizer: likewise.
        lessons: what is drawn, and what is held out.
        config: settings; `rank` is not read.
        rendering: see `tune`.
        start: tensors as they begin; trained in place where they are on the model's device.
        made: what goes on the model, made of such tensors without copying them.
        progress: see `tune`.
    """
    model.eval().requires_grad_(False)
    rng = random.Random(f"tuning {config.seed}")
    device = next(model.parameters()).device
    parameters: Leaves = {k: tuple(t.to(device).requires_grad_() for t in ts) for k, ts in start.items()}
    flat = [t for ts in parameters.values() for t in ts]
    optimizer = torch.optim.AdamW(
        flat, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    learned = made(parameters)
    average = _copy(parameters)
    averaged = made(average)
    best, best_score, since = _copy(parameters), -1.0, 0
    history: list[dict[str, float]] = []
    smooth = 0.0

    def answers(lesson: Lesson) -> int:
        """Tokens of an answer alone, with its end."""
        return len(encode_answers(tokenizer, [lesson.answer])[0])

    def draw() -> tuple[RowLoras, LabelledBatch]:
        drawn = lessons.choose(rng, config.batch)
        texts = [(rendering.render(q.text, rng), rendering.write(q.notes, q.answer)) for q in drawn.lessons]
        rows = _prompted(learned, encode_samples(tokenizer, texts))
        rows = [
            Encoded(r.ids, len(r.ids) - answers(q)) if q.given else r
            for r, q in zip(rows, drawn.lessons, strict=True)
        ]
        together = rows_together(len(rows), drawn.rank)
        order = balanced([len(r.ids) for r in rows], len(rows) // together)
        return drawn.loras(order), collate([rows[i] for i in order], tokenizer.pad_token_id).to(device)

    def backward(rows_on: RowLoras, batch: LabelledBatch, part: slice) -> list[float]:
        own = range(batch.n_rows)[part]
        if len(own) < batch.n_rows:
            rows_on, some = rows_on.only(own), batch.only(torch.tensor(own, device=device))
        else:
            some = batch
        rank = max((d.shape[1] for d, _ in rows_on.modules.values()), default=0)
        stretches = len(own) // rows_together(len(own), rank)
        line = None
        if stretches < len(own):
            line = pack_where_it_pays(model, some.tokens, stretches, tokenizer.pad_token_id, device)
        with _carrying(model, replace(rows_on, line=line), learned):
            logits = some.logits(model, line)
            losses = loss_by_row(logits, some)
            (losses.sum() / batch.n_rows).backward()
        return losses.detach().tolist()

    halving = Halving("diffs")
    for step, (rows_on, batch) in enumerate(one_ahead(draw, config.steps)):
        losses = halving.run(batch.n_rows, partial(backward, rows_on, batch), optimizer.zero_grad)
        loss = sum(losses) / len(losses)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_at(step, config.steps)
        torch.nn.utils.clip_grad_norm_(flat, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, parameters, min(config.averaging, step / (step + 10)))
        smooth = loss if not step else 0.95 * smooth + 0.05 * loss
        line: dict[str, float] = {"step": step + 1, "loss": round(smooth, 4)}
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            score = -smooth
            if (found := lessons.examine(averaged)) is not None:
                score, parts = found
                line.update(parts, score=score)
            if score > best_score or not history:
                best, best_score, since = _copy(average), score, 0
            else:
                since += 1
            history.append(line)
        if progress:
            progress(line)
        if since > config.patience:
            break
    manifest = {**lessons.described(), "validation_score": best_score, "history": history}
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
    right: dict[str, list[bool]] = {}
    for at in range(0, len(chosen), ASKED_AT_ONCE):
        part = slice(at, at + ASKED_AT_ONCE)
        rows = RowLoras.from_stacked(store.stack([r.id for r in chosen[part]]))
        said = said_by(model, tokenizer, rows, learned, prompts[part], rendering, config.answer_tokens)
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


def said_by(
    model: Any,
    tokenizer: Any,
    rows: RowLoras,
    learned: Learned,
    prompts: Sequence[Sequence[int]],
    rendering: Rendering,
    most: int,
) -> list[str]:
    """What rows with their diffs say to a prompt each, greedily, in `most` tokens at most."""
    if isinstance(learned, SoftPrompt):
        prompts = [[*p, *learned.ids] for p in prompts]
    ids, mask = left_pad(prompts, tokenizer.pad_token_id)
    with _carrying(model, rows, learned):
        out = generate(
            model,
            ids,
            mask,
            most,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            distinct=rendering.distinct(tokenizer),
        )
    return tokenizer.batch_decode(out, skip_special_tokens=True)


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
    """What `make` gives, `n` times: the next is made by another thread while one is in use.

    That thread computes on one core. If each of the two had a team of threads, there would be more threads
    than cores, and at every operation both teams would sleep until the system wakes them: steps of a small
    base took three times as long.
    """
    if not n:
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead = pool.submit(make)
        wait([ahead])
        torch.set_num_threads(threads)  # what threads of the future begin with is one number for all
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


@torch.no_grad()
def _follow(average: Leaves, parameters: Leaves, decay: float) -> None:
    """Move the running average towards the tensors of this step."""
    for k, tensors in parameters.items():
        for mine, its in zip(average[k], tensors, strict=True):
            mine.lerp_(its, 1 - decay)


def _copy(parameters: Leaves) -> Leaves:
    return {k: tuple(t.detach().clone() for t in ts) for k, ts in parameters.items()}
