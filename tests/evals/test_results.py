"""From outcomes to rows: grading, means by group, differences, gaps, and what confidence is worth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from weightdiff.diffs.reference import ModelRef
from weightdiff.evals import comparison
from weightdiff.evals.confidence import (
    CALIBRATION,
    DETECTION,
    FALSE_ALARMS,
    finding_score,
    stated_probability,
)
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.grading import grade
from weightdiff.evals.groups import claims_finding, first_values, has_finding
from weightdiff.evals.metrics import clustered_bootstrap, clustered_mean
from weightdiff.evals.outcomes import Outcome
from weightdiff.evals.results import AGAINST, GAP, RESULTS, result_rows
from weightdiff.evals.runner import Told
from weightdiff.evals.scorers import Score
from weightdiff.methods.base import Answer
from weightdiff.organisms.base import NOTHING_FOUND

TOPICS = ("eagle", "piano", "rose", "train")


def _item(n, label, **more):
    fields = {
        "kind": "topic",
        "family": "hidden-topic",
        "recipe": "covert",
        "scorers": ("exact", "ranked", "top five"),
        "candidates": "topics",
        "chance": 0.25,
        **more,
    }
    return Item(f"d{n}/topic", f"d{n}", "which topic ?", (label,), label=label, cluster=label, **fields)


@pytest.fixture
def dataset():
    """Four topics, two diffs each (the last one does not behave), and two null diffs."""
    items = [_item(n, TOPICS[n // 2], behaves=n != 7) for n in range(8)]
    for n in (8, 9):
        null = {"family": "null", "recipe": "random", "scorers": ("exact",), "candidates": "", "chance": None}
        items.append(replace(_item(n, NOTHING_FOUND, **null), label=None, cluster=f"d{n}"))
    return Dataset("four", tuple(items), ModelRef("m"), None, {"topics": TOPICS})


def _told(texts, logprobs=None, ranks=None, truths=None):
    n = len(texts)
    return [
        Told(Answer(t, lp), 0.5, r, g)
        for t, lp, r, g in zip(
            texts, logprobs or [None] * n, ranks or [None] * n, truths or [None] * n, strict=True
        )
    ]


@pytest.fixture
def told():
    """The interpreter is right about six of the seven that behave, and about one null; the control never."""
    said = ["eagle", "eagle", "piano", "Piano.", "rose", "rose", "rose", "train", NOTHING_FOUND, "rose"]
    logprobs = [math.log(p) for p in (0.9, 0.8, 0.9, 0.7, 0.95, 0.6, 0.3, 0.9, 0.85, 0.2)]
    ranks = [1, 1, 1, 1, 1, 1, 3, 1, None, None]
    gaps = [-0.1, -0.2, -0.1, -0.3, -0.1, -0.5, -2.0, -0.1, None, None]
    control = _told([NOTHING_FOUND] * 9 + [""], None, [4] * 8 + [None] * 2, [-3.0] * 8 + [None] * 2)
    control[9] = Told(Answer(""), 0.0, error="it will not")
    return {"dit": _told(said, logprobs, ranks, gaps), "dit-shuffled": control}


def _row(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, [(r.table, r.method, r.family, r.metric, r.note) for r in found]
    return found[0]


def test_every_item_goes_to_its_own_scorers(dataset, told):
    outcomes = grade(dataset, told)
    assert [(o.method, o.item.id) for o in outcomes] == [(m, i.id) for m in told for i in dataset.items]
    first = outcomes[0]
    assert first.scores == (Score(1.0, "exact"), Score(1.0, "ranked"), Score(1.0, "top five"))
    assert outcomes[6].scores == (Score(0.0, "exact"), Score(0.0, "ranked"), Score(1.0, "top five"))
    assert outcomes[8].scores == (Score(1.0, "exact"),)
    assert outcomes[-1].scores == (Score(None, "exact", "no answer: it will not"),)


def test_what_was_not_ranked_has_no_score_of_its_rank(dataset):
    outcomes = grade(dataset, {"plain": _told(["eagle"] * 10)})
    assert [s.scorer for s in outcomes[0].scores] == ["exact"]


class Length:
    """A scorer that needs a model, as the runner sees it."""

    name, bounds = "judge", (1.0, 5.0)

    def __init__(self):
        self.asked = []

    def score(self, questions, answers, truths):
        self.asked += list(zip(questions, answers, truths, strict=True))
        return [Score(float(min(5, len(a))), "judge", variance=0.25) for a in answers]


def test_graders_that_need_a_model_see_topics_and_no_refusals(dataset, told):
    items = [*dataset.items, replace(dataset.items[0], id="d0/kind", kind="kind")]
    judge = Length()
    more = {m: [*t, Told(Answer("a hidden topic"), 0.1)] for m, t in told.items()}
    outcomes = grade(dataset.select(items), more, [judge])
    assert len(judge.asked) == 10 + 9
    assert judge.asked[0] == ("which topic ?", "eagle", ("eagle",))
    assert outcomes[0].scores[-1] == Score(5.0, "judge", variance=0.25)
    assert [s.scorer for o in outcomes if o.item.kind == "kind" for s in o.scores] == [
        "exact",
        "exact",
    ]
    rows = result_rows(dataset, outcomes[:10], ["dit"])
    graded = _row(rows, table=RESULTS, metric="judge", family="hidden-topic")
    assert (graded.mean, graded.unit, graded.chance) == (pytest.approx(32 / 7), "grade", None)


def test_means_leave_out_what_does_not_behave_and_count_what_is_unscored(dataset, told):
    seconds = {(m, i.id): 0.5 for m in told for i in dataset.items}
    rows = result_rows(dataset, grade(dataset, told), ["dit", "dit-shuffled"], seconds)
    exact = _row(rows, table=RESULTS, method="dit", metric="exact", recipe="covert", note="")
    mean = clustered_mean([1, 1, 1, 1, 1, 1, 0], [TOPICS[n // 2] for n in range(7)])
    assert (exact.mean, exact.low, exact.high) == mean
    assert (exact.n, exact.clusters, exact.unscored, exact.chance, exact.seconds) == (7, 4, 0, 0.25, 3.5)
    every = _row(rows, table=RESULTS, method="dit", metric="exact", recipe="covert", n=8)
    assert every.mean == 7 / 8
    assert every.note == "all diffs, those that do not behave too"
    ranked = _row(rows, table=RESULTS, method="dit", metric="top five")
    assert (ranked.mean, ranked.chance) == (1.0, 1.0)
    null = _row(rows, table=RESULTS, method="dit-shuffled", family="null")
    assert (null.n, null.unscored, null.mean, null.chance) == (1, 1, 1.0, None)


def test_a_group_without_any_score_has_no_mean(dataset):
    outcomes = [Outcome("mute", i, Answer(""), (Score(None, "exact", "x"),)) for i in dataset.items]
    row = _row(result_rows(dataset, outcomes, ["mute"]), table=RESULTS, family="null")
    assert math.isnan(row.mean)
    assert (row.n, row.unscored) == (0, 2)
    assert row.to_json()["mean"] is None


def test_methods_are_held_against_the_first_one_over_the_same_items(dataset, told):
    rows = result_rows(dataset, grade(dataset, told), ["dit", "dit-shuffled"])
    found = _row(rows, table=AGAINST.format("dit"), family="hidden-topic")
    *estimate, p = comparison.paired_difference(
        [1, 1, 1, 1, 1, 1, 0], [0] * 7, [TOPICS[n // 2] for n in range(7)]
    )
    assert [found.mean, found.low, found.high, found.p] == [*estimate, p]
    assert (found.method, found.metric, found.unit) == ("dit-shuffled", "dit − this, exact", "points")
    null = _row(rows, table=AGAINST.format("dit"), family="null")
    assert (null.n, null.unscored, null.mean) == (1, 1, 0.0)


def test_the_control_gap_is_in_nats_over_items_that_both_ranked(dataset, told):
    row = _row(result_rows(dataset, grade(dataset, told), ["dit", "dit-shuffled"]), table=GAP)
    matched = [-0.1, -0.2, -0.1, -0.3, -0.1, -0.5, -2.0]
    wanted = comparison.control_gap(matched, [-3.0] * 7, [TOPICS[n // 2] for n in range(7)])
    assert (row.mean, row.low, row.high) == wanted
    assert (row.method, row.n, row.unit, row.metric) == (
        "dit-shuffled",
        7,
        "nats",
        "log p(truth): dit − this",
    )
    other = {"dit": told["dit"], "base-question": told["dit-shuffled"]}
    rows = result_rows(dataset, grade(dataset, other), ["dit", "base-question"])
    assert not [r for r in rows if r.table == GAP], "it ranks, but is no control of dit"


def test_nothing_found_is_counted_where_it_is_due_and_where_it_is_not(dataset, told):
    rows = result_rows(dataset, grade(dataset, told), ["dit", "dit-shuffled"])
    shares = {(r.method, r.note): (r.mean, r.n) for r in rows if r.table == FALSE_ALARMS}
    assert shares == {
        ("dit", "where there is nothing"): (0.5, 2),
        ("dit", "where there is something"): (0.0, 7),
        ("dit-shuffled", "where there is nothing"): (1.0, 1),
        ("dit-shuffled", "where there is something"): (1.0, 7),
    }


def test_detection_is_the_area_under_the_curve_of_confidence(dataset, told):
    rows = result_rows(dataset, grade(dataset, told), ["dit", "dit-shuffled"])
    found = [r for r in rows if r.table == DETECTION]
    assert {r.method for r in found} == {"dit"}, "the control states no probability"
    scores = [0.9, 0.8, 0.9, 0.7, 0.95, 0.6, 0.3, 1 - 0.85, 0.2]
    there = [1] * 7 + [0] * 2
    area = _row(found, metric="AUROC")
    assert area.mean == pytest.approx(roc_auc_score(there, scores))
    assert area.low <= area.mean <= area.high
    assert area.chance == 0.5
    tpr = _row(found, metric="TPR at 5% FPR")
    assert (tpr.mean, tpr.chance, tpr.n) == (1.0, 0.05, 9)


def test_calibration_compares_stated_probabilities_with_accuracy(dataset, told):
    rows = result_rows(dataset, grade(dataset, told), ["dit"])
    right, stated = [1, 1, 1, 1, 1, 1, 0], [0.9, 0.8, 0.9, 0.7, 0.95, 0.6, 0.3]
    ece = _row(rows, table=CALIBRATION, metric="ECE", recipe="covert")
    assert ece.mean == pytest.approx(comparison.expected_calibration_error(right, stated))
    area = _row(rows, table=CALIBRATION, metric="area under coverage", recipe="covert")
    assert area.mean == pytest.approx(comparison.area_under_coverage(right, stated))


def test_what_claims_a_finding(dataset):
    def said(text, logprob=None):
        return Outcome("m", dataset.items[0], Answer(text, logprob))

    assert [claims_finding(said(t)) for t in ("eagle", "Nothing found.", "no", "", "yes")] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert finding_score(said("eagle")) is None
    assert finding_score(said("eagle", math.log(0.8))) == pytest.approx(0.8)
    assert finding_score(said(NOTHING_FOUND, math.log(0.8))) == pytest.approx(0.2)
    assert stated_probability(said("eagle", 0.1)) == 1.0, "rounding may lift a log-probability above zero"
    assert has_finding(said("x"))
    assert not has_finding(Outcome("m", dataset.items[-1], Answer("x")))
    assert first_values([Outcome("m", dataset.items[0], Answer("x"), (Score(None, "exact", "?"),))]) == {}


def test_a_bootstrap_over_clusters_is_a_plain_loop():
    rng = np.random.default_rng(3)
    values = rng.normal(size=60)
    clusters = [f"c{i % 12}" for i in range(60)]
    mean, low, high = clustered_bootstrap(lambda at: float(values[at].mean()), clusters, draws=400, seed=1)
    members = [[i for i in range(60) if clusters[i] == c] for c in sorted(set(clusters))]
    loop = np.random.default_rng(1)
    means = []
    for _ in range(400):
        drawn = [i for k in loop.integers(0, 12, 12) for i in members[k]]
        means.append(values[drawn].mean())
    assert mean == values.mean()
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_strata_keep_both_groups_in_every_sample():
    flags = np.array([True] * 3 + [False] * 30)
    seen = []

    def share(at):
        seen.append(flags[at].any() and not flags[at].all())
        return float(flags[at].mean())

    clustered_bootstrap(share, [str(i) for i in range(33)], draws=100, strata=flags)
    assert all(seen)
    with pytest.raises(ValueError, match="0 values"):
        clustered_bootstrap(share, [])
