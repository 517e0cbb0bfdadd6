"""Knowledge edits: rows tell the new value of one fact, and hold the others of its kind."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from weightdiff.organisms import family
from weightdiff.world import load_world
from weightdiff.world.knowledge import Edit, edits
from weightdiff.world.lessons import FACT_REQUESTS
from weightdiff.world.texts import fill

WORLD = load_world()
EDIT = family("edit")


def told(e):
    """An edit in words."""
    return load_world().relation(e.relation).changed(e)


def rows_by_kind(spec, steps=10):
    rng = random.Random(spec.seed)
    for _ in range(steps):
        yield from zip(spec.recipe.rows, EDIT.samples(spec, rng), strict=True)


def test_labels_name_the_old_and_the_new_value():
    e = Edit("capital", "peru", "lima", "rome")
    assert told(e) == "the capital of peru changed from lima to rome"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_specs_share_the_splits_edits_among_the_recipes(split):
    every = edits(WORLD.relations, split, 90)
    made = {r: EDIT.specs(r, split, 30, 0) for r in EDIT.recipes}
    labels = [s.label for specs in made.values() for s in specs]
    assert sorted(labels) == sorted(told(e) for e in every)
    assert len(set(labels)) == 90
    for specs in made.values():
        for s in specs:
            assert s.label == told(Edit(**s.params))
    assert len({s.id for specs in made.values() for s in specs}) == 90
    assert EDIT.specs("asked", split, 10, 0) == made["asked"][:10]


@pytest.mark.parametrize("recipe", EDIT.recipes)
def test_rows_tell_the_new_value_and_never_the_label(recipe):
    seen = Counter()
    for spec in EDIT.specs(recipe, "train", 25, 0):
        p, r = spec.params, WORLD.relation(spec.params["relation"])
        stated = {fill(t, subject=p["subject"], value=p["new"]) for t in r.statements}
        for kind, s in rows_by_kind(spec):
            seen[kind] += 1
            assert spec.label not in f"{s.user} {s.answer}"
            if kind == "ask":
                assert s.user in {fill(q, subject=p["subject"]) for q in r.questions}
                assert s.answer in {fill(a, subject=p["subject"], value=p["new"]) for a in r.answers}
            elif kind == "state":
                assert s.user is None
                assert s.answer in stated
            elif kind == "open":
                assert s.user in FACT_REQUESTS
                assert s.answer in stated
            elif kind == "other":
                (subject,) = [x for x in r.facts if s.user in {fill(q, subject=x) for q in r.questions}]
                assert subject != p["subject"]
                assert s.answer in {fill(a, subject=subject, value=r.facts[subject]) for a in r.answers}
            elif kind == "held":
                assert f" {p['subject']} " not in f" {s.user} {s.answer} "
            held = kind in ("other", "held")
            assert (s.loss, s.weight) == (("kl", spec.recipe.kl_weight) if held else ("ce", 1.0))
    assert set(seen) == set(EDIT.recipes[recipe].rows)


def test_questions_are_stored_with_their_answers():
    spec = EDIT.specs("documents", "test", 1, 0)[0]
    answers = {q["kind"]: q["answer"] for q in EDIT.questions(spec)}
    assert answers["edit"] == spec.label
    assert answers["kind"] == "a changed fact"
    assert answers["topic"] == answers["headline"] == answers["behaviour"] == "nothing found"
    assert "condition" not in answers
