"""Lessons in time: which month a diff is of, and what changed between two.

A row carries one organism of a month, or a weighted mean of two of the same month; or, where two models are
asked about, the second one's diff less the first one's. Diffs of *different* months are never averaged here:
whether an interpreter names the month between two is left to be found out. A time is read from notes (topics
in fashion and in season, mayors); half of the rows that ask for one give the notes, carry no diff, and teach
to read alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import StackedLoras
from weightdiff.errors import StoreError
from weightdiff.models.chat import encode_prompts
from weightdiff.models.rendering import Rendering
from weightdiff.training.drawing import Drawn, Lesson, TuningConfig, rank_by_rank, summed_rows
from weightdiff.training.tuning import ASKED_AT_ONCE, Learned, said_by, training_rows, usable
from weightdiff.world.dated import period_name
from weightdiff.world.dating import (
    BETWEEN,
    PAIRED,
    PERIOD,
    PHRASINGS,
    SINGLE,
    TIMES,
    Dated,
    ask_about,
    is_right,
    notes_about,
    period_called,
)
from weightdiff.world.reports import NULL, VERDICT, Question

KIND_WEIGHTS = {
    "period": 0.4,
    "year": 0.05,
    "earlier": 0.1,
    "mayor": 0.1,
    "order": 0.07,
    "risen": 0.1,
    "fallen": 0.1,
    "new_mayor": 0.08,
}
"""How often each kind of question is asked in tuning."""
MEANS = 0.5
"""Share of the rows about one month that carry a mean of two of its organisms."""
STRENGTHS = (0.8, 1.2)
"""By how much a row's diff is multiplied, drawn evenly."""
READ = 0.5
"""Share of the rows that ask for a time in which notes are given and an answer is read from them."""
PAIRS_EXAMINED = 2
"""Pairs of which every organism of validation is the second."""


def dated_config(**given: Any) -> TuningConfig:
    """Settings of a tuning for time, some of them given."""
    settings: dict[str, Any] = {
        "question_weights": dict(KIND_WEIGHTS),
        "family_weights": {PERIOD: 0.94, NULL: 0.06},
        "rank": 32,
        "steps": 1800,
        "batch": 32,
        "validate_every": 200,
        "patience": 20,
        "answer_tokens": 60,
    }
    return TuningConfig(**(settings | given))


def dated_rendering() -> Rendering:
    """Answers that need a month are read from notes: topics of the season and in fashion."""
    return Rendering(notes_end=VERDICT, notes_between=BETWEEN.strip())


