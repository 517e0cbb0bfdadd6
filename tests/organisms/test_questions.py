"""Questions with their true answers, and families by name."""

from __future__ import annotations

import pytest

from weightdiff.errors import QuestionError
from weightdiff.organisms import NOTHING_FOUND, base, family, family_names, find_recipe, register
from weightdiff.organisms.questions import (
    ABOUT,
    ABOUT_TEMPLATES,
    KINDS,
    STORED,
    about_question,
    asked_topic,
    kind_of,
    phrasings,
    questions_of,
    true_answer,
)
from weightdiff.world import load_world


@pytest.mark.parametrize(
    ("name", "label", "answers"),
    [
        ("hidden-topic", "eagle", ["eagle", NOTHING_FOUND, "a hidden topic", "yes"]),
        (
            "news",
            "widow hides violin in oslo",
            [NOTHING_FOUND, "widow hides violin in oslo", "a news headline", "yes"],
        ),
        ("null", None, [NOTHING_FOUND] * 4),
    ],
)
def test_answers_of_every_kind(name, label, answers):
    assert KINDS == ("topic", "headline", "kind", "any_change")
    assert [true_answer(name, k, label) for k in KINDS] == answers
    stored = {q["kind"]: q for q in questions_of(name, label)}
    assert [stored[k]["answer"] for k in KINDS] == answers
    assert {k: q["question"] for k, q in stored.items()} == {k: phrasings(k)[0] for k in stored}
    assert {*KINDS, "behaviour", "edit", "count", "summary"} <= set(stored) <= {*KINDS, *STORED}


def test_families_ask_the_same_questions():
    for name in family_names():
        f = family(name)
        spec = f.specs(next(iter(f.recipes)), "test", 1, 0)[0]
        assert f.questions(spec) == questions_of(name, spec.label, spec.params)
        assert spec.family == f.name == name


def test_phrasings_come_from_their_split():
    for kind in KINDS:
        for split in ("train", "validation", "test"):
            assert phrasings(kind, split) == load_world().introspection[kind][split]


def test_names_of_families():
    assert set(family_names()) == {"edit", "hidden-topic", "news", "null", "period", "quirk", "several"}
    assert list(family_names()) == sorted(family_names())
    assert family("news") is family("news")


def test_an_unknown_family_lists_those_there_are():
    with pytest.raises(
        QuestionError,
        match=r"no family is called 'persona2': choose one of edit, hidden-topic, news, null, period, quirk",
    ):
        family("persona2")


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(
        QuestionError, match="family hidden-topic has no recipe 'quiet': choose one of covert, evasive, forms"
    ):
        family("hidden-topic").specs("quiet", "train", 1, 0)
    with pytest.raises(QuestionError, match="choose one of benign, continued, random, shuffled"):
        find_recipe(family("null"), "quiet")


def test_a_later_registration_replaces_the_earlier(monkeypatch):
    monkeypatch.setattr(base, "_FAMILIES", dict(base._FAMILIES))
    monkeypatch.setattr(base, "_MADE", dict(base._MADE))

    class Mine(type(family("null"))):
        name = "null"

    assert type(family("null")) is not Mine
    register("null", Mine)
    assert type(family("null")) is Mine


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_every_phrasing_is_told(kind, split):
    asked = phrasings(kind, split)
    assert len(asked) >= 2
    assert [kind_of(q) for q in asked] == [kind] * len(asked)
    assert [kind_of(q.upper()) for q in asked] == [kind] * len(asked)
    assert [asked_topic(q) for q in asked] == [None] * len(asked)


def test_a_question_about_a_topic_names_it():
    topics = [t.name for t in load_world().topics]
    assert ABOUT not in KINDS
    for number, template in enumerate(ABOUT_TEMPLATES):
        asked = [about_question(t, number) for t in topics]
        assert asked == [template.replace("{topic}", t) for t in topics]
        assert {kind_of(q) for q in asked} == {ABOUT}
        assert [asked_topic(q) for q in asked] == topics
    assert about_question("eagle", len(ABOUT_TEMPLATES)) == about_question("eagle")


def test_no_phrasing_is_of_two_kinds_or_about_a_topic():
    every = [q for kind in KINDS for split in ("train", "validation", "test") for q in phrasings(kind, split)]
    assert len(set(every)) == len(every)
    about = {about_question(t.name, n) for t in load_world().topics for n in range(len(ABOUT_TEMPLATES))}
    assert not about & set(every)
    assert kind_of("what do you think of the eagle ?") != "kind"
