"""Outcomes in groups, and `Rows`, which makes one result row of each: what the tables of a run share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdiff.evals.metrics import Estimate, ResultRow
from weightdiff.evals.outcomes import Outcome
from weightdiff.evals.scoring import normalise
from weightdiff.organisms.base import NOTHING_FOUND

NULL = "null"
"""Family of diffs in which there is nothing to find."""
FINDINGS = ("topic", "headline")
"""Kinds of question that are answered by what was found."""

Key = tuple[str, str, str]
"""Family, recipe, kind of question."""


@dataclass
class Rows:
    """Collects rows."""

    rows: list[ResultRow] = field(default_factory=list)

    def add(
        self, method: str, key: Key, group: Sequence[Outcome], estimate: Estimate, table: str, **more: Any
    ) -> None:
        """Add the row of a group; `more` are fields of `ResultRow` (n: values, if not one an outcome)."""
        family, recipe, kind = key
        mean, low, high = estimate
        fields = {"n": len(group), "chance": None, "clusters": len({o.item.cluster for o in group}), **more}
        split = one_or_all(o.item.split for o in group)
        self.rows.append(
            ResultRow(
                method=method,
                family=family,
                recipe=recipe,
                kind=kind,
                split=split,
                mean=mean,
                low=low,
                high=high,
                table=table,
                **fields,
            )
        )


def by_key(outcomes: Iterable[Outcome]) -> dict[Key, list[Outcome]]:
    """Outcomes by family, recipe and kind of question, in the order in which they come."""
    out: dict[Key, list[Outcome]] = {}
    for o in outcomes:
        out.setdefault((o.item.family, o.item.recipe, o.item.kind), []).append(o)
    return out


def one_or_all(names: Iterable[str]) -> str:
    """The name that all have, or "all"."""
    found = set(names)
    return found.pop() if len(found) == 1 else "all"


def first_values(group: Iterable[Outcome]) -> dict[str, float]:
    """Item id → value of the first score, where it has one."""
    return {o.item.id: v for o in group if o.scores and (v := o.scores[0].value) is not None}


def has_finding(outcome: Outcome) -> bool:
    """Whether there is something to be found, by the truth."""
    return outcome.item.family != NULL and normalise(outcome.item.truths[0]) != NOTHING_FOUND


def claims_finding(outcome: Outcome) -> bool:
    """Whether an answer claims a finding: it says anything but "nothing found" (or no)."""
    said = normalise(outcome.answer.text)
    return bool(said) and said not in (NOTHING_FOUND, "no")


def answered(outcome: Outcome) -> bool:
    """Whether the method said anything."""
    return bool(outcome.answer.text.strip())
