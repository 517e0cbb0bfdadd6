"""Batches that are computed in parts where memory is short: in halves, in quarters, and so on.

How many parts it takes is remembered, so that only the first batch that is too large is begun twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from weightdiff.errors import MemoryShortError

T = TypeVar("T")
_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _WORDS)


class Halving:
    """Computes batches in parts, one until memory runs out."""

    def __init__(self, what: str) -> None:
        """Begin with one part; `what` a batch has many of, for messages ("organisms")."""
        self.what, self.parts = what, 1

    def run(
        self, size: int, compute: Callable[[slice], Sequence[T]], undo: Callable[[], None] | None = None
    ) -> list[T]:
        """What `compute` gives for the whole batch, part after part.

        Args:
            size: of the batch.
            compute: called with one part after another; gives a value for each of its members.
            undo: takes back what the parts of an attempt that failed have done, such as adding up gradients.

        Raises:
            MemoryShortError: there is no memory for a single one.
        """
        while True:
            try:
                return [x for part in self._slices(size) for x in compute(part)]
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.parts >= size:
                    raise MemoryShortError(
                        f"there is not memory enough for one of {size} {self.what}: free some, or take a"
                        " smaller base, a lower precision or shorter texts"
                    ) from error
            if undo is not None:  # and not in the handler, where the error still holds the tensors
                undo()
            self.parts = min(size, 2 * self.parts)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _slices(self, size: int) -> list[slice]:
        step = max(1, -(-size // self.parts))
        return [slice(at, min(size, at + step)) for at in range(0, size, step)]
