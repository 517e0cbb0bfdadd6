"""A run as Markdown: how it was made, how to read it, an overview, and all its tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from weightdiff.errors import one_line
from weightdiff.evals.groups import FINDINGS, NULL
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.outcomes import Run
from weightdiff.evals.report import curve_lines, markdown_table
from weightdiff.evals.results import AGAINST, RESULTS
from weightdiff.evals.run_tables import (
    READING,
    Table,
    facts,
    method_table,
    overview_tables,
    row_tables,
    title_of,
)


def overview(run: Run) -> list[str]:
    """The lines of a run's shortest form: each method's mean in each cell, by the first scorer."""
    return table_lines(overview_tables(run))


def to_markdown(run: Run, brief: bool = False) -> str:
    """The report of a run.

    Args:
        run: the run.
        brief: leave out means that the overview has, and differences but those in what is found.
    """
    rows = [row for row in run.rows if not brief or _is_brief(row)]
    lines = [
        f"# {escaped(title_of(run))}",
        "",
        *(f"- {escaped(k)}: {code(v) if k == 'command' else escaped(v)}" for k, v in facts(run)),
        "",
        "## How to read it",
        "",
        *(f"- {sentence}" for sentence in READING),
        "",
        *overview(run),
        "",
        *table_lines([method_table(run), *row_tables(rows)]),
    ]
    if run.info.get("curves"):
        points = [{k: _cleaned(v) for k, v in p.items()} for p in run.info["curves"]]
        lines += ["", "## Learning curves", "", *curve_lines(points)]
    return "\n".join(lines) + "\n"


def _is_brief(row: ResultRow) -> bool:
    found = row.family != NULL and row.kind in FINDINGS
    return row.table != RESULTS and (found or AGAINST.format("") not in row.table)


def table_lines(tables: Iterable[Table]) -> list[str]:
    """Tables under their headings."""
    lines: list[str] = []
    for t in tables:
        head, body = [escaped(c) for c in t.head], [[escaped(c) for c in row] for row in t.body]
        lines += [
            "",
            f"## {escaped(t.title)}",
            "",
            *([escaped(t.note), ""] if t.note else []),
            *markdown_table(head, body),
        ]
    return lines[1:]


def escaped(text: str) -> str:
    """A text that is on one line, and that Markdown takes for nothing but text where it would harm."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _cleaned(value: Any) -> Any:
    return escaped(one_line(value)) if isinstance(value, str) else value


def code(text: str) -> str:
    """A text as inline code, fenced by more backticks than it has in a row."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"`{text}`" if len(fence) == 1 else f"{fence} {text} {fence}"
