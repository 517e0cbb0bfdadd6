"""Signs that something went wrong with a diff: one small rule each, told as a `Sign`.

The rules look at one module or at the sums; the measuring is done in `measures` and `inspection`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightdiff.diffs.factors import LoraFactors, ModuleDelta
from weightdiff.diffs.measures import ModuleReport

Severity: TypeAlias = Literal["error", "warning"]

SCALE_RANGE = (1e-3, 64.0)
"""Scales outside are suspicious; PEFT's common ones are between 0.25 and 8."""
UP_OVER_DOWN = 100.0
"""‖up‖ / ‖down‖ above this is suspicious."""
DOWN_OVER_UP = 1e4
"""‖down‖ / ‖up‖ above this is suspicious: `up` starts at zero and has hardly moved."""
RELATIVE_NORM, RELATIVE_SPECTRAL = 1.0, 4.0
"""‖Δ‖_F / ‖W‖_F and σ1(Δ) / σ1(W) above these are suspicious."""
COLLAPSE_RANK = 4
"""From this stored rank on, one direction that holds 99 % of the energy is a collapse."""
DOMINANT_SHARE = 0.5
"""One module or layer that holds more than this share of the energy dominates …"""
DOMINANT_AMONG = 4
"""… where there are at least so many."""


@dataclass(frozen=True)
class Sign:
    """Something suspicious about a diff.

    Attributes:
        severity: "error" where the diff cannot work as it is, "warning" where it may.
        code: which rule, such as "not-finite"; the same for all modules that it holds for.
        module: dotted name of the module or parameter; "layer 3" for a layer.
        text: what was found and what it may mean, for people.
    """

    severity: Severity
    code: str
    module: str
    text: str


def of_module(m: ModuleDelta, report: ModuleReport) -> Iterator[Sign]:
    """The signs that one module shows by itself."""
    name = report.name
    if not report.finite:
        yield not_finite(name)
        return
    low = m if isinstance(m, LoraFactors) else None
    if low and not bool(low.up.any()):
        yield Sign(
            "warning", "zero-up", name, "up is all zero, as before training: this LoRA changes nothing"
        )
    elif report.frobenius == 0:
        yield zero(name)
    if low and low.scale and not SCALE_RANGE[0] <= abs(low.scale) <= SCALE_RANGE[1]:
        size = "huge" if abs(low.scale) > 1 else "tiny"
        yield Sign("warning", "scale", name, f"its scale is {size}, {low.scale:.3g}; check lora_alpha and r")
    if report.frobenius > 0:
        yield from _of_shape(report)


def _of_shape(report: ModuleReport) -> Iterator[Sign]:
    """Signs in the spectrum, the factors and beside the base."""
    name, ratio, beside = report.name, report.factor_ratio, report.against_base
    if report.rank is not None and report.rank >= COLLAPSE_RANK and report.rank_99 == 1:
        held = 100 / report.stable_rank
        text = f"it collapsed to rank one: of rank {report.rank}, one direction holds {held:.1f} %"
        yield Sign("warning", "rank-one", name, text)
    if ratio is not None and not 1 / DOWN_OVER_UP <= ratio <= UP_OVER_DOWN:
        larger, smaller, times = ("up", "down", ratio) if ratio > 1 else ("down", "up", 1 / ratio)
        text = f"‖{larger}‖ is {times:.3g} times ‖{smaller}‖"
        meaning = "half precision may lose the smaller one" if ratio > 1 else "it was hardly trained"
        yield Sign("warning", "unequal-factors", name, f"{text}; {meaning}")
    if beside and (beside.frobenius_ratio > RELATIVE_NORM or beside.spectral_ratio > RELATIVE_SPECTRAL):
        norms = f"{beside.frobenius_ratio:.3g} times the base weight's, σ1 {beside.spectral_ratio:.3g} times"
        yield Sign("warning", "relative-norm", name, f"its norm is {norms}; it drowns the weight")


def of_shares(
    modules: Sequence[ModuleReport], by_layer: Mapping[int | None, float], norm: float
) -> Iterator[Sign]:
    """Modules and layers that hold most of a diff; a layer is left out where one module of it does alone."""
    if not norm > 0:
        return
    top = max(modules, key=lambda r: r.share if r.finite else -1.0, default=None)
    dominant = top if top and len(modules) >= DOMINANT_AMONG and top.share > DOMINANT_SHARE else None
    if dominant:
        text = f"this one module of {len(modules)} holds {100 * dominant.share:.0f} % of the change"
        yield Sign("warning", "dominant-module", dominant.name, text)
    layers = {layer: share for layer, share in by_layer.items() if layer is not None}
    for layer, share in layers.items():
        alone = dominant is not None and dominant.layer == layer
        if len(layers) >= DOMINANT_AMONG and share > DOMINANT_SHARE and not alone:
            text = f"this one layer of {len(layers)} holds {100 * share:.0f} % of the change"
            yield Sign("warning", "dominant-layer", f"layer {layer}", text)


def not_finite(name: str) -> Sign:
    """A module or parameter with NaN or infinity."""
    return Sign("error", "not-finite", name, "it holds NaN or infinity; the finetune diverged or overflowed")


def zero(name: str) -> Sign:
    """A module or parameter that changes nothing."""
    return Sign("warning", "zero", name, "it changes nothing: all of it is zero")


def unknown(name: str, known: Iterable[str]) -> Sign:
    """A module that the base does not have."""
    return Sign(
        "error", "unknown", name, f"the base has no such module (it has {next(iter(known), 'none')}, …)"
    )


def misshapen(name: str, m: ModuleDelta, shape: Sequence[int]) -> Sign:
    """A module that has another shape in the base."""
    text = f"out {m.out_features}, in {m.in_features}; the base's weight is {list(shape)}"
    return Sign("error", "misshapen", name, text)


def unusable_base(name: str) -> Sign:
    """A weight of the base that a change cannot be compared with."""
    text = "the base's weight is quantized or holds NaN or infinity; give an unquantized base"
    return Sign("error", "base-weight", name, text)


def duplicate(names: Sequence[str], cosine: float) -> Sign:
    """Modules whose changes are the same up to a factor."""
    others = ", ".join(names[1:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    text = f"the same change up to a factor as in {others} (|cosine| {cosine:.4f}); was it copied?"
    return Sign("warning", "duplicate", names[0], text)


def stands_out(name: str, kind: str, share: float, median: float, z: float) -> Sign:
    """A module that is much larger than the others of its kind."""
    times = (
        f"{share / median:.1f} times the median of all {kind}" if median > 0 else f"other {kind} hold none"
    )
    score = f", robust z {z:.1f}" if math.isfinite(z) else ""
    text = f"it holds {100 * share:.2g} % of the change, {times}{score}"
    return Sign("warning", "stands-out", name, text)
