"""Small recipes and a store of random diffs of every family and split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.organisms import OrganismSpec, family
from weightdiff.training.factory import make_row, random_diff


@pytest.fixture(scope="session")
def short_specs() -> Callable[..., list[OrganismSpec]]:
    """Specs of a recipe with a few steps: `short_specs("news", "stories", 2, steps=4, rank=2)`."""

    def build(name: str, recipe: str, n: int, split: str = "train", seed: int = 0, **changes: Any):
        specs = family(name).specs(recipe, split, n, seed)
        return [replace(s, recipe=replace(s.recipe, **{"steps": 3, **changes})) for s in specs]

    return build


@pytest.fixture(scope="session")
def random_store(embedded_base: Any, tmp_path_factory: pytest.TempPathFactory) -> DiffStore:
    """Of each split five covert topics (the last does not behave), three headlines, two null diffs."""
    store = DiffStore.create(Path(tmp_path_factory.mktemp("store")) / "store", embedded_base.ref)
    items: list[tuple[Any, WeightDiff]] = []
    for split in ("train", "validation", "test"):
        for name, recipe, n in (("hidden-topic", "covert", 5), ("news", "stories", 3), ("null", "random", 2)):
            for i, spec in enumerate(family(name).specs(recipe, split, n, 0)):
                behaves = not (name == "hidden-topic" and i == 4)
                diff = random_diff(embedded_base.spec, 1, len(items), 1.0)
                items.append((replace(make_row(spec, {}), verification={"behaves": behaves}), diff))
    store.append(items)
    return store
