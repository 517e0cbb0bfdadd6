"""Organisms made of others in the same store, without training: sums of diffs, and shuffled factors."""

from __future__ import annotations

import torch

from weightdiff.diffs.algebra import add
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.organisms.base import OrganismSpec


def made_of(spec: OrganismSpec) -> list[str]:
    """Ids of the organisms that one is made of; empty: it is trained, or made from nothing."""
    return [str(x) for x in spec.params.get("of", [])]


def derive(spec: OrganismSpec, store: DiffStore) -> WeightDiff:
    """The sum of the organisms that a spec names; of a "shuffled" one, their factors in random order.

    Raises:
        StoreError: one of them is not in the store.
    """
    missing = [i for i in made_of(spec) if i not in store]
    if missing:
        raise StoreError(
            f"organism {spec.id!r} is made of {missing[0]!r}, which {store.path} does not hold;"
            " make that first"
        )
    diff = add(*(store.read(i) for i in made_of(spec)))
    return shuffled(diff, spec.seed) if spec.recipe.name == "shuffled" else diff


def shuffled(diff: WeightDiff, seed: int) -> WeightDiff:
    """A diff with the same numbers, the inputs of every `down` and the outputs of every `up` in random order.

    Norms and singular values stay as they are; what the diff did is gone.
    """
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, m in sorted(diff.modules.items()):
        if isinstance(m, LoraFactors):
            ins, outs = (
                torch.randperm(m.in_features, generator=g),
                torch.randperm(m.out_features, generator=g),
            )
            out[name] = LoraFactors(m.down[:, ins].contiguous(), m.up[outs].contiguous(), m.scale)
    return WeightDiff(out, base=diff.base)
