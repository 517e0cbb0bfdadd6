"""`weightdiff eval`: what it hands to the evaluation and how it shows what comes back."""

from __future__ import annotations

import json


def test_json_is_pure_and_says_where_it_is_from(cli, bundle, evaluated):
    folder = bundle.path / "interpreter"
    result = cli("eval", "--quick", "--interpreter", folder, "--interpreter", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"command", "commit", "machine", "seeds", "sizes", "quick", "base", "seconds", "rows"} == set(
        found
    )
    assert found["rows"][0]["mean"] == 0.5
    assert evaluated == {"n": 2, "store": bundle.store, "quick": True}
    assert "asking" in result.stderr


def test_the_report_is_shown_and_saved(cli, bundle, evaluated, tmp_path):
    point = {"what": "labels", "size": 10, "exact": 0.25, "low": 0.2, "high": 0.3, "n": 8}
    (tmp_path / "curves.json").write_text(json.dumps([point]))
    result = cli("eval", "--out", tmp_path / "results", "--curves", tmp_path / "curves.json")
    assert result.exit_code == 0, result.output
    assert "## Answers" in result.stdout
    assert "| labels | 10 | 8 | 25.0 % |" in result.stdout
    assert (tmp_path / "results" / "hidden-topic.md").read_text() in result.stdout
    assert json.loads((tmp_path / "results" / "hidden-topic.json").read_text())[0]["method"] == "dit"


def test_curves_are_refused_before_the_work(cli, bundle, evaluated, tmp_path):
    (tmp_path / "curves.json").write_text("[{}]")
    result = cli("eval", "--curves", tmp_path / "curves.json")
    assert result.exit_code == 2
    assert "point 0 lacks what" in result.stderr
    assert evaluated == {}


def test_an_interpreter_without_a_manifest_is_refused(cli, bundle):
    result = cli("eval", "--quick")
    assert result.exit_code == 2
    assert "manifest lacks train_labels" in result.stderr
