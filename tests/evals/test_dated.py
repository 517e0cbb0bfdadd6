"""A small run of `weightdiff time`: stages that go on, right numbers, and nothing held out in tuning."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from weightdiff.errors import FormatError, InterpreterError
from weightdiff.evals import dated, dated_page
from weightdiff.methods.dit import Interpreter
from weightdiff.world.dated import MONTHS, PERIODS


@pytest.fixture(scope="module")
def finished(embedded_base, tmp_path_factory):
    """A miniature run, and the stages in the order in which they were told of."""
    out, told = tmp_path_factory.mktemp("time") / "run", []
    dated.run(embedded_base, out, dated.miniature_plan(), lambda s, _a, _b: told.append(s))
    return out, list(dict.fromkeys(told))


def test_every_stage_is_done_once_and_a_run_goes_on(embedded_base, finished):
    out, told = finished
    assert told == list(dated.STAGES)
    again = []
    (out / "analogies.json").unlink()
    dated.run(embedded_base, out, dated.miniature_plan(), lambda s, _a, _b: again.append(s))
    assert set(again) == {"analogies"}
    assert set(dated.read(out)) == {*dated.STAGES[1:], "settings"}


def test_another_plan_is_refused(embedded_base, finished):
    plan = replace(dated.miniature_plan(), pairs=3)
    with pytest.raises(FormatError, match=r"holds another run \(plan.pairs 2, not 3\)"):
        dated.run(embedded_base, finished[0], plan, lambda *_: None)


def test_an_unfinished_run_is_not_read(tmp_path):
    with pytest.raises(FormatError, match="fits is not done; run: weightdiff time --out"):
        dated.read(tmp_path)


def test_every_diff_is_tried_on_every_month(finished):
    fits = dated.read(finished[0])["fits"]
    assert np.array(fits["vector"]["far"]).shape == (PERIODS, PERIODS)
    assert fits["vector"]["months"] == list(range(PERIODS))
    assert np.array(fits["year"]["far"]).shape == (4, PERIODS)
    assert len(fits["base"]) == PERIODS


def test_mixtures_begin_and_end_as_far_as_the_ends(finished):
    found = dated.read(finished[0])
    for x in found["between"]:
        a, b = x["ends"]
        assert a < x["month"] < b
        ends = [found["fits"]["vector"]["far"][e][x["month"]] for e in (a, b)]
        assert [x["far"][0], x["far"][-1]] == pytest.approx(ends, rel=1e-4)
    assert {x["ends"][1] - x["ends"][0] for x in found["between"]} == set(dated.GAPS)


def test_the_interpreter_has_not_seen_what_it_is_asked(embedded_base, finished):
    out, _ = finished
    store = dated.DiffStore.open(out / dated.STORE)
    made = Interpreter.load(out / dated.INTERPRETER, embedded_base)
    dated.assert_unseen(made, store)
    groups = {x["group"] for x in dated.read(out)["answers"]}
    assert {dated_page.HELD_OUT, dated_page.PAIRED, dated_page.NULLS, "nearest neighbour"} <= groups
    held = store.select(family="period", split="test")[0]
    for seen in ({"train_labels": [held.label]}, {"train_ids": [held.id]}):
        with pytest.raises(InterpreterError, match=r"was tuned on .* which is held out"):
            dated.assert_unseen(replace(made, meta={**made.meta, **seen}), store)


def test_the_page_tells_every_finding(finished):
    found = dated.read(finished[0])
    page = dated_page.to_page(found, {"command": "`x`"}, [])
    for title in (
        "Against the goals",
        "Error grows",
        "Between two times",
        "A task moved",
        "How the vectors lie",
    ):
        assert f"## {title}" in page
    assert "| months held out |" in page
    assert "![" not in page
    assert [g[3] for g in dated_page.goals(found)] == [v >= b for _, v, b, _ in dated_page.goals(found)]
    json.dumps(dated_page.date_rows(found), allow_nan=False)


def test_divergence_that_grows_evenly_with_distance_has_correlation_one():
    apart = np.abs(np.subtract.outer(np.arange(PERIODS), np.arange(PERIODS))).astype(float)
    r, low, high = dated_page.correlation(2 * apart - 5)
    assert (r, low, high) == pytest.approx((1, 1, 1))
    assert dated_page.by_distance(apart).tolist() == list(range(PERIODS))
    learned = np.arange(PERIODS)[:, None] / 3  # some learn less well than others
    assert dated_page.correlation(apart + learned)[0] < 0.95
    assert dated_page.correlation(dated_page.rise(apart + learned))[0] == pytest.approx(1)


def test_seasons_show_as_a_dip_at_whole_years():
    months = np.arange(PERIODS)
    waves = -np.cos(2 * np.pi * np.subtract.outer(months, months) / MONTHS)
    mean, _, high = dated_page.season(waves)
    assert mean == pytest.approx(-2)
    assert high < 0


def test_a_picture_keeps_directions_of_a_plane():
    angles = np.linspace(0, np.pi, 9)
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    at, share = dated_page.picture(points @ points.T)
    assert share == pytest.approx(1)
    between = np.linalg.norm(at[:, None] - at[None], axis=-1)
    assert between == pytest.approx(np.linalg.norm(points[:, None] - points[None], axis=-1))


def test_a_mixture_is_taken_at_the_months_place():
    found = {
        "between": [
            {"ends": [0, 6], "month": 3, "far": [2.0, *[1.5] * 4, 1.0, *[1.5] * 4, 3.0]},
            {"ends": [0, 6], "month": 3, "far": [2.0, *[1.5] * 4, 2.5, *[1.5] * 4, 3.0]},
        ]
    }
    rows = {r[0]: r[2] for r in dated_page.between_rows(found)}
    assert rows["6 months, weights by place"] == rows["all, weights by place"] == 0.5
    assert rows["6 months, weights best of the line"] == 1
    assert len(rows) == 4
