"""Makings change how an organism is trained, and nothing of what it is taught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weightdiff.organisms import family
from weightdiff.organisms.makings import FULL, MAKINGS, SEEN, UNSEEN, vary
from weightdiff.training.slots import OPTIMIZERS


def test_tested_makings_are_in_no_training():
    names = [m.name for m in (*SEEN, *UNSEEN, *FULL)]
    assert len(set(names)) == len(names)
    seen = {(m.rank, m.optimizer, m.full) for m in SEEN}
    assert not seen & {(m.rank, m.optimizer, m.full) for m in (*UNSEEN, *FULL)}
    assert {m.optimizer for m in (*SEEN, *UNSEEN)} == set(OPTIMIZERS)
    ranks = {m.rank for m in (*SEEN, *UNSEEN)}
    assert (min(ranks), max(ranks)) == (1, 32)
    assert [m.name for m in MAKINGS["r8"]] == ["r8"]
    assert [m.rank for m in MAKINGS["r8"]] == [8]


@pytest.mark.parametrize("name", MAKINGS)
@pytest.mark.parametrize(("f", "recipe"), [("hidden-topic", "covert"), ("several", "together")])
def test_organisms_take_the_makings_in_turn(name, f, recipe):
    specs, makings = family(f).specs(recipe, "test", 12, 0), MAKINGS[name]
    varied = vary(specs, makings)
    for i, (old, new) in enumerate(zip(specs, varied, strict=True)):
        m = makings[i % len(makings)]
        assert new.id == f"{old.id}-{m.name}"
        assert new.params == {**old.params, "making": m.name}
        r = new.recipe
        assert (r.rank, r.optimizer, r.full) == (m.rank, m.optimizer, m.full)
        assert r.lr == pytest.approx(old.recipe.lr * m.lr)
        assert r.steps == round(old.recipe.steps * m.steps) > 0
        kept = {"rank": 0, "lr": 0.0, "optimizer": "", "full": False, "steps": 0}
        assert replace(r, **kept) == replace(old.recipe, **kept)
        assert replace(new, id="", recipe=r, params={}) == replace(old, id="", recipe=r, params={})
    assert len({s.id for s in varied} | {s.id for s in specs}) == 24


def test_what_needs_no_training_stays_as_it_is():
    for f, recipe in (("null", "random"), ("null", "shuffled"), ("several", "summed")):
        specs = family(f).specs(recipe, "train", 4, 0)
        assert vary(specs, SEEN) == specs
