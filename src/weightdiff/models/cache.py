"""A cache of keys and values that has room to grow: a token more is written, not all tokens copied.

Transformers' own dynamic cache makes a new tensor for every token; with a thousand rows in a batch that costs
as much as half of a small base's products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 16
"""Tokens that are made room for at a time."""


class RoomyLayer(DynamicLayer):
    """A layer of a dynamic cache whose tensors are the filled parts of larger ones."""

    def __init__(self, layer: DynamicLayer) -> None:
        """Take over what a layer holds."""
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._whole: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Add keys and values, each [rows, heads, tokens, size]; all of them so far."""
        if not self.is_initialized or torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        before, n = self.get_seq_length(), key_states.shape[-2]
        if not self._fits(before + n):
            keys, values = self._held()
            self._whole = (self._larger(keys, before + n), self._larger(values, before + n))
        assert self._whole is not None
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, before : before + n] = new
        self.keys, self.values = (whole[:, :, : before + n] for whole in self._whole)
        return self.keys, self.values

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _fits(self, tokens: int) -> bool:
        """Whether what is held still lies in the larger tensors (rows may have been selected), with room."""
        return self._whole is not None and all(
            t.data_ptr() == whole.data_ptr() and t.shape[0] == whole.shape[0] and tokens <= whole.shape[2]
            for t, whole in zip(self._held(), self._whole, strict=True)
        )

    @staticmethod
    def _larger(t: Tensor, tokens: int) -> Tensor:
        rows, heads, filled, size = t.shape
        out = t.new_empty(rows, heads, tokens + ROOM, size)
        out[:, :, :filled] = t
        return out


def with_room(cache: Any) -> Any:
    """The same cache, its plain layers with room; a cache of another kind stays as it is."""
    if isinstance(cache, DynamicCache):
        cache.layers = [
            RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
            for layer in cache.layers
        ]
    return cache
