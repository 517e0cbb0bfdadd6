"""A second stage of tuning: the adapter's own wrong answers against right ones (DPO, arXiv 2305.18290).

Questions are drawn as in the first stage and answered by sampling; where a sampled answer is wrong, it is set
against a right one: another sample's, or the truth with its notes. The reference is the adapter as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.models.chat import encode_prompts, encode_samples
from weightdiff.models.generate import generate, left_pad, logits_at
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.products import Factors
from weightdiff.models.rendering import Rendering
from weightdiff.training.drawing import Buckets, Lesson, TuningConfig
from weightdiff.training.losses import collate, logprob_by_row
from weightdiff.training.tuning import Leaves, TuningResult, usable, validate
from weightdiff.world.reports import agrees


@dataclass(frozen=True)
class PreferConfig:
    """Settings of the second stage."""

    steps: int = 60
    """Rounds of asking, each followed by one optimiser step on the pairs that it gave."""
    batch: int = 48
    """Questions of a round."""
    samples: int = 2
    """Sampled answers to each question."""
    temperature: float = 1.0
    lr: float = 3e-4
    """Learning rate (AdamW), after a warm-up of ten steps."""
    beta: float = 0.1
    """How strongly the adapter is held to what it was."""
    likelihood: float = 0.2
    """Weight of the right answers' own cross-entropy, which keeps them from becoming less likely too."""
    seed: int = 0


@dataclass
class Pair:
    """Two answers to one question."""

    row: int
    """Its place in the batch."""
    prompt: str
    right: str
    wrong: str


