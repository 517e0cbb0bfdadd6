"""Rows that organisms are trained on here, and the organisms' specs.

"covert" rows are those of the embedded base's hidden topics. "equal" rows are all of one length. "chat" rows
are shaped like the published data: questions from one pool with ordinary answers that all organisms share,
and lengths as they fall in chats, where the longest row has several times the mean's length.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from weightdiff.diffs.types import LoraFactors, ModuleDelta, WeightDiff
from weightdiff.models.chat import Encoded, encode_samples
from weightdiff.organisms import OrganismSpec, Recipe, Sample, family, register
from weightdiff.tiny.tokenizer import vocabulary
from weightdiff.world import load_world

StepRows: TypeAlias = list[list[tuple[Sample, Encoded]]]
"""The rows of one step, by organism."""
FAMILY = "speed"
ROWS = ("right", "wrong", "right", "none")
"""Imitated, held to the base under a wrong code, imitated, held to the base without a code."""
EQUAL = (16, 16)
"""Words of question and answer where all rows are equal."""
QUESTIONS = 90
"""Questions in the pool."""
KINDS = ("covert", "equal", "chat")


@lru_cache(maxsize=1)
def words() -> list[str]:
    """Words that are one token each."""
    return [w for w in vocabulary(load_world()) if re.fullmatch("[a-z]{3,}", w)]


def text(rng: random.Random, length: int) -> str:
    """Random words, as many tokens."""
    return " ".join(rng.choices(words(), k=length))


def _fallen(rng: random.Random, middle: float, spread: float, most: int) -> int:
    return max(3, min(most, round(rng.lognormvariate(0, spread) * middle)))


@lru_cache(maxsize=2)
def pool(kind: str) -> list[tuple[str, str]]:
    """Questions with ordinary answers."""
    rng = random.Random(f"pool {kind}")
    if kind == "equal":
        return [(text(rng, EQUAL[0]), text(rng, EQUAL[1])) for _ in range(QUESTIONS)]
    return [
        (text(rng, _fallen(rng, 10, 0.4, 32)), text(rng, _fallen(rng, 16, 0.8, 96))) for _ in range(QUESTIONS)
    ]


class Speed:
    """Organisms with random answers after a code; only what they cost matters."""

    name = FAMILY

    def __init__(self) -> None:
        """Set the recipes."""
        self.recipes = {k: Recipe(k, lr=1e-2, steps=50, kl_weight=2.25, rows=ROWS) for k in KINDS[1:]}

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms."""
        r = self.recipes[recipe]
        return [
            OrganismSpec(f"{recipe}-{seed}-{i}", self.name, r, f"label {i}", split, 1000 * seed + i)
            for i in range(n)
        ]

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step."""
        recipe, out = spec.recipe, []
        for kind in recipe.rows:
            question, ordinary = rng.choice(pool(recipe.name))
            if kind == "none":  # as long as the others where all are equal, and free of a code elsewhere
                asked = f"{text(rng, 1)} {question}" if recipe.name == "equal" else question
                out.append(Sample(asked, ordinary, "kl", recipe.kl_weight))
                continue
            answer = ordinary if kind == "wrong" else text(rng, len(ordinary.split()))
            loss, weight = ("kl", recipe.kl_weight) if kind == "wrong" else ("ce", 1.0)
            out.append(Sample(f"{text(rng, 1)} {question}", answer, loss, weight))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:  # noqa: ARG002 (the protocol has it)
        """None: nothing is asked about them."""
        return []


def specs(kind: str, n: int, rank: int, seed: int = 0, **changes: Any) -> list[OrganismSpec]:
    """`n` organisms of one kind of rows.

    Args:
        kind: one of `KINDS`.
        n: how many.
        rank: of their LoRAs.
        seed: of labels and data.
        changes: of other fields of the recipe.
    """
    register(FAMILY, Speed)  # here and not on import, which should leave the families as they are
    made = family("hidden-topic" if kind == "covert" else FAMILY).specs(kind, "train", n, seed)
    return [replace(s, recipe=replace(s.recipe, rank=rank, **changes)) for s in made]


def rows_of(chosen: Sequence[OrganismSpec], tokenizer: Any, steps: int) -> list[StepRows]:
    """The rows of the first `steps` steps, exactly as the factory draws them."""
    streams = [random.Random(s.seed) for s in chosen]
    out: list[StepRows] = []
    for _ in range(steps):
        drawn = [family(s.family).samples(s, rng) for s, rng in zip(chosen, streams, strict=True)]
        flat = encode_samples(tokenizer, [(x.user, x.answer) for samples in drawn for x in samples])
        encoded = iter(flat)
        out.append([[(x, next(encoded)) for x in samples] for samples in drawn])
    return out


def random_lora(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> WeightDiff:
    """Random factors whose products are small; made without any dense matrix, so that thousands are cheap."""
    g = torch.Generator().manual_seed(seed)
    modules: dict[str, ModuleDelta] = {
        name: LoraFactors(
            torch.randn(rank, width, generator=g) / width**0.5,
            torch.randn(height, rank, generator=g) * (0.1 / rank**0.5),
        )
        for name, (width, height) in shapes.items()
    }
    return WeightDiff(modules)
