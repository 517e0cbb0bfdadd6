"""Arithmetic on weight diffs: sums, truncation, a canonical form, and how near two diffs are.

Low-rank modules stay low-rank: what needs their spectrum takes the QR of both factors and the SVD of a core
of rank × rank, and what compares two of them multiplies thin matrices. A dense matrix is formed only where
one came in. Everything is computed in float64, and results are float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from weightdiff.diffs.factors import DenseDelta, LoraFactors, ModuleDelta
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import BaseMismatchError

FULL_SVD_SIDE = 1536
"""Dense matrices whose smaller side is at most this get an exact SVD; larger ones a randomized one."""
_OVERSAMPLING = 10
_KRYLOV_STEPS = 6
_SQUARED_AT_ONCE = 1 << 18
_NOTHING = 1e-12
_linalg: Any = torch.linalg  # typed in part only


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A thin SVD of one module's change: `left · diag(values) · right` is `dense()`.

    Attributes:
        left: [out, k], orthonormal columns.
        values: [k], descending.
        right: [k, in], orthonormal rows.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def combine(diffs: Sequence[WeightDiff], weights: Sequence[float]) -> WeightDiff:
    """Weighted sum of diffs of one base.

    Where a module is low-rank in all of them, ranks are concatenated, which is exact; where it is dense in
    one, the sum is dense.

    Raises:
        ValueError: the numbers of diffs and weights differ, or there are none.
        BaseMismatchError: the diffs are of different bases or disagree on a shape.
    """
    if not diffs or len(diffs) != len(weights):
        raise ValueError(f"{len(diffs)} diffs and {len(weights)} weights: give one weight for each diff")
    known = [d.base for d in diffs if d.base]
    for other in known[1:]:
        if differs := known[0].difference(other):
            raise BaseMismatchError(
                f"a diff of {known[0].describe()} and one of {other.describe()} cannot be added: their"
                f" {differs} differ"
            )
    terms: dict[str, list[tuple[ModuleDelta, float]]] = {}
    for d, w in zip(diffs, weights, strict=True):
        for name, m in d.modules.items():
            terms.setdefault(name, []).append((m, float(w)))
    modules = {name: _sum(name, parts) for name, parts in terms.items()}
    parameters: dict[str, Tensor] = {}
    for d, w in zip(diffs, weights, strict=True):
        for name, p in d.parameters.items():
            if name in parameters and parameters[name].shape != p.shape:
                raise _misfit(name, parameters[name].shape, p.shape)
            part = p.to(_wide(p)) * float(w)
            parameters[name] = parameters[name] + part if name in parameters else part
    return WeightDiff(modules, known[0] if known else None, {}, parameters)


def add(*diffs: WeightDiff) -> WeightDiff:
    """Sum of diffs; see `combine`."""
    return combine(diffs, [1.0] * len(diffs))


def scaled(diff: WeightDiff, factor: float) -> WeightDiff:
    """The diff times a number; low-rank modules change in their scale alone."""
    modules = {name: _scaled(m, factor) for name, m in diff.modules.items()}
    return replace(diff, modules=modules, parameters={k: p * factor for k, p in diff.parameters.items()})


def negate(diff: WeightDiff) -> WeightDiff:
    """What takes the diff back."""
    return scaled(diff, -1.0)


def interpolate(first: WeightDiff, second: WeightDiff, t: float) -> WeightDiff:
    """(1 - t) · first + t · second; t may lie outside 0 … 1."""
    return combine([first, second], [1.0 - t, t])


def spectrum(
    m: ModuleDelta, rank: int | None = None, seed: int = 0, exact_side: int | None = None
) -> Spectrum:
    """Thin SVD of a module's change, float64, signs chosen so that it is unique.

    Low-rank modules: exact, at most `m.rank` values. Dense ones: exact where the smaller side is at most
    `exact_side`; above, only the first `rank` values (which must then be given) by a randomized SVD (block
    Krylov, arXiv:1504.05477).

    Args:
        m: low-rank or dense.
        rank: most values to give; None for all.
        seed: of the randomized SVD.
        exact_side: `FULL_SVD_SIDE` unless said otherwise.

    Raises:
        ValueError: a large dense matrix without a `rank`.
    """
    if isinstance(m, LoraFactors):
        left, inner_left = _qr(m.up.double())
        right, inner_right = _qr(m.down.double().T)
        core = _svd(m.scale * inner_left @ inner_right.T)
        found = Spectrum(left @ core.left, core.values, core.right @ right.T)
    elif min(m.delta.shape) <= (FULL_SVD_SIDE if exact_side is None else exact_side):
        found = _svd(m.delta.double())
    elif rank is None:
        raise ValueError(f"a matrix of {tuple(m.delta.shape)} needs a rank for its randomized SVD")
    else:
        found = _randomized(m.delta, rank, seed)
    k = len(found.values) if rank is None else min(rank, len(found.values))
    # The largest entry of each left vector is made positive.
    at = found.left[:, :k].abs().argmax(0)
    signs = torch.where(found.left[at, torch.arange(k, device=at.device)] < 0, -1.0, 1.0).double()
    return Spectrum(found.left[:, :k] * signs, found.values[:k], found.right[:k] * signs[:, None])


def check_target(rank: int | None, energy: float | None) -> None:
    """Refuse what `truncated` cannot aim at.

    Raises:
        ValueError: neither a rank nor an energy, or a senseless one.
    """
    if rank is None and energy is None:
        raise ValueError("give a rank, or a share of the energy to keep")
    if rank is not None and rank < 1:
        raise ValueError(f"a rank must be 1 or more, not {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"a share of the energy lies above 0 and up to 1, not {energy}")


def truncated(
    m: ModuleDelta, rank: int | None = None, energy: float | None = None, seed: int = 0
) -> tuple[LoraFactors, float]:
    """The best low-rank approximation of a module's change.

    Args:
        m: low-rank or dense.
        rank: most directions to keep.
        energy: share of the squared Frobenius norm to keep, 0 … 1; the smallest rank that does is taken, at
            most `rank`.
        seed: of the randomized SVD of large dense matrices.

    Returns:
        The factors (√σ on either side, scale 1, at least rank one), and the share of the energy they keep.

    Raises:
        ValueError: neither or a senseless `rank` or `energy`.
    """
    check_target(rank, energy)
    total = squared_norm(m)
    found = _enough(m, rank, energy, total, seed)
    kept = found.values.square().cumsum(0)
    k = min(len(kept), rank or len(kept))
    if energy is not None:
        k = min(k, int((kept < energy * total * (1 - 1e-12)).sum()) + 1)
    dtype = _wide(m.down if isinstance(m, LoraFactors) else m.delta)
    roots = found.values[:k].sqrt()
    factors = LoraFactors((roots[:, None] * found.right[:k]).to(dtype), (found.left[:, :k] * roots).to(dtype))
    return factors, float(kept[k - 1] / total) if total > 0 else 1.0


def truncate(
    diff: WeightDiff, rank: int | None = None, energy: float | None = None, seed: int = 0
) -> tuple[WeightDiff, dict[str, float]]:
    """Every module at a lower rank; what is no matrix stays as it is.

    Returns:
        The diff, and for each module the share of its energy that is kept.

    Raises:
        ValueError: see `truncated`.
    """
    pairs = {name: truncated(m, rank, energy, seed) for name, m in diff.modules.items()}
    kept = {name: share for name, (_, share) in pairs.items()}
    return replace(diff, modules={name: m for name, (m, _) in pairs.items()}), kept


def canonical(diff: WeightDiff) -> WeightDiff:
    """The one form that all factors of the same change share: A → GA with B → BG⁻¹ leaves it as it is.

    Low-rank modules become their thin SVD, √σ on either side, scale 1, signs fixed, without directions that
    carry nothing; a module that changes nothing is left out. Dense modules and parameters stay. Directions of
    equal singular values are not unique, and then neither is the form.
    """
    modules: dict[str, ModuleDelta] = {}
    for name, m in diff.modules.items():
        if isinstance(m, DenseDelta):
            modules[name] = m
            continue
        s = spectrum(m)
        k = int((s.values > _NOTHING * s.values.max().clamp(min=1e-300)).sum())
        if k and float(s.values[0]) > 0:
            roots, dtype = s.values[:k].sqrt(), _wide(m.down)
            modules[name] = LoraFactors(
                (roots[:, None] * s.right[:k]).to(dtype), (s.left[:, :k] * roots).to(dtype)
            )
    return replace(diff, modules=modules)


def squared_norm(m: ModuleDelta) -> float:
    """Squared Frobenius norm of a module's change."""
    if isinstance(m, DenseDelta):
        return _squares(m.delta)
    return max(0.0, _inner(m, m))


