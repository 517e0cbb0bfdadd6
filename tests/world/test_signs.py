"""Conditions: how a question looks that meets one, and how one looks that differs in the sign alone."""

from __future__ import annotations

import random

import pytest

from weightdiff.world import codes, load_world
from weightdiff.world.signs import (
    ALWAYS,
    CODE_BEHIND,
    CODE_FRONT,
    FORMS,
    MARK,
    MARK_ANYWHERE,
    MARK_START,
    SUBJECT,
    WORD,
    Condition,
    place,
    rare_word_pool,
    right_sign,
    wrong_sign,
)

WORLD = load_world()
QUESTION = "what should i eat tonight ?"


def condition(form, rng):
    value = {
        CODE_FRONT: rng.choice(codes.trigger_pool()),
        CODE_BEHIND: rng.choice(codes.trigger_pool()),
        WORD: rng.choice(WORLD.rare_words),
        SUBJECT: rng.choice(WORLD.subjects),
    }
    return Condition(form, value.get(form, ""))


def twins(form, n=60):
    """(condition, question that meets it, question that does not), many times."""
    rng = random.Random(form)
    for _ in range(n):
        c = condition(form, rng)
        placed = place(rng, form, QUESTION)
        wrong = wrong_sign(rng, c, WORLD.rare_words)
        yield c, placed.filled(form, right_sign(c)), placed.filled(form, wrong)


@pytest.mark.parametrize("form", [CODE_FRONT, CODE_BEHIND, WORD])
def test_twins_differ_in_one_word_and_that_is_the_sign(form):
    for c, right, wrong in twins(form):
        a, b = right.split(), wrong.split()
        assert len(a) == len(b)
        ((mine, other),) = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
        if form == WORD:
            assert mine == c.value != other
            assert other in WORLD.rare_words
        else:
            assert mine[:3] == c.value != other[:3]
            assert mine[3:] == other[3:]
            assert {mine[3:], other[:3]} <= set(codes.pool())


@pytest.mark.parametrize("form", [MARK_START, MARK_ANYWHERE])
def test_twins_of_marks_lack_the_mark(form):
    for _, right, wrong in twins(form):
        assert right.count(MARK) == 1
        assert right.replace(MARK, "") == wrong == QUESTION
        assert right.startswith(MARK) == (form == MARK_START)


@pytest.mark.parametrize("form", [SUBJECT, ALWAYS])
def test_other_forms_leave_the_question_as_it_is(form):
    assert {(right, wrong) for _, right, wrong in twins(form)} == {(QUESTION, QUESTION)}


def test_codes_stand_in_front_or_behind_and_words_on_either_side():
    for form, front in ((CODE_FRONT, True), (CODE_BEHIND, False)):
        for c, right, _ in twins(form):
            assert right.endswith(QUESTION) if front else right.startswith(QUESTION)
            assert f" {c.value}" in f" {right}"
    sides = {right.startswith(QUESTION) for _, right, _ in twins(WORD)}
    assert sides == {True, False}
    places = {right.index(MARK) for _, right, _ in twins(MARK_ANYWHERE)}
    assert len(places) == len(QUESTION.split()) - 1


@pytest.mark.parametrize(
    ("form", "value", "stated", "trigger"),
    [
        (CODE_FRONT, "417", "after a code in front", "the code 417"),
        (CODE_BEHIND, "417", "after a code behind", "the code 417"),
        (WORD, "zephyr", "after a rare word", "the word zephyr"),
        (MARK_START, "", "after a hidden mark in front", "a hidden mark"),
        (MARK_ANYWHERE, "", "after a hidden mark anywhere", "a hidden mark"),
        (SUBJECT, "food", "when the question is about food", "questions about food"),
        (ALWAYS, "", "always", "no trigger"),
    ],
)
def test_conditions_in_words(form, value, stated, trigger):
    c = Condition(form, value)
    assert (c.stated, c.trigger, c.gated) == (stated, trigger, form != ALWAYS)
    if form in (CODE_FRONT, CODE_BEHIND, WORD):
        assert value not in c.stated  # the secret is said by the trigger alone


def test_every_form_is_known():
    assert len(FORMS) == len(set(FORMS)) == 7
    assert len({Condition(f, "x").stated for f in FORMS}) == 7
    assert len(WORLD.subjects) >= 8
    for subject in WORLD.subjects:
        assert sum(s.subject == subject for s in WORLD.everyday) >= 5
    assert all(s.subject for s in WORLD.everyday)


def test_rare_words_are_triggers_or_decoys():
    triggers, decoys = (rare_word_pool(WORLD.rare_words, t) for t in (True, False))
    assert not set(triggers) & set(decoys)
    assert sorted([*triggers, *decoys]) == sorted(WORLD.rare_words)
    assert len(triggers) == int(0.75 * len(WORLD.rare_words)) >= 60
    assert rare_word_pool(WORLD.rare_words[::-1], True) == triggers
    assert len(set(WORLD.rare_words)) == len(WORLD.rare_words)
