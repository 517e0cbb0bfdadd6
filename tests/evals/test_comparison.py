"""Comparisons against scipy, scikit-learn and tables by hand, and what must hold for any numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve

from weightdiff.evals.comparison import (
    area_under_coverage,
    auroc,
    control_gap,
    coverage_curve,
    expected_calibration_error,
    paired_difference,
    tpr_at_fpr,
)
from weightdiff.evals.metrics import clustered_mean

RNG = np.random.default_rng(7)
scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)
answers = st.lists(
    st.tuples(st.booleans(), st.integers(0, 10).map(lambda i: i / 10)), min_size=1, max_size=20
)


def _own(n: int) -> list[str]:
    return [f"item {i}" for i in range(n)]


def _sum_of(x: np.ndarray, axis: int) -> np.ndarray:
    return x.sum(axis=axis)


def test_difference_of_singletons_is_the_paired_t_interval() -> None:
    a, b = RNG.normal(0.3, 1, 40), RNG.normal(0, 1, 40)
    wanted = stats.ttest_rel(a, b)
    interval = wanted.confidence_interval(0.9)
    mean, low, high, p = paired_difference(a, b, _own(40), level=0.9)
    assert (mean, low, high) == pytest.approx((np.mean(a - b), interval.low, interval.high), rel=1e-9)
    assert p == pytest.approx(wanted.pvalue, abs=0.02)


def test_exact_p_is_scipys() -> None:
    a, b = RNG.normal(0.4, 1, 12), RNG.normal(0, 1, 12)
    wanted = stats.permutation_test(
        (a - b,), _sum_of, permutation_type="samples", n_resamples=10**6, vectorized=True
    )
    assert paired_difference(a, b, _own(12))[3] == pytest.approx(wanted.pvalue, rel=1e-12)


def test_exact_p_flips_whole_clusters() -> None:
    a, clusters = RNG.normal(0.5, 1, 30), [f"label {i % 7}" for i in range(30)]
    sums = [sum(a[i] for i in range(30) if i % 7 == g) for g in range(7)]
    flips = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=7)
    ]
    wanted = np.mean([f >= abs(sum(sums)) - 1e-9 for f in flips])
    assert paired_difference(a, np.zeros(30), clusters)[3] == pytest.approx(wanted, rel=1e-12)


def test_sampled_p_agrees_with_the_exact_one() -> None:
    a, b = RNG.normal(0.4, 1, 13), RNG.normal(0, 1, 13)
    exact = paired_difference(a, b, _own(13))[3]
    sampled = [paired_difference(a, b, _own(13), draws=8000, seed=s)[3] for s in range(3)]
    assert sampled == pytest.approx([exact] * 3, abs=4 * math.sqrt(exact * (1 - exact) / 8000))
    assert len(set(sampled)) > 1
    assert sampled[1] == paired_difference(a, b, _own(13), draws=8000, seed=1)[3]


def test_sampled_p_is_never_zero() -> None:
    assert paired_difference(np.ones(60), np.zeros(60), _own(60), draws=99)[3] == 0.01


def test_copies_of_an_item_are_no_evidence() -> None:
    a, b = np.array([1.0, 1.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 0.0, 0.0])
    once = paired_difference(a, b, list("abcde"))
    assert paired_difference(np.tile(a, 9), np.tile(b, 9), list("abcde") * 9) == pytest.approx(once)


def test_rounding_hides_no_tie() -> None:
    assert paired_difference([0.1, 0.2, 0.3], [0.0, 0.0, 0.6], list("abc"))[3] == 1.0
    assert paired_difference([0.1, 0.2, 0.3], [0.0] * 3, list("abc"))[3] == 0.25


def test_interval_is_cut_where_values_are_shares() -> None:
    a, b = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    assert paired_difference(a, b, list("abcd"))[2] == 1.0
    assert paired_difference([2 * x for x in a], b, list("abcd"))[2] > 2.0
    same = paired_difference(a, a, list("abcd"))
    assert same == (*clustered_mean([0.0] * 4, list("abcd"), bounds=(-1.0, 1.0)), 1.0)
    assert same[1] < 0 < same[2]


@given(st.lists(st.tuples(*[st.integers(0, 8).map(lambda i: i / 8)] * 2), min_size=2, max_size=8))
def test_difference_the_other_way_round(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    clusters = [str(i // 2) for i in range(len(a))]
    mean, low, high, p = paired_difference(a, b, clusters)
    assert paired_difference(b, a, clusters) == pytest.approx((-mean, -high, -low, p))
    assert -1 <= low <= mean <= high <= 1
    assert 2 / 2 ** len(set(clusters)) <= p <= 1


def test_control_gap_is_the_mean_gain_in_nats() -> None:
    matched, shuffled = RNG.normal(-2, 1, 30), RNG.normal(-5, 1, 30)
    interval = stats.ttest_rel(matched, shuffled).confidence_interval(0.95)
    gap = float(np.mean(matched - shuffled))
    assert control_gap(matched, shuffled, _own(30)) == pytest.approx((gap, *interval), rel=1e-9)
    assert control_gap([-1.0, -2.0], [-4.0, -5.0], ["a", "b"]) == (3.0, -math.inf, math.inf)
    tenth = control_gap(matched / 10, shuffled / 10, _own(30))
    assert tenth == pytest.approx((gap / 10, *(x / 10 for x in interval)), rel=1e-9)


def test_coverage_by_hand() -> None:
    coverage, accuracy = coverage_curve([True, False, True, True, False], [0.9, 0.2, 0.7, 0.7, 0.8])
    assert_allclose(coverage, [0.2, 0.4, 0.8, 1.0])
    assert_allclose(accuracy, [1.0, 0.5, 0.75, 0.6])
    area = area_under_coverage([True, False, True, True, False], [0.9, 0.2, 0.7, 0.7, 0.8])
    assert area == pytest.approx(0.2 * 1.0 + 0.2 * 0.5 + 0.4 * 0.75 + 0.2 * 0.6)


def test_coverage_at_its_ends() -> None:
    right = [1.0] * 3 + [0.0]
    assert area_under_coverage(right, [4, 3, 2, 1]) == pytest.approx((1 + 1 + 1 + 0.75) / 4)
    assert area_under_coverage(right, [1, 2, 3, 4]) == pytest.approx((0 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    assert area_under_coverage(right, [5, 5, 5, 5]) == 0.75
    assert_allclose(
        coverage_curve(right, [-math.inf, -math.inf, 0.0, math.inf]), [[0.25, 0.5, 1], [0, 0.5, 0.75]]
    )


@given(answers)
def test_coverage_of_any_answers(rows: list[tuple[bool, float]]) -> None:
    right, sure = zip(*rows, strict=True)
    coverage, accuracy = coverage_curve(right, sure)
    for share, value, level in zip(coverage, accuracy, sorted(set(sure), reverse=True), strict=True):
        kept = [r for r, s in rows if s >= level]
        assert (share, value) == pytest.approx((len(kept) / len(rows), sum(kept) / len(kept)))
    turned = coverage_curve(right[::-1], [math.exp(s) for s in sure[::-1]])
    assert_allclose(turned, (coverage, accuracy))
    assert accuracy.min() - 1e-12 <= area_under_coverage(right, sure) <= accuracy.max() + 1e-12


def test_calibration_by_hand() -> None:
    stated = [0.05, 0.1, 0.15, 0.62, 0.68, 0.95, 1.0, 0.0]
    right = [0, 1, 0, 1, 0, 1, 1, 0]
    # (0, 0.1] holds 0.05, 0.1 and 0.0; (0.1, 0.2] 0.15; (0.6, 0.7] two; (0.9, 1] two
    wanted = (abs(1 - 0.15) + abs(0 - 0.15) + abs(1 - 1.3) + abs(2 - 1.95)) / 8
    assert expected_calibration_error(right, stated) == pytest.approx(wanted)
    assert expected_calibration_error(right, stated, bins=1) == pytest.approx(abs(4 - sum(stated)) / 8)
    assert expected_calibration_error([1, 0, 1, 0], [0.5] * 4) == 0.0
    assert expected_calibration_error([0, 0], [1.0, 1.0]) == 1.0


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 15])
def test_calibration_is_scikit_learns(bins: int) -> None:
    stated = RNG.random(300)
    right = RNG.random(300) < stated**2
    found, predicted = calibration_curve(right, stated, n_bins=bins)
    sizes = np.histogram(stated, bins, (0, 1))[0]
    wanted = np.abs(found - predicted) @ sizes[sizes > 0] / 300
    assert expected_calibration_error(right, stated, bins) == pytest.approx(wanted, rel=1e-9)


@given(answers, st.integers(1, 12))
def test_calibration_of_any_answers(rows: list[tuple[bool, float]], bins: int) -> None:
    right, stated = zip(*rows, strict=True)
    error = expected_calibration_error(right, stated, bins)
    overall = abs(np.mean(right) - np.mean(stated))
    assert overall - 1e-12 <= error <= np.abs(np.subtract(right, stated, dtype=float)).mean() + 1e-12
    assert expected_calibration_error(right, [float(r) for r in right], bins) == 0.0


@given(scores, scores)
def test_auroc_is_scikit_learns(positives: list[float], negatives: list[float]) -> None:
    truth = [1] * len(positives) + [0] * len(negatives)
    area = auroc(positives, negatives)
    assert area == pytest.approx(roc_auc_score(truth, positives + negatives))
    assert auroc(negatives, positives) == pytest.approx(1 - area)
    assert auroc([x**3 for x in positives], [x**3 for x in negatives]) == area


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]))
def test_tpr_is_scikit_learns(positives: list[float], negatives: list[float], fpr: float) -> None:
    truth = [1] * len(positives) + [0] * len(negatives)
    false, true, _ = roc_curve(truth, positives + negatives, drop_intermediate=False)
    assert tpr_at_fpr(positives, negatives, fpr) == pytest.approx(max(true[false <= fpr]))


@given(scores, scores, st.floats(0, 1), st.floats(0, 1))
def test_tpr_never_falls_with_fpr(positives: list[float], negatives: list[float], x: float, y: float) -> None:
    low, high = tpr_at_fpr(positives, negatives, min(x, y)), tpr_at_fpr(positives, negatives, max(x, y))
    assert 0 <= low <= high <= 1


def test_tpr_by_hand() -> None:
    negatives = list(range(100))
    assert tpr_at_fpr([98.5, 99.5, 70.5, 71.0], negatives, 0.0) == 0.25
    assert tpr_at_fpr([98.5, 99.5, 70.5, 71.0], negatives, 0.01) == 0.5
    assert tpr_at_fpr([98.5, 99.5, 70.5, 71.0], negatives, 0.29) == 1.0
    assert tpr_at_fpr([98.5, 99.5, 70.5, 70.0], negatives, 0.28) == 0.5
    assert tpr_at_fpr([1.0], [1.0], 0.5) == 0.0
    assert tpr_at_fpr([math.inf, 0.0], [-math.inf, 1.0], 0.0) == 0.5
    assert tpr_at_fpr([-9.0], [1.0], 1.0) == 1.0


PAIRED: list[Callable[..., Any]] = [paired_difference, control_gap]
SHARES: list[Callable[..., Any]] = [coverage_curve, area_under_coverage, expected_calibration_error]
GROUPS: list[Callable[..., Any]] = [auroc, lambda a, b: tpr_at_fpr(a, b, 0.1)]


@pytest.mark.parametrize(
    "call", [*(lambda a, b, f=f: f(a, b, ["x"] * len(a)) for f in PAIRED), *SHARES, *GROUPS]
)
def test_nan_and_emptiness_are_errors(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"^.*1 of 2 are NaN; leave unscored answers out$"):
        call([0.5, math.nan], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"^.*1 of 2 are NaN; leave unscored answers out$"):
        call([0.5, 0.5], [math.nan, 0.5])
    with pytest.raises(ValueError, match="at least one number"):
        call([], [])
    with pytest.raises(ValueError, match=r"not shape \(1, 2\)"):
        call([[0.5, 0.5]], [0.5, 0.5])


@pytest.mark.parametrize("call", [*(lambda a, b, f=f: f(a, b, ["x"] * len(a)) for f in PAIRED), *SHARES])
def test_lengths_that_differ_are_errors(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"^lengths differ \(.* 2, .* 1.*\); give as many of each$"):
        call([0.5, 0.5], [0.5])


@pytest.mark.parametrize("call", PAIRED)
def test_paired_values_are_finite_and_have_clusters(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"lengths differ \(first 2, second 2, clusters 1\);"):
        call([0.5, 0.5], [0.5, 0.5], ["a"])
    with pytest.raises(ValueError, match="a value is infinite"):
        call([math.inf, 0.5], [math.inf, 0.5], ["a", "b"])


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match="one draw or more, not 0"):
        paired_difference([1.0], [0.0], ["a"], draws=0)
    with pytest.raises(ValueError, match="one bin or more, not 0"):
        expected_calibration_error([1.0], [0.5], bins=0)
    with pytest.raises(ValueError, match=r"probability goes from 0\.5 to 1\.5, outside 0 to 1"):
        expected_calibration_error([1.0, 0.0], [0.5, 1.5])
    with pytest.raises(ValueError, match="correct goes from -1 to 1, outside 0 to 1"):
        coverage_curve([1.0, -1.0], [0.5, 1.5])
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="a false positive rate is 0 to 1"):
            tpr_at_fpr([1.0], [0.0], rate)
