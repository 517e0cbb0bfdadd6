"""How much memory there is for a batch, and how the process keeps what it has.

Batches of one size come and go many times a second. glibc by default gives large blocks back to the system as
soon as they are free, and the system clears every page anew when they are wanted again, which on some
machines takes longer than the computation.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
_NEVER = 2**31 - 1
SHARE = 0.5
"""Of free memory, what the rows of a batch may take; the rest is for diffs and for what is not counted."""


def keep_freed_memory() -> bool:
    """Let the process keep what it frees for its next use; whether that could be had (on Linux with glibc).

    Settings in the environment (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_) are left as they are.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt: Any = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def free_memory(device: str) -> int:
    """Free memory in bytes, of the machine or of a GPU ("cuda"); where it cannot be told, more than any."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    status = Path("/proc/meminfo")
    if not status.exists():
        return 1 << 62
    line = next(line for line in status.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def row_bytes(model: nn.Module, tokens: int) -> int:
    """About how much memory a row takes while it is read and continued, in bytes.

    Args:
        model: causal LM.
        tokens: of the row, with what is said.
    """
    config: Any = model.config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    between = (
        4 * config.hidden_size + 3 * inner + heads * tokens
    )  # of one layer, attention's weights among it
    number = next(model.parameters()).element_size()
    return tokens * number * (kept + between) + 3 * 4 * config.vocab_size


def rows_that_fit(model: nn.Module, tokens: int, most: int) -> int:
    """How many rows free memory allows for at once, at least one and `most` at most; see `row_bytes`."""
    free = free_memory(next(model.parameters()).device.type)
    return max(1, min(most, int(SHARE * free) // row_bytes(model, tokens)))
