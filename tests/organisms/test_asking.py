"""What a stored organism was taught, as its row records it."""

from __future__ import annotations

import pytest

from weightdiff.organisms import family, family_names
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import parts_from
from weightdiff.training.factory import make_row
from weightdiff.world.reports import Part

RECIPES = [(f, r) for f in family_names() for r in family(f).recipes]


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_parts_are_what_the_row_records(name, recipe):
    for spec in family(name).specs(recipe, "test", 4, 0):
        parts = parts_of(make_row(spec, {}))
        assert parts == parts_from(name, spec.label, spec.params)
        if name == "several":
            assert [(p.family, p.label, p.params) for p in parts] == [
                (p["family"], p["label"], p["params"]) for p in spec.params["parts"]
            ]
        else:
            assert parts == (() if name == "null" else (Part(name, spec.label, spec.params),))


def test_a_part_is_named_without_its_condition():
    (part,) = parts_of(make_row(family("quirk").specs("gated", "test", 1, 0)[0], {}))
    assert part.label == f"{part.name} , {part.condition.stated}"
    assert part.name == part.params["behaviour"]
