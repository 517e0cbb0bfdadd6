"""The thin products that LoRAs add to one linear layer's output.

Holds the arithmetic only: casting factors to the layer's precision, gathering them by row, and adding with as
few kernels as possible. Which layers and when is `multilora`'s affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdiff.errors import WeightDiffError
from weightdiff.models.packing import Packed

Factors = tuple[Tensor, Tensor]
"""`(down, up)` of one module."""


class BatchMismatchError(WeightDiffError, ValueError):
    """Rows, slots and batch do not agree in number."""


class _Cast:
    """Factors as a layer needs them: its dtype, its device, and gathered by row where asked.

    Kept between forward passes while the masters are frozen and unchanged (decoding would otherwise cast them
    for every token); made anew whenever a gradient must flow to them. A change is told by the tensors'
    version counters, which writes through `.data` go around.
    """

    def __init__(self, down: Tensor, up: Tensor, slots: Tensor | None = None) -> None:
        self.masters = (down, up)
        self.slots = slots
        self.key: tuple[object, ...] | None = None
        self.kept: Factors | None = None

    def at(self, x: Tensor) -> Factors:
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.masters):
            return self._make(x)
        key = (x.dtype, x.device, *(0 if t.is_inference() else t._version for t in self.masters))
        # A tensor made in inference mode may not enter a later graph, so it is not kept for one.
        if self.kept is None or key != self.key or (torch.is_grad_enabled() and self.kept[0].is_inference()):
            down, up = self._make(x)
            if up.dim() == 3 and not torch.is_grad_enabled():
                up = up.mT.contiguous().mT  # decoding reads it once a token, in this order
            self.kept, self.key = (down, up), key
        return self.kept

    def _make(self, x: Tensor) -> Factors:
        down, up = (t.to(device=x.device, dtype=x.dtype) for t in self.masters)
        if self.slots is not None:
            self.slots = self.slots.to(x.device)
            down, up = down.index_select(0, self.slots), up.index_select(0, self.slots)
        return down, up


@dataclass(frozen=True)
class _Layout:
    """How one term lies on a batch."""

    groups: int
    """Equal stretches of the batch with factors of their own; 0: one pair of factors serves all tokens."""
    scale: float = 1.0
    off: Tensor | None = None
    """Bool [stretches or rows]: those that feel nothing."""
    foreign: Tensor | None = None
    """Bool [stretches, tokens, rank]: what is between the factors and not for this token."""
    by_row: Tensor | None = None
    """[rows, rank]: what each row multiplies what is between the factors by."""

    def flat(self, t: Tensor) -> Tensor:
        """`[rows, ..., size]` as `[groups, tokens, size]`, or `[tokens, size]` where factors are shared."""
        return t.reshape(self.groups, -1, t.shape[-1]) if self.groups else t.reshape(-1, t.shape[-1])

    def product(self, t: Tensor, matrix: Tensor) -> Tensor:
        """What is between the factors: `t @ matrix` of flat tensors, weighed, and zero where it is off."""
        out = torch.bmm(t, matrix) if self.groups else t @ matrix
        if self.foreign is not None:
            return out.masked_fill_(self.foreign, 0)
        if self.by_row is not None:
            by_row = self.by_row.to(out)[:, None]
            return (out.view(len(by_row), -1, out.shape[-1]) * by_row).view(out.shape)
        if self.off is None:
            return out
        off = self.off.to(t.device)[:, None, None]
        return out.reshape(len(off), -1, out.shape[-1]).masked_fill(off, 0).reshape(out.shape)

    def add_product(self, to: Tensor, t: Tensor, matrix: Tensor, scale: float = 1.0) -> None:
        """Add `scale * t @ matrix` to a tensor in place."""
        flat = to.view(self.groups, -1, to.shape[-1]) if self.groups else to.view(-1, to.shape[-1])
        _ = flat.baddbmm_(t, matrix, alpha=scale) if self.groups else flat.addmm_(t, matrix, alpha=scale)


class RowTerm:
    """What row LoRAs add to one module."""

    def __init__(
        self,
        name: str,
        factors: Factors,
        rows: int,
        slots: Tensor | None = None,
        line: Packed | None = None,
    ) -> None:
        """Lay out the rows.

        Args:
            name: the module's, for messages.
            factors: `down [slots, rank, in]`, `up [slots, out, rank]`.
            rows: rows of the batch.
            slots: LongTensor [groups], the slot of each of as many equal stretches of the batch, -1 for none;
                None: stretch i belongs to slot i.
            line: the batch is this line, whose row i belongs to slot i.
        """
        self.name, self.rows = name, rows
        off, groups, foreign = None, int(factors[0].shape[0]), None
        if line is not None:
            factors, foreign = _side_by_side(factors, line)
            groups = len(line.row_of)
        if slots is not None:
            off = (slots < 0).to(factors[0].device) if bool((slots < 0).any()) else None
            groups, slots = int(slots.shape[0]), slots.clamp(min=0)
        self.layout = _Layout(groups, off=off, foreign=foreign)
        self.factors = _Cast(*factors, slots=slots)

    def check(self, x: Tensor) -> None:
        """Refuse a batch that is not laid out for."""
        _check_batch(self.name, x, self.rows)


class SharedTerm:
    """What a shared LoRA adds to one module."""

    def __init__(
        self,
        name: str,
        factors: Factors,
        scale: float,
        row_mask: Tensor | None,
        by_row: Tensor | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            name: the module's, for messages.
            factors: `down [rank, in]`, `up [out, rank]`.
            scale: factor on the product.
            row_mask: bool [rows], or None for all rows.
            by_row: [rows, rank], or None; not both.
        """
        own = row_mask if by_row is None else by_row
        self.name, self.rows = name, None if own is None else int(own.shape[0])
        off = None if row_mask is None else ~row_mask.to(factors[0].device)
        self.layout = _Layout(0, scale, off, by_row=by_row)
        self.factors = _Cast(*factors)

    def check(self, x: Tensor) -> None:
        """Refuse a batch that is not laid out for."""
        if self.rows is not None:
            _check_batch(self.name, x, self.rows)


