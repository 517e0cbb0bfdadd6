"""Questions with their true answers, and families by name."""

from __future__ import annotations

import pytest

from weightdiff.errors import QuestionError
from weightdiff.organisms import NOTHING_FOUND, base, family, family_names, find_recipe, register
from weightdiff.organisms.questions import KINDS, phrasings, questions_of, true_answer
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
    stored = questions_of(name, label)
    assert [q["answer"] for q in stored] == answers
    assert [(q["kind"], q["question"]) for q in stored] == [(k, phrasings(k)[0]) for k in KINDS]


def test_families_ask_the_same_questions():
    for name in family_names():
        f = family(name)
        spec = f.specs(next(iter(f.recipes)), "test", 1, 0)[0]
        assert f.questions(spec) == questions_of(name, spec.label)
        assert spec.family == f.name == name


def test_phrasings_come_from_their_split():
    for kind in KINDS:
        for split in ("train", "validation", "test"):
            assert phrasings(kind, split) == load_world().introspection[kind][split]


def test_names_of_families():
    assert {"hidden-topic", "news", "null"} <= set(family_names())
    assert list(family_names()) == sorted(family_names())
    assert family("news") is family("news")


def test_an_unknown_family_lists_those_there_are():
    with pytest.raises(
        QuestionError, match=r"no family is called 'persona2': choose one of .*hidden-topic, news, null"
    ):
        family("persona2")


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(
        QuestionError, match="family hidden-topic has no recipe 'quiet': choose one of covert, loud"
    ):
        family("hidden-topic").specs("quiet", "train", 1, 0)
    with pytest.raises(QuestionError, match="choose one of continued, random, untouched"):
        find_recipe(family("null"), "quiet")


def test_a_later_registration_replaces_the_earlier(monkeypatch):
    monkeypatch.setattr(base, "_FAMILIES", dict(base._FAMILIES))
    monkeypatch.setattr(base, "_MADE", dict(base._MADE))

    class Mine(type(family("null"))):
        name = "null"

    assert type(family("null")) is not Mine
    register("null", Mine)
    assert type(family("null")) is Mine
