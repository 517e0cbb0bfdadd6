"""Answers that a judge has graded, as published in CSV files: reading them, and what they come to.

Who graded, and what a score means, is not known here; only that an answer without a score counts as unscored.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weightdiff.errors import FormatError
from weightdiff.evals.metrics import UNBOUNDED, clustered_mean

SCORE_COLUMN = "score"
TRUTH_COLUMNS = ("topic", "summary", "label", "truth")
"""Where the truth is looked for, the first that is there."""
ANSWER_COLUMNS = ("guessed_topic", "guessed_summary", "answer", "prediction")
"""Where the answer is looked for, the first that is there."""
_COLUMNS_NAMED = 8

Scale = tuple[float, float]


class GradedRow(NamedTuple):
    """One graded answer."""

    truth: str
    answer: str
    score: float | None
    """None: unscored."""


@dataclass(frozen=True)
class Graded:
    """A file of graded answers."""

    path: Path
    rows: list[GradedRow]
    """At least one."""
    scale: Scale | None = None
    """Lowest and highest score there can be; None where that is not known."""


@dataclass(frozen=True)
class GradedSummary:
    """What the graded answers of one file come to."""

    name: str
    n: int
    """Answers with a score."""
    unscored: int
    """Answers without one; they are in no other number."""
    mean: float | None
    """Mean score; None, as its interval, where nothing has a score."""
    low: float | None
    """Lower end of the interval, clustered by truth; minus infinity where nothing bounds it."""
    high: float | None
    """Upper end of the interval."""
    distribution: dict[float, int]
    """Score → answers that got it, in rising order; scores that nobody got are not in it."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; scores become texts, and an end that is not finite null."""
        return {
            "name": self.name,
            "n": self.n,
            "unscored": self.unscored,
            **{k: _finite(getattr(self, k)) for k in ("mean", "low", "high")},
            "distribution": {score_text(k): v for k, v in self.distribution.items()},
        }


def read_graded(
    path: str | os.PathLike[str],
    score: str = SCORE_COLUMN,
    truth: str | None = None,
    answer: str | None = None,
    scale: Scale | None = None,
) -> Graded:
    """Read a CSV file of graded answers, one a row under a row of column names.

    Args:
        path: the file, in UTF-8.
        score: name of the column with scores; one that is empty, NaN, infinite or no number is unscored.
        truth: name of the column with what was to be found; None for the first of `TRUTH_COLUMNS`.
        answer: name of the column with what was answered; None for the first of `ANSWER_COLUMNS`.
        scale: lowest and highest score there can be, where it is known.

    Raises:
        FormatError: the file cannot be read as CSV in UTF-8, has no rows, lacks a column or has it twice, has
            a row of more or fewer cells than columns, or a score outside the scale; or the scale is none.
    """
    place = Path(path)
    _check_scale(scale)
    try:
        with open(place, newline="", encoding="utf-8-sig") as stream:
            rows = list(_rows(place, csv.reader(stream, strict=True), score, truth, answer))
    except (csv.Error, UnicodeError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f"{place} cannot be read as CSV ({why}); give a CSV file in UTF-8") from error
    if not rows:
        raise FormatError(f"{place} has column names and no rows; give a file of graded answers")
    if scale:
        _check_scores(place, rows, scale)
    return Graded(place, rows, scale)


def summarise(graded: Graded, level: float = 0.95, name: str | None = None) -> GradedSummary:
    """What the graded answers of one file come to.

    The mean's interval is `clustered_mean`'s, answers to one truth being one cluster, within the scale where
    there is one. Without a scale nothing bounds it, and scores that are all alike leave it infinite.

    Args:
        graded: the file.
        level: of confidence.
        name: what to call it; None for the file's name without its last ending.
    """
    scored = [(r.score, r.truth) for r in graded.rows if r.score is not None]
    values = [score for score, _ in scored]
    mean, low, high = (
        clustered_mean(values, [t for _, t in scored], level, bounds=graded.scale or UNBOUNDED)
        if scored
        else (None, None, None)
    )
    unscored = len(graded.rows) - len(scored)
    counts = dict(sorted(Counter(values).items()))
    return GradedSummary(name or graded.path.stem, len(scored), unscored, mean, low, high, counts)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, with its folder where it is shared, its path where both are."""
    levels = [[p.stem, f"{p.absolute().parent.name}/{p.stem}", p.as_posix()] for p in paths]
    shared = [Counter(names) for names in zip(*levels, strict=True)]
    return [next((n for n, s in zip(own, shared, strict=True) if s[n] == 1), own[-1]) for own in levels]


def score_text(score: float) -> str:
    """A score as text, whole ones without a decimal point."""
    return str(int(score)) if score.is_integer() else repr(score)


def _rows(
    path: Path, lines: Iterator[list[str]], score: str, truth: str | None, answer: str | None
) -> Iterator[GradedRow]:
    header = [name.strip() for name in next(lines, [])]
    if not header:
        raise FormatError(f"{path} is empty; give a CSV file of graded answers")
    at_truth = _column(path, header, "truth", [truth] if truth else TRUTH_COLUMNS)
    at_answer = _column(path, header, "answer", [answer] if answer else ANSWER_COLUMNS)
    at_score = _column(path, header, "score", [score])
    for number, cells in enumerate((cells for cells in lines if cells), 1):
        if len(cells) != len(header):
            raise FormatError(
                f"{path}, row {number} has {len(cells)} cells under {len(header)} columns; is it cut off?"
            )
        yield GradedRow(cells[at_truth].strip(), cells[at_answer].strip(), _score(cells[at_score]))


def _column(path: Path, header: list[str], what: str, names: Sequence[str]) -> int:
    """Position of the first of `names` that is a column."""
    found = next((name for name in names if name in header), None)
    if found is None:
        more = f" and {len(header) - _COLUMNS_NAMED} more" if len(header) > _COLUMNS_NAMED else ""
        raise FormatError(
            f"{path} has no column {' or '.join(names)}, only {', '.join(header[:_COLUMNS_NAMED])}{more}; "
            f"say by --{what} which column holds it"
        )
    if header.count(found) > 1:
        raise FormatError(f"{path} has more than one column {found}; rename the others")
    return header.index(found)


def _score(text: str) -> float | None:
    """A number, or None; Python would read 1_0 as ten, but nobody grades so."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _check_scale(scale: Scale | None) -> None:
    if scale and not -math.inf < scale[0] < scale[1] < math.inf:
        raise FormatError(
            f"a scale of {scale[0]:g} to {scale[1]:g} is none; give its lowest and its highest score"
        )


def _check_scores(path: Path, rows: Sequence[GradedRow], scale: Scale) -> None:
    low, high = scale
    for number, row in enumerate(rows, 1):
        if row.score is not None and not low <= row.score <= high:
            raise FormatError(
                f"{path}, row {number}: the score {score_text(row.score)} is outside the scale "
                f"{low:g} to {high:g}; correct it, or give the judge's scale"
            )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
