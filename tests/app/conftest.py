"""A service over a random interpreter and the random store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from weightdiff.app.service import Service
from weightdiff.methods.dit import Interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.training.factory import random_diff


@pytest.fixture
def interpreter(embedded_base: Any) -> Interpreter:
    return Interpreter(embedded_base, random_diff(embedded_base.spec, 2, 5, 0.5), Rendering(), 6, {})


@pytest.fixture
def service(interpreter: Interpreter, random_store: Any) -> Iterator[Service]:
    made = Service(interpreter, random_store)
    yield made
    made.close()
