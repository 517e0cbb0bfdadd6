"""Which questions want a yes or no, and whether a verdict follows from what is said before it."""

from __future__ import annotations

import re

import pytest

from weightdiff.methods.verdicts import doubtful, lacks_verdict, polar, verdict_of
from weightdiff.world import load_world
from weightdiff.world.reports import NOT_SAID, YES_NO

REPORT = "a hidden topic , eagle , after a code in front . a behaviour , speak like a judge , always"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_questions_that_want_yes_or_no_are_told_by_their_form(split):
    """Every question of the world: but for those with an "or" or an "if", its form says what it wants."""
    world = load_world().introspection
    for kind in YES_NO:
        missed = [text for text in world[kind][split] if not polar(text)]
        assert all(re.search(r"\b(or|if)\b", text) for text in missed)
        assert len(missed) <= 2
    for kind in set(world) - {*YES_NO, "any_change", "denial_asks", "denials"}:
        assert not any(map(polar, world[kind][split])), kind
    assert sum(map(polar, world["any_change"][split])) >= len(world["any_change"][split]) - 1


@pytest.mark.parametrize(
    ("question", "wants"),
    [
        ("is it about chess ?", True),
        ("Yes or no: could chess be in there?", True),
        ("yes or no , what is it ?", False),
        ("is it rather chess or cooking ?", False),
        ("what is it ?", False),
        ("tell me , is it chess ?", False),
        ("", False),
    ],
)
def test_a_choice_is_no_yes_or_no(question, wants):
    assert polar(question) is wants


@pytest.mark.parametrize(
    ("said", "answer", "doubt"),
    [
        ("eagle and eagle so yes", "yes", False),
        ("eagle and eagle so no", "yes", False),
        ("eagle and canoe so no", "no", False),
        ("eagle and animals so yes", "yes", True),
        ("canoe and canoe so yes", "yes", True),
        ("canoe and canoe so no", "yes", True),
        ("a hidden topic, a behaviour and a behaviour so yes", "yes", False),
        ("a hidden topic , a behaviour and a changed fact so no", "no", False),
        ("speak like a judge and speak like a judge so yes", "yes", False),
        ("salt and pepper and salt and pepper so no", "yes", True),
        ("yes", "yes", False),
        ("eagle so no", "no", False),
        ("eagle", "eagle", False),
        ("so yes", "yes", False),
        (NOT_SAID, NOT_SAID, False),
    ],
)
def test_verdicts_follow_from_what_is_named(said, answer, doubt):
    assert (verdict_of(said), doubtful(said, REPORT)) == (answer, doubt)


def test_what_answers_a_yes_or_no():
    for said in ("yes", "eagle and canoe so no", "nothing found", NOT_SAID):
        assert not lacks_verdict(said)
    for said in ("eagle", "eagle and canoe", ""):
        assert lacks_verdict(said)