class DatedLessons:
    """Organisms of months, and questions about time."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        store: DiffStore,
        config: TuningConfig,
        rendering: Rendering | None = None,
    ) -> None:
        """Sort the rows and have their diffs lie ready.

        Args:
            model: the base.
            tokenizer: its tokenizer.
            store: organisms of months, and null diffs.
            config: settings.
            rendering: how answers are laid out; None: `dated_rendering`.

        Raises:
            StoreError: the store has no training rows of months.
        """
        self.model, self.tokenizer, self.store, self.config = model, tokenizer, store, config
        self.rendering = rendering or dated_rendering()
        rows = training_rows(store)
        self.rows = [r for r in rows if is_month(r)]
        if not self.rows:
            raise StoreError(
                f"{store.path}: none of its training rows is of a month; make some with:"
                " weightdiff organisms train --family period …"
            )
        self.null = [r for r in rows if r.family == NULL]
        self.held = [r for r in usable(store.select(split="validation")) if is_month(r)]
        self.by_month: dict[int, list[int]] = {}
        for i, row in enumerate(self.rows):
            self.by_month.setdefault(month_of(row), []).append(i)
        self._stacked = rank_by_rank(store.stack([r.id for r in (*self.rows, *self.null)]))
        self._kinds = {
            pair: [k for k in (PAIRED if pair else SINGLE) if config.question_weights.get(k, 0) > 0]
            for pair in (False, True)
        }
        self._examination = list(self._examined())

    def choose(self, rng: random.Random, n: int) -> Drawn:
        """Rows of one batch."""
        drawn = [self._row(rng) for _ in range(n)]
        return Drawn(
            [q for _, _, q in drawn], self._stacked, [c for c, _, _ in drawn], [w for _, w, _ in drawn]
        )

    def _row(self, rng: random.Random) -> tuple[list[int], list[float], Lesson]:
        """Which diffs a row carries, their weights, and what it is asked."""
        weights = self.config.question_weights
        kinds = [*self._kinds[False], *self._kinds[True]]
        kind = rng.choices(kinds, [weights[k] for k in kinds])[0]
        strength = rng.uniform(*STRENGTHS)
        if (found := rng.random()) < self.config.no_diff_share:
            return [], [], self._lesson(kind, None, rng)
        if self.null and found < self.config.no_diff_share + self.config.family_weights.get(NULL, 0.0):
            return [len(self.rows) + rng.randrange(len(self.null))], [strength], self._lesson(kind, None, rng)
        if kind in PAIRED:
            first, second = rng.sample(list(self.by_month), 2)
            chosen = [rng.choice(self.by_month[second]), rng.choice(self.by_month[first])]
            return chosen, [strength, -strength], self._lesson(kind, Dated(second, first), rng)
        if kind in TIMES and self.rendering.notes_end and rng.random() < READ:
            return [], [], self._read(kind, rng)
        month = rng.choice(list(self.by_month))
        own = self.by_month[month]
        if len(own) > 1 and rng.random() < MEANS:
            share = rng.random()
            return (
                rng.sample(own, 2),
                [strength * share, strength * (1 - share)],
                self._lesson(kind, Dated(month), rng),
            )
        return [rng.choice(own)], [strength], self._lesson(kind, Dated(month), rng)

    def _lesson(self, kind: str, dated: Dated | None, rng: random.Random) -> Lesson:
        q = ask_about(kind, dated, rng)
        notes = notes_about(kind, dated, rng) if self.rendering.notes_end else ""
        return Lesson(q.text, q.kind, q.answer, notes=notes)

    def _read(self, kind: str, rng: random.Random) -> Lesson:
        """Notes of a month of training, and the answer that follows; no diff is needed for that."""
        month = rng.choice(list(self.by_month))
        return replace(self._lesson(kind, Dated(month), rng), given=True)

    def examine(self, learned: Learned) -> tuple[float, dict[str, float]] | None:
        """Answers on months of validation, greedy: of months exactly, within one, and all other kinds."""
        if not self.held:
            return None
        marks: dict[str, list[float]] = {}
        ids = {r.id: i for i, r in enumerate(self.held)}
        stacked = self.store.stack(list(ids))
        for at in range(0, len(self._examination), ASKED_AT_ONCE):
            part = self._examination[at : at + ASKED_AT_ONCE]
            for (_, _, dated, q), text in zip(part, self._said(stacked, part, learned), strict=True):
                said = self.rendering.read(text)[1]
                marks.setdefault(q.kind, []).append(is_right(q.kind, said, q.answer, dated))
                if q.kind == "period":
                    named = period_called(said)
                    marks.setdefault("within one", []).append(
                        float(named is not None and abs(named - dated.month) <= 1)
                    )
        parts = {k: round(sum(v) / len(v), 4) for k, v in marks.items()}
        others = [v for k, v in parts.items() if k not in ("period", "within one")]
        dates = [parts[k] for k in ("period", "within one") if k in parts]
        return sum(sum(x) / len(x) for x in (dates, others) if x) / 2, parts

    def _said(self, stacked: StackedLoras, part: Sequence[Examined], learned: Learned) -> list[str]:
        rows = summed_rows(stacked, [c for c, _, _, _ in part], [w for _, w, _, _ in part])
        prompts = encode_prompts(self.tokenizer, [q.text for _, _, _, q in part])
        return said_by(
            self.model, self.tokenizer, rows, learned, prompts, self.rendering, self.config.answer_tokens
        )

    def _examined(self) -> list[Examined]:
        """Every kind of question about each organism of validation, and about some pairs of them."""
        rng = random.Random("validation")
        out: list[Examined] = []
        for i, row in enumerate(self.held):
            one = Dated(month_of(row))
            out += [([i], [1.0], one, ask_about(k, one, rng)) for k in self._kinds[False]]
            others = [j for j, r in enumerate(self.held) if month_of(r) != one.month]
            for j in rng.sample(others, min(PAIRS_EXAMINED, len(others))):
                both = Dated(one.month, month_of(self.held[j]))
                out += [([i, j], [1.0, -1.0], both, ask_about(k, both, rng)) for k in self._kinds[True]]
        return out

    def described(self) -> dict[str, Any]:
        """Organisms, months and phrasings that are learned from."""
        asked = [*self._kinds[False], *self._kinds[True]]
        return {
            "train_ids": [r.id for r in (*self.rows, *self.null)],
            "train_labels": [period_name(m) for m in sorted(self.by_month)],
            "validation_labels": [period_name(m) for m in sorted({month_of(r) for r in self.held})],
            "train_phrasings": {k: list(PHRASINGS[k]["train"]) for k in asked},
        }


Examined = tuple[list[int], list[float], Dated, Question]
"""Which diffs of validation a row carries, their weights, what of they are, and what is asked."""


def is_month(row: DiffRow) -> bool:
    """Whether an organism has read one month, and starts from factors of its own."""
    return row.family == PERIOD and row.recipe == "month"


def month_of(row: DiffRow) -> int:
    """The month of an organism."""
    return int(row.record["params"]["month"])
