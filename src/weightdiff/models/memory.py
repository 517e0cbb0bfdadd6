"""How the process keeps its memory.

Batches of one size come and go many times a second. glibc by default gives large blocks back to the system as
soon as they are free, and the system clears every page anew when they are wanted again, which on some
machines takes longer than the computation.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
_NEVER = 2**31 - 1


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
