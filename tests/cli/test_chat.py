"""`weightdiff chat`: questions and commands, line by line; an error ends no conversation."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from weightdiff.cli.main import app


@pytest.fixture
def talk(bundle):
    """Holds a conversation about a diff; returns the result."""

    def call(diff, *lines, options=()):
        return CliRunner().invoke(app, ["chat", diff, *options], input="".join(f"{x}\n" for x in lines))

    return call


def test_questions_are_answered_as_ask_answers_them(talk, cli_json, bundle):
    name = f"bundled::{bundle.ids[0]}"
    (asked,) = cli_json("ask", "--diff", name, "what topic ?", "--json")
    found = talk(name, "what topic ?")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0] == asked["answer"]
    assert f"evidence: {asked['evidence']:+.1f}" in lines[1]
    bare = talk(name, "what topic ?", options=["--no-evidence"])
    assert "evidence" not in bare.stdout


def test_commands(talk, bundle, tmp_path):
    one, two = (f"bundled::{i}" for i in bundle.ids[:2])
    out = tmp_path / "said.json"
    lines = [f"/compare {two}", "", f"/diff {two}", "/evidence off", "what news ?", "/history"]
    lines += ["/questions", "/help", f"/save {out}", "/quit", "never asked"]
    found = talk(one, "what topic ?", *lines)
    assert found.exit_code == 0, found.output
    assert f"about {two}" in found.stdout
    assert "evidence is off" in found.stdout
    assert "/compare DIFF" in found.stdout
    said = json.loads(out.read_text())
    assert [(t["diff"], t["question"]) for t in said] == [
        (one, "what topic ?"),
        (one, "what topic ?"),
        (two, "what topic ?"),
        (two, "what news ?"),
    ]
    assert [t["evidence"] is None for t in said] == [False, False, False, True]
    assert said[0]["answer"] == said[1]["answer"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/tea", "no command '/tea': there are /diff, /compare"),
        ("/compare", "compare with what?"),
        ("/compare -", "ask something first"),
        ("/diff none-there", "none-there"),
        ("/evidence maybe", "/evidence is on or off"),
        ("/save", "save where?"),
    ],
)
def test_an_error_is_one_line_and_the_conversation_goes_on(talk, bundle, line, told):
    found = talk(f"bundled::{bundle.ids[0]}", line, "/diff")
    assert found.exit_code == 0
    assert found.stderr.startswith("error: ")
    assert told in found.stderr
    assert found.stderr.count("\n") == 1
    assert f"about bundled::{bundle.ids[0]}" in found.stdout


def test_a_diff_that_is_not_there_is_refused_at_once(refused, bundle):
    assert "none-there" in refused("chat", "none-there")
