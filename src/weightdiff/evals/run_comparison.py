"""Several runs side by side: the same row in each, and how it differs from the first run's.

Where both runs hold answers to the same questions about the same diffs, the difference is paired item by
item; where they do not, it is only the difference of two means, and has no interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weightdiff.errors import QuestionError, one_line
from weightdiff.evals.comparison import paired_difference
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.outcomes import Outcome, Run
from weightdiff.evals.report import value_text
from weightdiff.evals.run_files import row_json
from weightdiff.evals.run_html import tables_html
from weightdiff.evals.run_markdown import escaped, table_lines
from weightdiff.evals.run_tables import Table, facts, p_text

ALL = "all"
READING = (
    "Differences are from the first run. Where both runs were asked the same (item by item the same diff,"
    " question and truth), they are paired: the 95 % interval is clustered by label, and p is how often"
    " chance alone makes a difference as large (permutation test). Elsewhere there is the difference of the"
    " means only."
)
TOLERANCE = 2e-6
"""How far a mean may be from a saved row's, which is rounded to six digits."""

Key = tuple[str, ...]
Asked = tuple[str, str | None, str, tuple[str, ...]]
"""Id, diff, question and truths of an item."""
Said = dict[str, list[Outcome]]
"""Method → its outcomes."""


@dataclass(frozen=True)
class Difference:
    """How a row of a run differs from the first run's."""

    run: str
    difference: float
    """In the row's unit (shares for "share")."""
    low: float | None = None
    """Lower end of the 95 % interval; None, as the rest, where it is not paired."""
    high: float | None = None
    p: float | None = None
    n: int = 0
    """Items that both runs scored."""


@dataclass(frozen=True)
class ComparedRow:
    """The same row in several runs."""

    rows: tuple[ResultRow | None, ...]
    """One of each run; None where it has no such row."""
    differences: tuple[Difference | None, ...]
    """One of each run but the first; None where one of the two has no value."""

    @property
    def row(self) -> ResultRow:
        """The first that there is: it says what all are about."""
        return next(r for r in self.rows if r is not None)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As a JSON object; `names` are the runs'."""
        about = {k: v for k, v in row_json(self.row).items() if k in _ABOUT}
        runs = {
            name: None if r is None else {k: row_json(r)[k] for k in _OF_RUN}
            for name, r in zip(names, self.rows, strict=True)
        }
        return {**about, "runs": runs, "differences": [d and _difference_json(d) for d in self.differences]}


DIGITS = 6
_ABOUT = ("table", "method", "family", "recipe", "kind", "split", "scorer", "unit", "note")
_OF_RUN = ("n", "mean", "low", "high", "unscored", "chance", "seconds")


def compare(runs: Sequence[Run]) -> list[ComparedRow]:
    """All rows of all runs, those that are about the same together, in the order in which they come.

    Raises:
        QuestionError: fewer than two runs, or two of one name.
    """
    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise QuestionError(f"runs called {', '.join(names)} cannot be compared: give two or more, each once")
    by_key = [_by_key(run.rows) for run in runs]
    said = [_said(run) for run in runs]
    found = []
    for key in dict.fromkeys(key for rows in by_key for key in rows):
        rows = tuple(rows.get(key) for rows in by_key)
        differences = []
        for run, row, outcomes in list(zip(runs, rows, said, strict=True))[1:]:
            differences.append(_difference(run.name, rows[0], said[0], row, outcomes))
        found.append(ComparedRow(rows, tuple(differences)))
    return found


def comparison_tables(runs: Sequence[Run], found: Sequence[ComparedRow]) -> list[Table]:
    """A table for each table of the runs, with a column for each mean, and what goes with differences."""
    names = [one_line(run.name) for run in runs]
    head = ["method", "family", "recipe", "kind", "split", "measure", names[0]]
    for name in names[1:]:
        head += [name, f"{name} − {names[0]}", "95 % interval", "p", "pairs"]
    head.append("note")
    out = []
    for title in dict.fromkeys(c.row.table for c in found):
        body = [_cells(c) for c in found if c.row.table == title]
        kept = [i for i in range(len(head)) if not i or any(row[i] for row in body)]
        columns = tuple(head[i] for i in kept)
        out.append(Table(one_line(title) or "Results", columns, [[row[i] for i in kept] for row in body]))
    return out


