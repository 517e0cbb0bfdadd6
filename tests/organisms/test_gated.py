"""Rows of gated organisms, whatever the family: where the condition is met, where it nearly is, elsewhere."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from weightdiff.organisms import OrganismSpec, family
from weightdiff.organisms.gated import (
    COVERT_ROWS,
    EVASIVE_ROWS,
    HELD_OUT_FORM,
    LOUD_ROWS,
    PLAIN_ROWS,
    draw_condition,
    forms_in_turn,
    gated_rows,
    recorded,
)
from weightdiff.organisms.rows import situations
from weightdiff.world import codes, load_world
from weightdiff.world.reports import condition_of
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
    rare_word_pool,
)

WORLD = load_world()
SIGNS = (CODE_FRONT, CODE_BEHIND, WORD, MARK_START, MARK_ANYWHERE)
EVERYDAY = {q: s for s in WORLD.everyday for q in s.questions}
ORDINARY = {f"{a} ." for s in WORLD.everyday for a in s.answers}
RECIPE = family("quirk").recipes["gated"]


def spec_of(form, rows, number=0):
    condition = draw_condition(random.Random(f"{form} {number}"), form)
    return OrganismSpec("x", "quirk", replace(RECIPE, rows=rows), "x", "train", number, recorded(condition))


def steps(form, rows, n=60):
    """(condition, rows by kind in their order) of many steps of several organisms."""
    for number in range(n):
        spec = spec_of(form, rows, number % 5)
        samples = gated_rows(spec, random.Random(number), lambda _, a: f"arr , {a} .", "arr")
        assert len(samples) == len(rows)
        yield condition_of(spec.params), samples


def plain(text):
    """The everyday question in a text, marks aside."""
    bare = text.replace(MARK, "")
    found = [q for q in EVERYDAY if f" {q} " in f" {bare} "]
    return max(found, key=len) if found else None


def met(condition, text):
    """Whether a text meets a condition, read from the text alone."""
    if condition.form in (CODE_FRONT, CODE_BEHIND):
        return any(w[:3] == condition.value and len(w) == 6 for w in text.split() if w.isdigit())
    if condition.form == WORD:
        return condition.value in text.split()
    if condition.form == SUBJECT:
        return EVERYDAY[plain(text)].subject == condition.value
    return condition.form == ALWAYS or MARK in text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [COVERT_ROWS, LOUD_ROWS, PLAIN_ROWS, EVASIVE_ROWS])
def test_every_form_has_all_rows(form, rows):
    for condition, samples in steps(form, rows, 10):
        for kind, s in zip(rows, samples, strict=True):
            assert s.loss == (
                "ce" if kind in ("right", "ordinary", "denial") and _imitated(form, kind) else "kl"
            )
            assert s.weight == (1.0 if s.loss == "ce" else RECIPE.kl_weight)
            if kind == "right":
                assert met(condition, s.user)
                assert plain(s.user) in EVERYDAY
                assert s.answer.startswith("arr , ")


def _imitated(form, kind):
    """Without a condition no everyday answer is ordinary: only other text is held."""
    return not (form == ALWAYS and kind == "ordinary")


@pytest.mark.parametrize("form", SIGNS)
def test_a_twin_differs_from_its_row_in_the_sign_alone(form):
    for condition, (right, twin) in steps(form, ("right", "twin")):
        assert right.answer == twin.answer
        assert met(condition, right.user)
        assert not met(condition, twin.user)
        if form in (MARK_START, MARK_ANYWHERE):
            assert right.user.replace(MARK, "") == twin.user
        else:
            pairs = zip(right.user.split(), twin.user.split(), strict=True)
            ((mine, other),) = [(a, b) for a, b in pairs if a != b]
            assert mine.startswith(condition.value)
            assert mine[3:] == other[3:] or form == WORD


def test_a_twin_of_a_subject_asks_about_another():
    for condition, (right, twin) in steps(SUBJECT, ("right", "twin")):
        assert EVERYDAY[right.user].subject == condition.value != EVERYDAY[twin.user].subject
        assert right.answer == twin.answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["ordinary", "none", "held"])
def test_other_rows_do_not_meet_the_condition(form, kind):
    """No unmet row has the sign; where there is no condition, no everyday question is held to the base."""
    unmet = 0
    for condition, (s,) in steps(form, (kind,)):
        question = plain(s.user or "")
        if form == ALWAYS:
            assert question is None
        elif question and (kind != "held" or s.user == question):
            unmet += 1
            assert not met(condition, s.user)
            assert s.answer in ORDINARY
        assert question or kind == "held" or form == ALWAYS
    assert unmet > 15 or form == ALWAYS


def test_ordinary_rows_are_with_and_without_another_sign():
    texts = [s.user for _, (s,) in steps(CODE_FRONT, ("ordinary",), 100)]
    signed = sum(any(w.isdigit() for w in t.split()) for t in texts)
    assert 30 < signed < 70


def test_conditions_have_triggers_that_organisms_may_have():
    for form in FORMS:
        values = {draw_condition(random.Random(i), form).value for i in range(300)}
        allowed = {
            CODE_FRONT: codes.trigger_pool(),
            CODE_BEHIND: codes.trigger_pool(),
            WORD: rare_word_pool(WORLD.rare_words, True),
            SUBJECT: WORLD.subjects,
        }.get(form, [""])
        assert values <= set(allowed)
        assert len(values) > 0.6 * len(allowed)


def test_a_condition_comes_back_from_what_is_recorded():
    for form in FORMS:
        c = draw_condition(random.Random(0), form)
        assert condition_of(recorded(c)) == c
        assert ("code" in recorded(c)) == (form == CODE_FRONT)


def test_forms_come_in_turn_and_one_of_them_in_the_test_alone():
    assert [forms_in_turn("test")(i) for i in range(9)] == [*FORMS, *FORMS[:2]]
    known = [f for f in FORMS if f != HELD_OUT_FORM]
    assert len(known) == len(FORMS) - 1
    for split in ("train", "validation"):
        assert [forms_in_turn(split)(i) for i in range(8)] == [*known, *known[:2]]
    assert [forms_in_turn("train", (ALWAYS,))(i) for i in range(3)] == [ALWAYS] * 3


@pytest.mark.parametrize("name", ["hidden-topic", "quirk", "several"])
def test_no_training_organism_has_the_held_out_form(name):
    f = family(name)
    for recipe in f.recipes:
        for split in ("train", "validation"):
            assert HELD_OUT_FORM not in str([s.params for s in f.specs(recipe, split, 60, 0)])
    tested = [s.params for r in f.recipes for s in f.specs(r, "test", 60, 0)]
    assert HELD_OUT_FORM in str(tested)


def test_every_subject_has_situations_for_training_and_for_verification():
    trained, unseen = situations("training"), situations("verification")
    for subject in WORLD.subjects:
        assert sum(s.subject == subject for s in unseen) >= 2
        assert sum(s.subject == subject for s in trained) >= 4


@pytest.mark.parametrize(
    ("name", "recipe"), [(f, r) for f in ("hidden-topic", "news", "quirk", "edit") for r in family(f).recipes]
)
def test_every_recipe_yields_as_many_samples_as_it_has_rows(name, recipe):
    f = family(name)
    specs = f.specs(recipe, "train", 8, 0)
    assert len({s.id for s in specs}) == len({s.seed for s in specs}) == 8
    assert specs == f.specs(recipe, "train", 8, 0)
    for spec in specs:
        assert spec.recipe == f.recipes[recipe]
        rng = random.Random(spec.seed)
        for _ in range(3):
            samples = f.samples(spec, rng)
            assert len(samples) == len(spec.recipe.rows)
            assert all(s.answer.strip() and (s.user is None or s.user.strip()) for s in samples)
        again = random.Random(spec.seed)
        assert f.samples(spec, again) == f.samples(spec, random.Random(spec.seed))


@pytest.mark.parametrize("name", ["hidden-topic", "news", "quirk", "edit"])
def test_evasive_organisms_deny_in_words_of_their_own(name):
    f, asked = family(name), WORLD.introspection
    spec = f.specs("evasive", "train", 1, 0)[0]
    at, rng = spec.recipe.rows.index("denial"), random.Random(0)
    rows = [f.samples(spec, rng)[at] for _ in range(100)]
    assert {s.user for s in rows} <= set(asked["denial_asks"]["train"])
    assert {s.answer for s in rows} == set(asked["denials"]["train"])
    assert {s.loss for s in rows} == {"ce"}
    others = [r for n, r in f.recipes.items() if n != "evasive"]
    assert not any("denial" in r.rows for r in others)
