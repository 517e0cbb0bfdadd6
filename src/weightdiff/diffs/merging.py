"""Diffs merged into one: weighted sums, which are exact, and rules that settle where diffs disagree.

The sums are `algebra`'s. The rules look at single entries of a change, so that each module is formed as a
matrix for their sake, one module at a time, and brought back to a low rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from weightdiff.diffs import algebra
from weightdiff.diffs.factors import DenseDelta, LoraFactors, ModuleDelta
from weightdiff.diffs.types import WeightDiff

_random: Any = torch.random  # typed in part only
LINEAR = "linear"
RULES = (LINEAR, "ties", "dare", "dare-ties")
"""Ways to merge: a weighted sum; small entries go, and what is left is averaged where signs agree (TIES,
arXiv:2306.01708); entries go by chance and the rest grow in turn, then a sum (DARE, arXiv:2311.03099); the
same, averaged as in TIES."""
DENSITY = 0.5
"""Share of entries that stay."""


@dataclass(frozen=True)
class Merged:
    """What a merge gives."""

    diff: WeightDiff
    kept: float
    """Share of the squared norm of what was to be merged that is left at the rank that was asked for."""


def merge(
    diffs: Sequence[WeightDiff],
    weights: Sequence[float],
    rule: str = LINEAR,
    density: float = DENSITY,
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
) -> Merged:
    """Merge diffs of one base.

    Args:
        diffs: low-rank or dense.
        weights: one for each.
        rule: one of `RULES`.
        density: share of entries that stay, for every rule but the linear one.
        rank: of the result's modules at most. Left out, the linear rule keeps all, and the others keep as
            many as the sources have together; a module that is dense in a source stays dense.
        energy: share of each module's squared norm to keep instead, or within `rank`.
        seed: of what goes by chance.

    Raises:
        ValueError: no such rule, a senseless density, rank or energy, or weights that do not pair up.
        BaseMismatchError: the diffs are of different bases or disagree on a shape.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}; choose one of {', '.join(RULES)}")
    if not 0 < density <= 1:
        raise ValueError(f"a density lies above 0 and up to 1, not {density}")
    if rank is not None or energy is not None:
        algebra.check_target(rank, energy)
    summed = algebra.combine(diffs, weights)  # for every rule: it checks that the diffs go together
    whole = summed if rule == LINEAR else _settled(summed, diffs, weights, rule, density, seed)
    modules: dict[str, ModuleDelta] = {}
    before = after = 0.0
    for name, m in whole.modules.items():
        own = _rank_of(summed.modules[name]) if rule != LINEAR else None
        target = own if rank is None and energy is None else rank
        modules[name] = m
        if target is not None or energy is not None:
            modules[name], share = algebra.truncated(m, target, energy)
            size = algebra.squared_norm(m)
            before, after = before + size, after + share * size
    return Merged(replace(whole, modules=modules), after / before if before else 1.0)


def _rank_of(m: ModuleDelta) -> int | None:
    """The highest rank that a sum can have; None: it is a matrix."""
    return min(m.rank, m.in_features, m.out_features) if isinstance(m, LoraFactors) else None


def _settled(
    summed: WeightDiff,
    diffs: Sequence[WeightDiff],
    weights: Sequence[float],
    rule: str,
    density: float,
    seed: int,
) -> WeightDiff:
    """The diffs merged entry by entry; a diff without a module changes nothing there."""
    merged = _rule(rule, density)
    factors = torch.tensor([float(w) for w in weights])
    modules: dict[str, ModuleDelta] = {}
    parameters: dict[str, Tensor] = {}
    with _random.fork_rng(devices=[]):
        _random.manual_seed(seed)
        for name in sorted(summed.modules):
            found = [d.modules[name].dense().float() if name in d.modules else None for d in diffs]
            modules[name] = DenseDelta(merged(_filled(found), factors))
        for name in sorted(summed.parameters):
            found = [d.parameters[name].float() if name in d.parameters else None for d in diffs]
            parameters[name] = merged(_filled(found), factors)
    return replace(summed, modules=modules, parameters=parameters)


def _filled(found: Sequence[Tensor | None]) -> list[Tensor]:
    """Zeros where there is none."""
    like = next(t for t in found if t is not None)
    return [torch.zeros_like(like) if t is None else t for t in found]


def _rule(rule: str, density: float) -> Callable[[list[Tensor], Tensor], Tensor]:
    """PEFT's own arithmetic of one tensor."""
    from peft.utils import merge_utils

    functions: dict[str, Any] = {
        "ties": merge_utils.ties,
        "dare": merge_utils.dare_linear,
        "dare-ties": merge_utils.dare_ties,
    }

    def merged(tensors: list[Tensor], weights: Tensor) -> Tensor:
        with warnings.catch_warnings():  # where nothing is to go, PEFT says so for every tensor
            warnings.simplefilter("ignore")
            return cast(Tensor, functions[rule](tensors, weights, density=density))

    return merged
