"""A run on disk: `report.json` (facts and rows), `outcomes.jsonl` (all answers), and reports for people.

`report.json` is written last and names the checksum of the answers, so that its existence means complete.
What is read is checked field by field: files may be cut off, edited, or somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_write_bytes, finite, parse_json, read_json
from weightdiff.diffs.reference import ModelRef
from weightdiff.errors import FormatError
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.outcomes import Outcome, Run
from weightdiff.evals.report import check_points
from weightdiff.evals.run_html import to_html
from weightdiff.evals.run_markdown import to_markdown
from weightdiff.evals.runner import ANSWERS
from weightdiff.evals.typed_json import Mismatch, typed

REPORT, OUTCOMES, MARKDOWN, PAGE = "report.json", "outcomes.jsonl", "report.md", "report.html"
KIND, VERSION = "weightdiff-run", 1
FIRST = (
    "method",
    "family",
    "recipe",
    "kind",
    "split",
    "scorer",
    "n",
    "mean",
    "low",
    "high",
    "unscored",
    "chance",
    "seconds",
)
"""The first keys of a row; the other fields of `ResultRow` follow in their order."""


@dataclass(frozen=True)
class _Answers:
    """What `report.json` knows of the answers' file."""

    n: int
    sha256: str


@dataclass(frozen=True)
class _Set:
    """A dataset without its items, which the answers hold, and without its store."""

    name: str
    base: ModelRef
    candidates: dict[str, tuple[str, ...]]
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Report:
    """What `report.json` holds."""

    kind: str
    version: int
    name: str
    methods: tuple[str, ...]
    seconds: dict[str, float]
    info: dict[str, Any]
    dataset: _Set
    outcomes: _Answers
    rows: list[dict[str, Any]]


def save(run: Run, folder: str | os.PathLike[str], html: bool = True) -> dict[str, Path]:
    """Write a run's four files, each whole or not at all; the same run gives the same bytes.

    Numbers of the rows are rounded to six digits after the point, and one that is not finite is null: as a
    mean it is that of no values, as an end of an interval it is infinite.

    Args:
        run: what to write; `info` and the dataset's `meta` hold what JSON can carry.
        folder: where to; made as needed.
        html: write the page, too. Without it, a page that was there is removed: it would be of another run.

    Returns:
        File name → path.
    """
    root = Path(folder)
    answers = b"".join(_dumped(asdict(o)) + b"\n" for o in run.outcomes)
    head = _Report(
        KIND,
        VERSION,
        run.name,
        run.methods,
        run.seconds,
        run.info,
        _Set(run.dataset.name, run.dataset.base, run.dataset.candidates, run.dataset.meta),
        _Answers(len(run.outcomes), hashlib.sha256(answers).hexdigest()),
        [row_json(r) for r in run.rows],
    )
    files = {OUTCOMES: answers, MARKDOWN: to_markdown(run).encode("utf-8", "backslashreplace")}
    if html:
        files[PAGE] = to_html(run)
    else:
        (root / PAGE).unlink(missing_ok=True)
    files[REPORT] = _dumped(asdict(head), indent=2) + b"\n"
    return {name: atomic_write_bytes(root / name, data) for name, data in files.items()}


def load(folder: str | os.PathLike[str], name: str | None = None) -> Run:
    """Read a run that `save` wrote; its dataset comes without the store.

    Args:
        folder: of the run.
        name: what to call it; None for the name that it has.

    Raises:
        FormatError: there is no finished run, or a file is not what `save` writes; says where.
    """
    root = Path(folder)
    report = _report(root)
    outcomes = _outcomes(root / OUTCOMES, report)
    items = tuple({o.item.id: o.item for o in outcomes}.values())
    found = report.dataset
    return Run(
        report.name if name is None else name,
        Dataset(found.name, items, found.base, None, found.candidates, found.meta),
        report.methods,
        tuple(outcomes),
        [_row(root / REPORT, i, r) for i, r in enumerate(report.rows)],
        report.seconds,
        report.info,
    )


def row_json(row: ResultRow) -> dict[str, Any]:
    """A row as `report.json` has it: the keys of `FIRST`, then the others; `scorer` is what was measured."""
    found = row.to_json()
    found["scorer"] = found.pop("metric")
    return {**{k: found[k] for k in FIRST}, **found}


def _report(root: Path) -> _Report:
    path = root / REPORT
    if not path.is_file():
        raise FormatError(_missing(root))
    try:
        value = read_json(path)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise FormatError(f"{path} is not the report of a run of methods; give the --out of such a run")
        if value.get("version") != VERSION:
            raise FormatError(
                f"{path} is of version {value.get('version')!r}, and this weightdiff reads {VERSION};"
                " run the evaluation again"
            )
        found = typed(_Report, value, "the report")
        if "curves" in found.info:
            check_points(found.info["curves"], f"{path}, info")
    except (OSError, ValueError) as e:
        raise FormatError(f"{path} cannot be read ({_why(e)}); run the evaluation again") from e
    return found


def _missing(root: Path) -> str:
    again = "weightdiff eval --methods … --out"
    if not root.is_dir():
        return f"{root} is no folder of a run; make one: {again} {root}"
    if any((root / part).exists() for part in (ANSWERS, OUTCOMES)):
        return f"{root} holds a run that is not finished: run the same `weightdiff eval … --out {root}` again"
    return f"{root} holds no run (no {REPORT}); make one: {again} {root}"


def _outcomes(path: Path, report: _Report) -> list[Outcome]:
    """All answers; items that are the same are one object."""
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError as e:
        raise FormatError(f"{path} cannot be read ({_why(e)}); check its permissions") from e
    lines = data.split(b"\n")  # not at the other line ends that texts may hold
    if not lines[-1]:
        lines.pop()
    items: dict[str, Item] = {}
    out: list[Outcome] = []
    for number, line in enumerate(lines, 1):
        try:
            found = typed(Outcome, parse_json(line.decode("utf-8")), "the outcome")
            if found.method not in report.methods:
                raise Mismatch(f"no method {found.method!r} is in {REPORT}")
            item = items.setdefault(found.item.id, found.item)
            if item != found.item:
                raise Mismatch(f"item {item.id!r} is another one than on a line before")
        except ValueError as e:
            raise FormatError(f"{path}, line {number}: {_why(e)}; run the evaluation again") from e
        out.append(replace(found, item=item))
    if hashlib.sha256(data).hexdigest() != report.outcomes.sha256:
        raise FormatError(
            f"{path} ({len(out)} answers) is not the file that {REPORT} was written with"
            f" ({report.outcomes.n}): finish the run by the same `weightdiff eval … --out {path.parent}`"
        )
    return out


def _row(path: Path, number: int, value: dict[str, Any]) -> ResultRow:
    """A row; null becomes what it was: NaN for the mean of nothing, an infinite end of an interval."""
    found = {("metric" if k == "scorer" else k): v for k, v in value.items()}
    nulls = {
        k: v
        for k, v in zip(("mean", "low", "high"), (math.nan, -math.inf, math.inf), strict=True)
        if k in found and found[k] is None
    }
    if "mean" in nulls:
        nulls = dict.fromkeys(("mean", "low", "high"), math.nan)
    try:
        return replace(typed(ResultRow, {**found, **dict.fromkeys(nulls, 0.0)}, f"row {number}"), **nulls)
    except Mismatch as e:
        raise FormatError(f"{path}: {e}; run the evaluation again") from e


def _dumped(value: Any, indent: int | None = None) -> bytes:
    """JSON of UTF-8; half of a surrogate pair, which is no UTF-8, is written as its escape."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
