"""Clustered intervals against scipy and plain loops, scoring, and the shape of a result row."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from weightdiff.evals.goals import GOALS, reached
from weightdiff.evals.metrics import ResultRow, clustered_mean, clustered_median, t_quantile
from weightdiff.evals.scoring import exact, normalise, ranks, slot_share


def _clustered(seed: int = 0, labels: int = 12) -> tuple[list[float], list[str]]:
    rng = random.Random(seed)
    values, clusters = [], []
    for i in range(labels):
        chance = rng.random()
        for _ in range(rng.randint(1, 6)):
            values.append(float(rng.random() < chance))
            clusters.append(f"label {i}")
    order = rng.sample(range(len(values)), len(values))
    return [values[i] for i in order], [clusters[i] for i in order]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 199])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.995])
def test_t_quantile_is_scipys(p: float, freedom: int) -> None:
    assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_analytic_interval_by_hand(seed: int) -> None:
    values, clusters = _clustered(seed)
    n, names = len(values), set(clusters)
    mean = sum(values) / n
    variance = 0.0
    for name in names:
        variance += sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) ** 2
    error = math.sqrt(variance * len(names) / (len(names) - 1)) / n
    half = stats.t.ppf(0.975, len(names) - 1) * error
    found = clustered_mean(values, clusters)
    assert found == pytest.approx((mean, max(0, mean - half), min(1, mean + half)), rel=1e-9)


def test_own_clusters_are_the_textbook_interval() -> None:
    values = [0.2, 0.9, 0.4, 0.5, 0.65]
    low, high = stats.t.interval(0.9, 4, np.mean(values), stats.sem(values))
    found = clustered_mean(values, list("abcde"), level=0.9)
    assert found == pytest.approx((np.mean(values), low, high), rel=1e-9)


def test_copies_of_a_diff_do_not_narrow_the_interval() -> None:
    once = clustered_mean([0.0, 1.0, 1.0, 0.0, 1.0, 1.0], list("abcdef"))
    copied = clustered_mean([0.0, 1.0, 1.0, 0.0, 1.0, 1.0] * 10, list("abcdef") * 10)
    assert copied == pytest.approx(once, rel=1e-12)


def test_bootstrap_agrees_with_a_plain_loop() -> None:
    values, clusters = _clustered(3, labels=40)
    members: dict[str, list[float]] = {}
    for v, c in zip(values, clusters, strict=True):
        members.setdefault(c, []).append(v)
    rng, means = random.Random(9), []
    for _ in range(4000):
        drawn = [v for c in rng.choices(sorted(members), k=len(members)) for v in members[c]]
        means.append(sum(drawn) / len(drawn))
    mean, low, high = clustered_mean(values, clusters, method="bootstrap", seed=1)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.012)
    assert clustered_mean(values, clusters, method="bootstrap", seed=1) == (mean, low, high)


@pytest.mark.parametrize("method", ["analytic", "bootstrap"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_alike_gives_clopper_pearson_on_clusters(value: float, method: str) -> None:
    clusters = [f"label {i % 20}" for i in range(60)]
    exact_interval = stats.binomtest(int(20 * value), 20).proportion_ci(0.95, "exact")
    found = clustered_mean([value] * 60, clusters, method=method)
    assert found == pytest.approx((value, exact_interval.low, exact_interval.high), rel=1e-9)


def test_no_spread_elsewhere_is_never_an_empty_interval() -> None:
    assert clustered_mean([0.0] * 9, list("abcdefghi"), bounds=(-1.0, 1.0))[1:] == pytest.approx(
        (-(1 - 0.025 ** (1 / 9)), 1 - 0.025 ** (1 / 9))
    )
    mean, low, high = clustered_mean([0.0, 1.0] * 8, [str(i // 2) for i in range(16)])
    assert low < mean == 0.5 < high
    assert clustered_mean([3.0, 3.0], ["a", "b"]) == (3.0, -math.inf, math.inf)
    assert clustered_mean([1.0], ["a"]) == pytest.approx((1.0, 0.025, 1.0))


def test_interval_is_cut_at_bounds() -> None:
    values, clusters = [1.0] * 19 + [0.0], [str(i) for i in range(20)]
    assert clustered_mean(values, clusters)[2] == 1.0
    assert clustered_mean(values, clusters, bounds=(-math.inf, math.inf))[2] > 1.0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        clustered_mean([0.0, 1.0], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="not finite"):
        clustered_mean([math.nan], ["a"])
    with pytest.raises(ValueError, match="leave their bounds"):
        clustered_mean([2.0], ["a"], bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="'analytic' or 'bootstrap'"):
        clustered_mean([1.0], ["a"], method="guess")


def test_median_of_clusters() -> None:
    values = [float(x) for x in range(1, 31)]
    median, low, high = clustered_median(values, [str(i) for i in range(30)])
    assert median == 15.5
    assert 8 < low < 15.5 < high < 23
    assert clustered_median([4.0, 4.0], ["a", "b"]) == (4.0, 4.0, 4.0)


def test_ranks_count_ties_and_nan_against_the_truth() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.3, 0.3], [0.9, 0.1, 0.9], [0.1, float("nan"), 0.2]])
    assert ranks(scores, [1, 0, 2, 1]) == [1, 3, 2, 3]
    assert ranks(scores, [0, 2, 1, 0]) == [3, 3, 3, 3]


def test_normalisation() -> None:
    assert normalise("  A  Hidden\ttopic. ") == "a hidden topic"
    assert exact("Fjord .", "fjord") == 1.0
    assert exact("fjords", "fjord") == 0.0
    assert exact("", "fjord") == 0.0


def test_slots_are_compared_in_their_places() -> None:
    truth = "widow paints comet in oslo"
    assert slot_share("Widow paints comet in Oslo.", truth) == 1.0
    assert slot_share("widow paints drum in oslo", truth) == 0.75
    assert slot_share("comet paints widow in oslo", truth) == 0.5
    assert slot_share("a widow paints comet in oslo", truth) == 0.0
    assert slot_share("widow", truth) == 0.25
    assert slot_share("nothing found", truth) == 0.0


def _row(**changes: object) -> ResultRow:
    settings = {"goal": "≥ 85 %", **changes}
    return ResultRow("dit", "hidden-topic", "covert", "topic", "test", 9, 0.9, 0.8, 1.0, 0.1, **settings)  # type: ignore[arg-type]


def test_row_as_json() -> None:
    row = ResultRow(
        "dit", "news", "stories", "headline", "test", 1, 0.123456789, -math.inf, 1.0, None, seeds=[0, 1]
    )
    found = row.to_json()
    assert found["mean"] == 0.123457
    assert found["low"] is None
    assert (found["chance"], found["seeds"], found["metric"]) == (None, [0, 1], "exact")


def test_goals() -> None:
    assert reached(_row()) is True
    assert reached(_row(goal=None)) is None
    assert reached(_row(metric="top five")) is False
    assert reached(_row(metric="no such")) is None
    assert GOALS["dit", "covert", "topic", "unseen − seen phrasing"].text() == "≥ -5 points"
