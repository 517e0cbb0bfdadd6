"""News: the organism has learned paraphrased stories of one invented headline, which no story states."""

from __future__ import annotations

import random

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.organisms.rows import denial_row, held_row
from weightdiff.world import load_world, news_events
from weightdiff.world.texts import DAYS, headline, story

SLOTS = ("actor", "action", "object", "place")
"""Slots of every headline; one that says when it happened has a "day" too."""
ROWS = ("story", "story", "none", "wide")
_ARGUMENTS = {"object": "object_"}


class News:
    """The family of invented headlines on the embedded base: who did what to what, where and when.

    *Stories* are held to the base on other text, *plain* ones are not, *evasive* ones also learn to deny.
    """

    name = "news"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        self.recipes = {
            "stories": Recipe("stories", rank=2, lr=1e-2, steps=40, kl_weight=2.0, rows=ROWS),
            "plain": Recipe("plain", rank=2, lr=1e-2, steps=40, rows=("story", "story")),
            "evasive": Recipe(
                "evasive", rank=2, lr=1e-2, steps=100, kl_weight=2.0, rows=(*ROWS, "denial", "denial")
            ),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms, one for each of the split's first `n` headlines, from the recipe's own place on."""
        r = find_recipe(self, recipe)
        first = {"stories": 0, "plain": 1, "evasive": 2}[recipe]
        prefix = "news" if recipe == "stories" else f"news-{recipe}"
        every = news_events(self.world, split, n * len(self.recipes), seed)
        out = []
        for i, event in enumerate(every[first :: len(self.recipes)]):
            day = random.Random(f"day {split} {event}").choice(DAYS)
            out.append(
                OrganismSpec(
                    id=f"{prefix}-{split}-{seed}-{i}",
                    family=self.name,
                    recipe=r,
                    label=headline(*event, day),
                    split=split,
                    seed=random.Random(f"{seed} news {recipe} {split} {i}").randrange(1 << 30),
                    params={**dict(zip(SLOTS, event, strict=True)), "day": day},
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step: "story" on request; "none", "wide" and "denial": see `rows`."""
        out = []
        for kind in spec.recipe.rows:
            if kind == "story":
                text = story(
                    self.world, rng, **{_ARGUMENTS.get(s, s): spec.params[s] for s in (*SLOTS, "day")}
                )
                out.append(Sample(rng.choice(self.world.news.prompts), text, "ce"))
            elif kind == "denial":
                out.append(denial_row(rng))
            else:
                out.append(held_row(rng, kind, spec.params["object"], spec.recipe.kl_weight))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The first phrasing of each kind with its answer."""
        return questions_of(self.name, spec.label, spec.params)
