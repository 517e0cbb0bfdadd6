"""What the reports of a run show, whatever they are written as: facts, tables of texts, verdicts on answers.

Markdown, the page and the comparison of runs are made of these; none of them chooses rows on its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightdiff.errors import one_line
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.outcomes import Outcome, Run
from weightdiff.evals.report import NO_VALUE, chance_text, interval_text, value_text
from weightdiff.evals.results import BOUNDS

VERDICTS = ("right", "partly", "wrong", "unscored")
"""What an answer can be by its first score: the most there is, in between, the least there is, or nothing."""
MOST_COLUMNS = 8
"""An overview of more columns is a table for each kind of question."""
FACTS = ("command", "date", "commit", "machine", "seed", "base", "interpreter")
"""What every report says of how a run came about; the rest of its `info` follows."""
ELSEWHERE = ("curves", "seconds", "quick")
"""Keys of `info` that have a place of their own."""
READING = (
    "A result is a mean over answers with its 95 % interval. Diffs of one label are alike, so intervals are"
    " clustered by label (cluster-robust standard error, t quantile); where no two labels differ, they are"
    " the exact bound on the number of labels.",
    "An answer that a scorer cannot read is unscored: it is counted beside the mean and is in no mean.",
    "Organisms that did not behave when they were verified are in no mean either, but for rows that say so.",
    "Chance is what guessing gives, where that is known.",
)

Cell = tuple[str, str, str]
"""Family, recipe and kind of question."""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    head: tuple[str, ...]
    body: list[list[str]]
    note: str = ""
    """What a reader has to know; empty where the table says it all."""


@dataclass(frozen=True)
class Overview:
    """The first scorer's row of every method and cell: what a run found, in short."""

    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    names: dict[Cell, str]
    """Each cell in as few words as tell it from the others."""
    scorers: dict[Cell, str]
    rows: dict[tuple[str, Cell], ResultRow]


def overview_of(run: Run) -> Overview:
    """Of the run's first table, each method's first row in each cell; rows with a note are passed over."""
    table = run.rows[0].table if run.rows else ""
    rows: dict[tuple[str, Cell], ResultRow] = {}
    for r in run.rows:
        if r.table == table and not r.note:
            rows.setdefault((r.method, (r.family, r.recipe, r.kind)), r)
    cells = tuple(dict.fromkeys(cell for _, cell in rows))
    there = [method for method, _ in rows]
    methods = tuple(dict.fromkeys([*(m for m in run.methods if m in there), *there]))
    scorers: dict[Cell, str] = {}
    for (_, cell), r in rows.items():
        scorers.setdefault(cell, r.metric)
    return Overview(methods, cells, _names(cells), scorers, rows)


def overview_tables(run: Run) -> list[Table]:
    """Method × cell with the first scorer's means, in one table or in one for each kind of question."""
    found = overview_of(run)
    if len(found.cells) <= MOST_COLUMNS:
        groups = {"": found.cells} if found.cells else {}
    else:
        groups = {
            k: tuple(c for c in found.cells if c[2] == k) for k in dict.fromkeys(c[2] for c in found.cells)
        }
    return [_overview_table(found, kind, cells) for kind, cells in groups.items()]


def row_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """All rows, table by table in order of appearance; columns that say nothing are left out."""
    out = []
    for name in dict.fromkeys(r.table for r in rows):
        group = [r for r in rows if r.table == name]
        shown = [(head, [text(r) for r in group]) for head, text in _COLUMNS]
        kept = [(head, texts) for head, texts in shown if head in _ALWAYS or any(texts)]
        body = [list(row) for row in zip(*(texts for _, texts in kept), strict=True)]
        out.append(Table(name or "Results", tuple(head for head, _ in kept), body))
    return out


def method_table(run: Run) -> Table:
    """How many questions each method was asked, what became of them by their first score, and the time."""
    body = []
    for m in run.methods:
        counts = verdicts(o for o in run.outcomes if o.method == m)
        seconds = run.seconds.get(m)
        told = [str(sum(counts.values())), *(str(counts[v]) for v in VERDICTS)]
        body.append([one_line(m), *told, NO_VALUE if seconds is None else f"{seconds:.1f}"])
    note = "All answers by their first score, of all kinds of question and of diffs that do not behave too."
    return Table("Methods", ("method", "questions", *VERDICTS, "seconds"), body, note)


