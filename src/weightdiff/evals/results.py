"""The numbers of a run: means of every method and scorer, differences from the first one, control gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from weightdiff.evals import comparison, confidence
from weightdiff.evals.baselines import slot_chance
from weightdiff.evals.dataset import RANK_SCORERS, Dataset
from weightdiff.evals.groups import Key, Rows, by_key, first_values
from weightdiff.evals.metrics import ResultRow, clustered_mean
from weightdiff.evals.outcomes import Outcome

RESULTS = "Results"
AGAINST = "{} against each method"
GAP = "Control gap"
BOUNDS: dict[str, tuple[float, float]] = {"judge": (1.0, 5.0), "embedding": (-1.0, 1.0)}
"""Lowest and highest value of scorers that are not shares."""
UNITS = {"judge": "grade", "embedding": "cosine"}
UNSCORED = (math.nan, math.nan, math.nan)
"""The mean of no values; in JSON it is null."""

Seconds = Mapping[tuple[str, str], float]


def result_rows(
    dataset: Dataset, outcomes: Sequence[Outcome], methods: Sequence[str], seconds: Seconds | None = None
) -> list[ResultRow]:
    """All rows of a run, table after table.

    Organisms that did not behave when they were verified are left out, but for a row of their own.

    Args:
        dataset: what was asked.
        outcomes: scored answers.
        methods: in the order in which they are shown; the first is held against each of the others.
        seconds: (method, item id) → time that the answer took.
    """
    rows = Rows()
    said = {m: [o for o in outcomes if o.method == m] for m in methods}
    for m in methods:
        for key, group in by_key(said[m]).items():
            _means(rows, dataset, m, key, group, seconds or {})
    for m in methods[1:]:
        _differences(rows, methods[0], said[methods[0]], m, said[m])
    for m in (m for m in methods[1:] if m.startswith(f"{methods[0]}-")):
        _gaps(rows, methods[0], said[methods[0]], m, said[m])
    for table in (confidence.false_alarms, confidence.detection, confidence.calibration):
        for m in methods:
            table(rows, m, said[m])
    return rows.rows


def _means(
    rows: Rows, dataset: Dataset, method: str, key: Key, group: Sequence[Outcome], seconds: Seconds
) -> None:
    """A row for each scorer, and one of all diffs where some do not behave."""
    behaving = [o for o in group if o.item.behaves]
    for place, name in enumerate(dict.fromkeys(s.scorer for o in group for s in o.scores)):
        _mean(rows, dataset, method, key, behaving, name, not place, seconds)
        if not place and len(behaving) < len(group):
            note = "all diffs, those that do not behave too"
            _mean(rows, dataset, method, key, group, name, True, seconds, note)


def _mean(
    rows: Rows,
    dataset: Dataset,
    method: str,
    key: Key,
    group: Sequence[Outcome],
    scorer: str,
    first: bool,
    seconds: Seconds,
    note: str = "",
) -> None:
    asked = [(o, s.value) for o in group for s in o.scores if s.scorer == scorer]
    scored = [(o, v) for o, v in asked if v is not None]
    if not asked:
        return
    estimate = UNSCORED
    if scored:
        bounds = BOUNDS.get(scorer, (0.0, 1.0))
        estimate = clustered_mean([v for _, v in scored], [o.item.cluster for o, _ in scored], bounds=bounds)
    times = [seconds[method, o.item.id] for o, _ in asked if (method, o.item.id) in seconds]
    rows.add(
        method,
        key,
        [o for o, _ in asked],
        estimate,
        RESULTS,
        n=len(scored),
        chance=_chance(dataset, [o for o, _ in asked], scorer, first),
        metric=scorer,
        unit=UNITS.get(scorer, "share"),
        clusters=len({o.item.cluster for o, _ in scored}),
        note=note,
        unscored=len(asked) - len(scored),
        seconds=round(sum(times), 2) if times else None,
    )


def _chance(dataset: Dataset, group: Sequence[Outcome], scorer: str, first: bool) -> float | None:
    """What guessing gives by a scorer; None where it is not known."""
    if scorer in RANK_SCORERS:
        sizes = {len(dataset.candidates[o.item.candidates]) for o in group}
        return min(1.0, RANK_SCORERS[scorer] / sizes.pop()) if len(sizes) == 1 else None
    if scorer == "slots":
        return slot_chance()
    known = [o.item.chance for o in group if o.item.chance is not None]
    return sum(known) / len(known) if first and len(known) == len(group) else None


def _differences(
    rows: Rows, leader: str, its: Sequence[Outcome], other: str, others: Sequence[Outcome]
) -> None:
    """The leader's first score less another method's, over the items that both have scored."""
    theirs = first_values(o for o in others if o.item.behaves)
    for key, whole in by_key(o for o in its if o.item.behaves).items():
        mine = first_values(whole)
        group = [o for o in whole if o.item.id in mine and o.item.id in theirs]
        if not group:
            continue
        *estimate, p = comparison.paired_difference(
            [mine[o.item.id] for o in group],
            [theirs[o.item.id] for o in group],
            [o.item.cluster for o in group],
        )
        rows.add(
            other,
            key,
            group,
            (estimate[0], estimate[1], estimate[2]),
            AGAINST.format(leader),
            chance=0.0,
            metric=f"{leader} − this, {group[0].scores[0].scorer}",
            unit="points",
            unscored=len(whole) - len(group),
            p=p,
        )


def _gaps(rows: Rows, leader: str, its: Sequence[Outcome], other: str, others: Sequence[Outcome]) -> None:
    """How much likelier the truth is to the leader than to a control of its own ("dit-…"), in nats."""
    theirs = {o.item.id: o.truth_logprob for o in others if o.truth_logprob is not None}
    mine = {o.item.id: o.truth_logprob for o in its if o.truth_logprob is not None}
    both = [o for o in its if o.item.behaves and o.item.id in mine and o.item.id in theirs]
    for key, group in by_key(both).items():
        estimate = comparison.control_gap(
            [mine[o.item.id] for o in group],
            [theirs[o.item.id] for o in group],
            [o.item.cluster for o in group],
        )
        metric = f"log p(truth): {leader} − this"
        rows.add(other, key, group, estimate, GAP, chance=0.0, metric=metric, unit="nats")