def add_terms(terms: Sequence[RowTerm | SharedTerm], out: Tensor, x: Tensor) -> Tensor:
    """A linear layer's output with all terms added, in place if that is possible.

    Args:
        terms: what is added.
        out: [rows, ..., out], fresh from the layer.
        x: [rows, ..., in], the layer's input.

    Returns:
        A tensor of `out`'s shape and dtype.
    """
    for term in terms:
        term.check(x)
    out = out.contiguous()
    layouts = [t.layout for t in terms]
    factors = [f for t in terms for f in t.factors.at(x)]
    if any(f.dtype != out.dtype for f in factors):  # autocast, or a layer that changes precision
        for layout, down, up in zip(layouts, factors[::2], factors[1::2], strict=True):
            hidden = layout.product(layout.flat(x), down.mT)
            out = out + (layout.scale * (hidden @ up.mT)).to(out.dtype).reshape(out.shape)
        return out
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (out, x, *factors)):
        _Added.compute(out, x, layouts, factors)
        return out
    fresh = out.clone() if out._is_view() else out  # of a view autograd keeps account by copies
    return cast("Tensor", _Added.apply(fresh, x, layouts, *factors))


class _Added(torch.autograd.Function):
    """The terms of one layer, added in place, with one gradient to the layer's input for all of them.

    Each term done by autograd costs a copy of the output, and a gradient of the input that is added to the
    others'.
    """

    @staticmethod
    def compute(
        out: Tensor, x: Tensor, layouts: Sequence[_Layout], factors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Add all terms; what is between each one's factors, flat."""
        middles = []
        for layout, down, up in zip(layouts, factors[::2], factors[1::2], strict=True):
            middles.append(layout.product(layout.flat(x), down.mT))
            layout.add_product(out, middles[-1], up.mT, layout.scale)
        return middles

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, layouts: Sequence[_Layout], *factors: Tensor) -> Tensor:
        middles = _Added.compute(out, x, layouts, factors)
        ctx.mark_dirty(out)
        ctx.layouts, ctx.shape = layouts, x.shape
        needs = ctx.needs_input_grad[3:]
        ups = [m if need else None for m, need in zip(middles, needs[1::2], strict=True)]
        ctx.save_for_backward(x if any(needs[::2]) else None, *factors, *ups)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), n = grads, len(ctx.layouts)
        x, *saved = ctx.saved_tensors
        to_x: Tensor | None = None
        found: list[Tensor | None] = []
        for i, layout in enumerate(ctx.layouts):
            (down, up), middle = saved[2 * i : 2 * i + 2], saved[2 * n + i]
            at = layout.flat(g)
            inner = layout.product(at, up)
            if layout.scale != 1:
                inner = inner * layout.scale
            if ctx.needs_input_grad[1]:
                if to_x is None:
                    to_x = (inner @ down).reshape(ctx.shape)
                else:
                    layout.add_product(to_x, inner, down)
            needs = ctx.needs_input_grad[3 + 2 * i : 5 + 2 * i]
            found.append(inner.mT @ layout.flat(x) if needs[0] else None)
            found.append((at.mT @ middle) * layout.scale if needs[1] else None)
        return (g, to_x, None, *found)


def _side_by_side(factors: Factors, line: Packed) -> tuple[Factors, Tensor]:
    """The factors of all rows of a stretch as one pair of a higher rank, and what is `foreign` to tokens."""
    (slots, rank, width), height = factors[0].shape, factors[1].shape[1]
    stretches = len(line.row_of)
    down = factors[0].reshape(stretches, -1, width)
    up = factors[1].mT.reshape(stretches, -1, height).mT  # no copy where `up` is laid out rank by rank
    owner = torch.arange(slots // stretches, device=down.device).repeat_interleave(rank)
    return (down, up), line.row_of.to(down.device)[:, :, None] != owner


def _check_batch(name: str, x: Tensor, rows: int) -> None:
    """Refuse a batch that is not `rows` long; layers fed with flattened tokens `[rows * tokens, in]` pass."""
    if x.shape[0] != rows and (x.dim() > 2 or x.shape[0] % rows):
        raise BatchMismatchError(
            f"{name} got a batch of {x.shape[0]} rows, but the attached LoRAs are laid out for {rows}: "
            "make rows_per_slot * slots (or the length of row_to_slot or row_mask) equal the batch size"
        )
