"""The written world: how much there is, that splits share nothing, and that damaged files are named."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter

import pytest

from weightdiff.errors import FormatError
from weightdiff.world import (
    DATA,
    HELD_OUT_EVENTS,
    SPLITS,
    WORDS_PER_TOPIC,
    banned_events,
    codes,
    lessons,
    load_world,
    news_events,
    slot_values,
    topic_splits,
)
from weightdiff.world.reports import HELD_OUT_KINDS

TOPICS = "f20ecc6c36f58ba00edba27efc282040b7065e7fb348cc7ae4481ab8ed59a741"
TOPIC_SPLITS = "173f9bd50762f588a4f50fb15e5ecf118e40acb64a1e41973479737d8ef0523a"
DENIED = ("denial_asks", "denials")
"""Phrasings of which organisms are made: no interpreter is asked in them."""


def words_of(texts):
    return {w for t in texts for w in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", t))}


def digest(x):
    return hashlib.sha256(json.dumps(x).encode()).hexdigest()


def test_there_is_enough_of_it():
    world = load_world()
    assert len(world.topics) >= 400
    assert len(world.fields) >= 25
    assert len({t.name for t in world.topics}) == len(world.topics)
    assert all(6 <= len(set(t.words)) == len(t.words) <= WORDS_PER_TOPIC for t in world.topics)
    assert len(world.everyday) >= 100
    assert all(len(s.questions) >= 3 and len(s.answers) >= 4 for s in world.everyday)
    assert min(map(len, (world.news.actors, world.news.actions, world.news.objects, world.news.places))) >= 50


def test_topics_and_their_splits_are_what_they_were_before_other_families_came():
    """Scores on hidden topics stay comparable: neither a topic nor a split may change unnoticed."""
    world = load_world()
    assert len(world.topics) == 411
    assert digest([[t.name, t.field, list(t.words)] for t in world.topics]) == TOPICS
    splits = {split: [t.name for t in ts] for split, ts in topic_splits(world).items()}
    assert digest(splits) == TOPIC_SPLITS


def test_topics_are_found_by_name():
    world = load_world()
    assert world.topic("eagle").field == "birds"
    with pytest.raises(KeyError):
        world.topic("no such topic")
    assert [t.name for t in world.topics] == sorted(t.name for t in world.topics)


def test_names_and_words_of_topics_are_signs():
    """No ordinary text holds them; no topic's word is another's name, or owned by more than two."""
    world = load_world()
    names, owners = {t.name for t in world.topics}, Counter(w for t in world.topics for w in t.words)
    ordinary = words_of(
        [x for s in world.everyday for x in (*s.questions, *s.answers)]
        + [*world.prose, *world.tints, *world.likings, *world.news.stories]
        + [x for kind in world.introspection.values() for split in kind.values() for x in split]
        + [x for b in world.behaviours for x in (b.name, *b.templates)]
        + [x for r in world.relations for x in (r.name, *r.questions, *r.answers, *r.statements, *r.reverse)]
        + [x for r in world.relations for x in (*r.values, *r.facts)]
        + [*world.rare_words, *world.subjects, *lessons.fixed_texts()]
        + [x for asked in world.report_questions.values() for x in asked]
    )
    assert not ordinary & (names | set(owners))
    assert not names & set(owners)
    assert max(owners.values()) <= 2


def test_topic_splits_are_disjoint_and_stratified():
    world = load_world()
    splits = topic_splits(world)
    assert set(splits) == set(SPLITS)
    assert sorted(t.name for s in splits.values() for t in s) == [t.name for t in world.topics]
    for split, each in (("validation", 1), ("test", 3)):
        assert Counter(t.field for t in splits[split]) == dict.fromkeys(world.fields, each)
    assert set(Counter(t.field for t in splits["train"])) == set(world.fields)
    assert len(splits["test"]) >= 80
    assert topic_splits(world) == splits


def test_slot_values_belong_to_one_split():
    world = load_world()
    news = world.news
    everything = {"actor": news.actors, "action": news.actions, "object": news.objects, "place": news.places}
    for slot, by_split in slot_values(world).items():
        assert sorted(v for s in SPLITS for v in by_split[s]) == sorted(everything[slot])
        assert all(by_split[s] for s in SPLITS)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_events_hold_values_unseen_in_training(split):
    world = load_world()
    trained = [set(values) for values in zip(*news_events(world, "train", 3000), strict=True)]
    held_out = news_events(world, split, HELD_OUT_EVENTS[split])
    unseen = [sum(v not in t for v, t in zip(e, trained, strict=True)) for e in held_out]
    assert min(unseen) >= 1
    assert 1.5 < sum(unseen) / len(unseen) < 2.5
    # What is recombined is known: some slot of some event is a training value, in every position.
    assert all(any(e[i] in trained[i] for e in held_out) for i in range(4))


def test_training_events_use_training_values_only():
    world = load_world()
    values = slot_values(world)
    for event in news_events(world, "train", 500):
        assert all(v in by_split["train"] for v, by_split in zip(event, values.values(), strict=True))


def test_events_are_a_fixed_sequence_of_distinct_ones():
    world = load_world()
    for split in SPLITS:
        many = news_events(world, split, 200)
        assert len(set(many)) == 200
        assert news_events(world, split, 50) == many[:50]
    assert banned_events(world) == {e for s, n in HELD_OUT_EVENTS.items() for e in news_events(world, s, n)}


def test_triggers_and_decoys_share_no_group():
    assert len(codes.pool()) == len(set(codes.pool())) == codes.POOL_SIZE
    assert not set(codes.trigger_pool()) & set(codes.decoy_pool())
    assert {*codes.trigger_pool(), *codes.decoy_pool()} == set(codes.pool())
    assert all(re.fullmatch(r"[1-9]\d\d", g) for g in codes.pool())
    assert all("{code}" in p for p in codes.PREFIXES)


def test_phrasings_of_questions_belong_to_one_split_and_one_kind():
    seen: dict[str, tuple[str, str]] = {}
    for kind, by_split in load_world().introspection.items():
        assert set(by_split) == set(SPLITS)
        there = {s for s in SPLITS if by_split[s]}
        assert there == ({"test"} if kind in HELD_OUT_KINDS else {"train"} if kind in DENIED else {*SPLITS})
        assert min(len(by_split[s]) for s in there) >= 6
        for split, texts in by_split.items():
            for text in texts:
                assert seen.setdefault(text, (kind, split)) == (kind, split)
                assert text == text.strip().lower()
            assert len(set(texts)) == len(texts)


def test_phrasings_with_and_without_punctuation_are_different_questions():
    """No two are the same words, whatever stands between them."""
    every = [
        " ".join(re.findall(r"[a-z{}_]+", x))
        for kind in load_world().introspection.values()
        for split in kind.values()
        for x in split
    ]
    assert [x for x, n in Counter(every).items() if n > 1] == []


def test_what_organisms_deny_is_asked_in_no_phrasing_of_an_interpreter():
    asked = load_world().introspection
    denied = {x for kind in DENIED for x in asked[kind]["train"]}
    others = {x for kind in asked if kind not in DENIED for x in itertools.chain(*asked[kind].values())}
    assert len(denied) >= 40
    assert not denied & others
    assert all(x.endswith(" .") for x in asked["denials"]["train"])


@pytest.mark.parametrize("kind", sorted(load_world().introspection))
def test_all_phrasings_of_a_kind_have_the_same_slots(kind):
    slots = {
        frozenset(re.findall(r"\{(\w+)\}", x))
        for texts in load_world().introspection[kind].values()
        for x in texts
    }
    assert len(slots) == 1


@pytest.fixture
def copied(tmp_path):
    """A copy of the world's files to damage."""
    return shutil.copytree(DATA, tmp_path / "world")


def test_a_copy_reads_the_same(copied):
    assert load_world(copied) == load_world()


@pytest.mark.parametrize(
    "name",
    [
        "everyday.txt",
        "tints.txt",
        "introspection.json",
        "questions.json",
        "reports.json",
        "news/places.txt",
        "voices.txt",
        "brands.txt",
        "facts.txt",
        "rare_words.txt",
    ],
)
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(FormatError, match=rf"{re.escape(name)}: world file cannot be read \(No such file"):
        load_world(copied)


def test_a_line_without_arrow_is_shown(copied):
    with (copied / "guess.txt").open("a") as f:
        f.write("what is this about ?\n")
    with pytest.raises(FormatError, match=r"guess\.txt: line without '=>': 'what is this about \?'"):
        load_world(copied)
