"""The thin products that LoRAs add to one linear layer's output.

Holds the arithmetic only: casting factors to the layer's precision, gathering them by row, and adding with as
few kernels as possible. Which layers and when is `multilora`'s affair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightdiff.errors import WeightDiffError

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
            self.kept, self.key = self._make(x), key
        return self.kept

    def _make(self, x: Tensor) -> Factors:
        down, up = (t.to(device=x.device, dtype=x.dtype) for t in self.masters)
        if self.slots is not None:
            self.slots = self.slots.to(x.device)
            down, up = down.index_select(0, self.slots), up.index_select(0, self.slots)
        return down, up


class RowTerm:
    """What row LoRAs add to one module."""

    def __init__(
        self, name: str, factors: Factors, row_to_slot: int | Tensor, one_line: bool = False
    ) -> None:
        """Lay out the rows.

        Args:
            name: the module's, for messages.
            factors: `down [slots, rank, in]`, `up [slots, out, rank]`.
            row_to_slot: rows per slot, or slots [rows] with -1 for none.
            one_line: whether the slots' tokens stand in a single row, equally many of each.
        """
        self.name = name
        self.none: Tensor | None = None
        if isinstance(row_to_slot, Tensor):
            self.none = row_to_slot < 0 if bool((row_to_slot < 0).any()) else None
            self.factors = _Cast(*factors, slots=row_to_slot.clamp(min=0))
            self.rows = self.groups = int(row_to_slot.shape[0])
        else:
            self.factors = _Cast(*factors)
            self.groups = int(factors[0].shape[0])
            self.rows = 1 if one_line else self.groups * row_to_slot

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """`out [rows, ..., out]` plus this term for `x [rows, ..., in]`."""
        _check_batch(self.name, x, self.rows)
        down, up = self.factors.at(x)
        hidden = torch.bmm(x.reshape(self.groups, -1, x.shape[-1]), down.transpose(1, 2))
        if self.none is not None:
            self.none = self.none.to(x.device)
            hidden = hidden.masked_fill(self.none[:, None, None], 0)
        return _add_product(out, hidden, up.transpose(1, 2))


class SharedTerm:
    """What a shared LoRA adds to one module."""

    def __init__(self, name: str, factors: Factors, scale: float, row_mask: Tensor | None) -> None:
        """Keep the parts.

        Args:
            name: the module's, for messages.
            factors: `down [rank, in]`, `up [out, rank]`.
            scale: factor on the product.
            row_mask: bool [rows], or None for all rows.
        """
        self.name, self.scale, self.mask = name, scale, row_mask
        self.factors = _Cast(*factors)

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """`out [rows, ..., out]` plus this term for `x [rows, ..., in]`."""
        down, up = self.factors.at(x)
        mask = self.mask
        hidden = nn.functional.linear(x, down)
        if mask is not None:
            _check_batch(self.name, x, int(mask.shape[0]))
            by_row = hidden.reshape(mask.shape[0], -1, hidden.shape[-1])
            hidden = by_row.masked_fill(~mask.to(x.device)[:, None, None], 0)
        return _add_product(out, hidden.reshape(-1, hidden.shape[-1]), up.t(), self.scale)


def _check_batch(name: str, x: Tensor, rows: int) -> None:
    """Refuse a batch that is not `rows` long; layers fed with flattened tokens `[rows * tokens, in]` pass."""
    if x.shape[0] != rows and (x.dim() > 2 or x.shape[0] % rows):
        raise BatchMismatchError(
            f"{name} got a batch of {x.shape[0]} rows, but the attached LoRAs are laid out for {rows}: "
            "make rows_per_slot * slots (or the length of row_to_slot or row_mask) equal the batch size"
        )


def _add_product(out: Tensor, hidden: Tensor, up_t: Tensor, scale: float = 1.0) -> Tensor:
    """`out + scale * hidden @ up_t` in one kernel, in place where no gradient could notice.

    Args:
        out: [rows, ..., out], a fresh output of a linear layer.
        hidden: [groups, tokens, rank] or [tokens, rank].
        up_t: [groups, rank, out] or [rank, out].
        scale: factor on the product.

    Returns:
        A tensor of `out`'s shape and dtype.
    """
    batched = hidden.dim() == 3
    if out.dtype != hidden.dtype or out.dtype != up_t.dtype:  # autocast, or a layer that changes precision
        return out + (scale * (hidden @ up_t)).to(out.dtype).reshape(out.shape)
    flat = out.reshape(*hidden.shape[:-1], out.shape[-1])
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (out, hidden, up_t))
    if tracked:
        add = torch.baddbmm if batched else torch.addmm
        return add(flat, hidden, up_t, alpha=scale).reshape(out.shape)
    flat = flat.baddbmm_(hidden, up_t, alpha=scale) if batched else flat.addmm_(hidden, up_t, alpha=scale)
    return flat.reshape(out.shape)
