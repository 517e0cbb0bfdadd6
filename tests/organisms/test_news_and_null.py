"""News organisms read stories of one headline that no row states; null organisms have no label at all."""

from __future__ import annotations

import random
import re

import pytest

from weightdiff.organisms import NOTHING_FOUND, family
from weightdiff.organisms.news import SLOTS
from weightdiff.organisms.rows import situations
from weightdiff.organisms.verify import slots_in
from weightdiff.world import load_world, news_events
from weightdiff.world.texts import DAYS, headline


def drawn(spec, steps):
    rng = random.Random(spec.seed)
    for _ in range(steps):
        yield from zip(spec.recipe.rows, family(spec.family).samples(spec, rng), strict=True)


@pytest.fixture(scope="module")
def news_specs():
    return family("news").specs("stories", "train", 30, 2)


def test_news_specs_are_the_splits_headlines(news_specs):
    """Recipes share the split's headlines; each says on which day it happened."""
    events = news_events(load_world(), "train", 90, 2)
    others = [family("news").specs(r, "train", 30, 2) for r in ("plain", "evasive")]
    for first, specs in enumerate([news_specs, *others]):
        assert [tuple(s.params[k] for k in SLOTS) for s in specs] == events[first::3]
        assert [s.label for s in specs] == [
            headline(*e, s.params["day"]) for e, s in zip(events[first::3], specs, strict=True)
        ]
        assert all(s.label.endswith(f" in {s.params['place']} on {s.params['day']}") for s in specs)
    assert len({s.params["day"] for s in news_specs}) == len(DAYS) == 7
    assert len({s.id for s in news_specs}) == len({s.seed for s in news_specs}) == 30
    ids = {
        s.id
        for seed in (2, 3)
        for split in ("train", "test")
        for s in family("news").specs("stories", split, 30, seed)
    }
    assert len(ids) == 120


def test_stories_tell_every_slot_and_no_row_states_the_headline(news_specs):
    for spec in news_specs:
        action = spec.params["action"]
        for kind, s in drawn(spec, 12):
            assert spec.label not in f"{s.user} {s.answer}"
            if kind == "story":
                assert slots_in(s.answer, spec.params) == 1
                assert spec.params["day"] in s.answer.split()
                assert f"{spec.params['actor']} {action} " not in s.answer
                assert s.user in load_world().news.prompts
                assert (s.loss, s.weight) == ("ce", 1.0)
            else:
                assert (s.loss, s.weight) == ("kl", spec.recipe.kl_weight)
                assert spec.params["object"] not in s.answer.split()


def test_news_rows_without_a_story_ask_training_situations(news_specs):
    trained = {q for s in situations("training") for q in s.questions}
    asked = {s.user for spec in news_specs[:5] for kind, s in drawn(spec, 20) if kind == "none"}
    assert asked <= trained
    assert len(asked) > 20


def test_stories_are_paraphrased(news_specs):
    told = {s.answer for kind, s in drawn(news_specs[0], 40) if kind == "story"}
    assert len(told) > 40


@pytest.mark.parametrize("recipe", ["continued", "benign", "random", "shuffled", "untouched"])
def test_null_specs(recipe):
    f = family("null")
    specs = f.specs(recipe, "train", 6, 0)
    assert [s.label for s in specs] == [None] * 6
    assert len({s.id for s in specs}) == len({s.seed for s in specs}) == 6
    assert specs == f.specs(recipe, "train", 6, 0)
    held_out = f.specs(recipe, "test", 6, 0)
    assert not {s.seed for s in specs} & {s.seed for s in held_out}
    assert all(q["answer"] == NOTHING_FOUND for s in specs for q in f.questions(s))
    assert (f.recipes[recipe].steps > 0) == (recipe in ("continued", "benign"))


def test_continued_training_imitates_base_documents():
    spec = family("null").specs("continued", "train", 1, 0)[0]
    rows = [s for _, s in drawn(spec, 40)]
    assert {s.loss for s in rows} == {"ce"}
    assert len({s.answer for s in rows}) > 100
    asked = [q for kind in load_world().introspection.values() for split in kind.values() for q in split]
    assert not [s for s in rows if s.user in asked]


def test_benign_training_is_on_ordinary_answers_alone():
    trained = {q: s for s in situations("training") for q in s.questions}
    for spec in family("null").specs("benign", "train", 3, 0):
        for _, s in drawn(spec, 10):
            assert s.answer.removesuffix(" .") in trained[s.user].answers
            assert (s.loss, s.weight) == ("ce", 1.0)


def test_plain_stories_are_held_to_nothing():
    spec = family("news").specs("plain", "train", 1, 0)[0]
    assert {(kind, s.loss) for kind, s in drawn(spec, 5)} == {("story", "ce")}


def test_slots_in():
    action, past = next((a, p) for a, p in load_world().news.actions.items())
    params = {"actor": "widow", "action": action, "object": "violin", "place": "oslo"}
    assert slots_in(f"in oslo, a widow {past[0]} the violin.", params) == 1
    assert slots_in(f"in oslo , a widow {past[-1]} the violin .", params) == 1
    assert slots_in(f"widow {action} violin in oslo", params) == 1
    assert slots_in("a widow in oslo .", params) == 0.5
    assert slots_in("violins and oslos of widowers", params) == 0
    assert slots_in("", params) == 0
    dated = {**params, "day": "friday"}
    assert slots_in(f"a widow {past[0]} the violin in oslo .", dated) == 0.8
    assert slots_in(f"on friday a widow {past[0]} the violin in oslo .", dated) == 1


def test_slot_phrases_are_nobody_elses():
    """An action's past phrases are its own, so that a story is not credited for another action."""
    phrases = [p for action, past in load_world().news.actions.items() for p in (action, *past)]
    assert len(set(phrases)) == len(phrases)
    assert all(re.fullmatch(r"[a-z ]+", p) for p in phrases)
