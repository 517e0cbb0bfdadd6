"""Comparing methods: paired differences, what confidence is worth, how well a score tells two groups apart.

All take numbers and give numbers; means of one method alone are in `weightdiff.evals.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightdiff.evals.metrics import UNBOUNDED, Estimate, Floats, clustered_mean

PERMUTATION_DRAWS = 10_000
_ROWS_AT_ONCE = 1000
_ROUNDING = 1e-12


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[str],
    level: float = 0.95,
    draws: int = PERMUTATION_DRAWS,
    seed: int = 0,
) -> tuple[float, float, float, float]:
    """Mean of a - b over the same items, with its interval and a permutation test of no difference.

    The interval is `clustered_mean`'s, cut at ±1 where all values are shares (0 … 1). The test is two-sided
    and flips the signs of whole clusters. It goes through all 2 ** G sign patterns of G clusters where these
    are at most `draws`; otherwise it draws patterns and counts the observed one among them, so that p is
    never zero.

    Args:
        a: [items], one method's values.
        b: [items], the other's, in the same order.
        clusters: the cluster of each item, as many.
        level: of confidence.
        draws: sign patterns to draw.
        seed: of the draws.

    Returns:
        (difference, low, high, p), the first three in the unit of a and b.

    Raises:
        ValueError: no items, lengths that differ, a value that is not finite, or fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"a permutation test needs one draw or more, not {draws}")
    x, y = _paired(a, b, clusters)
    shares = min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
    bounds = (-1.0, 1.0) if shares else UNBOUNDED
    estimate = clustered_mean((x - y).tolist(), clusters, level, bounds=bounds)
    return *estimate, _sign_flip_p(_cluster_sums(x - y, clusters), draws, seed)


def control_gap(
    matched: ArrayLike, shuffled: ArrayLike, clusters: Sequence[str], level: float = 0.95
) -> Estimate:
    """How much likelier the truth is given the right diff than given another one, in nats.

    Args:
        matched: [items], log-probability of each truth given its own diff, in nats.
        shuffled: [items], the same given another item's diff.
        clusters: the cluster of each item, as many.
        level: of confidence.

    Returns:
        (mean of matched - shuffled, low, high); the interval is `clustered_mean`'s, and infinite where no two
        clusters differ.

    Raises:
        ValueError: no items, lengths that differ, or a value that is not finite.
    """
    x, y = _paired(matched, shuffled, clusters)
    return clustered_mean((x - y).tolist(), clusters, level, bounds=UNBOUNDED)


def coverage_curve(correct: ArrayLike, confidence: ArrayLike) -> tuple[Floats, Floats]:
    """Accuracy of the answers that a method is surest of, for each share of answers that can be kept.

    Answers of one confidence are kept or dropped together, so that their order does not matter.

    Args:
        correct: [answers], 0 … 1 (or truth values).
        confidence: [answers], any number, more is surer; infinite ones too.

    Returns:
        (coverage, accuracy), both [confidences]: one entry for each different confidence, the surest first;
        coverage rises to 1, where accuracy is that of all answers.

    Raises:
        ValueError: no answers, lengths that differ, NaN, or a value of `correct` outside 0 … 1.
    """
    right, sure = _shares("correct", correct), _numbers("confidence", confidence)
    _check_lengths(correct=len(right), confidence=len(sure))
    order = np.argsort(-sure, kind="stable")
    sure = sure[order]
    last = np.append(sure[1:] != sure[:-1], True)  # the last answer of each confidence
    kept = np.flatnonzero(last) + 1
    return kept / len(right), np.cumsum(right[order])[last] / kept


def area_under_coverage(correct: ArrayLike, confidence: ArrayLike) -> float:
    """Area under `coverage_curve`: mean accuracy over all shares of answers kept, 0 … 1.

    A share between two entries of the curve has the accuracy of the larger one. Without ties this is one
    minus the area under the risk-coverage curve (AURC; Geifman, Uziel and El-Yaniv, 2019).

    Args:
        correct: [answers], 0 … 1 (or truth values).
        confidence: [answers], any number, more is surer.

    Raises:
        ValueError: as `coverage_curve`.
    """
    coverage, accuracy = coverage_curve(correct, confidence)
    return float(np.diff(coverage, prepend=0.0) @ accuracy)


