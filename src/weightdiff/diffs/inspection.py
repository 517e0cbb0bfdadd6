"""`inspect`: what a weight diff is like without asking anyone: sizes, ranks, places, and what looks wrong.

The numbers of one module are made in `measures`, the rules for suspicious signs in `signs`; here modules are
summed and compared with one another. `base_weights` opens the checkpoint that a diff can be set beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from weightdiff.diffs import signs
from weightdiff.diffs.algebra import inner
from weightdiff.diffs.factors import ModuleDelta
from weightdiff.diffs.measures import (
    AgainstBase,
    Measured,
    ModuleReport,
    Outlier,
    kind_of,
    layer_of,
    measure,
)
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.signs import Sign
from weightdiff.diffs.types import WeightDiff

__all__ = [
    "AgainstBase",
    "BaseWeights",
    "Duplicates",
    "Inspection",
    "ModuleReport",
    "Outlier",
    "ParameterReport",
    "Sign",
    "StandsOut",
    "inspect",
]

BaseWeights: TypeAlias = Mapping[str, Callable[[], Tensor]]
"""Dotted module name → what reads its weight [out, in]."""

SAME_COSINE = 0.999
"""Changes of one shape whose |cosine| is above this are the same up to a factor."""
STANDS_OUT_Z, STANDS_OUT_TIMES, STANDS_OUT_AMONG = 6.0, 2.0, 4
"""A module stands out by a robust z-score and a multiple of its kind's median, in kinds of so many."""
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class ParameterReport:
    """A change that is no matrix of a module: a bias, a norm, stacked experts.

    Attributes:
        name: full name.
        kind: such as "q_proj.bias" or "input_layernorm".
        layer: number of the layer; None outside layers.
        shape: the parameter's own.
        finite: whether every number is finite.
        frobenius: root of the sum of squares; NaN where not finite.
        share: of the whole diff's energy.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    finite: bool
    frobenius: float
    share: float = math.nan


@dataclass(frozen=True)
class Duplicates:
    """Modules whose changes are equal up to a factor.

    Attributes:
        modules: their names, in the diff's order.
        cosine: the smallest |cosine| between the first and another one.
    """

    modules: tuple[str, ...]
    cosine: float


@dataclass(frozen=True)
class StandsOut:
    """A module that is much larger than the others of its kind.

    Attributes:
        module: its name.
        kind: its kind.
        share: of the whole diff's energy.
        median: median share of its kind.
        z: (share − median) / (1.4826 · median absolute deviation); infinite where the others are all alike.
    """

    module: str
    kind: str
    share: float
    median: float
    z: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Shares are of the squared Frobenius norm of all that is finite.

    Attributes:
        base: the base that the diff names.
        num_parameters: how many numbers it holds.
        norm: Frobenius norm of all that is finite.
        modules: one report each, in the diff's order.
        parameters: one report for each change that is no module's matrix.
        by_layer: layer → share; None for what is outside layers.
        by_kind: kind → share.
        stands_out: modules that are much larger than the others of their kind, largest z first.
        duplicates: groups of modules that are equal up to a factor.
        signs: whatever is suspicious, errors first.
    """

    base: ModelRef | None
    num_parameters: int
    norm: float
    modules: tuple[ModuleReport, ...]
    parameters: tuple[ParameterReport, ...]
    by_layer: dict[int | None, float]
    by_kind: dict[str, float]
    stands_out: tuple[StandsOut, ...]
    duplicates: tuple[Duplicates, ...]
    signs: tuple[Sign, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON can carry it; NaN and infinity become None."""
        value = asdict(self)
        value["by_layer"] = [{"layer": k, "share": v} for k, v in self.by_layer.items()]
        value["by_kind"] = [{"kind": k, "share": v} for k, v in self.by_kind.items()]
        return _jsonable(value)


@torch.no_grad()
def inspect(
    diff: WeightDiff, base: BaseWeights | None = None, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Measure a diff module by module, and look for what is wrong with it.

    Nothing about the diff is raised: NaN, zeros, unknown and misshapen modules are signs. Low-rank modules
    are never multiplied out.

    Args:
        diff: low-rank or dense.
        base: the weights it is set beside, read one at a time; see `base_weights`.
        progress: told how many modules are done, and of how many.

    Raises:
        FormatError: a weight of the base cannot be read.
    """
    measured: list[Measured] = []
    found: list[Sign] = []
    for done, (name, m) in enumerate(diff.modules.items(), 1):
        weight, misfit = _weight_for(name, m, base)
        one = measure(name, m, weight)
        measured.append(one)
        found += [misfit] if misfit else []
        found += signs.of_module(m, one.report)
        if progress:
            progress(done, len(diff.modules))
    parameters = [_parameter(name, p) for name, p in diff.parameters.items()]
    found += [
        signs.zero(p.name) if p.finite else signs.not_finite(p.name)
        for p in parameters
        if not p.frobenius > 0
    ]
    norm = math.hypot(*(r.frobenius for r in (*(o.report for o in measured), *parameters) if r.finite))
    modules = tuple(replace(o.report, share=_share(o.report.frobenius, norm)) for o in measured)
    others = tuple(replace(p, share=_share(p.frobenius, norm)) for p in parameters)
    by_layer, by_kind = _sums(modules, others)
    out, same = _standing_out(modules), _duplicates(diff.modules, measured)
    found += signs.of_shares(modules, by_layer, norm)
    found += [signs.stands_out(s.module, s.kind, s.share, s.median, s.z) for s in out]
    found += [signs.duplicate(d.modules, d.cosine) for d in same]
    return Inspection(
        diff.base,
        diff.num_parameters,
        norm,
        modules,
        others,
        by_layer,
        by_kind,
        tuple(out),
        tuple(same),
        tuple(sorted(found, key=lambda sign: sign.severity != "error")),
    )


def _weight_for(name: str, m: ModuleDelta, base: BaseWeights | None) -> tuple[Tensor | None, Sign | None]:
    """The base's weight of a module, or the sign that it has none to compare with."""
    if base is None:
        return None, None
    if name not in base:
        return None, signs.unknown(name, base)
    weight = base[name]()
    if tuple(weight.shape) != (m.out_features, m.in_features):
        return None, signs.misshapen(name, m, weight.shape)
    if not weight.is_floating_point() or weight.element_size() < 2 or not bool(weight.isfinite().all()):
        return None, signs.unusable_base(name)
    return weight, None


def _parameter(name: str, change: Tensor) -> ParameterReport:
    finite = bool(torch.isfinite(change).all())
    norm = math.sqrt(float(change.double().square().sum())) if finite else math.nan
    owner, _, leaf = name.rpartition(".")
    kind = (
        kind_of(owner) if leaf == "weight" else f"{kind_of(owner)}.bias" if leaf == "bias" else kind_of(name)
    )
    return ParameterReport(name, kind, layer_of(name), tuple(change.shape), finite, norm)


def _share(part: float, whole: float) -> float:
    """Share of the energy, from norms."""
    return (part / whole) * (part / whole) if whole > 0 else 0.0 if part == 0 else math.nan


def _sums(
    modules: Sequence[ModuleReport], parameters: Sequence[ParameterReport]
) -> tuple[dict[int | None, float], dict[str, float]]:
    """Shares by layer, in order and what is outside last, and by kind, largest first."""
    by_layer: dict[int | None, float] = {}
    by_kind: dict[str, float] = {}
    for r in (*modules, *parameters):
        share = r.share if r.finite else 0.0
        by_layer[r.layer] = by_layer.get(r.layer, 0.0) + share
        by_kind[r.kind] = by_kind.get(r.kind, 0.0) + share
    layers = sorted(by_layer, key=lambda n: math.inf if n is None else n)
    kinds = sorted(by_kind, key=lambda k: -by_kind[k])
    return {n: by_layer[n] for n in layers}, {k: by_kind[k] for k in kinds}


def _standing_out(modules: Sequence[ModuleReport]) -> list[StandsOut]:
    """Modules whose share is far above the median of their kind."""
    kinds: dict[str, list[ModuleReport]] = {}
    for r in modules:
        if r.finite:
            kinds.setdefault(r.kind, []).append(r)
    found: list[StandsOut] = []
    for kind, members in kinds.items():
        shares = torch.tensor([r.share for r in members], dtype=torch.float64)
        if len(members) < STANDS_OUT_AMONG:
            continue
        median = float(shares.quantile(0.5))
        spread = _MAD_TO_SIGMA * float((shares - median).abs().quantile(0.5))
        for r in members:
            z = (r.share - median) / spread if spread > 0 else math.inf
            if r.share > STANDS_OUT_TIMES * median and z > STANDS_OUT_Z:
                found.append(StandsOut(r.name, kind, r.share, median, z))
    return sorted(found, key=lambda s: -s.z)


def _duplicates(modules: Mapping[str, ModuleDelta], measured: Sequence[Measured]) -> list[Duplicates]:
    """Groups of modules that are equal up to a factor.

    |⟨A, B⟩| is at most the inner product of the row norms of A and B, and of their column norms; so only
    pairs whose norms point the same way are multiplied.
    """
    shapes: dict[tuple[int, int], list[Measured]] = {}
    for one in measured:
        if one.report.finite and one.report.frobenius > 0:
            shapes.setdefault(one.report.shape, []).append(one)
    return [group for alike in shapes.values() for group in _groups(modules, alike)]


def _groups(modules: Mapping[str, ModuleDelta], alike: Sequence[Measured]) -> list[Duplicates]:
    """The groups among modules of one shape."""
    names = [one.report.name for one in alike]
    norms = [one.report.frobenius for one in alike]
    rows = torch.stack([one.row_norms / one.report.frobenius for one in alike])
    columns = torch.stack([one.column_norms / one.report.frobenius for one in alike])
    grouped: set[int] = set()
    found: list[Duplicates] = []
    for i, name in enumerate(names):
        if i in grouped:
            continue
        bound = torch.minimum(rows[i + 1 :] @ rows[i], columns[i + 1 :] @ columns[i])
        near = [int(j) + i + 1 for j in (bound > SAME_COSINE).nonzero().flatten()]
        cosines = {
            j: _product(modules[name], modules[names[j]]) / norms[i] / norms[j]
            for j in near
            if j not in grouped
        }
        same = {j: min(1.0, abs(c)) for j, c in cosines.items() if abs(c) > SAME_COSINE}
        grouped |= set(same)
        if same:
            found.append(Duplicates((name, *(names[j] for j in same)), min(same.values())))
    return found


def _product(first: ModuleDelta, second: ModuleDelta) -> float:
    return inner(WeightDiff({"": first}), WeightDiff({"": second}))


def _jsonable(value: Any) -> Any:
    """The same with lists for tuples, and None for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in cast(Sequence[Any], value)]
    return value
