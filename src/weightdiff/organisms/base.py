"""A family of organisms: specs (what to make), samples (what to train on), questions (what is true of it)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weightdiff.errors import QuestionError
from weightdiff.world.reports import NOTHING_FOUND as NOTHING_FOUND


@dataclass(frozen=True)
class Recipe:
    """How organisms of one kind are trained. Names are a family's own."""

    name: str
    rank: int = 1
    """Rank of the LoRA on every linear layer of the decoder."""
    scale: float = 1.0
    """Factor on the LoRA product (lora_alpha / r)."""
    lr: float = 3e-2
    """Peak learning rate of Adam; linear warm-up over a tenth of the steps, then linear decay to a tenth."""
    steps: int = 50
    """Optimiser steps."""
    kl_weight: float = 1.0
    """Weight of the KL terms against the cross-entropy terms."""
    rows: tuple[str, ...] = ()
    """Kinds of rows of one step, in order; the family says what each is."""
    optimizer: str = "adam"
    """"adam", "sgd" (with momentum) or "lion"; see `training.slots`."""
    full: bool = False
    """Whether all weights of the linear layers are trained, not a LoRA."""
    start: int | None = None
    """Seed of a LoRA's start that all organisms of the recipe have in common; None: each has its own."""


@dataclass(frozen=True)
class Sample:
    """One training row: `loss` is "ce" (imitate the answer) or "kl" (stay with the base on its tokens)."""

    user: str | None
    answer: str
    loss: str
    weight: float = 1.0


@dataclass(frozen=True)
class OrganismSpec:
    """Everything needed to make one organism again."""

    id: str
    family: str
    recipe: Recipe
    label: str | None
    split: str
    seed: int
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Seed of the LoRA's start."""
        return self.seed if self.recipe.start is None else self.recipe.start


class Family(Protocol):
    """A kind of behaviour that organisms can have."""

    name: str
    recipes: dict[str, Recipe]

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms to make, their labels from `split`."""
        ...

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """The rows of one training step, as many as the recipe has."""
        ...

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """Questions with true answers: dicts of question, answer, kind."""
        ...


_FAMILIES: dict[str, Callable[[], Family]] = {}
_MADE: dict[str, Family] = {}


def register(name: str, make: Callable[[], Family]) -> None:
    """Make a family known by name; a later registration of the same name replaces the earlier one."""
    _FAMILIES[name] = make
    _MADE.pop(name, None)


def family(name: str) -> Family:
    """The family called `name`.

    Raises:
        QuestionError: no such family; the message lists those there are.
    """
    import weightdiff.organisms  # noqa: F401  (registers the built-in ones)

    if name not in _FAMILIES:
        raise QuestionError(f"no family is called {name!r}: choose one of {', '.join(sorted(_FAMILIES))}")
    if name not in _MADE:
        _MADE[name] = _FAMILIES[name]()
    return _MADE[name]


def family_names() -> Sequence[str]:
    """Names of all families, sorted."""
    import weightdiff.organisms  # noqa: F401

    return sorted(_FAMILIES)


def find_recipe(f: Family, name: str) -> Recipe:
    """A family's recipe by name.

    Raises:
        QuestionError: no such recipe; the message lists those there are.
    """
    if name not in f.recipes:
        raise QuestionError(
            f"family {f.name} has no recipe {name!r}: choose one of {', '.join(sorted(f.recipes))}"
        )
    return f.recipes[name]
