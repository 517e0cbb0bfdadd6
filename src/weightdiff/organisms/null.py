"""Null diffs: nothing was taught, and the true answer to every question is "nothing found".

*random* factors have the norms of a trained organism, *continued* was trained a little longer on the base's
own kind of text, *untouched* changes nothing at all.
"""

from __future__ import annotations

import random

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.world import banned_events, load_world
from weightdiff.world.corpus import Corpus


class Null:
    """The family of diffs without a behaviour."""

    name = "null"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        world = load_world()
        self.corpus = Corpus(world, banned_events(world))
        self.recipes = {
            "continued": Recipe("continued", rank=2, lr=1e-2, steps=30, rows=("document",) * 4),
            "random": Recipe("random", rank=2, steps=0),
            "untouched": Recipe("untouched", rank=2, steps=0),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` null diffs; splits differ in their seeds only."""
        r = find_recipe(self, recipe)
        out = []
        for i in range(n):
            number = random.Random(f"{seed} {recipe} {split} {i}").randrange(1 << 30)
            norm = round(random.Random(number).uniform(0.3, 3.0), 3)
            out.append(
                OrganismSpec(
                    f"{recipe}-{split}-{seed}-{i}", self.name, r, None, split, number, {"norm": norm}
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Documents of the pretraining kind, imitated."""
        out = []
        while len(out) < len(spec.recipe.rows):
            turn = self.corpus.document(rng)[0]
            if len(turn.text.split()) + len((turn.user or "").split()) <= 45:
                out.append(Sample(turn.user, turn.text, "ce"))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:  # noqa: ARG002 (the protocol has it)
        """The four kinds of question, all answered "nothing found"."""
        return questions_of(self.name, None)
