"""Random low-rank diffs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from weightdiff.diffs.types import LoraFactors, ModelRef, WeightDiff


@pytest.fixture
def base() -> ModelRef:
    return ModelRef("tiny/base", None, "aaaa", "bbbb")


@pytest.fixture
def random_diff() -> Callable[..., WeightDiff]:
    """Builds a diff from module → (rank, in, out): `random_diff({"a": (2, 3, 4)}, scale=0.5)`."""

    def build(
        shapes: Mapping[str, tuple[int, int, int]] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **rest: object,
    ) -> WeightDiff:
        stream = torch.Generator().manual_seed(seed)
        modules = {
            name: LoraFactors(
                torch.randn(rank, width, generator=stream).to(dtype),
                torch.randn(height, rank, generator=stream).to(dtype),
                scale,
            )
            for name, (rank, width, height) in (
                shapes or {"layers.0.q": (2, 3, 4), "layers.1.v": (1, 5, 2)}
            ).items()
        }
        return WeightDiff(modules, **rest)

    return build
