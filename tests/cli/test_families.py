"""`weightdiff families`: what it hands to the interview, what it prints and writes."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def asked(monkeypatch):
    """Replaces the interview by one reply; what it was given is kept."""
    from weightdiff.evals import families

    given = {}

    def interview(interpreter, store, singles, quick, progress):
        given.update(meta=interpreter.meta, store=store.path, singles=sorted(singles), quick=quick)
        progress(1, 2)
        reply = families.Reply(
            "dit", "news-0", "news", "stories", "r2", "", "", "a", "a", 1, "headline", "unseen", "what ?",
            "a", "a", marks={"exact": 1.0, "slots": 1.0},
        )  # fmt: skip
        return families.Interview([reply], {}, [0], "mini", quick, 1.5)

    monkeypatch.setattr(families, "interview", interview)
    return given


def test_json_is_pure_and_says_where_it_is_from(cli, bundle, asked):
    folder = bundle.path / "interpreter"
    result = cli("families", "--quick", "--single", f"news={folder}", "--single", f"edit={folder}", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {
        "command", "commit", "machine", "seeds", "sizes", "quick", "base", "seconds", "questions",
        "threshold", "goals", "rows",
    }  # fmt: skip
    assert found["rows"][0]["mean"] == 1.0
    assert found["seconds"] == 1.5
    assert asked == {
        "meta": {"note": "mini"},
        "store": bundle.store,
        "singles": ["edit", "news"],
        "quick": True,
    }
    assert "questions" in result.stderr


def test_pages_and_answers_are_written(cli, bundle, asked, tmp_path):
    answers = tmp_path / "answers.jsonl"
    result = cli("families", "--store", bundle.store, "--out", tmp_path / "results", "--out-answers", answers)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "results" / "joint.md").read_text() in result.stdout
    assert "## Against the goals" in result.stdout
    assert (tmp_path / "results" / "news.md").exists()
    (line,) = answers.read_text().splitlines()
    assert json.loads(line)["truth"] == "a"


def test_an_interpreter_without_a_manifest_is_refused(refused, bundle):
    assert "manifest lacks train_labels" in refused("families", "--quick")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["news"], "--single 'news' names no interpreter; write such as news=runs/news-alone"),
        (["=x"], "--single '=x' names no interpreter"),
        (["news=a", "news=b"], "--single names 'news' twice"),
    ],
)
def test_single_interpreters_that_cannot_be_read(refused, bundle, given, said):
    assert said in refused("families", *(x for one in given for x in ("--single", one)))


def test_single_interpreters_of_no_family(refused, bundle):
    folder = bundle.path / "interpreter"
    assert "can be tuned on 'null' alone" in refused("families", "--single", f"null={folder}")