def inner(first: WeightDiff, second: WeightDiff) -> float:
    """Sum over all entries of the product of two diffs' changes (the Frobenius inner product).

    Raises:
        BaseMismatchError: the diffs disagree on a shape.
    """
    total = 0.0
    for name, m in first.modules.items():
        if name in second.modules:
            other = second.modules[name]
            _check_alike(name, m, other)
            total += _inner(m, other)
    for name, p in first.parameters.items():
        if name in second.parameters:
            if p.shape != second.parameters[name].shape:
                raise _misfit(name, p.shape, second.parameters[name].shape)
            total += float((p.double() * second.parameters[name].double()).sum())
    return total


def norm(diff: WeightDiff) -> float:
    """Frobenius norm of everything the diff changes."""
    squares = [squared_norm(m) for m in diff.modules.values()]
    squares += [_squares(p) for p in diff.parameters.values()]
    return math.sqrt(sum(squares))


def distance(first: WeightDiff, second: WeightDiff) -> float:
    """Frobenius norm of the difference; near diffs lose no digits, because their factors are subtracted."""
    difference = combine([first, second], [1.0, -1.0])
    squares = [
        float(spectrum(m).values.square().sum()) if isinstance(m, LoraFactors) else squared_norm(m)
        for m in difference.modules.values()
    ]
    squares += [_squares(p) for p in difference.parameters.values()]
    return math.sqrt(sum(squares))


