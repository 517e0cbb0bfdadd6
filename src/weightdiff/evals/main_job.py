"""The main job: does an interpreter tell what unseen organisms hide, where asking the models does not?

Fetches the test organisms, has the other modules here fill the tables, and guards what may be tested. Only
rows of the split "test" are read, and no interpreter may have seen their labels or the test phrasings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import InterpreterError, StoreError
from weightdiff.evals import baselines, dit_tables
from weightdiff.evals.controls import assert_held_out
from weightdiff.evals.report import Report
from weightdiff.evals.tally import Group, Tally
from weightdiff.organisms.verify import check_known
from weightdiff.world import TEST

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.methods.dit import Interpreter

__all__ = ["assert_held_out", "evaluate"]

QUICK_ROWS = 40
TOPICS = (("hidden-topic", "covert"), ("hidden-topic", "loud"))
NEWS = (("news", "stories"),)
NULLS = (("null", "random"), ("null", "continued"), ("null", "untouched"))


def evaluate(
    interpreters: Sequence[Interpreter],
    store: DiffStore,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compute the tables of the main job.

    Args:
        interpreters: one for each tuning seed, all on the same base.
        store: its rows of the split "test" are asked about; groups that it lacks give no rows.
        quick: at most 40 diffs a group, and the first interpreter only.
        progress: called with a line of text before each step.

    Raises:
        InterpreterError: no interpreter, different bases, or one was tuned on what it shall be tested on.
        StoreError: the store holds no test rows, or one whose topic the embedded base's world does not have.
        BaseMismatchError: the store's diffs belong to another base.
    """
    if not interpreters:
        raise InterpreterError("no interpreter to evaluate; tune one with: weightdiff tune")
    started = time.monotonic()
    say = progress or (lambda _line: None)
    rows = store.select(split=TEST)
    if not rows:
        raise StoreError(
            f"{store.path}: no test rows; make some with: weightdiff organisms train --split test …"
        )
    first = interpreters[0]
    for one in interpreters:
        if first.base.ref.difference(one.base.ref):
            raise InterpreterError(
                f"interpreters of different bases ({first.base.ref.describe()} and"
                f" {one.base.ref.describe()}); evaluate them one base at a time"
            )
        assert_held_out(one, rows)
    WeightDiff({}, store.base).check_base(first.base.ref)
    asked = list(interpreters[:1] if quick else interpreters)
    seeds = [seed_of(one, i) for i, one in enumerate(asked)]
    limit = QUICK_ROWS if quick else None
    topics, news, nulls = (
        [g for g in (Group.read(store, f, r, limit) for f, r in which) if g.rows]
        for which in (TOPICS, NEWS, NULLS)
    )
    check_known(row for group in topics for row in group.rows)
    labelled = [*topics, *news]
    tally = Tally(seeds)
    baselines.behaviour(tally, labelled)
    baselines.black_box(tally, topics, first, say)
    baselines.base_question(tally, labelled, first, say)
    told = [[dit_tables.interview(one, group, say) for one in asked] for group in labelled]
    for table in (dit_tables.answers, dit_tables.controls, dit_tables.evidence):
        for group, by_seed in zip(labelled, told, strict=True):
            table(tally, group, by_seed)
    for family in ("hidden-topic", "news"):
        mine = [i for i, g in enumerate(labelled) if g.family == family]
        if mine:
            dit_tables.general(tally, family, [labelled[i] for i in mine], [told[i] for i in mine])
    dit_tables.nulls(tally, nulls, asked, say)
    dit_tables.no_diff(tally, asked)
    return Report(
        rows=tally.rows,
        seeds=seeds,
        sizes={f"{g.family}/{g.recipe}": g.sizes() for g in (*labelled, *nulls)},
        quick=quick,
        base=first.base.ref.describe(),
        seconds=round(time.monotonic() - started, 1),
    )


def seed_of(interpreter: Interpreter, place: int) -> int:
    """The tuning seed that an interpreter's manifest names, or its place where it names none."""
    return int(interpreter.meta.get("config", {}).get("seed", interpreter.meta.get("seed", place)))
