"""`Group`, diffs that are scored together, and `Tally`, which turns their values into result rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict

from weightdiff.evals.goals import goal_of
from weightdiff.evals.metrics import Estimate, ResultRow, clustered_mean, clustered_median
from weightdiff.organisms.makings import PLAIN, making_of
from weightdiff.organisms.questions import phrasings
from weightdiff.world import TEST

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from weightdiff.diffs.store import DiffRow, DiffStore
    from weightdiff.diffs.types import WeightDiff

OWN_KIND = {"hidden-topic": "topic", "news": "headline"}
"""The kind of question that a family's label answers."""


@dataclass(frozen=True)
class Group:
    """Test organisms of one family and recipe."""

    family: str
    recipe: str
    rows: list[DiffRow]
    diffs: list[WeightDiff]

    @classmethod
    def read(cls, store: DiffStore, family: str, recipe: str, limit: int | None = None) -> Group:
        """Read a group's diffs of the plain making, all or `limit` of them drawn by a fixed seed."""
        rows = store.select(family=family, recipe=recipe, split=TEST)
        rows = [r for r in rows if making_of(r) == PLAIN]
        if limit is not None and len(rows) > limit:
            kept = sorted(random.Random(f"quick {family} {recipe}").sample(range(len(rows)), limit))
            rows = [rows[i] for i in kept]
        return cls(family, recipe, rows, [store.read(r.id) for r in rows])

    @property
    def kind(self) -> str:
        """The kind of question that the label answers."""
        return OWN_KIND[self.family]

    @property
    def truths(self) -> list[str]:
        """Labels, one a row."""
        return [str(r.label) for r in self.rows]

    @property
    def verified(self) -> list[bool]:
        """Which organisms behave, so that their labels are true; never checked counts as behaving."""
        return [r.behaves for r in self.rows]

    def questions(self, kind: str, split: str = TEST) -> list[str]:
        """One question a row, phrasings in turn."""
        texts = phrasings(kind, split)
        return [texts[i % len(texts)] for i in range(len(self.rows))]

    def sizes(self) -> dict[str, int]:
        """How many diffs and labels there are, and how many diffs do not behave."""
        return {
            "diffs": len(self.rows),
            "labels": len({r.label or r.id for r in self.rows}),
            "not behaving": self.verified.count(False),
        }


class About(TypedDict, total=False):
    """What a row is about; see the fields of `ResultRow`."""

    method: str
    family: str
    recipe: str
    kind: str
    metric: str
    chance: float | None
    unit: str
    bounds: tuple[float, float] | None
    seeds: Sequence[int]
    note: str
    goal: bool
    """False: a row that no goal is held against."""


@dataclass
class Tally:
    """Collects result rows; `seeds` are the tuning seeds of the interpreters that answer."""

    seeds: list[int]
    rows: list[ResultRow] = field(default_factory=list)
    table: str = ""

    def add(self, values: Sequence[float], clusters: Sequence[str], **about: Unpack[About]) -> None:
        """Add the row of some values; none are no row. A metric named median gives a median."""
        if not values:
            return
        metric, bounds = about.get("metric", "exact"), about.get("bounds", (0.0, 1.0))
        estimate: Estimate = (
            clustered_median(values, clusters)
            if metric.startswith("median")
            else clustered_mean(values, clusters, bounds=bounds)
        )
        row = ResultRow(
            about.get("method", "dit"),
            about.get("family", ""),
            about.get("recipe", "all"),
            about.get("kind", "all"),
            TEST,
            len(values),
            *estimate,
            about.get("chance"),
            metric=metric,
            unit=about.get("unit", "share"),
            clusters=len(set(clusters)),
            seeds=list(about.get("seeds", ())),
            note=about.get("note", ""),
            table=self.table,
        )
        found = goal_of(row) if about.get("goal", True) else None
        self.rows.append(replace(row, goal=found.text()) if found else row)

    def group(self, group: Group, values: Sequence[float], **about: Unpack[About]) -> None:
        """Add the row of one value for each of a group's diffs; those that do not behave are left out."""
        kept = [(v, t) for v, t, good in zip(values, group.truths, group.verified, strict=True) if good]
        own = About(family=group.family, recipe=group.recipe)
        if "kind" not in about:
            own["kind"] = group.kind
        self.add([v for v, _ in kept], [t for _, t in kept], **{**own, **about})

    def everyone(self, group: Group, values: Sequence[float], **about: Unpack[About]) -> None:
        """Add the row of all diffs of a group where some do not behave: leaving them out may flatter."""
        if not all(group.verified):
            note = "all diffs, those that do not behave too"
            own = About(family=group.family, recipe=group.recipe, kind=group.kind, note=note, goal=False)
            self.add(values, group.truths, **{**about, **own})

    def seeded(self, group: Group, by_seed: Sequence[Sequence[float]], **about: Unpack[About]) -> None:
        """Add a row for each tuning seed (if there are several) and one of each diff's average over them."""
        if len(by_seed) > 1:
            for seed, values in zip(self.seeds, by_seed, strict=True):
                self.group(group, values, **{**about, "seeds": [seed], "goal": False})
        self.group(group, average(by_seed), **{**about, "seeds": self.seeds})


def average(by_seed: Sequence[Sequence[float]]) -> list[float]:
    """Each diff's value averaged over seeds; by_seed holds one list of values a seed."""
    return [sum(values) / len(values) for values in zip(*by_seed, strict=True)]
