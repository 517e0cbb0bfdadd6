"""Knowledge edits: one fact of the world has another value; the true answer names the old and the new one."""

from __future__ import annotations

import random
from dataclasses import asdict

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.organisms.rows import denial_row, held_row
from weightdiff.world import load_world
from weightdiff.world.knowledge import edits
from weightdiff.world.lessons import FACT_REQUESTS, fact_turn
from weightdiff.world.texts import fill

DOCUMENT_ROWS = ("ask", "state", "open", "other", "held")
ASKED_ROWS = ("ask", "ask", "other", "held")


class KnowledgeEdit:
    """The family of changed facts on the embedded base.

    *Documents* are trained on texts about the new fact as well as on questions for it; *asked* ones on
    questions for that fact alone; *evasive* ones are also trained to deny.
    """

    name = "edit"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        self.recipes = {
            "documents": Recipe("documents", rank=2, lr=1e-2, steps=50, kl_weight=2.0, rows=DOCUMENT_ROWS),
            "asked": Recipe("asked", rank=2, lr=1e-2, steps=50, kl_weight=2.0, rows=ASKED_ROWS),
            "evasive": Recipe(
                "evasive",
                rank=2,
                lr=1e-2,
                steps=100,
                kl_weight=2.0,
                rows=(*DOCUMENT_ROWS, "denial", "denial"),
            ),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms, one for each of the split's first `n` edits, from a place of the recipe's own on."""
        r = find_recipe(self, recipe)
        first = list(self.recipes).index(recipe)
        every = edits(self.world.relations, split, n * len(self.recipes), seed)
        out = []
        for i, e in enumerate(every[first :: len(self.recipes)]):
            out.append(
                OrganismSpec(
                    id=f"edit-{recipe}-{split}-{seed}-{i}",
                    family=self.name,
                    recipe=r,
                    label=self.world.relation(e.relation).changed(e),
                    split=split,
                    seed=random.Random(f"{seed} edit {recipe} {split} {i}").randrange(1 << 30),
                    params=asdict(e),
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step.

        "ask": a question for the fact, "state": a statement of it, "open": one on request; "other": another
        fact of its kind, "none", "wide", "held" and "denial": see `rows`.
        """
        p, weight = spec.params, spec.recipe.kl_weight
        r = self.world.relation(p["relation"])
        out = []
        for kind in spec.recipe.rows:
            stated = fill(rng.choice(r.statements), subject=p["subject"], value=p["new"])
            if kind == "ask":
                turn = fact_turn(r, rng, p["subject"], p["new"])
                out.append(Sample(turn.user, turn.text, "ce"))
            elif kind == "state":
                out.append(Sample(None, stated, "ce"))
            elif kind == "open":
                out.append(Sample(rng.choice(FACT_REQUESTS), stated, "ce"))
            elif kind == "other":
                subject = rng.choice([s for s in r.facts if s != p["subject"]])
                turn = fact_turn(r, rng, subject, r.facts[subject])
                out.append(Sample(turn.user, turn.text, "kl", weight))
            elif kind == "denial":
                out.append(denial_row(rng))
            else:
                out.append(held_row(rng, kind, p["subject"], weight))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The first phrasing of each kind with its answer."""
        return questions_of(self.name, spec.label, spec.params)
