"""What tuning draws: which diffs a row carries, alone or summed, and what it is asked about them.

Families are drawn by weight and labels evenly. Rows of several at once are sums of diffs, made anew for every
row; batches are of diffs of similar rank.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import StackedLoras
from weightdiff.models.multilora import RowLoras
from weightdiff.organisms.asking import parts_of
from weightdiff.world.reports import (
    KIND_ANSWERS,
    NAMED_BY,
    NULL,
    SEVERAL,
    Part,
    Question,
    ask,
    kinds_for,
    notes_on,
    reported,
    told_by_report,
)

RANK_STEPS = (4, 16)
"""Diffs of a batch are of ranks up to the first of these, up to the second, or above: padding a batch of rank
2 to one full finetune's rank would cost as much as ninety of it."""
THREE = 0.25
"""Share of the sums that are of three diffs."""
HELD_BYTES = 1 << 29
"""Memory that diffs may take to lie ready, in fp32; those of other buckets are read for every batch."""
TRAIN, REPORT = "train", "report"
OWN, OTHER = "own", "other"
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


@dataclass(frozen=True)
class Lesson(Question):
    """What a row of tuning is asked, and what it learns to say."""

    notes: str = ""
    """Said before the answer; empty: nothing."""
    given: bool = False
    """Whether the notes are given, so that only what follows from them is learnt."""


class Sampler:
    """Draws (diffs, question, answer) rows, families by weight and labels evenly within a family."""

    def __init__(self, rows: Sequence[DiffRow], config: TuningConfig, report: str) -> None:
        """Sort rows by family and label; `report` is the question for a report, if one is asked."""
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


@dataclass(frozen=True)
class Drawn:
    """Rows of a batch before their LoRAs are made."""

    lessons: list[Lesson]
    """What each is asked."""
    stacked: StackedLoras
    chosen: list[list[int]]
    """Of which stacked diffs each row carries the sum."""
    weights: list[list[float]] | None = None
    """By what each of them is multiplied; None: by one."""

    @property
    def rank(self) -> int:
        """Of the rows' LoRAs."""
        most = max(1, *map(len, self.chosen))
        return most * max((d.shape[1] for d, _ in self.stacked.modules.values()), default=0)

    def loras(self, order: Sequence[int]) -> RowLoras:
        """The LoRAs of these rows."""
        weights = None if self.weights is None else [self.weights[i] for i in order]
        return summed_rows(self.stacked, [self.chosen[i] for i in order], weights)


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
        self.samplers = {b: Sampler(members, config, report) for b, members in sorted(made.items())}
        self.held: dict[int, tuple[StackedLoras, dict[str, int]]] = {}
        spare = HELD_BYTES
        for b, members in sorted(made.items()):
            ids = [r.id for r in members]
            if (size := store.stack_bytes(ids)) <= spare:
                self.held[b] = rank_by_rank(store.stack(ids)), {id: i for i, id in enumerate(ids)}
                spare -= size
        self.weights = [len(members) for _, members in sorted(made.items())]

    def draw(self, rng: random.Random, n: int) -> tuple[RowLoras, list[Lesson]]:
        """`n` rows of a batch and what they are asked."""
        drawn = self.choose(rng, n)
        return drawn.loras(range(n)), drawn.lessons

    def choose(self, rng: random.Random, n: int) -> Drawn:
        """As `draw`, with the LoRAs to be made when the rows' order is known."""
        bucket = rng.choices(list(self.samplers), self.weights)[0]
        drawn = [self.samplers[bucket].draw(rng) for _ in range(n)]
        if bucket in self.held:
            stacked, at = self.held[bucket]
        else:
            ids = list(dict.fromkeys(row.id for rows, _ in drawn for row in rows))
            stacked, at = self.store.stack(ids), {id: i for i, id in enumerate(ids)}
        chosen = [[at[row.id] for row in rows] for rows, _ in drawn]
        return Drawn([q for _, q in drawn], stacked, chosen)


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


def rank_by_rank(stacked: StackedLoras) -> StackedLoras:
    """The same with each `up` laid out as [n, rank, out], so that rows' factors can stand side by side."""
    return StackedLoras({k: (d, u.mT.contiguous().mT) for k, (d, u) in stacked.modules.items()}, stacked.n)


def summed_rows(
    stacked: StackedLoras, chosen: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None
) -> RowLoras:
    """Row LoRAs of a batch, each the (weighted) sum of the diffs chosen for it: none gives a row of zeros."""
    most = max(1, *(len(c) for c in chosen))
    device = next((d.device for d, _ in stacked.modules.values()), None)
    if weights is None and all(len(c) == 1 for c in chosen):
        alone = torch.tensor([c[0] for c in chosen], device=device)
        modules = {k: (d[alone], u.mT[alone].mT) for k, (d, u) in stacked.modules.items()}
        return RowLoras(modules, 1, len(chosen))
    at = torch.tensor([[*c, *[0] * (most - len(c))] for c in chosen], device=device)
    weights = weights or [[1.0] * len(c) for c in chosen]
    alive = torch.tensor([[*w, *[0.0] * (most - len(w))] for w in weights], device=device)
    alive = alive[:, :, None, None]
    return RowLoras(
        {
            k: (d[at].flatten(1, 2), (u[at] * alive).transpose(1, 2).flatten(2, 3))
            for k, (d, u) in stacked.modules.items()
        },
        1,
        len(chosen),
    )