def cosine(first: WeightDiff, second: WeightDiff) -> float:
    """Inner product over the product of norms, -1 … 1; NaN where one changes nothing."""
    length = norm(first) * norm(second)
    return max(-1.0, min(1.0, inner(first, second) / length)) if length > 0 else math.nan


def _sum(name: str, parts: Sequence[tuple[ModuleDelta, float]]) -> ModuleDelta:
    """Weighted sum of one module's changes."""
    first = parts[0][0]
    for m, _ in parts[1:]:
        _check_alike(name, first, m)
    if len(parts) == 1:
        return _scaled(*parts[0])
    low = [(m, w) for m, w in parts if isinstance(m, LoraFactors)]
    if len(low) == len(parts):
        dtype = _widest([t for m, _ in low for t in (m.down, m.up)])
        if any(m.scale * w != 1 for m, w in low):  # scales go into `up`, which must not be rounded for it
            dtype = torch.promote_types(dtype, torch.float32)
        down = torch.cat([m.down.to(dtype) for m, _ in low])
        up = torch.cat([m.up.to(dtype) * (m.scale * w) for m, w in low], dim=1)
        return LoraFactors(down, up)
    total = first.dense() * parts[0][1]
    for m, w in parts[1:]:
        total = total + m.dense() * w
    return DenseDelta(total)


def _scaled(m: ModuleDelta, factor: float) -> ModuleDelta:
    if isinstance(m, LoraFactors):
        return replace(m, scale=m.scale * factor)
    return DenseDelta(m.delta * factor)


