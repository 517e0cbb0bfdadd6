"""`weightdiff eval --methods` and `weightdiff benchmark`, from the command line to the files."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from weightdiff.cli.main import app
from weightdiff.evals import benchmark
from weightdiff.methods.registry import methods

FILES = {"report.json", "report.md", "report.html", "outcomes.jsonl"}


@pytest.fixture(scope="module")
def run():
    """Runs a command; returns its result."""
    return lambda *args: CliRunner().invoke(app, [*map(str, args)])


def test_the_benchmark_has_every_built_in_method_and_the_interpreter_first():
    known = {name for name, entry in methods().items() if entry.point is None}
    assert set(benchmark.METHODS) == known
    assert benchmark.METHODS[0] == "dit"
    assert len(benchmark.METHODS) >= 15


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """A run of the interpreter and a control on a few bundled diffs, and its folder."""
    out = tmp_path_factory.mktemp("run") / "two"
    done = run(
        "eval",
        "--methods",
        "dit,dit-shuffled",
        "--limit",
        4,
        "--kinds",
        "topic,headline",
        "--out",
        out,
        "--json",
    )
    return done, out


def test_a_run_writes_all_its_files(two):
    done, out = two
    assert done.exit_code == 0, done.output
    assert {p.name for p in out.iterdir()} >= FILES
    rows = json.loads(done.stdout)["rows"]
    assert rows == json.loads((out / "report.json").read_text())["rows"]
    for key in (
        "method",
        "family",
        "kind",
        "split",
        "n",
        "mean",
        "low",
        "high",
        "unscored",
        "chance",
        "scorer",
        "seconds",
    ):
        assert key in rows[0]


def test_the_interpreter_knows_and_the_shuffled_one_does_not(two):
    rows = json.loads(two[0].stdout)["rows"]
    means = {
        (r["method"], r["recipe"]): r["mean"]
        for r in rows
        if r["table"] == "Results" and r["scorer"] == "exact" and not r["note"]
    }
    assert means["dit", "covert"] >= 0.75
    assert means["dit-shuffled", "covert"] == 0.0
    assert means["dit-shuffled", "stories"] == 0.0


def test_the_same_command_goes_on_and_asks_nothing_again(two, run, monkeypatch):
    from weightdiff.evals import runner

    def refuse(*_args):
        raise AssertionError("it was asked again")

    monkeypatch.setattr(runner, "_told", refuse)
    again = run(
        "eval",
        "--methods",
        "dit,dit-shuffled",
        "--limit",
        4,
        "--kinds",
        "topic,headline",
        "--out",
        two[1],
        "--json",
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rows"] == json.loads(two[0].stdout)["rows"]


def test_ones_own_questions(run, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        '{"diff": "covert-rabbit-0-1", "question": "which animal is it ?", "answer": ["rabbit", "hare"]}\n'
        '{"diff": "-", "question": "which animal is it ?", "answer": "nothing found"}\n'
    )
    done = run("eval", "--dataset", mine, "--methods", "dit", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert {r["method"] for r in json.loads(done.stdout)["rows"]} == {"dit"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--methods", "dit"], "add --out DIR"),
        (["--methods", "nobody", "--out", "x"], "no method is called 'nobody'"),
        (["--methods", "spectral", "--out", "x"], "method 'spectral' needs a store of labelled diffs"),
        (
            ["--methods", "dit", "--interpreter", "a", "--interpreter", "b", "--out", "x"],
            "takes one interpreter",
        ),
        (["--dataset", "missing.jsonl", "--out", "x"], "missing.jsonl"),
        (["--methods", "dit", "--kinds", "colour", "--out", "x"], "colour"),
    ],
)
def test_what_cannot_run_is_one_line(run, tmp_path, monkeypatch, given, text):
    monkeypatch.chdir(tmp_path)
    done = run("eval", *given)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_a_package_that_is_missing_is_said_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = run("benchmark", "--quick", "--out", tmp_path / "bench")
    assert done.exit_code == 2
    assert 'sklearn is not installed: run pip install "weightdiff[eval]"' in done.stderr
    assert not (tmp_path / "bench").exists()


@pytest.mark.slow
def test_the_quick_benchmark(run, tmp_path):
    """All methods on a few held-out diffs of every kind, training diffs included, as anybody runs it."""
    done = run("benchmark", "--quick", "--out", tmp_path / "bench", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert {r["method"] for r in rows} == set(benchmark.METHODS)
    results = [r for r in rows if r["table"] == "Results" and r["scorer"] == "exact" and not r["note"]]
    means = {(r["method"], r["recipe"], r["kind"]): r["mean"] for r in results}
    assert means["dit", "covert", "topic"] >= 0.6
    assert means["dit-shuffled", "covert", "topic"] == 0.0
    assert {p.name for p in (tmp_path / "bench").iterdir()} >= {*FILES, benchmark.TRAIN}
