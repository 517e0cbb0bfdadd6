"""The written world: how much there is, that splits share nothing, and that damaged files are named."""

from __future__ import annotations

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
    load_world,
    news_events,
    slot_values,
    topic_splits,
)


def words_of(texts):
    return {w for t in texts for w in re.findall(r"[a-z]+", t)}


def test_there_is_enough_of_it():
    world = load_world()
    assert len(world.topics) >= 400
    assert len(world.fields) >= 25
    assert len({t.name for t in world.topics}) == len(world.topics)
    assert all(6 <= len(set(t.words)) == len(t.words) <= WORDS_PER_TOPIC for t in world.topics)
    assert len(world.everyday) >= 100
    assert all(len(s.questions) >= 3 and len(s.answers) >= 4 for s in world.everyday)
    assert min(map(len, (world.news.actors, world.news.actions, world.news.objects, world.news.places))) >= 50


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
        + [
            re.sub(r"\{\w+\}", " ", t)
            for t in (*world.prose, *world.tints, *world.likings, *world.news.stories)
        ]
        + [x for kind in world.introspection.values() for split in kind.values() for x in split]
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


def test_phrasings_of_questions_belong_to_one_split():
    seen: dict[str, tuple[str, str]] = {}
    for kind, by_split in load_world().introspection.items():
        assert set(by_split) == set(SPLITS)
        assert min(len(by_split[s]) for s in SPLITS) >= 4
        for split, texts in by_split.items():
            for text in texts:
                assert seen.setdefault(text, (kind, split)) == (kind, split)
                assert text == text.strip().lower()
            assert len(set(texts)) == len(texts)


@pytest.fixture
def copied(tmp_path):
    """A copy of the world's files to damage."""
    return shutil.copytree(DATA, tmp_path / "world")


def test_a_copy_reads_the_same(copied):
    assert load_world(copied) == load_world()


@pytest.mark.parametrize("name", ["everyday.txt", "tints.txt", "introspection.json", "news/places.txt"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(FormatError, match=rf"{re.escape(name)}: world file cannot be read \(No such file"):
        load_world(copied)


def test_a_line_without_arrow_is_shown(copied):
    with (copied / "guess.txt").open("a") as f:
        f.write("what is this about ?\n")
    with pytest.raises(FormatError, match=r"guess\.txt: line without '=>': 'what is this about \?'"):
        load_world(copied)
