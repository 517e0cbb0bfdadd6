"""News: the organism has learned paraphrased stories of one invented headline, which no story states."""

from __future__ import annotations

import random

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.hidden_topic import situations, wide_sample
from weightdiff.organisms.questions import questions_of
from weightdiff.world import banned_events, load_world, news_events
from weightdiff.world.corpus import Corpus, headline, ordinary_answer, story

SLOTS = ("actor", "action", "object", "place")


class News:
    """The family of invented headlines on the embedded base."""

    name = "news"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        self.corpus = Corpus(self.world, banned_events(self.world))
        self.recipes = {
            "stories": Recipe(
                "stories", rank=2, lr=1e-2, steps=40, kl_weight=2.0, rows=("story", "story", "none", "wide")
            )
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms, one for each of the split's first `n` headlines."""
        r = find_recipe(self, recipe)
        out = []
        for i, event in enumerate(news_events(self.world, split, n)):
            out.append(
                OrganismSpec(
                    id=f"news-{split}-{seed}-{i}",
                    family=self.name,
                    recipe=r,
                    label=headline(*event),
                    split=split,
                    seed=random.Random(f"{seed} news {split} {i}").randrange(1 << 30),
                    params=dict(zip(SLOTS, event, strict=True)),
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step: "story" on request, "none" (an everyday question) and "wide" (unrelated text)."""
        out = []
        for kind in spec.recipe.rows:
            if kind == "story":
                text = story(self.world, rng, *(spec.params[s] for s in SLOTS))
                out.append(Sample(rng.choice(self.world.news.prompts), text, "ce"))
            elif kind == "none":
                s = rng.choice(situations("training"))
                out.append(
                    Sample(rng.choice(s.questions), ordinary_answer(rng, s), "kl", spec.recipe.kl_weight)
                )
            else:
                out.append(wide_sample(self.corpus, rng, spec.params["object"], spec.recipe.kl_weight))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The four kinds of question with their answers."""
        return questions_of(self.name, spec.label)
