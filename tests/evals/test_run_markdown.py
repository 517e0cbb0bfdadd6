"""The Markdown of a run against tables by hand."""

from __future__ import annotations

import dataclasses

import pytest

from weightdiff.evals.outcomes import Outcome
from weightdiff.evals.results import AGAINST, GAP, RESULTS
from weightdiff.evals.run_markdown import code, overview, to_markdown
from weightdiff.evals.run_tables import first_share, overview_of, p_text, row_tables, verdict
from weightdiff.evals.scorers import Score
from weightdiff.methods.base import Answer


@pytest.fixture
def run(run_example):
    return run_example.make_run()


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def _table(lines, title):
    """The rows of the table under a heading, its head first."""
    start = lines.index(title)
    at = next(i for i, line in enumerate(lines) if i > start and line.startswith("|"))
    end = next((i for i, line in enumerate(lines) if i > at and not line.startswith("|")), len(lines))
    return [_cells(line) for line in lines[at:end] if not line.startswith("|---")]


def test_the_overview_by_hand(run):
    lines = overview(run)
    assert lines[0] == "## Overview"
    assert _table(lines, "## Overview") == [
        ["method", "covert · topic", "stories · headline", "random · topic"],
        ["dit", "80.0", "62.5", "100.0"],  # t0 t1 t2 t4 of five that behave; 1 and 0.25; both
        ["base-question", "25.0 (1)", "0.0", "50.0"],  # t1 of four, t2 has no answer
        ["dit-shuffled", "20.0", "0.0", "50.0"],
        ["chance", "25.0", "1.1", ""],
    ]
    assert "(exact: covert · topic, random · topic; slots: stories · headline)" in lines[2]


def test_many_cells_make_a_table_for_each_kind(run):
    rows = [r for r in run.rows if r.table == "Results"]
    more = [dataclasses.replace(r, recipe=f"{r.recipe} {n}") for n in range(3) for r in rows]
    lines = overview(dataclasses.replace(run, rows=more))
    assert [line for line in lines if line.startswith("#")] == ["## Overview: topic", "## Overview: headline"]
    assert _table(lines, "## Overview: headline")[0] == ["method", *(f"stories {n}" for n in range(3))]
    assert len(_table(lines, "## Overview: topic")[0]) == 7


def test_cells_of_one_name_are_told_apart_by_family(run):
    rows = [dataclasses.replace(r, recipe="all", family=f) for r in run.rows[:1] for f in ("a", "b")]
    same = [dataclasses.replace(r, recipe="x", family=f) for r in run.rows[:1] for f in ("a", "b")]
    names = overview_of(dataclasses.replace(run, rows=[*rows, *same])).names
    assert list(names.values()) == ["a · topic", "b · topic", "a · x · topic", "b · x · topic"]


def test_an_overview_has_first_rows_of_the_first_table_without_notes(run):
    found = overview_of(run)
    assert {r.metric for r in found.rows.values()} == {"exact", "slots"}
    assert {r.note for r in found.rows.values()} == {""}
    assert found.methods == run.methods


def test_the_head_says_how_it_was_made(run):
    text = to_markdown(run)
    assert text.startswith("# example\n\n- command: `` weightdiff eval --methods")
    for line in (
        "- commit: abc1234",
        "- seed: 0",
        "- interpreter: the bundled one",
        "- diffs: 9, 1 of which do not behave",
        "- labels: 6",
        "- questions: 10",
        "- methods: 3",
        "- seconds: 12.5",
        "- scorers: judge",
    ):
        assert f"\n{line}\n" in text
    assert "## How to read it" in text
    assert "clustered by label" in text
    assert to_markdown(dataclasses.replace(run, info={"quick": True})).startswith(
        "# example (quick version)\n"
    )
    assert "- commit: unknown\n" in to_markdown(dataclasses.replace(run, info={}))


