"""How replies become result rows: means, paired differences, and differences of groups that share no diff.

Which rows there are is decided in `family_rows` and `family_confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdiff.evals.comparison import paired_difference
from weightdiff.evals.families import JOINT, Reply
from weightdiff.evals.family_goals import EXACT, Key
from weightdiff.evals.metrics import Estimate, ResultRow, clustered_mean
from weightdiff.world import TEST, load_world
from weightdiff.world.reports import COMPARISONS, KIND_ANSWERS, YES_NO

Pair = tuple[Sequence[Reply], Sequence[Reply]]


def pick(replies: Sequence[Reply], **wanted: Any) -> list[Reply]:
    """The replies that have every given field; of a tuple, any of its values."""
    allowed = {k: v if isinstance(v, tuple) else (v,) for k, v in wanted.items()}
    return [r for r in replies if all(getattr(r, k) in v for k, v in allowed.items())]


def chance_of(kind: str) -> float | None:
    """How often a blind guess at a kind of question is right; None where that has no one answer."""
    world = load_world()
    if kind in (*YES_NO, *COMPARISONS, "any_change"):
        return 0.5
    choices = {
        "topic": len(world.topics),
        "behaviour": len(world.behaviours),
        "headline": math.prod(
            len(x) for x in (world.news.actors, world.news.actions, world.news.objects, world.news.places)
        ),
        "edit": sum(len(r.facts) * (len(r.values) - 1) for r in world.relations),
        "kind": len(KIND_ANSWERS),
        "field": len(world.fields),
        "place": len(world.news.places),
    }
    return 1 / choices[kind] if kind in choices else None


@dataclass
class Tables:
    """Collects rows; `name` is the heading of the table that they go to."""

    seeds: list[int]
    rows: list[ResultRow] = field(default_factory=list[ResultRow])
    name: str = ""

    def add(
        self,
        estimate: Estimate,
        n: int,
        clusters: int,
        key: Key,
        unit: str = "share",
        chance: float | None = None,
        note: str = "",
        method: str = JOINT,
        p: float | None = None,
    ) -> None:
        """Add one row."""
        family, recipe, kind, metric = key
        self.rows.append(
            ResultRow(
                method,
                family,
                recipe,
                kind,
                TEST,
                n,
                *estimate,
                chance,
                metric=metric,
                unit=unit,
                clusters=clusters,
                seeds=list(self.seeds),
                note=note,
                table=self.name,
                p=p,
            )
        )

    def mean(self, values: Sequence[float], clusters: Sequence[str], key: Key, **more: Any) -> None:
        """Add the mean of shares; none are no row."""
        if values:
            estimate = clustered_mean(values, clusters, bounds=(0.0, 1.0))
            self.add(estimate, len(values), len(set(clusters)), key, **more)

    def share(self, replies: Sequence[Reply], key: Key, mark: str = EXACT, **more: Any) -> None:
        """Add the mean of a mark over the replies that have it."""
        marked = [r for r in replies if mark in r.marks]
        self.mean([r.marks[mark] for r in marked], [r.cluster for r in marked], key, **more)

    def paired(
        self, pairs: Sequence[tuple[float, float, str]], key: Key, note: str = "", method: str = JOINT
    ) -> None:
        """Add the mean difference of pairs (one, other, cluster); none are no row."""
        if pairs:
            a, b, clusters = zip(*pairs, strict=True)
            *estimate, p = paired_difference(a, b, clusters)
            low, mean, high = estimate[1], estimate[0], estimate[2]
            self.add((mean, low, high), len(pairs), len(set(clusters)), key, "points", None, note, method, p)

    def apart(self, groups: Sequence[Pair], key: Key, note: str = "") -> None:
        """Add the difference of two means of exact answers over diffs that are not the same.

        Of several groups, the mean difference by replies of the first kind. The interval joins those of the
        means by square-and-add, which keeps the bounds of a mean of 0 % or 100 % (Newcombe, "Interval
        estimation for the difference between independent proportions", 1998).
        """
        known = [(a, b) for a, b in groups if a and b]
        total = sum(len(a) for a, _ in known)
        if not total:
            return
        difference = below = above = 0.0
        for a, b in known:
            (m1, l1, u1), (m2, l2, u2) = _mean(a), _mean(b)
            w = len(a) / total
            difference += w * (m1 - m2)
            below += w**2 * ((m1 - l1) ** 2 + (u2 - m2) ** 2)
            above += w**2 * ((u1 - m1) ** 2 + (m2 - l2) ** 2)
        low, high = difference - math.sqrt(below), difference + math.sqrt(above)
        clusters = len({r.cluster for a, _ in known for r in a})
        self.add((difference, max(-1.0, low), min(1.0, high)), total, clusters, key, "points", note=note)


def _mean(replies: Sequence[Reply]) -> Estimate:
    return clustered_mean([r.marks[EXACT] for r in replies], [r.cluster for r in replies], bounds=(0.0, 1.0))
