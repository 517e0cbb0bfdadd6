"""Means with intervals that know that diffs of one label are alike, and `ResultRow`, one line of a table.

What a cluster is, is the caller's choice (the label, nearly always); how it widens an interval is decided
here alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 4000
STATISTIC_DRAWS = 500
UNBOUNDED = (-math.inf, math.inf)

Floats = NDArray[np.float64]
Estimate = tuple[float, float, float]


@dataclass(frozen=True)
class ResultRow:
    """One number of an evaluation, with everything that is needed to read it alone."""

    method: str
    """Who answered: "dit", "base-question", "twenty-questions", …"""
    family: str
    """Family of the organisms asked about."""
    recipe: str
    """Their recipe; "all" where several are pooled."""
    kind: str
    """Kind of question; "all" where several are pooled, "behaviour" where none was asked."""
    split: str
    """Split of the organisms (and, unless the note says otherwise, of the phrasings)."""
    n: int
    """Values behind the mean: diffs, or (diff, question) pairs where kinds are pooled."""
    mean: float
    """The mean (a median where `metric` says so)."""
    low: float
    """Lower end of the 95 % interval; minus infinity where nothing bounds it."""
    high: float
    """Upper end of the 95 % interval."""
    chance: float | None
    """What guessing gives; None where there is no such number."""
    metric: str = "exact"
    """What was measured of each answer: a scorer's name, or in words."""
    unit: str = "share"
    """"share" (0 … 1), "points" (a difference of shares), "rank" (1 is best), "nats", or "grade" (1 … 5)."""
    clusters: int = 0
    """Labels (or other independent units) behind the interval."""
    seeds: list[int] = field(default_factory=list)
    """Tuning seeds behind the row; more than one: each diff's value is their average."""
    goal: str | None = None
    """The goal that the mean is held against, in words; on pooled rows only."""
    note: str = ""
    """What else a reader has to know."""
    table: str = ""
    """Heading of the table that the row belongs to."""
    unscored: int = 0
    """Answers that could not be scored; they are counted here and enter nothing else."""
    seconds: float | None = None
    """Time that the answers took."""
    p: float | None = None
    """Of a difference: how often chance alone makes one as large (permutation test)."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; an end of an interval that is not finite becomes null."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    level: float = 0.95,
    method: str = "analytic",
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of values that come in clusters, with a confidence interval.

    "analytic": the cluster-robust standard error (residuals summed within clusters, G / (G - 1) correction)
    times the t quantile of G - 1 degrees of freedom. "bootstrap": percentiles over whole clusters drawn with
    replacement.

    Where clusters do not differ at all (0 % or 100 % right, say) both give an empty interval, which would be
    a lie. There a cluster that behaves otherwise can have a probability of at most p = 1 - (α/2)^(1/G) and
    still have stayed unseen; the interval lets that share of clusters take either bound. At 0 % and 100 %
    this is Clopper and Pearson's.

    Args:
        values: one number each.
        clusters: the cluster of each, as many.
        level: of confidence.
        method: "analytic" or "bootstrap".
        seed: of the bootstrap.
        bounds: what a value can be at least and at most; the interval is cut there. None: (0, 1) when all
            values lie in it, else unbounded. Unbounded values without spread get an infinite interval.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: no values, lengths that differ, a value out of bounds or not finite, or an unknown method.
    """
    y, sums, sizes = _by_cluster(values, clusters)
    low, high = _bounds(y, bounds)
    if method not in ("analytic", "bootstrap"):
        raise ValueError(f"method is 'analytic' or 'bootstrap', not {method!r}")
    g, mean = len(sizes), float(y.mean())
    residuals = sums - mean * sizes
    spread = float(np.abs(residuals).max())
    if g < 2 or spread <= 1e-12 * max(1.0, float(np.abs(y).max())) * len(y):
        missed = 1 - ((1 - level) / 2) ** (1 / g)
        return mean, mean - _share(missed, mean - low), mean + _share(missed, high - mean)
    if method == "analytic":
        error = math.sqrt(g / (g - 1) * float((residuals**2).sum())) / len(y)
        half = t_quantile(0.5 + level / 2, g - 1) * error
        ends = mean - half, mean + half
    else:
        drawn = np.random.default_rng(seed).integers(0, g, (BOOTSTRAP_DRAWS, g))
        means = sums[drawn].sum(1) / sizes[drawn].sum(1)
        ends = tuple(float(x) for x in np.quantile(means, [0.5 - level / 2, 0.5 + level / 2]))
    return mean, max(low, ends[0]), min(high, ends[1])