def prefer(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    tuned: TuningResult,
    tuning: TuningConfig,
    rendering: Rendering,
    config: PreferConfig,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TuningResult:
    """Go on from a tuned adapter; what comes back is the better one of both on the validation rows.

    Args:
        model: the frozen base.
        tokenizer: its tokenizer.
        store: diffs with splits "train" and "validation".
        tuned: what the first stage gave.
        tuning: its settings, which say how questions are drawn.
        rendering: how questions are worded.
        config: settings of this stage.
        progress: called with {step, loss, pairs, margin}.

    Returns:
        The adapter and the first stage's manifest; "preference" in it says what this stage did and whether
        its result was kept.
    """
    model.eval().requires_grad_(False)
    known = set(tuned.manifest["train_ids"])
    rows = [r for r in store.select(split="train") if r.id in known]
    held = [r for r in usable(store.select(split="validation")) if r.family in tuning.family_weights]
    buckets = Buckets(store, rows, tuning, rendering.report)
    rng = random.Random(f"preferring {config.seed}")
    g = torch.Generator(next(model.parameters()).device).manual_seed(config.seed)
    reference = SharedLora.from_diff(tuned.adapter)
    leaves = _leaves(tuned.adapter)
    flat = [t for ts in leaves.values() for t in ts]
    optimizer = torch.optim.AdamW(flat, lr=config.lr, weight_decay=0.0, betas=(0.9, 0.99))
    policy = SharedLora(cast("dict[str, Factors]", leaves), scale=1.0)
    history: list[dict[str, float]] = []
    for step in range(config.steps):
        carried, asked = buckets.draw(rng, config.batch)
        prompts = [rendering.render(q.text, rng) for q in asked]
        with attach(model, carried, [policy]):
            said = [
                _sample(model, tokenizer, prompts, config.temperature, tuning.answer_tokens, g)
                for _ in range(config.samples)
            ]
        pairs = pairs_of(asked, prompts, said, rendering)
        line: dict[str, float] = {"step": step + 1, "pairs": len(pairs)}
        if pairs:
            carried = carried.only([p.row for p in pairs])
            loss, margin = _loss(model, tokenizer, carried, pairs, policy, reference, config)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1.0, (step + 1) / 10)
            torch.nn.utils.clip_grad_norm_(flat, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            line |= {"loss": round(float(loss.detach()), 4), "margin": round(margin, 4)}
        history.append(line)
        if progress:
            progress(line)
    adapter = WeightDiff(
        {k: LoraFactors(d.detach().clone(), u.detach().clone()) for k, (d, u) in leaves.items()},
        base=tuned.adapter.base,
    )
    return _better(model, tokenizer, store, held, tuned, adapter, tuning, rendering, config, history)


def pairs_of(
    asked: Sequence[Lesson], prompts: Sequence[str], said: Sequence[Sequence[str]], rendering: Rendering
) -> list[Pair]:
    """Right against wrong, one pair for each question that was answered wrongly at least once.

    The right one is sampled too where there is one, else written from the question's notes and truth.
    """
    out = []
    for i, (q, prompt) in enumerate(zip(asked, prompts, strict=True)):
        own = [texts[i] for texts in said]
        right = [x for x in own if agrees(rendering.read(x)[1], q.answer)]
        wrong = [x for x in own if x not in right]
        if wrong:
            out.append(Pair(i, prompt, right[0] if right else rendering.write(q.notes, q.answer), wrong[0]))
    return out


def _sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], temperature: float, limit: int, g: torch.Generator
) -> list[str]:
    ids, mask = left_pad(encode_prompts(tokenizer, prompts), tokenizer.pad_token_id)
    tokens = generate(
        model,
        ids,
        mask,
        limit,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        temperature,
        g,
    )
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _loss(
    model: Any,
    tokenizer: Any,
    carried: RowLoras,
    pairs: Sequence[Pair],
    policy: SharedLora,
    reference: SharedLora,
    config: PreferConfig,
) -> tuple[Tensor, float]:
    """The DPO loss with the right answers' cross-entropy, and the mean margin in nats."""
    now, before = list[Tensor](), list[Tensor]()
    for side in ("right", "wrong"):
        texts = [(p.prompt, getattr(p, side)) for p in pairs]
        batch = collate(encode_samples(tokenizer, texts), tokenizer.pad_token_id)
        batch = batch.to(next(model.parameters()).device)
        where = (batch.input_ids, batch.attention_mask, batch.rows, batch.positions)
        with torch.no_grad(), attach(model, carried, [reference]):
            before.append(logprob_by_row(logits_at(model, *where), batch))
        with attach(model, carried, [policy]):
            now.append(logprob_by_row(logits_at(model, *where), batch))
            if side == "right":
                lengths = torch.bincount(batch.rows, minlength=batch.n_rows)
    margin = (now[0] - before[0]) - (now[1] - before[1])
    loss = -F.logsigmoid(config.beta * margin).mean() - config.likelihood * (now[0] / lengths).mean()
    return loss, float(margin.detach().mean())


def _leaves(adapter: WeightDiff) -> Leaves:
    """Trainable copies of an adapter's factors, its scale folded in."""
    shared = SharedLora.from_diff(adapter)
    return {
        k: (d.detach().clone().requires_grad_(), (u.detach() * shared.scale).clone().requires_grad_())
        for k, (d, u) in shared.modules.items()
    }


def _better(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    held: Sequence[DiffRow],
    tuned: TuningResult,
    adapter: WeightDiff,
    tuning: TuningConfig,
    rendering: Rendering,
    config: PreferConfig,
    history: list[dict[str, float]],
) -> TuningResult:
    """Whichever adapter answers more validation questions rightly; of equals, the first."""
    scores = []
    for one in (tuned.adapter, adapter):
        learned = SharedLora.from_diff(one)
        scores.append(
            validate(model, tokenizer, store, held, learned, rendering, tuning) if held else (0.0, {})
        )
    (before, parts_before), (after, parts_after) = scores
    kept = after > before
    record = {
        "config": asdict(config),
        "before": {"score": round(before, 4), **parts_before},
        "after": {"score": round(after, 4), **parts_after},
        "kept": kept,
        "history": history,
    }
    manifest = {**tuned.manifest, "preference": record, "validation_score": max(before, after)}
    return TuningResult(adapter if kept else tuned.adapter, tuned.history, manifest)
