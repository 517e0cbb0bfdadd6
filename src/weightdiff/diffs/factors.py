"""The change of one linear module: `LoraFactors` or `DenseDelta`, and small helpers on both.

The convention for every matrix in the package is set here: a module maps `x [..., in]` to `x·downᵀ·upᵀ·scale`
on top of its base output, with `down [rank, in]` (PEFT's lora_A) and `up [out, rank]` (PEFT's lora_B).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from weightdiff.errors import FormatError


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """A low-rank change of one linear module: its weight [out, in] gains `scale · up @ down`.

    Attributes:
        down: [rank, in], PEFT's lora_A.
        up: [out, rank], PEFT's lora_B.
        scale: the factor in front of the product.

    Raises:
        FormatError: if the two are no floating-point matrices (of 16 bits or more) that share a rank of at
            least one.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check shapes and kinds."""
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] < 1:
            raise FormatError(
                f"low-rank factors must be down [rank, in] and up [out, rank], found {down} and {up}"
            )
        if not (self.down.is_floating_point() and self.up.is_floating_point()):
            raise FormatError(
                f"low-rank factors must be floating point, found {self.down.dtype} and {self.up.dtype}"
            )
        # PyTorch does not compute with floats of 8 bits and fewer.
        if min(self.down.element_size(), self.up.element_size()) < 2:
            raise FormatError(
                f"low-rank factors must have 16 bits or more, found {self.down.dtype} and {self.up.dtype}"
            )

    @property
    def rank(self) -> int:
        """Number of directions, which bounds the rank of the change."""
        return self.down.shape[0]

    @property
    def in_features(self) -> int:
        """Width of the module's input."""
        return self.down.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the module's output."""
        return self.up.shape[0]

    def dense(self) -> torch.Tensor:
        """Return `scale · up @ down` [out, in], computed in float32 or wider."""
        dtype = torch.promote_types(torch.promote_types(self.down.dtype, self.up.dtype), torch.float32)
        return (self.up.to(dtype) @ self.down.to(dtype)) * self.scale

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LoraFactors:
        """Return a copy with factors of another dtype or on another device; the scale stays a float."""
        return replace(self, down=moved(self.down, dtype, device), up=moved(self.up, dtype, device))


@dataclass(frozen=True, eq=False)
class DenseDelta:
    """A full change of one linear module: its weight [out, in] gains `delta` [out, in].

    Raises:
        FormatError: if `delta` is no floating-point matrix.
    """

    delta: torch.Tensor

    def __post_init__(self) -> None:
        """Check shape and kind."""
        if self.delta.ndim != 2 or not self.delta.is_floating_point():
            found = f"{tuple(self.delta.shape)} {self.delta.dtype}"
            raise FormatError(f"a dense delta must be a floating-point matrix [out, in], found {found}")

    @property
    def in_features(self) -> int:
        """Width of the module's input."""
        return self.delta.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the module's output."""
        return self.delta.shape[0]

    def dense(self) -> torch.Tensor:
        """Return the change [out, in], in float32 or wider."""
        return self.delta.to(torch.promote_types(self.delta.dtype, torch.float32))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> DenseDelta:
        """Return a copy of another dtype or on another device."""
        return DenseDelta(moved(self.delta, dtype, device))


ModuleDelta: TypeAlias = LoraFactors | DenseDelta


def fold_scale(up: torch.Tensor, scale: float | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `scale · up` in `dtype`, multiplied in float32 or wider so that it is rounded once.

    Args:
        up: [..., out, rank].
        scale: a number, or a tensor that broadcasts against `up`.
        dtype: of the result.
    """
    wide = torch.promote_types(torch.promote_types(up.dtype, dtype), torch.float32)
    factor = scale.to(wide) if isinstance(scale, torch.Tensor) else scale
    return (up.to(wide) * factor).to(dtype)


def tensors_of(m: ModuleDelta) -> tuple[torch.Tensor, ...]:
    """Return the tensors that a module's change is made of."""
    return (m.down, m.up) if isinstance(m, LoraFactors) else (m.delta,)


def stacked(
    matrices: Sequence[torch.Tensor | None],
    shape: tuple[int, int],
    dtype: torch.dtype | None,
    device: torch.device,
) -> torch.Tensor:
    """Return matrices [n, *shape], smaller ones padded with zeros and absent ones zero.

    Args:
        matrices: in the order of the rows.
        shape: that none of them exceeds.
        dtype: of the result; None: one that holds them all.
        device: of the result.
    """
    there = [m for m in matrices if m is not None]
    if dtype is None:
        dtype = functools.reduce(torch.promote_types, {m.dtype for m in there})
    if len(there) == len(matrices) and all(tuple(m.shape) == shape for m in there):
        return torch.stack([m.to(device, dtype) for m in there])
    out = torch.zeros(len(matrices), *shape, dtype=dtype, device=device)
    for row, m in zip(out, matrices, strict=True):
        if m is not None:
            row[: m.shape[0], : m.shape[1]] = m
    return out


def is_finite(m: ModuleDelta) -> bool:
    """Whether every number of a change, its scale included, is finite."""
    scale = m.scale if isinstance(m, LoraFactors) else 0.0
    return math.isfinite(scale) and all(all_finite(tensor) for tensor in tensors_of(m))


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether every number is finite; NaN and infinity show in a sum, which is quick, as may an overflow."""
    return math.isfinite(float(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


def moved(tensor: torch.Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> torch.Tensor:
    """Return a tensor with what is given changed."""
    return tensor.to(dtype=dtype or tensor.dtype, device=device or tensor.device)
