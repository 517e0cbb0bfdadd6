"""The pairs (A, B) of DIT releases as factors and back, in the two orders that they have there.

The kind of file tells the orders apart, never a shape: in a list of stored diffs A [rank, out] and
B [in, rank] add x·B·A / rank; in an adapter, a plain dict, A [out, rank] and B [rank, in] add x·Bᵀ·Aᵀ / rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from weightdiff.diffs.factors import LoraFactors, fold_scale
from weightdiff.diffs.tensorfiles import owned
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import FormatError, NonFiniteError

# A pair of the other order on a square module seems to have a rank far above its width; sums of diffs do not.
_RANKS_PER_WIDTH = 8
_ORDERS = {True: "A [rank, out], B [in, rank]", False: "A [out, rank], B [rank, in]"}


def factors_of(where: str, value: Any, stored: bool) -> LoraFactors:
    """Return the factors of a pair (A, B).

    Args:
        where: the module, for messages.
        value: what the file holds.
        stored: whether it is of a list of stored diffs, else of an adapter.

    Raises:
        FormatError: it is no pair of matrices in the order of its kind of file.
    """
    pair: Sequence[Any] = cast(Sequence[Any], value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) and part.ndim == 2 for part in pair):
        raise FormatError(f"{where} is no pair of matrices (A, B); save each module as {_ORDERS[stored]}")
    a, b = cast(tuple[Tensor, Tensor], tuple(pair))
    up, down = (a.T, b.T) if stored else (a, b)
    rank, shapes = up.shape[1], f"A {tuple(a.shape)} and B {tuple(b.shape)}"
    if rank != down.shape[0] or rank < 1:
        other = a.shape[1] == b.shape[0] if stored else a.shape[0] == b.shape[1]
        kind = "an adapter, a plain dict" if stored else "stored diffs, a list"
        hint = f"they fit {_ORDERS[not stored]}: save them as {kind}" if other else "save the pair again"
        raise FormatError(f"{where}: {shapes} share no rank as {_ORDERS[stored]}; {hint}")
    _check_rank(f"{where}: {shapes}", rank, down.shape[1], up.shape[0])
    try:
        return LoraFactors(owned(down), owned(up), 1 / rank)
    except FormatError as error:
        raise FormatError(f"{where}: {error}; save the pair again") from error


def pairs_of(where: str, diff: WeightDiff, stored: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module → (A, B), of scale 1 / rank.

    Args:
        where: the diff, for messages.
        diff: a LoRA.
        stored: whether they go into a list of stored diffs, else into an adapter.

    Raises:
        FormatError: the diff is no LoRA or empty.
        NonFiniteError: it holds NaN or infinity, or its scale does not fit its dtype.
    """
    finite(where, diff)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, m in diff.modules.items():
        if not isinstance(m, LoraFactors):
            raise FormatError(f"{where} changes {name} as a dense matrix; truncate it before it is written")
        _check_rank(f"{where}, {name}: the factors", m.rank, m.in_features, m.out_features)
        up = m.up if m.scale == 1 / m.rank else fold_scale(m.up, m.scale * m.rank, m.up.dtype)
        if not bool(torch.isfinite(up).all()):
            raise NonFiniteError(
                f"{where}: {name} times its scale {m.scale} overflows {up.dtype}; use a wider dtype"
            )
        pairs[name] = (owned(up.T), owned(m.down.T)) if stored else (owned(up), owned(m.down))
    if diff.parameters:
        raise FormatError(
            f"{where} changes {named(list(diff.parameters))}, for which these files have no place"
        )
    if not pairs:
        raise FormatError(f"{where} has no modules; give a LoRA")
    return pairs


def finite(where: str, diff: WeightDiff) -> WeightDiff:
    """Return a diff that is checked to be finite; the error says where it lies."""
    try:
        diff.check_finite()
    except NonFiniteError as error:
        raise NonFiniteError(f"{where}: {error}") from error
    return diff


def _check_rank(where: str, rank: int, width: int, height: int) -> None:
    limit = _RANKS_PER_WIDTH * max(width, height)
    if rank > limit:
        raise FormatError(
            f"{where} mean rank {rank} on a module of in {width}, out {height}, and at most {limit} is"
            " taken; truncate the diff, or save the pair in the order of its kind of file"
        )
