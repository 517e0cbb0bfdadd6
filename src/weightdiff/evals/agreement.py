"""How far a scorer that anyone can run again ranks answers as a judge graded them: Spearman's correlation.

Graded answers come from `weightdiff.evals.graded`, scorers from `weightdiff.evals.scorers`; which correlation
is good enough is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightdiff.errors import QuestionError
from weightdiff.evals.graded import Graded
from weightdiff.evals.metrics import BOOTSTRAP_DRAWS, Estimate, Floats
from weightdiff.evals.scorers import score

_NUMBERS_AT_ONCE = 1_000_000
"""What limits the memory of the bootstrap: draws times answers in one go."""


@dataclass(frozen=True)
class Agreement:
    """How a scorer ranks the graded answers of one file, or of several together."""

    name: str
    """Of the file, or what several are called together."""
    scorer: str
    n: int
    """Answers with a grade and a value."""
    clusters: int
    """Different truths among them."""
    unscored: int
    """Answers without a grade or a value; they are in no other number."""
    mean: float | None
    """Mean of the scorer's values; None where nothing has a grade and a value."""
    spearman: float | None
    """Rank correlation of grades and values, -1 … 1; None, as its interval, where there is none."""
    low: float | None
    """Lower end of its interval, truths being clusters."""
    high: float | None
    """Upper end of the interval."""
    note: str = ""
    """Why there is no correlation; empty where there is one."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def agreement(
    files: Sequence[Graded], scorer: str, name: str, level: float = 0.95, draws: int = BOOTSTRAP_DRAWS
) -> Agreement:
    """How far a scorer ranks answers as the judge's grades do.

    Args:
        files: graded answers; those of several files are ranked together, and answers to one truth are one
            cluster whichever file they are from.
        scorer: a name in `weightdiff.evals.scorers.SCORERS`.
        name: what to call the answers.
        level: of confidence.
        draws: of the bootstrap.

    Raises:
        QuestionError: no such scorer, or a truth that it is not made for; the message names the file.
    """
    pairs = [pair for graded in files for pair in _pairs(graded, scorer)]
    known = [(g, v, truth) for g, v, truth in pairs if g is not None and v is not None]
    grades, values, truths = zip(*known, strict=True) if known else ((), (), ())
    note = _why_none(grades, values, scorer)
    found = (None, None, None) if note else spearman(grades, values, truths, level, draws)
    mean = math.fsum(values) / len(values) if values else None
    return Agreement(name, scorer, len(known), len(set(truths)), len(pairs) - len(known), mean, *found, note)


def spearman(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[str],
    level: float = 0.95,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation with a bootstrap interval over whole clusters.

    Ties have their mean rank, and the interval's ends are percentiles. A draw that leaves one side without
    two different values has no correlation, and any would do: it counts as -1 for the lower end and as 1 for
    the upper one. So does every draw of a single cluster. Where all draws rank both sides perfectly alike the
    interval is empty.

    Args:
        a: [items], one side.
        b: [items], the other, in the same order.
        clusters: the cluster of each item, as many.
        level: of confidence.
        draws: samples of as many clusters as there are, drawn with replacement.
        seed: of the draws.

    Returns:
        (correlation, low, high), each -1 … 1.

    Raises:
        ValueError: no items, lengths that differ, a value that is not finite, fewer than one draw, or a side
            where all values are alike.
    """
    levels = _levels(a), _levels(b)
    n = len(clusters)
    if len({len(levels[0]), len(levels[1]), n}) > 1 or not n or draws < 1:
        raise ValueError(
            f"{len(levels[0])} and {len(levels[1])} values, {n} clusters, {draws} draws: "
            "give as many values and clusters, at least one, and one draw or more"
        )
    names, which = np.unique(np.array(clusters), return_inverse=True)
    found = float(_correlations(*levels, np.ones((1, n)))[0])
    if math.isnan(found):
        raise ValueError("one side's values are all alike, which cannot be ranked")
    if len(names) == 1:
        return found, -1.0, 1.0
    rng = np.random.default_rng(seed)
    drawn = [
        _correlations(*levels, _weights(rng, rows, len(names))[:, which])
        for rows in _portions(draws, max(1, _NUMBERS_AT_ONCE // n))
    ]
    samples = np.concatenate(drawn)
    low = np.quantile(np.nan_to_num(samples, nan=-1.0), 0.5 - level / 2)
    high = np.quantile(np.nan_to_num(samples, nan=1.0), 0.5 + level / 2)
    return found, float(low), float(high)


def _pairs(graded: Graded, scorer: str) -> list[tuple[float | None, float | None, str]]:
    """Grade, value and truth of every answer."""
    try:
        return [(row.score, score(row.answer, [row.truth], scorer).value, row.truth) for row in graded.rows]
    except QuestionError as error:
        raise QuestionError(f"{graded.path}: {error}") from error


def _why_none(grades: Sequence[float], values: Sequence[float], scorer: str) -> str:
    if not grades:
        return "nothing has both a grade and a value"
    if len(set(grades)) == 1:
        return f"all grades are {grades[0]:g}"
    return f"{scorer} gives every answer {values[0]:g}" if len(set(values)) == 1 else ""


def _levels(values: ArrayLike) -> NDArray[np.intp]:
    """Number of each value among the different ones, from the smallest."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError("values to rank are one row of finite numbers; leave unscored answers out")
    return np.unique(x, return_inverse=True)[1]


def _portions(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _weights(rng: np.random.Generator, rows: int, clusters: int) -> Floats:
    """How often each cluster is drawn [rows, clusters]."""
    drawn = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
    return counts.reshape(rows, clusters).astype(np.float64)


def _correlations(a: NDArray[np.intp], b: NDArray[np.intp], weights: Floats) -> Floats:
    """Rank correlation [rows] of items that stand as often as `weights [rows, items]` says; NaN: none.

    Ranks are multiples of a half, so that a side without differences has a variance of exactly zero.
    """
    x, y = _centred_ranks(a, weights), _centred_ranks(b, weights)
    together = (weights * x * y).sum(1)
    spreads = np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    return np.divide(together, spreads, out=np.full(len(weights), np.nan), where=spreads > 0)


def _centred_ranks(levels: NDArray[np.intp], weights: Floats) -> Floats:
    """Ranks [rows, items] less their mean; items of one level share the middle of the places they take."""
    order = np.argsort(levels, kind="stable")
    last = np.append(np.flatnonzero(np.diff(levels[order])), len(levels) - 1)
    upto = np.cumsum(weights[:, order], axis=1)[:, last]
    middles = upto - np.diff(upto, axis=1, prepend=0.0) / 2 - upto[:, -1:] / 2
    return middles[:, levels]
