"""The numbers of one module's change: spectrum, ranks, norms, outlying rows and columns, and its base weight.

Low-rank changes stay thin: the triangles of two QRs make a core of rank × rank with the same singular values,
and each factor times the other's triangle has the row (or column) norms of the whole. Everything is float64.
What many modules have in common is `inspection`'s business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightdiff.diffs.algebra import FULL_SVD_SIDE, Spectrum, spectrum
from weightdiff.diffs.factors import DenseDelta, LoraFactors, ModuleDelta, is_finite

ENERGY = 0.99
"""`ModuleReport.rank_99` counts the directions that hold this share of the energy."""
OUTLIER_MADS = 8.0
"""An outlying row's norm is above the rows' median by more than this many median absolute deviations."""
OUTLIER_SHARE = 0.01
"""An outlying row holds more than this share of its module's energy."""
OUTLIERS_KEPT = 8
"""So many outlying rows and columns are kept of each module, the largest ones."""
SKETCH_RANK = 64
"""Singular values that are computed of a dense change whose smaller side is above `FULL_SVD_SIDE`."""
BASE_DIRECTIONS = 16
"""At most so many top directions of a base weight are compared with, and a quarter of its smaller side."""
BASE_EXACT_SIDE = 256
"""Base weights whose smaller side is at most this get an exact SVD; larger ones a randomized one."""
_linalg: Any = torch.linalg  # typed in part only, as is the other one
_special: Any = torch.special


@dataclass(frozen=True)
class Outlier:
    """A row or column that is much larger than the others of its module.

    Attributes:
        index: which.
        ratio: its norm over the median norm; infinite where most are zero.
        share: of the module's energy.
    """

    index: int
    ratio: float
    share: float


@dataclass(frozen=True)
class AgainstBase:
    """A module's change beside the base's weight W. Energies are squared Frobenius norms.

    Above `BASE_EXACT_SIDE`, σ1(W) and W's top directions are estimates, rough where it is flat.

    Attributes:
        frobenius_ratio: ‖Δ‖_F / ‖W‖_F.
        spectral_ratio: σ1(Δ) / σ1(W).
        directions: k, how many of W's top singular vectors the rest is about.
        left: share of Δ's energy in the span of W's top k left singular vectors.
        right: the same for the right ones.
        both: the same for both spans at once.
        left_chance: what `left` is for a random change, k / out.
        right_chance: k / in.
        both_chance: the product of the two.
    """

    frobenius_ratio: float
    spectral_ratio: float
    directions: int
    left: float
    right: float
    both: float
    left_chance: float
    right_chance: float
    both_chance: float


@dataclass(frozen=True)
class ModuleReport:
    """What one module's change Δ [out, in] is like. Numbers of a change that is not finite are NaN.

    Attributes:
        name: dotted name.
        kind: last part of the name, such as "q_proj".
        layer: number of the layer; None outside layers.
        shape: (out, in).
        rank: stored rank of the factors; None for a dense change.
        scale: stored scale of the factors; None for a dense change.
        finite: whether every number is finite.
        frobenius: Frobenius norm.
        spectral: largest singular value.
        singular_values: descending; where `complete` is false, the first `SKETCH_RANK` only.
        complete: whether these are all; false for large dense changes.
        stable_rank: ‖Δ‖_F² / σ1²; 0 for a change of nothing, as are the next two.
        effective_rank: exp of the entropy of σ / Σσ (Roy & Vetterli, 2007, "The effective rank"); None where
            not all singular values are known.
        rank_99: how many directions hold 99 % of the energy; None where the known ones do not.
        factor_ratio: ‖up‖_F / ‖down‖_F; None for a dense change.
        share: of the whole diff's energy; NaN while unknown.
        rows: outlying rows, largest first.
        columns: outlying columns, largest first.
        against_base: set where a base was given that has the module in this shape.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, int]
    rank: int | None
    scale: float | None
    finite: bool = True
    frobenius: float = math.nan
    spectral: float = math.nan
    singular_values: tuple[float, ...] = ()
    complete: bool = True
    stable_rank: float = math.nan
    effective_rank: float | None = math.nan
    rank_99: int | None = None
    factor_ratio: float | None = None
    share: float = math.nan
    rows: tuple[Outlier, ...] = ()
    columns: tuple[Outlier, ...] = ()
    against_base: AgainstBase | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """A report with the vectors that it was made of.

    Attributes:
        report: the numbers.
        row_norms: [out] Frobenius norm of each row; empty where the change is not finite.
        column_norms: [in].
    """

    report: ModuleReport
    row_norms: Tensor
    column_norms: Tensor


def kind_of(name: str) -> str:
    """The last part of a dotted name; two parts where the last is a number, as in a sequence of layers."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def layer_of(name: str) -> int | None:
    """The first number within a dotted name: 3 for "model.layers.3.mlp.experts.5.up_proj"; None without."""
    return next((int(part) for part in name.split(".")[:-1] if part.isdigit()), None)