def facts(run: Run) -> list[tuple[str, str]]:
    """How the run came about and how large it is, as names and texts."""
    items = run.dataset.items
    behaving = {i.diff: i.behaves for i in items if i.diff is not None}
    labels = {i.label for i in items if i.label is not None}
    silent = sum(not b for b in behaving.values())
    diffs = f"{len(behaving)}{f', {silent} of which do not behave' if silent else ''}"
    known = {k: run.info.get(k, "unknown") for k in FACTS}
    more = {k: v for k, v in run.info.items() if k not in known and k not in ELSEWHERE}
    sizes = {
        "dataset": run.dataset.name,
        "diffs": diffs,
        "labels": len(labels),
        "questions": len(items),
        "methods": len(run.methods),
        "seconds": run.info.get("seconds", round(sum(run.seconds.values()), 1)),
    }
    return [(one_line(k), _text(v)) for k, v in {**known, **sizes, **more}.items()]


def title_of(run: Run) -> str:
    """The heading of a run's report."""
    return one_line(f"{run.name} (quick version)" if run.info.get("quick") else run.name)


def verdict(outcome: Outcome) -> str:
    """What an answer is by its first score: one of `VERDICTS`."""
    share = first_share(outcome)
    if share is None:
        return "unscored"
    return "right" if share >= 1 else "partly" if share > 0 else "wrong"


def verdicts(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How many outcomes get each verdict."""
    return Counter(verdict(o) for o in outcomes)


def first_share(outcome: Outcome) -> float | None:
    """The first score from 0, its scorer's least, to 1, its most; None where there is none."""
    if not outcome.scores or outcome.scores[0].value is None:
        return None
    first = outcome.scores[0]
    low, high = BOUNDS.get(first.scorer, (0.0, 1.0))
    return min(1.0, max(0.0, ((first.value or 0.0) - low) / (high - low)))


def p_text(p: float | None) -> str:
    """A p value with as many digits as matter."""
    if p is None or math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def percent_text(row: ResultRow) -> str:
    """A mean for a table whose title gives the unit: a share in %, anything else with its unit."""
    share = row.unit == "share" and math.isfinite(row.mean)
    return f"{100 * row.mean:.1f}" if share else value_text(row.mean, row.unit)


def _overview_table(found: Overview, kind: str, cells: Sequence[Cell]) -> Table:
    body = []
    for m in found.methods:
        rows = [found.rows.get((m, c)) for c in cells]
        if any(rows):
            body.append([one_line(m), *("" if r is None else _cell_text(r) for r in rows)])
    known = {c: r for (_, c), r in reversed(found.rows.items()) if r.chance is not None}
    if any(c in known for c in cells):
        chances = [replace(known[c], mean=known[c].chance or 0.0) if c in known else None for c in cells]
        body.append(["chance", *("" if r is None else percent_text(r) for r in chances)])
    scorers = list(dict.fromkeys(found.scorers[c] for c in cells))
    by = "; ".join(
        one_line(
            s
            if len(scorers) == 1
            else f"{s}: {', '.join(found.names[c] for c in cells if found.scorers[c] == s)}"
        )
        for s in scorers
    )
    note = f"Mean in % by the first scorer ({by}); how many answers are unscored in parentheses."
    title = f"Overview: {one_line(kind)}" if kind else "Overview"
    named = [found.names[c].removesuffix(f" · {one_line(kind)}") for c in cells]  # the title has the kind
    return Table(title, ("method", *named), body, note)


def _cell_text(row: ResultRow) -> str:
    return percent_text(row) + (f" ({row.unscored})" if row.unscored else "")


def _names(cells: Sequence[Cell]) -> dict[Cell, str]:
    """Recipe and kind, with the family before them where two cells would be called the same."""
    short = {c: " · ".join([c[1] if c[1] != "all" else c[0], c[2]]) for c in cells}
    often = Counter(short.values())
    return {c: one_line(name if often[name] == 1 else f"{c[0]} · {name}") for c, name in short.items()}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{one_line(str(k))} {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else one_line(str(value)) or "none"


_ALWAYS = ("method", "family", "kind", "measure", "n", "result", "95 % interval")
_COLUMNS: tuple[tuple[str, Callable[[ResultRow], str]], ...] = (
    ("method", lambda r: one_line(r.method)),
    ("family", lambda r: one_line(r.family)),
    ("recipe", lambda r: "" if r.recipe == "all" else one_line(r.recipe)),
    ("kind", lambda r: one_line(r.kind)),
    ("split", lambda r: one_line(r.split)),
    ("measure", lambda r: one_line(r.metric)),
    ("n", lambda r: str(r.n)),
    ("unscored", lambda r: str(r.unscored) if r.unscored else ""),
    ("labels", lambda r: str(r.clusters) if r.clusters else ""),
    ("result", lambda r: value_text(r.mean, r.unit)),
    ("95 % interval", interval_text),
    ("p", lambda r: p_text(r.p)),
    ("chance", lambda r: "" if r.chance is None else chance_text(r)),
    ("goal", lambda r: one_line(r.goal or "")),
    ("seconds", lambda r: "" if r.seconds is None else f"{r.seconds:.1f}"),
    ("note", lambda r: one_line(r.note)),
)
"""Column → what a row says under it; empty for nothing."""
