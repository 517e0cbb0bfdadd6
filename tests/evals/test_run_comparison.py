"""Runs side by side: which rows are the same, and their differences against plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from scipy import stats

from weightdiff.errors import QuestionError
from weightdiff.evals.run_comparison import (
    compare,
    comparison_html,
    comparison_markdown,
    comparison_tables,
)
from weightdiff.evals.run_files import load, save

OTHER = {"dit": "t0 t1 t4 n0", "base-question": "t1 n0", "nearest": "t0 h0"}


@pytest.fixture
def runs(run_example):
    return [run_example.make_run("first"), run_example.make_run("second", OTHER)]


def _row(found, method, kind, measure, recipe="covert", note=""):
    (row,) = [
        c
        for c in found
        if (c.row.method, c.row.kind, c.row.metric, c.row.recipe, c.row.note)
        == (method, kind, measure, recipe, note)
    ]
    return row


def test_a_paired_difference_by_hand(runs):
    """Of t0 … t4, the first run's dit misses t3 and the second's t2 and t3 (labels: a, b | b, c | c)."""
    found = _row(compare(runs), "dit", "topic", "exact")
    assert [r.mean for r in found.rows] == pytest.approx([0.8, 0.6])
    (difference,) = found.differences
    by_label = {}
    for first, second in zip(runs[0].outcomes[:5], runs[1].outcomes[:5], strict=True):
        gain = second.scores[0].value - first.scores[0].value
        by_label.setdefault(first.item.cluster, []).append(gain)
    gains = [g for label in by_label.values() for g in label]
    mean, g = sum(gains) / len(gains), len(by_label)
    sums = [sum(label) for label in by_label.values()]
    error = math.sqrt(
        g / (g - 1) * sum((s - mean * len(v)) ** 2 for s, v in zip(sums, by_label.values(), strict=True))
    )
    half = stats.t.ppf(0.975, g - 1) * error / len(gains)
    signs = list(itertools.product((1, -1), repeat=g))
    hits = [abs(sum(s * x for s, x in zip(row, sums, strict=True))) >= abs(sum(sums)) for row in signs]
    assert (difference.run, difference.n) == ("second", 5)
    assert difference.difference == pytest.approx(mean) == pytest.approx(-0.2)
    assert (difference.low, difference.high) == pytest.approx((max(-1, mean - half), min(1, mean + half)))
    assert difference.p == pytest.approx(sum(hits) / len(hits))


def test_rows_of_all_diffs_pair_those_that_do_not_behave_too(runs):
    note = "all diffs, those that do not behave too"
    assert _row(compare(runs), "dit", "topic", "exact", note=note).differences[0].n == 6


def test_unscored_answers_are_in_no_pair(runs):
    found = _row(compare(runs), "base-question", "topic", "exact")
    assert found.differences[0].n == 4
    assert found.rows[0].unscored == 1


def test_grades_keep_their_unit(runs):
    found = compare(runs)
    judged = _row(found, "dit", "headline", "judge", "stories")
    assert judged.differences[0].difference == pytest.approx(-1.75)
    (table,) = [t for t in comparison_tables(runs, found) if t.title == "Results"]
    cells = next(row for row in table.body if row[0] == "dit" and "judge" in row)
    assert "-1.75 grade" in cells


def test_rows_that_only_one_run_has(runs):
    found = compare(runs)
    only_first = _row(found, "dit-shuffled", "topic", "exact")
    only_second = _row(found, "nearest", "topic", "exact")
    assert [r is None for r in only_first.rows] == [False, True]
    assert [r is None for r in only_second.rows] == [True, False]
    assert only_first.differences == only_second.differences == (None,)


def test_rows_that_are_no_means_of_answers_have_plain_differences(runs):
    found = compare(runs)
    area = _row(found, "dit", "topic", "area under coverage")
    first, second = (r.mean for r in area.rows)
    (difference,) = area.differences
    assert difference.difference == pytest.approx(second - first)
    assert (difference.low, difference.high, difference.p, difference.n) == (None, None, None, 0)


def test_other_questions_are_not_paired(runs):
    second = runs[1]
    changed = {i: dataclasses.replace(i, question=f"{i.question} really?") for i in second.dataset.items}
    outcomes = tuple(dataclasses.replace(o, item=changed[o.item]) for o in second.outcomes)
    found = compare([runs[0], dataclasses.replace(second, outcomes=outcomes)])
    difference = _row(found, "dit", "topic", "exact").differences[0]
    assert difference.difference == pytest.approx(-0.2)
    assert (difference.p, difference.n) == (None, 0)


def test_a_mean_of_nothing_has_no_difference(runs):
    nan = float("nan")
    rows = [dataclasses.replace(r, mean=nan, low=nan, high=nan, n=0) for r in runs[1].rows]
    found = compare([runs[0], dataclasses.replace(runs[1], rows=rows)])
    assert {d for c in found for d in c.differences} == {None}


def test_a_run_against_itself_differs_by_nothing(runs):
    found = compare([runs[0], dataclasses.replace(runs[0], name="again")])
    assert len(found) == len(runs[0].rows)
    assert {c.differences[0].difference for c in found} == {0}
    assert {c.differences[0].p for c in found} == {None, 1.0}


def test_saved_runs_compare_as_they_did(runs, tmp_path):
    for run in runs:
        save(run, tmp_path / run.name, html=False)
    read = [load(tmp_path / run.name) for run in runs]
    for c, d in zip(compare(runs), compare(read), strict=True):
        (a,), (b,) = c.differences, d.differences
        assert (a and (a.p, a.n)) == (b and (b.p, b.n))


def test_three_runs(runs, run_example):
    third = run_example.make_run("third", {"dit": "t3"})
    found = compare([*runs, third])
    row = _row(found, "dit", "topic", "exact")
    assert [d.run for d in row.differences] == ["second", "third"]
    assert row.differences[1].difference == pytest.approx(0.2 - 0.8)
    (table,) = [t for t in comparison_tables([*runs, third], found) if t.title == "Results"]
    assert [c for c in table.head if "−" in c] == ["second − first", "third − first"]


def test_the_tables(runs):
    found = compare(runs)
    text = comparison_markdown(runs, found)
    assert text.startswith("# Runs compared: first, second\n\n- first: weightdiff eval --methods")
    line = next(
        x
        for x in text.splitlines()
        if x.startswith("| dit | hidden-topic | covert | topic | test | exact | 80.0 %")
    )
    assert "| 80.0 % | 60.0 % | -20.0 points | -" in line
    assert line.endswith("| 1.000 | 5 |  |")
    assert "paired" in text
    page = comparison_html(runs, found).decode()
    assert "<td>-20.0 points</td>" in page
    assert "<script" not in page


def test_json(runs):
    found = _row(compare(runs), "dit", "topic", "exact").to_json(["first", "second"])
    assert (found["table"], found["method"], found["scorer"]) == ("Results", "dit", "exact")
    assert found["runs"]["first"]["mean"] == 0.8
    assert found["runs"]["second"]["mean"] == 0.6
    assert found["differences"][0]["difference"] == -0.2
    assert found["differences"][0]["run"] == "second"
    absent = _row(compare(runs), "nearest", "topic", "exact").to_json(["first", "second"])
    assert absent["runs"]["first"] is None
    assert absent["differences"] == [None]


def test_too_few_runs(runs):
    with pytest.raises(
        QuestionError, match="runs called first cannot be compared: give two or more, each once"
    ):
        compare(runs[:1])
    with pytest.raises(QuestionError, match="runs called first, first cannot be compared"):
        compare([runs[0], runs[0]])
