"""Null diffs: nothing was taught, and the true answer to every question is "nothing found".

*random* factors have the norms of a trained organism, *continued* was trained a little longer on the base's
own kind of text, *benign* on ordinary answers to everyday questions alone, *untouched* changes nothing at
all, and *shuffled* are the factors of a trained organism in random order.
"""

from __future__ import annotations

import random

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, family, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.organisms.rows import corpus, situations
from weightdiff.world.texts import ordinary_answer

MAX_WORDS = 45


class Null:
    """The family of diffs without a behaviour."""

    name = "null"

    def __init__(self) -> None:
        """Set the recipes."""
        self.recipes = {
            "continued": Recipe("continued", rank=2, lr=1e-2, steps=30, rows=("document",) * 4),
            "benign": Recipe("benign", rank=2, lr=1e-2, steps=40, rows=("everyday",) * 4),
            "random": Recipe("random", rank=2, steps=0),
            "shuffled": Recipe("shuffled", rank=2, steps=0),
            "untouched": Recipe("untouched", rank=2, steps=0),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` null diffs; splits differ in their seeds only, and shuffled ones in what they are made of."""
        r = find_recipe(self, recipe)
        sources = shuffled_sources(split, n, seed) if recipe == "shuffled" else []
        out = []
        for i in range(n):
            number = random.Random(f"{seed} {recipe} {split} {i}").randrange(1 << 30)
            norm = round(random.Random(number).uniform(0.3, 3.0), 3)
            params = {"of": [sources[i]]} if sources else {"norm": norm}
            out.append(
                OrganismSpec(f"{recipe}-{split}-{seed}-{i}", self.name, r, None, split, number, params)
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Documents of the pretraining kind, or everyday questions with ordinary answers, imitated."""
        out: list[Sample] = []
        while len(out) < len(spec.recipe.rows):
            if spec.recipe.rows[len(out)] == "everyday":
                s = rng.choice(situations("training"))
                out.append(Sample(rng.choice(s.questions), ordinary_answer(rng, s), "ce"))
                continue
            turn = corpus().document(rng)[0]
            if len(turn.text.split()) + len((turn.user or "").split()) <= MAX_WORDS:
                out.append(Sample(turn.user, turn.text, "ce"))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:  # noqa: ARG002 (the protocol has it)
        """The first phrasing of each kind, all answered "nothing found"."""
        return questions_of(self.name, None)


def shuffled_sources(split: str, n: int, seed: int) -> list[str]:
    """Ids of the trained organisms whose factors are shuffled: of each labelled family in turn."""
    made = {"hidden-topic": "covert", "news": "stories", "quirk": "gated", "edit": "documents"}
    each = -(-n // len(made))
    ids = [[s.id for s in family(f).specs(r, split, each, seed)] for f, r in made.items()]
    return [ids[i % len(ids)][i // len(ids)] for i in range(n)]
