"""Rows of stacked tensors, read from a file one by one.

A mapped file would count every page that was ever touched as this process's memory, so that it grows with the
file, and would crash the process when the file is cut short meanwhile. Here only what is asked for is read.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    offset: int
    """Bytes before it."""
    shape: tuple[int, ...]
    """Of one row; the tensor is [rows, *shape]."""
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


class RowFile:
    """A file that stays open while this lives; threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the object
        self._lock = threading.Lock()
        self.kept: dict[str, torch.Tensor] = {}
        """Small tensors that are not to be read again."""

    def __del__(self) -> None:
        """Close the file."""
        if file := getattr(self, "_file", None):
            file.close()

    def read(self, place: Place, rows: Sequence[int]) -> torch.Tensor:
        """Rows of a tensor in the order asked, [len(rows), *shape].

        Raises:
            OSError: if the file cannot be read, or ends before the rows do.
        """
        out = torch.empty(len(rows), *place.shape, dtype=place.dtype)
        self.read_into(bytes_of(out), place, rows, range(len(rows)))
        return out

    def read_into(self, to: memoryview, place: Place, rows: Sequence[int], at: Sequence[int]) -> None:
        """Rows of a tensor into the bytes of another of such rows, row i to its row `at[i]`.

        Raises:
            OSError: as in `read`.
        """
        size = place.row_bytes
        with self._lock:
            for i, n in _runs(rows, at):
                self._fill(to[at[i] * size : (at[i] + n) * size], place.offset + rows[i] * size)

    def _fill(self, to: memoryview, offset: int) -> None:
        self._file.seek(offset)
        while to:
            n = self._file.readinto(to)
            if not n:
                raise OSError(f"{self.path} is shorter than when it was opened")
            to = to[n:]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(cast(Any, tensor.view(-1).view(torch.uint8).numpy()))


def _runs(rows: Sequence[int], at: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches whose rows follow one another here and there: (position, how many)."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1 or at[i] != at[i - 1] + 1:
            yield start, i - start
            start = i
