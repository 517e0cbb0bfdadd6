"""Rows laid end to end: linear layers see hardly any padding, and attention sees each row by itself.

A batch is one line of tokens. Slots, or a few of them together, take equal stretches of it, so that what row
LoRAs add stays one batched product. For attention alone, rows are taken apart and padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from weightdiff.errors import WeightDiffError
from weightdiff.models.generate import logits_at

NAME = "weightdiff-packed"
KINDS = ("llama", "qwen2", "qwen3")
"""Models whose attention is causal and nothing else, by `model_type`."""
STRETCH, LINE = 16, 64
"""Of which the lengths of stretches, and of a line that is one, are multiples, in 16 bits on a CPU: products
of every new shape are compiled there first, which takes longer than the products."""
MOST_TOGETHER, MOST_COLUMNS = 8, 64
"""Rows of a stretch that have LoRAs of their own, and the ranks of these together."""
WORTH_PACKING = 0.9
"""Rows are laid end to end where that leaves less than this share of the padded batch's tokens."""


@dataclass(frozen=True)
class Packed:
    """Rows in one line."""

    ids: Tensor
    """[1, tokens]; behind a slot's last row, padding."""
    positions: Tensor
    """[1, tokens], of each token in its row."""
    places: Tensor
    """[rows, longest], where each row's tokens stand in the line; behind a row's end, its first."""
    inside: Tensor
    """Bool [rows, longest]: what is no padding of a row."""
    back: Tensor
    """[tokens], where each token of the line stands in the flattened `places`; 0 for padding."""
    used: Tensor
    """Bool [tokens]: what is no padding of a slot."""
    row_of: Tensor
    """[stretches, tokens of one], the number of each token's row among its stretch's; -1 for padding."""

    def logits(self, model: Any, rows: Tensor, positions: Tensor) -> Tensor:
        """The model's logits at chosen places of rows, [n, vocabulary]; arguments as in `logits_at`."""
        at = self.places[rows, positions]
        with self._attended(model):
            return logits_at(model, self.ids, None, torch.zeros_like(at), at, self.positions)

    @contextmanager
    def _attended(self, model: Any) -> Iterator[None]:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _attention)
        before, model.config._attn_implementation = model.config._attn_implementation, NAME
        token = _packed.set(self)
        try:
            yield
        finally:
            _packed.reset(token)
            model.config._attn_implementation = before


_packed: ContextVar[Packed] = ContextVar("packed")


def packs(model: Any) -> bool:
    """Whether rows of this model can be laid end to end."""
    config = getattr(model, "config", None)
    plain = not getattr(config, "use_sliding_window", False)
    return plain and getattr(config, "model_type", None) in KINDS


def pack(
    rows: Sequence[Sequence[int]],
    slots: int,
    pad_id: int,
    device: torch.device | str = "cpu",
    multiple: int = 1,
) -> Packed:
    """Lay rows end to end.

    Args:
        rows: token ids; equally many of each slot, those of one slot next to each other.
        slots: how many slots; each takes as long a stretch as the longest one needs.
        pad_id: token that fills the end of the others.
        device: where the tensors go.
        multiple: of which a stretch's length is to be one.
    """
    lengths = torch.tensor([len(r) for r in rows])
    own = lengths.view(slots, -1)
    width, longest = -(-int(own.sum(1).max()) // multiple) * multiple, int(lengths.max())
    starts = (own.cumsum(1) - own + width * torch.arange(slots)[:, None]).flatten()
    steps = torch.arange(longest).expand(len(rows), longest)
    inside = steps < lengths[:, None]
    places = starts[:, None] + steps * inside
    at = places[inside]
    ids = torch.full((slots * width,), pad_id)
    positions, back = torch.zeros_like(ids), torch.zeros_like(ids)
    used = torch.zeros_like(ids, dtype=torch.bool)
    ids[at] = torch.tensor([token for row in rows for token in row])
    positions[at], back[at], used[at] = steps[inside], inside.flatten().nonzero()[:, 0], True
    row_of = torch.full_like(ids, -1)
    row_of[at] = (torch.arange(len(rows)) % own.shape[1])[:, None].expand_as(inside)[inside]
    made = (ids[None], positions[None], places, inside, back, used, row_of.view(slots, width))
    return Packed(*(t.to(device) for t in made))


def rows_together(n: int, rank: int) -> int:
    """How many rows, each with a LoRA of its own, are best in one stretch; 1: they are best apart.

    All LoRAs of a stretch are applied to all its tokens, and what is not a token's own is struck out: more
    rows make products that are wider and wasted for a larger part, fewer make stretches less alike.

    Args:
        n: rows of a batch, which stretches share evenly.
        rank: of their LoRAs.
    """
    fitting = [k for k in range(2, MOST_TOGETHER + 1) if n % k == 0 and k * rank <= MOST_COLUMNS]
    return min(fitting, key=lambda k: abs(k - 4), default=1)


def balanced(lengths: Sequence[int], stretches: int) -> list[int]:
    """Rows in an order in which equally many, taken in turn, make stretches of about the same length.

    The longest rows are given out first, each to the shortest stretch that has a place left.
    """
    places = len(lengths) // stretches
    given: list[list[int]] = [[] for _ in range(stretches)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        open_ = [own for own in given if len(own) < places]
        min(open_, key=lambda own: sum(lengths[j] for j in own)).append(i)
    return [i for own in given for i in own]


def pack_where_it_pays(
    model: Any, rows: Sequence[Sequence[int]], slots: int, pad_id: int, device: torch.device | str = "cpu"
) -> Packed | None:
    """Rows in one line as `pack` lays them, if the model allows it and it spares enough padding."""
    if not packs(model):
        return None
    weight = next(model.parameters())
    short = weight.device.type == "cpu" and weight.element_size() == 2
    packed = pack(rows, slots, pad_id, device, (STRETCH if slots > 1 else LINE) if short else 1)
    return packed if packed.ids.numel() < WORTH_PACKING * packed.places.numel() else None


def _attention(
    module: Any,  # noqa: ARG001 (transformers gives it)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row.

    Args:
        module: the layer.
        query: [1, heads, tokens, size].
        key: [1, heads, tokens, size], of fewer heads maybe.
        value: as `key`.
        attention_mask: not used.
        scaling: of the scores.
        sliding_window: must be none.
        softcap: must be none.

    Returns:
        [1, tokens, heads, size], and no weights.

    Raises:
        WeightDiffError: the model's attention is not plain.
    """
    if sliding_window is not None or softcap is not None:
        raise WeightDiffError("rows cannot be laid end to end under sliding or soft-capped attention")
    p = _packed.get()
    places, inside = p.places.flatten(), p.inside.flatten()
    q, k, v = (
        _moved(t[0], places, p.back, p.used).unflatten(1, p.places.shape).transpose(0, 1)
        for t in (query, key, value)
    )
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    line = _moved(out.transpose(0, 1).flatten(1, 2), p.back, places, inside)
    return line.transpose(0, 1)[None], None


def _moved(x: Tensor, to: Tensor, back: Tensor, kept: Tensor) -> Tensor:
    """`x [heads, n, size]` at the places `to`; see `_Moved`."""
    return cast("Tensor", _Moved.apply(x, to, back, kept))


class _Moved(torch.autograd.Function):
    """Tokens taken to other places; gradients are taken `back`, not added up, where a token is `kept`.

    That is right as long as what is read at a second place of a token, or where there is none, has no
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Tensor, back: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(back, kept)
        return x.index_select(1, to)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back, kept = ctx.saved_tensors
        return grads[0].index_select(1, back) * kept[:, None], None, None, None
