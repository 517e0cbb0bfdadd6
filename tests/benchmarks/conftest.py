"""Benchmarks are no part of the package; here they are found, wherever pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from weightdiff.organisms import base

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def _families_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own family is known while it runs, and to no other test."""
    monkeypatch.setattr(base, "_FAMILIES", dict(base._FAMILIES))
    monkeypatch.setattr(base, "_MADE", dict(base._MADE))
