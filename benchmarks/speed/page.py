"""Results as a page: `python -m benchmarks.speed.page fp32.json bf16.json --out docs/results/speed.md`.

The measured part of the page stands between two marks and is written anew; the rest is left as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.rows import Row
from benchmarks.speed.sweep_stage import BARE
from weightdiff.artifacts import atomic_write_text
from weightdiff.evals.report import markdown_table

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
HEADS = ("base", "setting", "a round", "rates", "efficiency", "times as fast as", "peak MiB", "rounds")
FP32, BF16 = "fp32", "bf16"


@dataclass(frozen=True)
class Goal:
    """A bound on what a row says."""

    text: str
    stage: str
    base: str
    setting: str
    """That the row's setting begins with."""
    measure: str
    """Field of the row, or "memory": our peak by the other way's."""
    bound: float
    against: str = ""
    """The other way; empty: any."""
    most: bool = False
    """Whether the bound is from above."""

    def value(self, row: Row) -> float | None:
        """What the row says."""
        if self.measure != "memory":
            return getattr(row, self.measure)
        if row.peak_mib is None or not row.against_peak_mib:
            return None
        return row.peak_mib / row.against_peak_mib

    def of(self, row: Row) -> bool:
        """Whether it is about this row."""
        own = (row.stage, row.base) == (self.stage, self.base) and row.setting.startswith(self.setting)
        return own and row.against.startswith(self.against)


PUBLISHED, LOOP, ONE = "published scheme", "PEFT loop", "PEFT, one adapter after another"
CHAT = "60m, vocabulary 151936"


def _goals() -> Iterator[Goal]:
    for p in (FP32, BF16):
        rows = f"16 organisms, rank 8, covert rows, {p}"
        yield Goal(f"factory efficiency, 60m, 16 organisms, {p}", "factory", "60m", rows, "efficiency", 0.8)
        for way, bound in ((PUBLISHED, 1.5), (LOOP, 2.5)):
            text = f"factory, realistic rows, vocabulary of 152 k, against the {way}, {p}"
            yield Goal(text, "factory", CHAT, f"8 organisms, rank 8, chat rows, {p}", "ratio", bound, way)
    for b in ("5m", "60m"):
        for p in (FP32, BF16):
            step = f"16 diffs of 64 in a step, rank 8, adapter of rank 16, {p}"
            name = f"tuning, {b}, batch 16, {p}"
            yield Goal(f"{name}: efficiency", "tuning", b, step, "efficiency", 0.8)
            yield Goal(f"{name}: against the {PUBLISHED}", "tuning", b, step, "ratio", 2.0)
            yield Goal(f"{name}: memory by the {PUBLISHED}'s", "tuning", b, step, "memory", 0.25, most=True)
    for b, bound in (("5m", 10.0), ("60m", 4.0)):
        asked, name = "1000 diffs × 1 questions", f"asking about 1000 diffs, {b}"
        yield Goal(f"{name}: against {ONE}", "asking", b, asked, "ratio", bound, ONE)
        yield Goal(f"{name}: efficiency", "asking", b, asked, "efficiency", 0.75, ONE)
        mixed, name = "100 mixtures of 2 diffs", f"sweep of 100 mixtures, {b}: time of the bare base by ours"
        yield Goal(name, "sweep", b, mixed, "ratio", 1 / 1.3, BARE)


GOALS = tuple(_goals())
"""Bounds that rows are held against, some of which are for bases or precisions that a run leaves out."""


def main(given: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.page", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="that `--json` of the benchmark wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page with the two marks")
    args = parser.parse_args(given)
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in args.files]
    before, found, rest = args.out.read_text(encoding="utf-8").partition(BEGIN)
    after, ended = rest.partition(END)[2], END in rest
    if not (found and ended):
        parser.error(f"{args.out} lacks {BEGIN} or {END}; what is measured is written between them")
    atomic_write_text(args.out, f"{before}{BEGIN}\n{measured(runs)}\n{END}{after}")
    print(args.out)
    return 0


def measured(runs: Sequence[dict[str, Any]]) -> str:
    """The measured part: how each run was made, the goals, and a table for each stage.

    Rows of a later run take the place of those of an earlier one.
    """
    lines: list[str] = []
    for run in runs:
        made = ", ".join(f"{k} {v}" if k != "command" else f"`{v}`" for k, v in run["made"].items())
        lines.append(f"- {made}")
    told = {(r["stage"], r["base"], r["setting"], r["against"]): r for run in runs for r in run["rows"]}
    rows = [Row(**r) for r in told.values()]  # of the last run that has them
    lines += ["", "### Against the goals", "", *goal_lines(rows)]
    for stage in dict.fromkeys(r.stage for r in rows):
        lines += ["", f"### {stage.capitalize()}", "", *stage_lines([r for r in rows if r.stage == stage])]
    return "\n".join(lines)


def goal_lines(rows: Sequence[Row]) -> list[str]:
    """The table of goals, those that no row is about left out."""
    body: list[list[Any]] = []
    for goal in GOALS:
        values = [(v, r.rounds) for r in rows if goal.of(r) and (v := goal.value(r)) is not None]
        if values:
            value, rounds = values[0]
            met = value <= goal.bound if goal.most else value >= goal.bound
            sign = "≤" if goal.most else "≥"
            body.append(
                [goal.text, f"{value:.2f}", f"{sign} {goal.bound:.2g}", rounds, "yes" if met else "**no**"]
            )
    return markdown_table(("goal", "measured", "bound", "rounds", "reached"), body)


def stage_lines(rows: Sequence[Row]) -> list[str]:
    """A stage's cases, each on a line with all that it was held against."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        cases.setdefault((r.base, r.setting), []).append(r)
    body: list[list[Any]] = []
    for (base, setting), own in cases.items():
        r = own[0]
        ratios = "; ".join(f"{x.against} {x.ratio:.2f}" for x in own if x.ratio is not None)
        rates = ", ".join(f"{value:,.1f} {unit}" for unit, value in r.rates.items())
        peaks = {"ours": r.peak_mib} | {x.against: x.against_peak_mib for x in own if x.against}
        told = "; ".join(f"{way} {peak:,.0f}" for way, peak in peaks.items() if peak is not None)
        efficiency = "" if r.efficiency is None else f"{r.efficiency:.2f}"
        body.append([base, setting, f"{r.seconds:.3g} s", rates, efficiency, ratios, told, r.rounds])
    return markdown_table(HEADS, body)


if __name__ == "__main__":
    sys.exit(main())