def test_tables_in_order_of_appearance(run):
    lines = to_markdown(run).splitlines()
    titles = list(dict.fromkeys(r.table for r in run.rows))
    heads = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert heads == ["How to read it", "Overview", "Methods", *titles, "Learning curves"]
    assert _table(lines, "## Methods")[1:] == [
        ["dit", "10", "7", "1", "2", "0", "2.5"],
        ["base-question", "10", "2", "0", "7", "1", "2.5"],
        ["dit-shuffled", "10", "2", "0", "8", "0", "2.5"],
    ]
    results = _table(lines, "## Results")
    assert results[0][:6] == ["method", "family", "recipe", "kind", "split", "measure"]
    judged = next(row for row in results if row[0] == "dit" and row[5] == "judge")
    assert judged[9:11] == ["2.75 grade", "1.00 grade … 5.00 grade"]
    assert "p" not in results[0]
    differences = _table(lines, "## dit against each method")
    assert differences[1][differences[0].index("result")] == "+50.0 points"
    assert _table(lines, "## Learning curves")[1][:3] == ["organisms", "10", "40"]


def test_rows_without_a_value(run):
    nan = float("nan")
    row = dataclasses.replace(run.rows[0], n=0, mean=nan, low=nan, high=nan, unscored=5)
    (table,) = row_tables([row])
    told = dict(zip(table.head, table.body[0], strict=True))
    assert (told["n"], told["unscored"], told["result"], told["95 % interval"]) == ("0", "5", "n/a", "n/a")
    assert "n/a (5)" in "\n".join(overview(dataclasses.replace(run, rows=[row])))


def test_names_cannot_break_out_of_a_table(run):
    row = dataclasses.replace(run.rows[0], method="a|b\n# <img src=x>", note="")
    lines = overview(dataclasses.replace(run, rows=[row]))
    assert "| a/b # &lt;img src=x> | 80.0 |" in lines


@pytest.mark.parametrize(
    ("text", "told"), [("a", "`a`"), ("`a`", "`` `a` ``"), ("a ``` b", "```` a ``` b ````")]
)
def test_code_is_fenced_by_more_backticks(text, told):
    assert code(text) == told


@pytest.mark.parametrize(
    ("score", "told", "share"),
    [
        (None, "unscored", None),
        (Score(None, "exact"), "unscored", None),
        (Score(0.0, "exact"), "wrong", 0),
        (Score(0.75, "slots"), "partly", 0.75),
        (Score(1.0, "exact"), "right", 1),
        (Score(1.0, "judge"), "wrong", 0),
        (Score(4.0, "judge"), "partly", 0.75),
        (Score(5.0, "judge"), "right", 1),
    ],
)
def test_verdicts_know_the_bounds_of_a_scorer(run, score, told, share):
    outcome = Outcome("dit", run.dataset.items[0], Answer("x"), () if score is None else (score,))
    assert (verdict(outcome), first_share(outcome)) == (told, share)


def test_p_texts():
    assert [p_text(p) for p in (None, 1.0, 0.0124, 0.0001)] == ["", "1.000", "0.012", "0.0001"]


def test_a_brief_report_has_the_overview_and_the_main_differences_only(run):
    row = run.rows[0]
    rows = [
        dataclasses.replace(row, table=RESULTS, family="news", kind="headline"),
        dataclasses.replace(row, table=AGAINST.format("dit"), family="news", kind="headline", metric="shown"),
        dataclasses.replace(
            row, table=AGAINST.format("dit"), family="null", kind="headline", metric="of nulls"
        ),
        dataclasses.replace(
            row, table=AGAINST.format("dit"), family="news", kind="any_change", metric="of kinds"
        ),
        dataclasses.replace(row, table=GAP, family="news", kind="any_change", metric="gap"),
    ]
    run = dataclasses.replace(run, rows=rows)
    brief, whole = to_markdown(run, brief=True), to_markdown(run)
    assert f"## {RESULTS}" in whole
    assert f"## {RESULTS}" not in brief
    assert [m in brief for m in ("shown", "of nulls", "of kinds", "gap")] == [True, False, False, True]
    assert all(m in whole for m in ("shown", "of nulls", "of kinds", "gap"))
