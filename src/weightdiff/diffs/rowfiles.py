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
        if not out.numel():
            return out
        to = memoryview(cast(Any, out.view(-1).view(torch.uint8).numpy()))
        size = place.row_bytes
        with self._lock:
            for at, first, n in _runs(rows):
                self._fill(to[at * size : (at + n) * size], place.offset + first * size)
        return out

    def _fill(self, to: memoryview, offset: int) -> None:
        self._file.seek(offset)
        while to:
            n = self._file.readinto(to)
            if not n:
                raise OSError(f"{self.path} is shorter than when it was opened")
            to = to[n:]


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of rows that follow one another: (position, first row, how many)."""
    at = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield at, rows[at], i - at
            at = i
