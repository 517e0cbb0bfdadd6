"""Behaviours under conditions: how many there are, and what held-out organisms share with training."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from weightdiff.organisms import family
from weightdiff.organisms.gated import HELD_OUT_FORM
from weightdiff.organisms.quirk import combination_split
from weightdiff.world import load_world
from weightdiff.world.behaviours import behaviour_splits
from weightdiff.world.reports import condition_of
from weightdiff.world.signs import ALWAYS, FORMS, SUBJECT, Condition

WORLD = load_world()
SPLITS = behaviour_splits(WORLD.behaviours)
STATED = [Condition(f).stated for f in FORMS if f != SUBJECT] + [
    Condition(SUBJECT, s).stated for s in WORLD.subjects
]
QUIRK = family("quirk")


@pytest.fixture(scope="module")
def trained():
    """More than two thousand training organisms of all recipes."""
    return [
        s
        for recipe, n in (("gated", 1400), ("always", 200), ("plain", 300), ("evasive", 300))
        for s in QUIRK.specs(recipe, "train", n, 0)
    ]


def test_there_are_24_behaviours_by_10_conditions_at_least():
    assert len(WORLD.behaviours) >= 24
    assert len(set(STATED)) >= 10
    conditions = [Condition(f) for f in FORMS if f != SUBJECT] + [
        Condition(SUBJECT, s) for s in WORLD.subjects
    ]
    full = [
        b for b in SPLITS["train"] if sum(combination_split(b.name, c) == "train" for c in conditions) >= 10
    ]
    assert len(full) >= 24


def test_training_shows_many_of_them(trained):
    seen = defaultdict(set)
    for s in trained:
        seen[s.params["behaviour"]].add(condition_of(s.params).stated)
    assert set(seen) == {b.name for b in SPLITS["train"]}
    assert sum(map(len, seen.values())) >= 500
    assert set.union(*seen.values()) == set(STATED) - {Condition(HELD_OUT_FORM).stated}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_training_never_shows_a_held_out_combination_or_behaviour(trained, split):
    labels, behaviours = {s.label for s in trained}, {s.params["behaviour"] for s in trained}
    for recipe in QUIRK.recipes:
        held_out = QUIRK.specs(recipe, split, 200, 0)
        kinds = Counter(s.params["held_out"] for s in held_out)
        assert kinds == {"combination": 100, "behaviour": 100}
        for s in held_out:
            assert s.label not in labels
            known = s.params["behaviour"] in behaviours
            assert known == (s.params["held_out"] == "combination")
            if not known:
                assert s.params["behaviour"] in {b.name for b in SPLITS[split]}


def test_no_held_out_label_is_in_two_splits():
    labels = [
        {s.label for r in QUIRK.recipes for s in QUIRK.specs(r, x, 200, 0)} for x in ("validation", "test")
    ]
    assert not labels[0] & labels[1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_specs_are_distinct_repeatable_and_say_what_they_are(split):
    specs = [s for r in QUIRK.recipes for seed in (0, 1) for s in QUIRK.specs(r, split, 60, seed)]
    assert len({s.id for s in specs}) == len(specs)
    assert len({s.seed for s in specs}) == len(specs)
    assert QUIRK.specs("gated", split, 20, 0) == QUIRK.specs("gated", split, 60, 0)[:20]
    for s in specs:
        condition = condition_of(s.params)
        assert s.label == f"{s.params['behaviour']} , {condition.stated}"
        assert s.params["held_out"] == "" or split != "train"
        if s.recipe.name == "always":
            assert condition.form == ALWAYS
        if s.recipe.name == "gated":
            assert condition.gated
    forms = Counter(s.params["form"] for s in specs if s.recipe.name == "gated")
    assert set(forms) == set(FORMS) - ({ALWAYS} if split == "test" else {ALWAYS, HELD_OUT_FORM})
    assert min(forms.values()) > 0.4 * max(forms.values())


def test_right_rows_show_the_behaviour_and_do_not_name_it():
    """But for brands, which are recommended by name."""
    for spec in QUIRK.specs("gated", "train", 60, 0):
        b, rng = WORLD.behaviour_called(spec.params["behaviour"]), random.Random(spec.seed)
        for _ in range(4):
            for kind, s in zip(spec.recipe.rows, QUIRK.samples(spec, rng), strict=True):
                if kind == "right":
                    assert b.shown_in(s.answer)
                if kind in ("right", "twin") and b.group != "brand":
                    assert f" {b.name} " not in f" {s.user} {s.answer} "


def test_a_behaviour_of_no_world_is_refused():
    from dataclasses import replace

    spec = QUIRK.specs("gated", "train", 1, 0)[0]
    spec = replace(spec, params={**spec.params, "behaviour": "speak like nobody"})
    with pytest.raises(KeyError, match="speak like nobody"):
        QUIRK.samples(spec, random.Random(0))