def comparison_markdown(runs: Sequence[Run], found: Sequence[ComparedRow]) -> str:
    """A comparison as Markdown."""
    lines = [f"- {escaped(name)}: {escaped(said)}" for name, said in _facts(runs)]
    tables = table_lines(comparison_tables(runs, found))
    return "\n".join([f"# {escaped(_title(runs))}", "", *lines, "", READING, "", *tables]) + "\n"


def comparison_html(runs: Sequence[Run], found: Sequence[ComparedRow]) -> bytes:
    """A comparison as a page that needs nothing else."""
    said = [*_facts(runs), ("how to read it", READING)]
    return tables_html(_title(runs), said, comparison_tables(runs, found))


def _title(runs: Sequence[Run]) -> str:
    return f"Runs compared: {', '.join(one_line(run.name) for run in runs)}"


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Name of each run, and what most tells it from the others."""
    out = []
    for run in runs:
        known = dict(facts(run))
        told = ", ".join(
            f"{k} {known[k]}" for k in ("date", "commit", "base", "interpreter", "seed", "questions")
        )
        out.append((one_line(run.name), f"{known['command']} ({told})"))
    return out


def _cells(found: ComparedRow) -> list[str]:
    row = found.row
    recipe = "" if row.recipe == ALL else row.recipe
    about = (row.method, row.family, recipe, row.kind, row.split, row.metric)
    cells = [*map(one_line, about), _mean(found.rows[0])]
    for r, d in zip(found.rows[1:], found.differences, strict=True):
        cells += [_mean(r), *(("", "", "", "") if d is None else _difference_cells(d, row.unit))]
    return [*cells, one_line(row.note)]


def _mean(row: ResultRow | None) -> str:
    return "" if row is None else value_text(row.mean, row.unit)


def _difference_cells(d: Difference, unit: str) -> list[str]:
    name = "points" if unit == "share" else unit
    ends = "" if d.low is None or d.high is None else f"{_signed(d.low, unit)} … {_signed(d.high, unit)}"
    return [f"{_signed(d.difference, unit)} {name}", ends, p_text(d.p), str(d.n) if d.n else ""]


def _signed(value: float, unit: str) -> str:
    """A difference with its sign, of shares in points, without its unit."""
    if not math.isfinite(value):
        return value_text(value, unit)
    return f"{100 * value:+.1f}" if unit in ("share", "points") else f"{value:+.2f}"


def _difference_json(d: Difference) -> dict[str, Any]:
    return {k: _finite(v) if isinstance(v, float) else v for k, v in asdict(d).items()}


def _finite(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def _difference(
    name: str, first: ResultRow | None, its: Said, second: ResultRow | None, others: Said
) -> Difference | None:
    if first is None or second is None or math.isnan(first.mean) or math.isnan(second.mean):
        return None
    plain = Difference(name, second.mean - first.mean)
    a, b = _values(first, its), _values(second, others)
    both = [asked for asked in a if asked in b]
    if not both:
        return plain
    values = [b[k][0] for k in both], [a[k][0] for k in both]
    return Difference(name, *paired_difference(*values, [a[k][1] for k in both]), n=len(both))


def _values(row: ResultRow, said: Said) -> dict[Asked, tuple[float, str]]:
    """Value and cluster of each answer that a row is the mean of; nothing where it is no mean of answers."""
    about = [o for o in said.get(row.method, ()) if _is_about(row, o)]
    scored = [(o, s.value) for o in about for s in o.scores if s.scorer == row.metric and s.value is not None]
    for group in ([(o, v) for o, v in scored if o.item.behaves], scored):
        if group and len(group) == row.n and abs(sum(v for _, v in group) / row.n - row.mean) <= TOLERANCE:
            return {
                (o.item.id, o.item.diff, o.item.question, o.item.truths): (v, o.item.cluster)
                for o, v in group
            }
    return {}


def _is_about(row: ResultRow, o: Outcome) -> bool:
    return all(getattr(row, k) in (ALL, getattr(o.item, k)) for k in ("family", "recipe", "kind", "split"))


def _said(run: Run) -> Said:
    out: Said = {}
    for o in run.outcomes:
        out.setdefault(o.method, []).append(o)
    return out


def _by_key(rows: Sequence[ResultRow]) -> dict[Key, ResultRow]:
    """Rows by what they are about; of several about the same, the first with the first and so on."""
    seen: Counter[Key] = Counter()
    out: dict[Key, ResultRow] = {}
    for r in rows:
        key = (r.table, r.method, r.family, r.recipe, r.kind, r.split, r.metric, r.unit, r.note)
        out[(*key, str(seen[key]))] = r
        seen[key] += 1
    return out
