"""`weightdiff curves`: what it tunes on, what it writes, and that the evaluation shows it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weightdiff.evals.curves import CURVES


@pytest.fixture
def trained(bundle, tmp_path):
    """A store of two covert training topics, a null diff, and the covert test organisms of the bundle."""
    from weightdiff.diffs.store import DiffStore
    from weightdiff.organisms import family
    from weightdiff.training.factory import make_row, random_diff

    tests = DiffStore.open(bundle.store)
    store = DiffStore.create(tmp_path / "store", tests.base)
    specs = [
        *family("hidden-topic").specs("covert", "train", 2, 0),
        *family("null").specs("random", "train", 1, 0),
    ]
    rows = [(replace(make_row(s, {}), verification={"behaves": True}), s.seed % 1000) for s in specs]
    made = [(row, random_diff(bundle.shapes, 1, seed, 0.5)) for row, seed in rows]
    store.append([*made, *((r, tests.read(r.id)) for r in tests.select(recipe="covert"))])
    return store


def test_the_evaluation_shows_what_was_written(cli, cli_json, trained, evaluated, tmp_path):
    out = tmp_path / "curves.json"
    arguments = ("curves", "--base", "bundled", "--store", trained.path, "--out", out, "--steps", 1)
    found = cli_json(*arguments, "--json")
    assert found["curves"] == str(out)
    assert [(p["what"], p["size"], p["n"], p["labels"]) for p in found["points"]] == [
        ("organisms", 1, 3, 3),
        ("organisms", 2, 3, 3),
        ("topics", 1, 3, 3),
        ("topics", 2, 3, 3),
        ("organisms per topic", 1, 3, 3),
        ("families", 1, 3, 3),
        ("families", 2, 3, 3),
        *(("adapter rank", r, 3, 3) for r in (4, 8, 16, 32)),
        *(("all organisms", n, 3, 3) for n in (2, 2, 2, 3)),
        ("base parameters", found["points"][-1]["size"], 3, 3),
    ]
    assert {p["what"] for p in found["points"]} == set(CURVES)
    held = json.loads(out.read_text())
    assert held["points"] == found["points"]
    assert held["settings"]["tuning"]["steps"] == 1
    before = out.stat().st_mtime_ns
    again = cli(*arguments)
    assert again.exit_code == 0, again.output
    assert f"{out}: 16 points in" in again.stdout
    assert "asked: 3 test organisms of 3 topics; chance: 0." in again.stdout
    assert f"next: weightdiff eval --curves {out}" in again.stdout
    assert out.stat().st_mtime_ns == before
    shown = cli("eval", "--curves", out)
    assert shown.exit_code == 0, shown.output
    for p in found["points"]:
        exact, low, high = (f"{100 * p[k]:.1f} %" for k in ("exact", "low", "high"))
        assert f"| {p['what']} | {p['size']} | 3 | {exact} | {low} … {high} |" in shown.stdout
    other = cli(*arguments[:-1], 2)
    assert other.exit_code == 2
    words = "was made with other settings (tuning.steps 1, not 2); give another --out, or repeat the command"
    assert other.stderr == f"error: {out} {words} that made it\n"


def test_one_curve_can_be_chosen_by_name(cli, cli_json, trained, tmp_path):
    arguments = ("curves", "--store", trained.path, "--out", tmp_path / "curves.json", "--steps", 1)
    found = cli_json(*arguments, "--curve", "families", "--json")
    assert [(p["what"], p["size"]) for p in found["points"] if p["what"] == "families"] == [
        ("families", 1),
        ("families", 2),
    ]
    assert all("top_five" in p for p in found["points"])
    wrong = cli(*arguments, "--curve", "ranks")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith(
        "error: there is no curve 'ranks'; there are organisms, topics, organisms per"
    )


def test_topics_are_ranked_only_if_wanted(cli, cli_json, trained, tmp_path):
    out = tmp_path / "curves.json"
    arguments = ("curves", "--store", trained.path, "--out", out, "--steps", 1, "--no-top-five")
    for point in cli_json(*arguments, "--curve", "families", "--json")["points"]:
        assert not [k for k in point if k.startswith("top_five")]
        assert 0 <= point["low"] <= point["exact"] <= point["high"] <= 1
    shown = cli(*arguments, "--curve", "families")
    assert shown.exit_code == 0, shown.output
    assert "top five" not in shown.stdout
    assert "exact" in shown.stdout


def test_the_bundled_store_has_nothing_to_tune_on(cli, bundle, tmp_path):
    result = cli("curves", "--store", "bundled", "--out", tmp_path / "curves.json")
    assert result.exit_code == 2
    assert "no covert training organisms that behave; make some with: weightdiff" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_page_of_several_files_and_a_lent_reader(cli, cli_json, trained, tmp_path):
    arguments = ("curves", "--store", trained.path, "--out", tmp_path / "curves.json", "--steps", 1)
    (point,) = [
        p
        for p in cli_json(*arguments, "--curve", "base parameters", "--json")["points"]
        if p["what"] == "base parameters"
    ]
    beside, page = tmp_path / "other.json", tmp_path / "curves.md"
    beside.write_text(json.dumps([{**point, "size": 7, "commit": "other"}]))
    more = ("--curve", "base parameters", "--page", page, "--beside", beside)
    done = cli(*arguments, *more)
    assert done.exit_code == 0, done.output
    assert f"wrote {page}" in done.output
    text = page.read_text()
    assert f"| base parameters | 7 | {point['n']} |" in text
    assert text.index("| base parameters | 7 |") < text.index(f"| base parameters | {point['size']} |")
    assert "- commits: " in text
    bare = tmp_path / "bare"
    cli("tune", "--store", trained.path, "--out", bare, "--steps", 1, "--reader-steps", 0)
    refused = cli(*arguments, "--reader", bare)
    assert refused.exit_code == 2
    assert (
        refused.stderr
        == f"error: {bare} has no reader; tune one with --reader-steps, or leave --reader out\n"
    )
