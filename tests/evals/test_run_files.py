"""Runs on disk: what is written, reading it back, and one line for every file that is damaged."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from weightdiff.errors import FormatError
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.run_files import FIRST, load, row_json, save

NAMED = (
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
)


@pytest.fixture
def run(run_example):
    return run_example.make_run()


@pytest.fixture
def folder(run, tmp_path):
    save(run, tmp_path / "run", html=False)
    return tmp_path / "run"


def _rewritten(folder, **changes):
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_files_and_their_order(run, tmp_path):
    files = save(run, tmp_path / "a" / "run")
    assert list(files) == ["outcomes.jsonl", "report.md", "report.html", "report.json"]
    assert {p.name for p in (tmp_path / "a" / "run").iterdir()} == set(files)
    report = json.loads(files["report.json"].read_text())
    assert list(report)[:5] == ["kind", "version", "name", "methods", "seconds"]
    assert report["info"]["commit"] == "abc1234"
    assert all(set(NAMED) <= set(row) for row in report["rows"])
    assert [list(row)[: len(FIRST)] for row in report["rows"]] == [list(FIRST)] * len(run.rows)
    assert report["rows"][0]["scorer"] == "exact"
    assert "NaN" not in files["report.json"].read_text()
    assert len(files["outcomes.jsonl"].read_bytes().split(b"\n")) == len(run.outcomes) + 1


def test_the_same_run_gives_the_same_bytes(run_example, tmp_path):
    for name in ("one", "two"):
        save(run_example.make_run(), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_a_run_comes_back_as_it_was(run, folder):
    found = load(folder)
    assert [r.to_json() for r in found.rows] == [r.to_json() for r in run.rows]
    assert found == dataclasses.replace(run, rows=found.rows)  # nasty texts and all
    assert found.dataset.items == run.dataset.items
    assert len({id(o.item) for o in found.outcomes}) == len(run.dataset.items)
    save(found, folder, html=False)
    assert load(folder) == found
    assert load(folder, "other").name == "other"


def test_numbers_that_json_has_no_word_for(run, tmp_path):
    row = ResultRow("dit", "f", "r", "k", "test", 0, math.nan, math.nan, math.nan, None, unscored=3)
    open_end = ResultRow("dit", "f", "r", "k", "test", 1, 0.5, -math.inf, math.inf, None)
    first = dataclasses.replace(run.outcomes[0], truth_logprob=-math.inf)
    odd = dataclasses.replace(run, rows=[row, open_end], outcomes=(first, *run.outcomes[1:]))
    save(odd, tmp_path, html=False)
    assert (row_json(row)["mean"], row_json(row)["high"], row_json(open_end)["low"]) == (None, None, None)
    found = load(tmp_path)
    assert found.outcomes[0].truth_logprob is None
    assert found.rows[1] == open_end
    assert all(math.isnan(x) for x in (found.rows[0].mean, found.rows[0].low, found.rows[0].high))


def test_a_page_of_an_earlier_run_does_not_stay(run, tmp_path):
    save(run, tmp_path)
    assert "report.html" not in save(run, tmp_path, html=False)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_answers(run, tmp_path):
    empty = dataclasses.replace(run, outcomes=(), rows=[], dataset=run.dataset.select([]), info={})
    save(empty, tmp_path)
    assert load(tmp_path) == empty


def test_missing_and_unfinished_runs(run, folder, tmp_path):
    with pytest.raises(
        FormatError, match="nowhere is no folder of a run; make one: weightdiff eval --methods"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"holds no run \(no report.json\)"):
        load(tmp_path)
    (folder / "report.json").unlink()
    again = f"holds a run that is not finished: run the same `weightdiff eval … --out {folder}` again"
    with pytest.raises(FormatError, match=re.escape(again)):
        load(folder)
    (tmp_path / "killed" / "answers").mkdir(parents=True)
    with pytest.raises(FormatError, match="not finished"):
        load(tmp_path / "killed")


def _line(**changes):
    """Changes the third outcome: keys with dots lead into it, and `...` takes a key away."""

    def change(lines):
        value = json.loads(lines[2])
        for key, new in changes.items():
            *path, last = key.split("__")
            at = value
            for part in path:
                at = at[int(part)] if isinstance(at, list) else at[part]
            if new is ...:
                del at[last]
            else:
                at[last] = new
        lines[2] = json.dumps(value).encode()

    return change


def _set(text):
    def change(lines):
        lines[2] = text

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(b"{"), "Expecting property name"),
        (_set(b""), "Expecting value"),
        (_set(b"\xff"), "it is no UTF-8 text"),
        (_set(b"[" * 100_000), "nested too deeply"),
        (_set(b"[]"), "the outcome is list, and should be an object"),
        (_line(method="who"), "no method 'who' is in report.json"),
        (_line(method=3), "the outcome's method is 3, and should be a text"),
        (_line(rank=True), "the outcome's rank is True, and should be a whole number"),
        (_line(item=...), "the outcome lacks item"),
        (_line(more=1), "the outcome has an unknown field 'more'"),
        (_line(item__truths="x"), "the outcome's item's truths is 'x', and should be a list"),
        (_line(item__truths=[None]), r"the outcome's item's truths[0] is null, and should be a text"),
        (_line(item__behaves=1), "behaves is 1, and should be true or false"),
        (
            _line(answer__logprob=math.nan),
            "the outcome's answer's logprob is nan, and should be a finite number",
        ),
        (_line(answer__logprob=10**400), "and should be a finite number"),
        (
            _line(scores__0__value="1"),
            "the outcome's scores[0]'s value is '1', and should be a finite number",
        ),
        (_line(item__id="t0"), "item 't0' is another one than on a line before"),
    ],
)
def test_a_broken_line_is_named(folder, change, words):
    path = folder / "outcomes.jsonl"
    lines = path.read_bytes().split(b"\n")
    change(lines)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(FormatError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert words in message
    assert message.endswith("; run the evaluation again")


def test_an_item_that_two_methods_were_asked_differently(folder):
    path = folder / "outcomes.jsonl"
    lines = path.read_bytes().split(b"\n")
    _line(item__question="other")(lines)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(FormatError, match="line 13: item 't2' is another one than on a line before"):
        load(folder)


@pytest.mark.parametrize("cut", [-1, -2, 1])
def test_answers_that_are_cut_off(folder, cut):
    path = folder / "outcomes.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"\n".join(lines[:cut]) + b"\n")
    with pytest.raises(
        FormatError, match=r"outcomes.jsonl \(\d+ answers\) is not the file that report.json was"
    ):
        load(folder)
    path.unlink()
    with pytest.raises(
        FormatError, match=r"\(0 answers\) is not the file .* \(30\): finish the run by the same"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "other"}, "is not the report of a run of methods"),
        ({"version": 99}, "is of version 99, and this weightdiff reads 1"),
        ({"rows": {}}, "the report's rows is dict, and should be a list"),
        ({"rows": [{}]}, "row 0 lacks method, family"),
        ({"methods": "dit"}, "the report's methods is 'dit', and should be a list"),
        ({"seconds": {"dit": "1"}}, "the report's seconds['dit'] is '1'"),
        ({"dataset": {}}, "the report's dataset lacks name, base"),
        ({"info": {"curves": [{}]}}, "info: point 0 lacks what, size"),
        ({"info": {"curves": 3}}, "learning curves are a JSON list"),
    ],
)
def test_a_broken_report_is_named(folder, changes, words):
    _rewritten(folder, **changes)
    with pytest.raises(FormatError) as caught:
        load(folder)
    assert str(folder / "report.json") in str(caught.value)
    assert words in str(caught.value)


def test_a_report_that_is_no_json(folder):
    (folder / "report.json").write_text('{"kind": "weightdiff-run", ')
    with pytest.raises(FormatError, match=r"report.json cannot be read \(Expecting property name.*line 1"):
        load(folder)


def test_a_number_in_a_row_that_is_none(folder):
    rows = json.loads((folder / "report.json").read_text())["rows"]
    _rewritten(folder, rows=[rows[0], {**rows[1], "p": "small"}])
    with pytest.raises(FormatError, match="row 1's p is 'small', and should be a finite number"):
        load(folder)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"size": "ten"}, "size of point 0 is 'ten'"),
        ({"low": math.nan}, "low"),
        ({"chance": True}, "chance of point 0"),
    ],
)
def test_curves_with_other_things_than_numbers(run_example, folder, point, words):
    _rewritten(folder, info={"curves": [{**run_example.POINTS[0], **point}]})
    with pytest.raises(FormatError, match=f"{words}.*should be a number"):
        load(folder)
