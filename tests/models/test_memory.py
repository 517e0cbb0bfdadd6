"""What a process does with memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
HELD = """
import os, sys
from weightdiff.models.memory import keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)
import torch
def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
before = resident()
torch.ones(50_000_000)
print(resident() - before)
"""


def held(*arguments: str, **environment: str) -> tuple[str, int]:
    """What was said, and MiB that a process still holds of 190 that it freed."""
    done = subprocess.run(
        [sys.executable, "-c", HELD, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", **environment},
    )
    said, mib = done.stdout.split()
    return said, int(mib)


@pytest.mark.skipif(not GLIBC, reason="only glibc's allocator can be told")
def test_freed_memory_is_kept_where_it_is_asked_for() -> None:
    said, mib = held("keep")
    assert (said, mib > 150) == ("True", True)
    assert held()[1] < 50


@pytest.mark.skipif(not GLIBC, reason="only glibc's allocator can be told")
def test_settings_of_the_environment_stay() -> None:
    said, mib = held("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert (said, mib < 50) == ("False", True)
