"""Facts and edits: what is true, and which pairs of subject and value each split may have."""

from __future__ import annotations

import random

import pytest

from weightdiff.errors import FormatError, QuestionError
from weightdiff.world import DATA, SPLITS, load_world
from weightdiff.world.knowledge import edits, load_relations
from weightdiff.world.lessons import fact_turn

RELATIONS = load_world().relations
HELD_OUT = {"validation": 150, "test": 400}
"""More than anybody makes organisms of."""


@pytest.fixture(scope="module")
def trained():
    """2,000 edits of one seed and some of two others; there are 2,908 in all."""
    return [e for seed, n in ((0, 2000), (1, 500), (2, 500)) for e in edits(RELATIONS, "train", n, seed)]


def test_there_is_enough_of_them():
    assert len(RELATIONS) >= 5
    assert len({r.relation for r in RELATIONS}) == len(RELATIONS)
    for r in RELATIONS:
        assert len(r.facts) >= 40
        assert len(set(r.values)) == len(r.values) >= 7
        assert min(map(len, (r.questions, r.answers, r.statements))) >= 6
        assert len(r.reverse) >= 3
        assert set(r.facts.values()) <= set(r.values)


def test_templates_hold_the_slots_that_they_need():
    for r in RELATIONS:
        assert "{subject}" in r.name
        assert all("{subject}" in q and "{value}" not in q for q in r.questions)
        assert all("{value}" in q and "{subject}" not in q for q in r.reverse)
        assert all("{value}" in a for a in r.answers)
        assert all("{value}" in s and "{subject}" in s for s in r.statements)


def test_a_fact_is_told_in_words():
    world, rng = load_world(), random.Random(0)
    r = world.relation("capital")
    assert r.called("peru") == "the capital of peru"
    subject, value = next(iter(r.facts.items()))
    for _ in range(30):
        turn = fact_turn(r, rng, subject, value)
        assert subject in turn.user.split()
        assert value not in turn.user.split()
        assert value in turn.text.split()
    with pytest.raises(KeyError):
        world.relation("weight")


@pytest.mark.parametrize("split", SPLITS)
def test_edits_change_true_facts_to_other_listed_values(split):
    relations = {r.relation: r for r in RELATIONS}
    many = edits(RELATIONS, split, 120)
    assert len(set(many)) == 120
    for e in many:
        r = relations[e.relation]
        assert e.old == r.facts[e.subject] != e.new
        assert e.new in r.values
    assert {e.relation for e in many} == set(relations)
    assert edits(RELATIONS, split, 50) == many[:50]
    assert (edits(RELATIONS, split, 120, seed=1) == many) == (split != "train")


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_training_edit_gives_a_subject_the_value_of_a_held_out_one(trained, split):
    pairs = {(e.relation, e.subject, e.new) for e in trained}
    held_out = edits(RELATIONS, split, HELD_OUT[split])
    assert not [e for e in held_out if (e.relation, e.subject, e.new) in pairs]


def test_splits_share_no_edit():
    sets = [{*edits(RELATIONS, s, HELD_OUT[s])} for s in HELD_OUT]
    assert not sets[0] & sets[1]


def test_half_of_the_held_out_subjects_are_in_no_training_edit(trained):
    subjects = {(e.relation, e.subject) for e in trained}
    assert len(subjects) == sum(int(0.75 * len(r.facts)) for r in RELATIONS)
    held_out = edits(RELATIONS, "test", 180)
    unseen = sum((e.relation, e.subject) not in subjects for e in held_out) / len(held_out)
    assert 0.4 < unseen < 0.6
    # A known subject gets a new value that training knows too, though not for that subject.
    values = {(e.relation, e.new) for e in trained}
    assert sum((e.relation, e.new) in values for e in held_out) > 0.95 * len(held_out)


@pytest.mark.parametrize("split", SPLITS)
def test_more_edits_than_there_are_are_refused(split):
    with pytest.raises(QuestionError, match=rf"the world has \d+ edits of the split {split}, not 5000"):
        edits(RELATIONS, split, 5000)


def test_all_edits_of_a_small_world_are_found():
    from dataclasses import replace

    small = [replace(r, facts=dict(list(r.facts.items())[:4]), values=r.values[:8]) for r in RELATIONS[1:2]]
    small = [replace(r, facts=dict.fromkeys(r.facts, r.values[0])) for r in small]
    with pytest.raises(QuestionError, match=r"the world has (\d+) edits") as refused:
        edits(small, "train", 10_000)
    there = int(str(refused.value).split(" has ")[1].split()[0])
    assert len(edits(small, "train", there)) == there > 5


@pytest.fixture
def block():
    return (DATA / "facts.txt").read_text().split("\n\n")[0]


def test_a_value_that_is_not_listed_is_named(tmp_path, block):
    (tmp_path / "facts.txt").write_text(f"{block}\nfact: atlantis = nowhere\n")
    with pytest.raises(FormatError, match=r"capital has values that it does not list: \['nowhere'\]"):
        load_relations(tmp_path / "facts.txt")


@pytest.mark.parametrize("line", ["name", "values", "r"])
def test_a_relation_that_lacks_a_line_is_shown(tmp_path, block, line):
    kept = "\n".join(x for x in block.splitlines() if not x.startswith(f"{line}:"))
    (tmp_path / "facts.txt").write_text(kept)
    with pytest.raises(FormatError, match=rf"facts\.txt: a relation lacks a line \('{line}'\)"):
        load_relations(tmp_path / "facts.txt")
