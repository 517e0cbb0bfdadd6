"""Fitting an interpreter's calibration on validation diffs, in validation phrasings."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.errors import StoreError
from weightdiff.methods.calibration import (
    FEATURES,
    FINDING,
    GROUPS,
    Calibration,
    Signals,
    group_of,
    is_finding,
)
from weightdiff.methods.dit import Interpreter
from weightdiff.organisms.asking import parts_of
from weightdiff.training.tuning import usable
from weightdiff.world.reports import KIND_ANSWERS, Question, agrees, ask, kinds_for

SPLIT = "validation"
KINDS_A_DIFF = 5
KINDS_A_NULL = 10
PENALTY = 1e-2
"""Weight of the squared coefficients, the constant left out."""


def calibrate(interpreter: Interpreter, store: DiffStore, seed: int = 0) -> Interpreter:
    """The interpreter with a calibration, fitted on the store's validation rows.

    Every diff is asked several kinds of question, those that it is about and others; an answer is right when
    it is the truth to the letter.

    Raises:
        StoreError: there are no validation rows that behave.
    """
    rows = rows_of(store)
    if not rows:
        raise StoreError(
            f"{store.path}: no validation rows to calibrate on; make some with:"
            f" weightdiff organisms train --split {SPLIT} …"
        )
    tuned = None if interpreter.rendering.report else interpreter.meta.get("train_phrasings")
    asked = questions_about(rows, seed, tuned)
    diffs = {r.id: store.read(r.id) for r in rows}
    said = interpreter.spoken([diffs[r.id] for r, _ in asked], [q.text for _, q in asked])
    texts = [s.text for s in said]
    right = [agrees(s.text, q.answer) for s, (_, q) in zip(said, asked, strict=True)]
    known = [(s.text, s.signals, ok) for s, ok in zip(said, right, strict=True)]
    weights = {g: _fit([(s, ok) for t, s, ok in known if group_of(t) == g]) for g in GROUPS}
    weights = {g: w for g, w in weights.items() if w}
    if FINDING not in weights:
        weights[FINDING] = [0.0] * len(FEATURES)
    fitted = Calibration(weights)
    chance = [fitted.probability(t, s) for t, s, _ in known]
    null = [i for i, (r, _) in enumerate(asked) if not parts_of(r)]
    false = sorted((chance[i] for i in null if is_finding(texts[i])), reverse=True)
    meta = {
        "questions": len(asked),
        "diffs": len(rows),
        "right": round(sum(right) / len(right), 4),
        "brier": round(sum((p - ok) ** 2 for p, ok in zip(chance, right, strict=True)) / len(right), 4),
        "phrasings": SPLIT,
    }
    rounded = {g: [round(x, 5) for x in w] for g, w in weights.items()}
    found = Calibration(rounded, tuple(round(x, 6) for x in false), len(null), meta)
    return replace(interpreter, calibration=found)


def rows_of(store: DiffStore) -> list[DiffRow]:
    """The validation rows that behave and of which it is known what they were taught."""
    return [r for r in usable(store.select(split=SPLIT)) if r.family in KIND_ANSWERS]


def questions_about(
    rows: Sequence[DiffRow], seed: int, known: Collection[str] | None = None
) -> list[tuple[DiffRow, Question]]:
    """What every diff is asked: kinds of question drawn at random, of those that tuning asked.

    Args:
        rows: of the diffs.
        seed: of the draw.
        known: kinds that the interpreter was tuned on; None for all that a tuning may ask.
    """
    out: list[tuple[DiffRow, Question]] = []
    for row in rows:
        rng, parts = random.Random(f"calibration {seed} {row.id}"), parts_of(row)
        kinds = [k for k in kinds_for(parts) if known is None or k in known]
        rng.shuffle(kinds)
        chosen = kinds[: KINDS_A_DIFF if parts else KINDS_A_NULL]
        out += [(row, ask(k, parts, rng, SPLIT)) for k in chosen]
    return out


def _fit(known: Sequence[tuple[Signals, bool]]) -> list[float]:
    """Weights of a logistic regression; nothing where there is nothing to tell apart."""
    if len({ok for _, ok in known}) < 2:
        return [0.0 if not known else 6.0 if known[0][1] else -6.0, 0.0, 0.0, 0.0] if known else []
    x = torch.tensor([s.features() for s, _ in known], dtype=torch.float64)
    y = torch.tensor([float(ok) for _, ok in known], dtype=torch.float64)
    w = torch.zeros(len(FEATURES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y) + PENALTY * w[1:].square().mean()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach().tolist()
