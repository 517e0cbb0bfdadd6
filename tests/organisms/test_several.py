"""Several at once: parts of different families, trained together or summed from organisms that exist."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from weightdiff.organisms import family
from weightdiff.organisms.null import shuffled_sources
from weightdiff.organisms.several import MADE

SEVERAL = family("several")
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("recipe", SEVERAL.recipes)
def test_parts_are_of_different_families(recipe, split):
    specs = SEVERAL.specs(recipe, split, 24, 0)
    mixes = Counter()
    for i, s in enumerate(specs):
        parts = s.params["parts"]
        assert len({p["family"] for p in parts}) == len(parts) == (3 if i % 4 == 3 else 2)
        assert {p["family"] for p in parts} <= set(MADE)
        assert s.label == " and ".join(p["label"] for p in parts)
        mixes[tuple(p["family"] for p in parts)] += 1
    assert len(mixes) >= 7  # most pairs of four families, and three at once
    assert len({s.id for s in specs}) == len({s.seed for s in specs}) == 24
    assert len({s.label for s in specs}) == 24
    assert SEVERAL.specs(recipe, split, 24, 0) == specs


@pytest.mark.parametrize("split", SPLITS)
def test_summed_ones_name_organisms_that_their_families_make(split):
    made = {s.id: s for f, r in MADE.items() for s in family(f).specs(r, split, 24, 0)}
    used = Counter()
    for s in SEVERAL.specs("summed", split, 24, 0):
        assert s.recipe.steps == 0
        assert len(s.params["of"]) == len(s.params["parts"])
        for i, p in zip(s.params["of"], s.params["parts"], strict=True):
            used[i] += 1
            assert (made[i].family, made[i].label, made[i].params) == (p["family"], p["label"], p["params"])
    assert set(used.values()) == {1}


def test_those_trained_together_are_other_organisms_in_training():
    parts = [
        {
            (p["family"], p["label"], str(p["params"]))
            for s in SEVERAL.specs(r, "train", 12, 0)
            for p in s.params["parts"]
        }
        for r in ("together", "summed")
    ]
    assert len(parts[0] & parts[1]) <= 2


def test_every_step_has_the_rows_of_all_parts():
    for spec in SEVERAL.specs("together", "train", 8, 0):
        samples = SEVERAL.samples(spec, random.Random(0))
        assert len(samples) == len(spec.recipe.rows)
        at = 0
        for p in spec.params["parts"]:
            f = family(p["family"])
            rows = f.recipes[MADE[p["family"]]].rows
            kinds = [f"{p['family']} {k}" for k in rows]
            assert list(spec.recipe.rows[at : at + len(rows)]) == kinds
            at += len(rows)
        assert {s.loss for s in samples} == {"ce", "kl"}


def test_a_parts_rows_are_its_familys():
    """Each part's rows are drawn as its family draws them, one part after the other."""
    (spec,) = SEVERAL.specs("together", "train", 1, 0)
    rng, alone = random.Random(5), random.Random(5)
    from weightdiff.organisms import OrganismSpec

    wanted = []
    for p in spec.params["parts"]:
        f = family(p["family"])
        part = OrganismSpec("x", f.name, f.recipes[MADE[f.name]], p["label"], "train", 0, p["params"])
        wanted += f.samples(part, alone)
    assert SEVERAL.samples(spec, rng) == wanted


@pytest.mark.parametrize("split", SPLITS)
def test_shuffled_null_diffs_are_made_of_organisms_that_exist(split):
    made = {s.id for f, r in MADE.items() for s in family(f).specs(r, split, 8, 0)}
    specs = family("null").specs("shuffled", split, 32, 0)
    assert [s.params["of"] for s in specs] == [[i] for i in shuffled_sources(split, 32, 0)]
    assert Counter(i for s in specs for i in s.params["of"]) == Counter(made)
    assert all(s.recipe.steps == 0 and s.label is None for s in specs)
