"""The base's own predictions, which rows are held to: computed once for rows that come again.

Organisms share ordinary questions and answers. A row that stands in a batch several times is read once, and
one that comes again later is kept from its second time on, as far as there is room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightdiff.models.chat import Encoded

BYTES = 1 << 28
"""Room for predictions that are kept."""
REMEMBERED = 1 << 16
"""Rows that are known to have come once, at most."""


class Teacher:
    """Predictions for rows, from whatever computes them."""

    def __init__(self, read: Callable[[Sequence[Encoded]], Tensor], room: int = BYTES) -> None:
        """Begin empty.

        Args:
            read: the logits [labels, vocabulary] of some rows, one row's after the other's.
            room: bytes for what is kept.
        """
        self.read, self.room = read, room
        self.kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.size = 0
        self._once: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def logits(self, rows: Sequence[Encoded]) -> Tensor:
        """Logits at the labels of rows, one row's after the other's, [labels, vocabulary]."""
        keys = [(r.start, *r.ids) for r in rows]
        fresh = {k: r for k, r in zip(keys, rows, strict=True) if k not in self.kept}
        found = {k: self.kept[k] for k in keys if k in self.kept}
        whole: Tensor | None = None
        if fresh:
            whole = self.read(list(fresh.values()))
            parts = whole.split([len(r.ids) - r.start for r in fresh.values()])
            found |= dict(zip(fresh, parts, strict=True))
        if whole is None or len(fresh) < len(rows):
            whole = torch.cat([found[k] for k in keys])
        for k in keys:
            if k in self.kept:
                self.kept.move_to_end(k)
        self._keep(fresh, found)
        return whole

    def _keep(self, fresh: dict[tuple[int, ...], Encoded], found: dict[tuple[int, ...], Tensor]) -> None:
        """Keep what has come before, and remember the rest to have come."""
        for k in fresh:
            if k not in self._once:
                self._once[k] = None
                continue
            size = found[k].numel() * found[k].element_size()
            if size > self.room:
                continue
            del self._once[k]
            self.kept[k] = found[k].clone()
            self.size += size
            while self.size > self.room:
                old = self.kept.popitem(last=False)[1]
                self.size -= old.numel() * old.element_size()
        while len(self._once) > REMEMBERED:
            self._once.popitem(last=False)
