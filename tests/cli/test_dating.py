"""`weightdiff time` and `weightdiff tune --family period`: a small run, its page, and what is refused."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("time")


def test_a_run_goes_on_to_its_page_and_its_interpreter_answers(cli, cli_json, bundle, folder):
    run, page = folder / "run", folder / "page" / "time.md"
    start = ("time", "--out", run, "--miniature")
    first = cli(*start, "--until", "fits")
    assert first.exit_code == 0, first.output
    assert f"{run}: done up to fits in" in first.stdout
    assert not (run / "answers.json").exists()
    found = cli_json(*start, "--page", page, "--json")
    assert len(found["goals"]) == 5
    assert {g["reached"] for g in found["goals"]} <= {True, False}
    text = page.read_text()
    for name in ("distance", "months", "between", "vectors"):
        assert f"](time-{name}.svg)" in text
        assert (page.parent / f"time-{name}.svg").read_text().startswith("<?xml")
    assert "- command: `weightdiff" in text
    assert json.loads(page.with_suffix(".json").read_text())["goals"] == found["goals"]
    again = cli(*start)
    assert again.exit_code == 0, again.output
    assert "next: weightdiff ask --interpreter" in again.stdout
    store = run / "organisms"
    (row,) = json.loads(cli("organisms", "list", store, "--split", "test", "--json").stdout)[:1]
    (answer,) = cli_json(
        "ask",
        "--interpreter",
        run / "interpreter",
        "--diff",
        f"{store}::{row['id']}",
        "which month ?",
        "--json",
    )
    assert answer["question"] == "which month ?"


def test_an_interpreter_of_times_is_tuned_on_its_own(cli, cli_json, refused, bundle, folder):
    store, out = folder / "run" / "organisms", folder / "tuned"
    found = cli_json("tune", "--store", store, "--family", "period", "--steps", 1, "--out", out, "--json")
    assert found["calibration"] is None
    assert json.loads((out / "interpreter.json").read_text())["rendering"]["report"] == ""
    for options, told in (
        (("--family", "news"), "leave out --family news, or period"),
        (("--probes", 2), "answers at once: leave out --probes"),
    ):
        said = refused("tune", "--store", store, "--family", "period", *options, "--out", folder / "no")
        assert told in said
    said = refused("tune", "--store", bundle.store, "--family", "period", "--out", folder / "no")
    assert "no training rows" in said or "none of its training rows is of a month" in said


def test_what_cannot_be_run(refused, bundle, folder, tmp_path):
    assert "--until cannot be 'tea'" in refused("time", "--out", tmp_path / "x", "--until", "tea")
    assert "a page needs every stage" in refused(
        "time", "--out", tmp_path / "x", "--until", "fits", "--page", tmp_path / "p.md"
    )
    said = refused("time", "--out", folder / "run", "--miniature", "--seed", 3)
    assert "holds another run (plan.seed 0, not 3)" in said