@torch.no_grad()
def measure(name: str, m: ModuleDelta, weight: Tensor | None = None) -> Measured:
    """Measure one module's change; NaN and infinity are reported, not raised.

    Args:
        name: dotted name of the module.
        m: its change.
        weight: the base's weight [out, in], of the change's shape.
    """
    empty = torch.empty(0, dtype=torch.float64)
    low = m if isinstance(m, LoraFactors) else None
    rank, scale = (low.rank, low.scale) if low else (None, None)
    shape = (m.out_features, m.in_features)
    found = _thin(m) if is_finite(m) else None
    if found is None:
        blank = ModuleReport(name, kind_of(name), layer_of(name), shape, rank, scale, finite=False)
        return Measured(blank, empty, empty)
    row_norms: Tensor = _linalg.vector_norm(found.rows, dim=1)
    column_norms: Tensor = _linalg.vector_norm(found.columns, dim=0)
    values, frobenius = found.values, _norm(row_norms)
    spectral = float(values[0]) if len(values) else 0.0
    complete = low is not None or len(values) == min(shape)
    against = _against(m, found, weight, frobenius) if weight is not None and frobenius > 0 else None
    report = ModuleReport(
        name,
        kind_of(name),
        layer_of(name),
        shape,
        rank,
        scale,
        frobenius=frobenius,
        spectral=spectral,
        singular_values=tuple(float(value) for value in values),
        complete=complete,
        stable_rank=_ratio(frobenius, spectral) ** 2 if spectral > 0 else 0.0,
        effective_rank=_effective_rank(values) if complete else None,
        rank_99=_energy_rank(values, frobenius),
        factor_ratio=_ratio(_norm(low.up), _norm(low.down)) if low else None,
        rows=outliers(row_norms),
        columns=outliers(column_norms),
        against_base=against,
    )
    return Measured(report, row_norms, column_norms)


def outliers(norms: Tensor) -> tuple[Outlier, ...]:
    """The rows (or columns) that are much larger than the rest, largest first.

    Args:
        norms: [n] norm of each.
    """
    energies = norms.square()
    total = float(energies.sum())
    if total <= 0:
        return ()
    median = norms.quantile(0.5)
    limit = median + OUTLIER_MADS * (norms - median).abs().quantile(0.5)
    shares = energies / total
    at = ((norms > limit) & (shares > OUTLIER_SHARE)).nonzero().flatten()
    order = at[norms[at].argsort(descending=True)][:OUTLIERS_KEPT]
    return tuple(Outlier(int(i), _ratio(float(norms[i]), float(median)), float(shares[i])) for i in order)


@dataclass(frozen=True, eq=False)
class _Thin:
    """A change's singular values, and two small matrices in its place.

    Attributes:
        values: [k], descending.
        rows: [out, ·] Δ times orthonormal columns that span its rows.
        columns: [·, in] orthonormal rows that span its columns times Δ.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor


def _thin(m: ModuleDelta) -> _Thin | None:
    """The spectrum and the thin matrices; None where the product of finite factors is beyond float64."""
    if isinstance(m, DenseDelta):
        delta = m.delta.double()
        exact = min(delta.shape) <= FULL_SVD_SIDE
        values: Tensor = _linalg.svdvals(delta) if exact else spectrum(m, SKETCH_RANK).values
        return _Thin(values, delta, delta)
    up, down = m.up.double(), m.down.double()
    inner_up: Tensor = _linalg.qr(up, mode="r").R
    inner_down: Tensor = _linalg.qr(down.T, mode="r").R
    core = m.scale * inner_up @ inner_down.T
    if not bool(core.isfinite().all()):
        return None
    return _Thin(_linalg.svdvals(core), m.scale * (up @ inner_down.T), m.scale * (inner_up @ down))


def _effective_rank(values: Tensor) -> float:
    total = values.sum()
    return float(_special.entr(values / total).sum().exp()) if float(total) > 0 else 0.0


def _energy_rank(values: Tensor, frobenius: float) -> int | None:
    if frobenius <= 0:
        return 0
    held = (values / frobenius).square().cumsum(0)
    below = int((held < ENERGY).sum())
    return below + 1 if below < len(values) else None


def _against(m: ModuleDelta, found: _Thin, weight: Tensor, frobenius: float) -> AgainstBase:
    """Compare a change that is not zero with the base's weight [out, in]."""
    height, width = weight.shape
    k = max(1, min(BASE_DIRECTIONS, min(height, width) // 4))
    wide = weight.to(found.rows.device, torch.promote_types(weight.dtype, torch.float32))
    top = _top(wide, k)
    left, right = top.left, top.right.T
    if isinstance(m, LoraFactors):
        inside = m.scale * (left.T @ m.up.double()) @ (m.down.double() @ right)
    else:
        inside = left.T @ m.delta.double() @ right
    parts = (left.T @ found.rows, found.columns @ right, inside)
    shares = [min(1.0, (_norm(part) / frobenius) ** 2) for part in parts]
    return AgainstBase(
        _ratio(frobenius, _norm(wide)),
        _ratio(float(found.values[0]), float(top.values[0])),
        k,
        *shares,
        left_chance=k / height,
        right_chance=k / width,
        both_chance=k * k / (height * width),
    )


def _top(weight: Tensor, k: int) -> Spectrum:
    """A weight's first k directions; above `BASE_EXACT_SIDE` by the randomized SVD."""
    return spectrum(DenseDelta(weight), k, exact_side=BASE_EXACT_SIDE)


def _norm(tensor: Tensor) -> float:
    """Root of the sum of squares, summed in float64."""
    return float(_linalg.vector_norm(tensor, dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    """A ratio; infinite over zero, NaN for zero over zero."""
    return part / whole if whole else math.inf if part else math.nan
