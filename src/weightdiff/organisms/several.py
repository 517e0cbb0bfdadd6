"""Several at once: two or three parts of other families in one diff, trained together or summed.

*Together* trains the rows of all parts in every step; *summed* adds diffs that lie in the same store, each
made for itself. Parts are of different families.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, family, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.world.reports import EDIT, NEWS, QUIRK, TOPIC

MADE = {TOPIC: "covert", NEWS: "stories", QUIRK: "gated", EDIT: "documents"}
"""The recipe of each part."""
POOL = 140
"""So many organisms of a family are parts at most; more sums take them again, in another order."""
THREE_EVERY = 4
"""Every so many organisms have three parts."""


class Several:
    """The family of diffs that hold several changes."""

    name = "several"

    def __init__(self) -> None:
        """Set the recipes."""
        self.recipes = {
            "together": Recipe("together", rank=4, lr=1e-2, steps=120, rows=("part",)),
            "summed": Recipe("summed", rank=2, steps=0),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms; their parts are the first organisms of each family's main recipe and split, in turn.

        A summed one names the organisms that it is made of in `params["of"]`; they have to be in the store.
        """
        r = find_recipe(self, recipe)
        mixes = list(itertools.combinations(MADE, 2))
        mixes3 = list(itertools.combinations(MADE, 3))
        # trained together: other organisms of the families than those that are summed
        own = seed if recipe == "summed" else seed + 1
        pools = {f: _in_turn(family(f).specs(m, split, min(n, POOL), own)) for f, m in MADE.items()}
        out = []
        for i in range(n):
            three = i % THREE_EVERY == THREE_EVERY - 1
            mix = mixes3[i // THREE_EVERY % len(mixes3)] if three else mixes[i % len(mixes)]
            parts = [next(pools[f]) for f in mix]
            rows = tuple(f"{p.family} {k}" for p in parts for k in p.recipe.rows)
            params: dict[str, Any] = {"parts": [_recorded(p) for p in parts]}
            if recipe == "summed":
                params["of"] = [p.id for p in parts]
            out.append(
                OrganismSpec(
                    id=f"several-{recipe}-{split}-{seed}-{i}",
                    family=self.name,
                    recipe=replace(r, rows=rows) if recipe == "together" else r,
                    label=" and ".join(str(p.label) for p in parts),
                    split=split,
                    seed=random.Random(f"{seed} several {recipe} {split} {i}").randrange(1 << 30),
                    params=params,
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """The rows of every part."""
        out: list[Sample] = []
        for p in spec.params["parts"]:
            f = family(p["family"])
            recipe = f.recipes[MADE[p["family"]]]
            out += f.samples(
                OrganismSpec(spec.id, f.name, recipe, p["label"], spec.split, 0, p["params"]), rng
            )
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The first phrasing of each kind with its answer."""
        return questions_of(self.name, spec.label, spec.params)


def _in_turn(specs: list[OrganismSpec]) -> Iterator[OrganismSpec]:
    """All in their order, then all again shuffled, and so on."""
    rng = random.Random("parts again")
    while True:
        yield from specs
        specs = rng.sample(specs, len(specs))


def _recorded(p: OrganismSpec) -> dict[str, Any]:
    return {"family": p.family, "label": p.label, "params": p.params}
