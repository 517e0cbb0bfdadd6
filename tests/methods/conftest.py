"""An interpreter of the random base, and a few diffs of it."""

from __future__ import annotations

from typing import Any

import pytest

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.dit import Interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.training.factory import random_diff

PROBES = Rendering(("code 123{random} .", "code 456{random} .", "hello ."), ("789", "321"), 2, 3)


@pytest.fixture(params=["plain", "probed"])
def interpreter(request: pytest.FixtureRequest, embedded_base: Any) -> Interpreter:
    """A random adapter; questions as they are, or behind probes."""
    wording = Rendering() if request.param == "plain" else PROBES
    adapter = random_diff(embedded_base.spec, 2, 5, 0.5)
    return Interpreter(embedded_base, adapter, wording, 6, {"note": request.param})


@pytest.fixture
def diffs(embedded_base: Any) -> list[WeightDiff]:
    """Random diffs of ranks 1, 3 and 2, the last on two modules only."""
    few = dict(sorted(embedded_base.spec.items())[:2])
    return [
        random_diff(embedded_base.spec, 1, 0, 1.5),
        random_diff(embedded_base.spec, 3, 1, 1.5),
        random_diff(few, 2, 2, 1.5),
    ]
