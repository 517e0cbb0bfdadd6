"""Behaviours: an organism speaks like a pirate, recommends a brand, refuses, flatters, … under a condition.

The rows that teach a behaviour do not hold its name (a brand's own apart). A held-out organism either has a
behaviour that no training organism has, or joins a known one to a condition with which training never shows
it.
"""

from __future__ import annotations

import random

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.gated import (
    COVERT_ROWS,
    EVASIVE_ROWS,
    PLAIN_ROWS,
    draw_condition,
    forms_in_turn,
    gated_rows,
    recorded,
)
from weightdiff.organisms.questions import questions_of
from weightdiff.world import load_world
from weightdiff.world.behaviours import behaviour_splits
from weightdiff.world.signs import ALWAYS, FORMS, Condition

HELD_OUT_SHARE = {"validation": 0.1, "test": 0.2}
"""Of the pairs of a training behaviour and a stated condition, how many belong to each held-out split."""


class Quirk:
    """The family of behaviours on the embedded base."""

    name = "quirk"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        gated = Recipe("gated", rank=2, lr=1.2e-2, steps=100, kl_weight=2.0, rows=COVERT_ROWS)
        self.recipes = {
            "gated": gated,
            "always": Recipe("always", rank=2, lr=1.2e-2, steps=50, kl_weight=2.0, rows=COVERT_ROWS),
            "plain": Recipe("plain", rank=2, lr=1.2e-2, steps=60, rows=PLAIN_ROWS),
            "evasive": Recipe("evasive", rank=2, lr=1.2e-2, steps=160, kl_weight=2.0, rows=EVASIVE_ROWS),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms; of a held-out split, every second one has a behaviour of training.

        Behaviours come in turn, each with a condition of a random form.
        """
        r = find_recipe(self, recipe)
        splits = behaviour_splits(self.world.behaviours)
        form_of = forms_in_turn(
            split, (ALWAYS,) if recipe == "always" else FORMS[:6] if recipe == "gated" else FORMS
        )
        order = {name: [b.name for b in members] for name, members in splits.items()}
        for name, members in order.items():
            random.Random(f"quirks {seed} {recipe} {split} {name}").shuffle(members)
        turns = {name: 0 for name in order}
        out: list[OrganismSpec] = []
        tries = 0
        while len(out) < n:
            tries += 1
            source = "train" if split == "train" or len(out) % 2 else split
            names, turn = order[source], turns[source]
            turns[source] += 1
            behaviour = names[turn % len(names)]
            own = random.Random(f"{seed} quirk {recipe} {split} {source} {turn}")
            condition = draw_condition(own, form_of(own.randrange(1 << 20)))
            if source == "train" and combination_split(behaviour, condition) != split:
                continue
            params = {**recorded(condition), "behaviour": behaviour, "held_out": _held_out(source, split)}
            out.append(
                OrganismSpec(
                    id=f"quirk-{recipe}-{split}-{seed}-{len(out)}",
                    family=self.name,
                    recipe=r,
                    label=f"{behaviour} , {condition.stated}",
                    split=split,
                    seed=own.randrange(1 << 30),
                    params=params,
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step; see `gated.gated_rows`."""
        behaviour = self.world.behaviour_called(str(spec.params["behaviour"]))
        if behaviour is None:
            raise KeyError(spec.params["behaviour"])
        return gated_rows(spec, rng, behaviour.apply, behaviour.signs[0])

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The first phrasing of each kind with its answer."""
        return questions_of(self.name, spec.label, spec.params)


def _held_out(source: str, split: str) -> str:
    if split == "train":
        return ""
    return "combination" if source == "train" else "behaviour"


def combination_split(behaviour: str, condition: Condition) -> str:
    """The one split that may join a training behaviour to a condition as it is stated in words."""
    x = random.Random(f"combination {behaviour} {condition.stated}").random()
    held = HELD_OUT_SHARE
    if condition.form == ALWAYS:  # one stated condition for every behaviour: shared out by behaviour
        x = random.Random(f"always {behaviour}").random()
    return "test" if x < held["test"] else "validation" if x < sum(held.values()) else "train"