def clustered_median(
    values: Sequence[float], clusters: Sequence[str], level: float = 0.95, seed: int = 0, draws: int = 1000
) -> Estimate:
    """Median of values that come in clusters; the interval is a bootstrap over whole clusters.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    y, _, sizes = _by_cluster(values, clusters)
    order = {c: i for i, c in enumerate(sorted(set(clusters)))}
    which = np.array([order[c] for c in clusters])
    members = [y[which == i] for i in range(len(sizes))]
    drawn = np.random.default_rng(seed).integers(0, len(members), (draws, len(members)))
    medians = [float(np.median(np.concatenate([members[i] for i in row]))) for row in drawn]
    low, high = (float(x) for x in np.quantile(medians, [0.5 - level / 2, 0.5 + level / 2]))
    return float(np.median(y)), low, high


def clustered_bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[str],
    level: float = 0.95,
    draws: int = STATISTIC_DRAWS,
    seed: int = 0,
    strata: NDArray[np.bool_] | None = None,
) -> Estimate:
    """Any statistic of values that come in clusters, with the percentiles of a bootstrap over clusters.

    Args:
        statistic: of the values at given places [drawn].
        clusters: the cluster of each value.
        level: of confidence.
        draws: samples.
        seed: of the samples.
        strata: [values], two groups, in each of which as many clusters are drawn as it has, so that no sample
            lacks one; a cluster belongs to one group.

    Returns:
        (statistic of all values, low, high).

    Raises:
        ValueError: no values.
    """
    if not clusters:
        raise ValueError("0 values: give at least one")
    places: dict[tuple[bool, str], list[int]] = {}
    for i, c in enumerate(clusters):
        places.setdefault((bool(strata is not None and strata[i]), c), []).append(i)
    groups = [
        [np.array(v, dtype=np.intp) for (s, _), v in sorted(places.items()) if s == side]
        for side in sorted({s for s, _ in places})
    ]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = [members[k] for members in groups for k in rng.integers(0, len(members), len(members))]
        found.append(statistic(np.concatenate(drawn)))
    low, high = (float(x) for x in np.quantile(found, [0.5 - level / 2, 0.5 + level / 2]))
    return float(statistic(np.arange(len(clusters)))), low, high


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t for whole degrees of freedom and 0.5 <= p < 1.

    The package does not depend on scipy, so this bisects Abramowitz & Stegun's finite series (26.7.3, 26.7.4)
    in the angle atan(t / sqrt(freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, freedom) < 2 * p - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_mass(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) * tan(angle))."""
    odd = freedom % 2
    cosine = math.cos(angle)
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for power in range(2 + odd, freedom - 1, 2):  # the term with cosine ** power
        term *= cosine**2 * (power - 1) / power
        total += term
    if freedom == 1:
        total = 0.0
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _by_cluster(values: Sequence[float], clusters: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """The values, and each cluster's sum and size (clusters in sorted order)."""
    if len(values) != len(clusters) or not values:
        raise ValueError(
            f"{len(values)} values and {len(clusters)} clusters: give as many of each, at least one"
        )
    y = np.array(values, dtype=np.float64)
    if not np.isfinite(y).all():
        raise ValueError("a value is not finite; leave unscored answers out")
    _, which = np.unique(np.array(clusters), return_inverse=True)
    sums: Floats = np.bincount(which, weights=y).astype(np.float64)
    return y, sums, np.bincount(which).astype(np.float64)


def _bounds(y: Floats, bounds: tuple[float, float] | None) -> tuple[float, float]:
    if bounds is None:
        return (0.0, 1.0) if y.min() >= 0 and y.max() <= 1 else UNBOUNDED
    if y.min() < bounds[0] or y.max() > bounds[1]:
        raise ValueError(f"values from {y.min()} to {y.max()} leave their bounds {bounds}")
    return bounds


def _share(missed: float, room: float) -> float:
    return missed * max(0.0, room)  # an unbounded room stays infinite


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
