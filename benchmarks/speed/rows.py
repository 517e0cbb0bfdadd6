"""Rows of results: what a case took, beside its floor and beside another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from benchmarks.speed.lockstep import FLOOR, OURS, Timings


@dataclass(frozen=True)
class Row:
    """One case of ours against one other way; all times are medians over rounds that were run in turn."""

    stage: str
    base: str
    setting: str
    seconds: float
    """Of one round of ours."""
    floor_seconds: float | None
    """Of the floor over the same tokens."""
    efficiency: float | None
    """Median over rounds of floor time / our time."""
    against: str
    """The other way; empty: there is none."""
    ratio: float | None
    """Median over rounds of the other way's time / our time; None: it was left out."""
    peak_mib: float | None
    """Peak memory of ours above the base; None: it was not measured."""
    against_seconds: float | None = None
    against_peak_mib: float | None = None
    rounds: int = 0
    """Rounds that the medians are over."""
    rates: dict[str, float] = field(default_factory=dict)
    """What ours does in a second, by its unit."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def rows_from(
    stage: str,
    base: str,
    setting: str,
    timings: Timings,
    others: Sequence[str],
    peaks: dict[str, float],
    amounts: dict[str, float],
) -> list[Row]:
    """A row for each other way, or one alone where there is none.

    Args:
        stage: of the case, as `base` and `setting`.
        base: its name.
        setting: in words.
        timings: of all ways that were run.
        others: the other ways, those that were left out among them.
        peaks: peak memory in MiB by way, where it was measured.
        amounts: what a round gives, by the unit of its rate.
    """
    seconds = timings.median(OURS)
    there = timings.seconds
    out = []
    for way in others or ("",):
        run = way in there
        out.append(
            Row(
                stage=stage,
                base=base,
                setting=setting,
                seconds=seconds,
                floor_seconds=timings.median(FLOOR) if FLOOR in there else None,
                efficiency=timings.ratio(FLOOR) if FLOOR in there else None,
                against=way,
                ratio=timings.ratio(way) if run else None,
                peak_mib=peaks.get(OURS),
                against_seconds=timings.median(way) if run else None,
                against_peak_mib=peaks.get(way),
                rounds=timings.rounds,
                rates={unit: amount / seconds for unit, amount in amounts.items()},
            )
        )
    return out


HEADINGS = (
    "stage",
    "base",
    "setting",
    "seconds",
    "floor",
    "efficiency",
    "against",
    "ratio",
    "MiB",
    "its MiB",
)
TEXTS = {0, 1, 2, 6}
"""Columns of text, which stand left; numbers stand right."""


def table(rows: Sequence[Row]) -> str:
    """Rows as lines of text, with each case's rates below it."""
    lines = [HEADINGS, *(_cells(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i in TEXTS else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    out = [line(HEADINGS)]
    for _, own in groupby(rows, key=lambda r: (r.stage, r.base, r.setting)):
        same = list(own)
        out += [line(_cells(r)) for r in same]
        told = ", ".join(f"{value:,.1f} {unit}" for unit, value in same[0].rates.items())
        out.append(f"{'':{widths[0]}}  {told} (median of {same[0].rounds})")
    return "\n".join(out)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.stage,
        row.base,
        row.setting,
        _number(row.seconds, 3),
        _number(row.floor_seconds, 3),
        _number(row.efficiency, 2),
        row.against,
        _number(row.ratio, 2),
        _number(row.peak_mib, 0),
        _number(row.against_peak_mib, 0),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