def expected_calibration_error(correct: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Mean distance between accuracy and stated probability, over bins of equal width.

    A bin weighs as much as it has answers, and a probability on the edge of two bins belongs to the lower one
    (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Args:
        correct: [answers], 0 … 1 (or truth values).
        probability: [answers], 0 … 1, stated for the answer being correct.
        bins: how many of them divide 0 … 1.

    Returns:
        The error, 0 … 1.

    Raises:
        ValueError: no answers, lengths that differ, NaN, a value outside 0 … 1, or fewer than one bin.
    """
    right, stated = _shares("correct", correct), _shares("probability", probability)
    _check_lengths(correct=len(right), probability=len(stated))
    if bins < 1:
        raise ValueError(f"a calibration error needs one bin or more, not {bins}")
    which = np.searchsorted(np.arange(1, bins) / bins, stated)
    return float(np.abs(np.bincount(which, weights=right - stated)).sum() / len(right))


def tpr_at_fpr(positive_scores: ArrayLike, negative_scores: ArrayLike, fpr: float) -> float:
    """Largest share of positives above a threshold that at most a share `fpr` of the negatives reaches.

    Only thresholds that can be applied count: nothing is interpolated between them.

    Args:
        positive_scores: [positives], more is likelier positive.
        negative_scores: [negatives].
        fpr: false positive rate that must not be exceeded, 0 … 1.

    Returns:
        The true positive rate, 0 … 1.

    Raises:
        ValueError: a group is empty or has NaN, or `fpr` is outside 0 … 1.
    """
    positives, negatives = _groups(positive_scores, negative_scores)
    if not 0 <= fpr <= 1:
        raise ValueError(f"a false positive rate is 0 to 1, not {fpr}")
    n = len(negatives)
    allowed = int(np.searchsorted(np.arange(1, n + 1) / n, fpr, side="right"))
    if allowed == n:
        return 1.0
    return float((positives > np.sort(negatives)[n - 1 - allowed]).mean())


def auroc(positive_scores: ArrayLike, negative_scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative, a tie counting half: the area under the ROC curve.

    Args:
        positive_scores: [positives], more is likelier positive.
        negative_scores: [negatives].

    Returns:
        The area, 0 … 1; 0.5 is chance.

    Raises:
        ValueError: a group is empty or has NaN.
    """
    positives, negatives = _groups(positive_scores, negative_scores)
    order = np.sort(negatives)
    below = np.searchsorted(order, positives, side="left")
    not_above = np.searchsorted(order, positives, side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))


def _sign_flip_p(sums: Floats, draws: int, seed: int) -> float:
    """Two-sided p of the clusters' sums [clusters] under random signs."""
    reached = abs(float(sums.sum())) - _ROUNDING * float(np.abs(sums).sum())
    patterns = 2 ** len(sums)
    whole = patterns <= draws
    rng = np.random.default_rng(seed)
    total, hits = (patterns if whole else draws), 0
    for start in range(0, total, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, total - start)
        flipped = _patterns(start, rows, len(sums)) if whole else rng.random((rows, len(sums))) < 0.5
        hits += int((np.abs(np.where(flipped, -sums, sums).sum(1)) >= reached).sum())
    return hits / total if whole else (hits + 1) / (total + 1)


def _patterns(start: int, rows: int, clusters: int) -> NDArray[np.bool_]:
    """Sign patterns [rows, clusters] by their numbers, counted from `start`."""
    return (np.arange(start, start + rows)[:, None] >> np.arange(clusters)) % 2 == 1


def _cluster_sums(values: Floats, clusters: Sequence[str]) -> Floats:
    _, which = np.unique(np.array(clusters), return_inverse=True)
    return np.bincount(which, weights=values).astype(np.float64)


def _paired(a: ArrayLike, b: ArrayLike, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    x, y = _numbers("the first values", a), _numbers("the second values", b)
    _check_lengths(first=len(x), second=len(y), clusters=len(clusters))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a value is infinite, and differences need finite ones")
    return x, y


def _groups(positives: ArrayLike, negatives: ArrayLike) -> tuple[Floats, Floats]:
    return _numbers("positive_scores", positives), _numbers("negative_scores", negatives)


def _shares(name: str, values: ArrayLike) -> Floats:
    x = _numbers(name, values)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"{name} goes from {x.min():g} to {x.max():g}, outside 0 to 1")
    return x


def _numbers(name: str, values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name}: give one row of at least one number, not shape {x.shape}")
    if np.isnan(x).any():
        raise ValueError(f"{name}: {int(np.isnan(x).sum())} of {len(x)} are NaN; leave unscored answers out")
    return x


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise ValueError(f"lengths differ ({told}); give as many of each")
