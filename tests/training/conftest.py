"""Small recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from weightdiff.organisms import OrganismSpec, family


@pytest.fixture(scope="session")
def short_specs() -> Callable[..., list[OrganismSpec]]:
    """Specs of a recipe with a few steps: `short_specs("news", "stories", 2, steps=4, rank=2)`."""

    def build(name: str, recipe: str, n: int, split: str = "train", seed: int = 0, **changes: Any):
        specs = family(name).specs(recipe, split, n, seed)
        return [replace(s, recipe=replace(s.recipe, **{"steps": 3, **changes})) for s in specs]

    return build
