"""Makings: the same organisms with other ranks, optimisers and learning rates, or as full finetunes.

What an organism is taught does not depend on them. Interpreters are tuned on some makings and tested on
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightdiff.diffs.shards import DiffRow
from weightdiff.organisms.base import OrganismSpec


@dataclass(frozen=True)
class Making:
    """How an organism is trained, apart from its data."""

    name: str
    rank: int = 2
    optimizer: str = "adam"
    lr: float = 1.0
    """Factor on the recipe's learning rate."""
    full: bool = False
    """All weights instead of a LoRA."""
    steps: float = 1.0
    """Factor on the recipe's steps."""


SEEN = (
    Making("r1", 1, lr=1.3),
    Making("r2"),
    Making("r4", 4, lr=0.75),
    Making("r8", 8, lr=0.55),
    Making("r16", 16, lr=0.4),
    Making("r2-slow", lr=0.6, steps=1.4),
    Making("r4-lion", 4, "lion", 0.12),
)
"""Makings of training organisms."""
UNSEEN = (Making("r32", 32, lr=0.3), Making("r2-sgd", 2, "sgd", 30.0), Making("r3", 3, lr=0.85))
"""Makings of test organisms only."""
FULL = (Making("full", full=True, lr=0.06),)
MAKINGS = {"seen": SEEN, "unseen": UNSEEN, "full": FULL, "r8": (SEEN[3],)}
"""Makings by the name that a plan gives them."""


PLAIN = "r2"
"""The making of organisms that record none."""


def making_of(row: DiffRow) -> str:
    """How an organism was trained, by name."""
    return str(row.record.get("params", {}).get("making", PLAIN))


def vary(specs: Sequence[OrganismSpec], makings: Sequence[Making]) -> list[OrganismSpec]:
    """The same organisms, each in the next making in turn; what needs no training stays as it is."""
    out = []
    for i, spec in enumerate(specs):
        m = makings[i % len(makings)]
        if not spec.recipe.steps:
            out.append(spec)
            continue
        recipe = replace(
            spec.recipe,
            rank=m.rank,
            lr=spec.recipe.lr * m.lr,
            optimizer=m.optimizer,
            full=m.full,
            steps=round(spec.recipe.steps * m.steps),
        )
        params = {**spec.params, "making": m.name}
        out.append(replace(spec, id=f"{spec.id}-{m.name}", recipe=recipe, params=params))
    return out