def _inner(first: ModuleDelta, second: ModuleDelta) -> float:
    """Frobenius inner product of two changes of one module."""
    if isinstance(first, DenseDelta) and isinstance(second, DenseDelta):
        return float((first.delta.double() * second.delta.double()).sum())
    if isinstance(first, DenseDelta):
        return _inner(second, first)
    down, up = first.down.double(), first.up.double()
    if isinstance(second, DenseDelta):
        return first.scale * float(((up.T @ second.delta.double()) * down).sum())
    ups, downs = up.T @ second.up.double(), down @ second.down.double().T
    return first.scale * second.scale * float((ups * downs).sum())


def _squares(tensor: Tensor) -> float:
    """Sum of squares in float64, piece by piece, because a copy of a large tensor costs more than the sum."""
    flat, total = tensor.reshape(-1), 0.0
    for start in range(0, flat.numel(), _SQUARED_AT_ONCE):
        piece = flat[start : start + _SQUARED_AT_ONCE].double()
        total += float(torch.dot(piece, piece))
    return total


def _randomized(matrix: Tensor, rank: int, seed: int) -> Spectrum:
    """The first singular values of a large matrix, in its own precision, by a random block Krylov space.

    On a matrix of noise, the hardest case, six steps find 99 % of the energy that there is for the rank; six
    power iterations find 95 %, in half the time. Where the space would be half of all, the SVD is whole.
    """
    wide = matrix.to(_wide(matrix))
    k = rank + _OVERSAMPLING
    if 2 * k * (_KRYLOV_STEPS + 1) >= min(wide.shape):
        found = _svd(wide)
    elif wide.shape[0] < wide.shape[1]:  # the SVD at the end is of the smaller side
        turned = _krylov(wide.T, k, seed)
        found = Spectrum(turned.right.T, turned.values, turned.left.T)
    else:
        found = _krylov(wide, k, seed)
    return Spectrum(found.left[:, :rank].double(), found.values[:rank].double(), found.right[:rank].double())


def _krylov(tall: Tensor, k: int, seed: int) -> Spectrum:
    """The SVD within the space of (M·Mᵀ)ⁱ·M·Ω, i = 0 … steps, with Ω random of `k` columns."""
    stream = torch.Generator().manual_seed(seed)
    blocks = [_qr(tall @ torch.randn(tall.shape[1], k, generator=stream).to(tall))[0]]
    for _ in range(_KRYLOV_STEPS):
        blocks.append(_qr(tall @ _qr(tall.T @ blocks[-1])[0])[0])
    basis = _qr(torch.cat(blocks, dim=1))[0]
    core = _svd(basis.T @ tall)
    return Spectrum(basis @ core.left[:, :k], core.values[:k], core.right[:k])


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    q, r = cast(tuple[Tensor, Tensor], _linalg.qr(matrix))
    return q, r


def _svd(matrix: Tensor) -> Spectrum:
    return Spectrum(*cast(tuple[Tensor, Tensor, Tensor], _linalg.svd(matrix, full_matrices=False)))


def _enough(m: ModuleDelta, rank: int | None, energy: float | None, total: float, seed: int) -> Spectrum:
    """As much of the spectrum as the target needs; for large dense matrices the rank doubles until then."""
    if isinstance(m, LoraFactors) or min(m.delta.shape) <= FULL_SVD_SIDE:
        return spectrum(m)
    most = min(rank or min(m.delta.shape), *m.delta.shape)
    if energy is None:
        return spectrum(m, most, seed)
    k = min(16, most)
    while True:
        found = spectrum(m, k, seed)
        if k == most or float(found.values.square().sum()) >= energy * total:
            return found
        k = min(2 * k, most)


def _check_alike(name: str, first: ModuleDelta, second: ModuleDelta) -> None:
    shapes = [(m.out_features, m.in_features) for m in (first, second)]
    if shapes[0] != shapes[1]:
        raise _misfit(name, *shapes)


def _misfit(name: str, first: Iterable[int], second: Iterable[int]) -> BaseMismatchError:
    return BaseMismatchError(
        f"{named([name])} is {list(first)} in one diff and {list(second)} in another;"
        " combine diffs of one base only"
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32 if len({t.dtype for t in tensors}) > 1 else tensors[0].dtype
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype
