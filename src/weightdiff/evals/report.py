"""`Report`: the rows of an evaluation and where they come from; as Markdown, JSON, or a short table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_write_json, atomic_write_text
from weightdiff.errors import FormatError
from weightdiff.evals.goals import reached
from weightdiff.evals.metrics import ResultRow

MACHINE = "two CPU cores"
HEAD = (
    "who",
    "organisms",
    "question",
    "measure",
    "n",
    "labels",
    "result",
    "95 % interval",
    "chance",
    "goal",
    "reached",
)
NO_VALUE = "n/a"
CURVE_KEYS = ("what", "size", "exact", "low", "high", "n")
CURVE_SHARES = ("top_five", "chance", "news", "quirk", "edit")
"""Further shares that a learning-curve point may have."""


@dataclass
class Report:
    """Everything that an evaluation found."""

    rows: list[ResultRow]
    seeds: list[int] = field(default_factory=list)
    """Tuning seeds of the interpreters."""
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Group → how many diffs, labels, and diffs left out."""
    quick: bool = False
    """Whether this was the small version."""
    base: str = ""
    """The base, in words."""
    seconds: float = 0.0
    """Wall time."""


def to_markdown(
    report: Report,
    command: str = "",
    commit: str = "",
    machine: str = MACHINE,
    curves: str | Path | None = None,
) -> str:
    """A report as Markdown: how it was made, its tables, and learning curves where given.

    Args:
        report: what to show.
        command: the command line that made it.
        commit: of the code.
        machine: it ran on.
        curves: a JSON file with learning-curve points, dicts of what, size, exact, low, high, n.

    Raises:
        FormatError: the curves cannot be read.
    """
    lines = [
        "# Main job" + (" (quick version)" if report.quick else ""),
        "",
        f"- command: `{command or 'unknown'}`",
        f"- tuning seeds: {', '.join(map(str, report.seeds)) or 'none'}",
        f"- base: {report.base or 'unknown'}",
        f"- commit: {commit or 'unknown'}",
        f"- machine: {machine}",
        f"- wall time: {report.seconds:g} s",
        "",
        "Intervals are 95 %, clustered by label (cluster-robust, t quantile; where no two labels differ, the"
        " Clopper-Pearson bound on the number of labels). Organisms that did not behave when they were"
        " verified are left out, except in the table of behaviour. A row of several seeds takes each diff's"
        " average over them.",
        "",
        *markdown_table(
            ("group", "diffs", "labels", "not behaving"), [[k, *v.values()] for k, v in report.sizes.items()]
        ),
    ]
    if any(r.goal is not None for r in report.rows):
        lines += ["", "## Against the goals", "", *summary_lines(report)]
    for name in dict.fromkeys(r.table for r in report.rows):
        found = [r for r in report.rows if r.table == name]
        lines += ["", f"## {name or 'Results'}", "", *markdown_table(HEAD, [_cells(r) for r in found])]
    if curves is not None:
        lines += ["", "## Learning curves", "", *curve_lines(read_curves(curves))]
    return "\n".join(lines) + "\n"


def summary_lines(report: Report) -> list[str]:
    """The rows that have a goal, as the lines of a table; the README shows it too."""
    head = ("who", "which diffs", "measure", "n", "result", "95 %", "chance", "goal", "reached")
    body = []
    for r in report.rows:
        if r.goal is not None:
            _, diffs, kind, metric, n, _, value, interval, chance, goal, met = _cells(r)
            body.append([r.method, diffs, f"{metric} ({kind})", n, value, interval, chance, goal, met])
    return markdown_table(head, body)


def save(
    report: Report,
    dir: str | Path,
    stem: str,
    command: str = "",
    commit: str = "",
    machine: str = MACHINE,
    curves: str | Path | None = None,
) -> tuple[Path, Path]:
    """Write `<stem>.md` and `<stem>.json` (a list of rows), each whole or not at all; returns both paths.

    Raises:
        FormatError: the curves cannot be read; nothing is written then.
    """
    text = to_markdown(report, command, commit, machine, curves)
    folder = Path(dir)
    rows = atomic_write_json(folder / f"{stem}.json", [r.to_json() for r in report.rows])
    return atomic_write_text(folder / f"{stem}.md", text), rows


def read_curves(path: str | Path) -> list[dict[str, Any]]:
    """Read learning-curve points from a JSON file: a list, or an object that has the list as "points".

    Raises:
        FormatError: no such file, no such list, or a point lacks a key (the key is named).
    """
    try:
        points = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise FormatError(f"{path}: learning curves cannot be read ({e}); give a JSON list of points") from e
    if isinstance(points, dict):
        points = points.get("points", points)
    return check_points(points, str(path))


def check_points(points: Any, where: str) -> list[dict[str, Any]]:
    """Learning-curve points, once they are known to be some.

    Raises:
        FormatError: they are no list, a point lacks a key, or what should be a number is none.
    """
    if not isinstance(points, list):
        raise FormatError(f"{where}: learning curves are a JSON list of points, not {type(points).__name__}")
    for i, point in enumerate(points):
        lacking = [k for k in CURVE_KEYS if not isinstance(point, dict) or k not in point]
        if lacking:
            raise FormatError(
                f"{where}: point {i} lacks {', '.join(lacking)}; a point has {', '.join(CURVE_KEYS)}"
            )
        numbers = {k: v for k, v in point.items() if k in (*CURVE_KEYS[1:], *CURVE_SHARES)}
        for k, v in numbers.items():
            if isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) <= sys.float_info.max:
                raise FormatError(f"{where}: {k} of point {i} is {v!r}, and should be a number")
    return points


def curve_lines(points: Sequence[dict[str, Any]]) -> list[str]:
    """Learning-curve points, which have at least `CURVE_KEYS`, as the lines of a Markdown table."""
    head = ["what", "size", "n", "exact", "95 % interval"]
    extra = {
        "top_five": "top five",
        "chance": "chance",
        "news": "headlines",
        "quirk": "behaviours",
        "edit": "changed facts",
        "labels": "labels",
        "diffs": "tuned on diffs",
        "organisms": "covert ones among them",
        "topics": "of topics",
        "steps": "tuning steps",
    }
    shown = [k for k in extra if any(k in p for p in points)]
    body = []
    for p in points:
        low, high = (value_text(float(p[k]), "share") for k in ("low", "high"))
        cells = [p["what"], p["size"], p["n"], value_text(float(p["exact"]), "share"), f"{low} … {high}"]
        body.append([*cells, *(_curve_cell(k, p.get(k, "")) for k in shown)])
    return markdown_table([*head, *(extra[k] for k in shown)], body)


def _curve_cell(key: str, value: Any) -> Any:
    share = key in CURVE_SHARES and value != ""
    return value_text(float(value), "share") if share else value


def _cells(row: ResultRow) -> list[Any]:
    met = reached(row)
    who = _method(row)
    return [
        f"{who} ({row.note})" if row.note else who,
        row.recipe if row.recipe != "all" else f"{row.family}, all",
        row.kind,
        row.metric,
        row.n,
        row.clusters,
        value_text(row.mean, row.unit),
        interval_text(row),
        chance_text(row),
        row.goal or "",
        "" if met is None else "yes" if met else "**no**",
    ]


def _method(row: ResultRow) -> str:
    if not row.seeds:
        return row.method
    return f"{row.method}, seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}"


def interval_text(row: ResultRow) -> str:
    """The 95 % interval of a row, such as "10.0 % … 20.0 %"."""
    if math.isnan(row.low) or math.isnan(row.high):
        return NO_VALUE
    return f"{value_text(row.low, row.unit)} … {value_text(row.high, row.unit)}"


def chance_text(row: ResultRow) -> str:
    """What guessing gives, or "n/a"."""
    return NO_VALUE if row.chance is None else value_text(row.chance, row.unit)


def value_text(value: float, unit: str) -> str:
    """A number as tables show it; NaN, the mean of nothing, is "n/a"."""
    if math.isnan(value):
        return NO_VALUE
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "points":
        return f"{100 * value:+.1f} points"
    return f"{value:.1f}" if unit == "rank" else f"{value:.2f} {unit}"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table; a bar in a cell becomes a slash."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(str(c).replace('|', '/') for c in row)} |" for row in body)]
