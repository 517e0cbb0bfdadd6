"""Weighted sums of the same diffs, another sum on each row of a batch, of which none is ever made.

Each diff's factors stand in one shared LoRA; a row weighs the directions between the two products. A
thousand mixtures of two diffs so cost what two diffs cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightdiff.diffs.algebra import combine
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import FormatError
from weightdiff.models.multilora import SharedLora


@dataclass(frozen=True)
class Mixtures:
    """Low-rank diffs of one base, ready to be mixed."""

    diffs: tuple[WeightDiff, ...]
    together: SharedLora
    """All of them side by side."""
    owners: dict[str, Tensor]
    """Module → LongTensor [rank], whose each direction is."""

    @classmethod
    def of(cls, diffs: Sequence[WeightDiff]) -> Mixtures:
        """Lay diffs side by side.

        Raises:
            FormatError: there are none, or one is not low-rank.
            BaseMismatchError: they are of different bases or disagree on a shape.
        """
        if not diffs:
            raise FormatError("there are no diffs to mix; give one at least")
        for i, diff in enumerate(diffs):
            if not diff.is_low_rank:
                raise FormatError(
                    f"diff {i + 1} changes whole matrices or other parameters, and only LoRAs are mixed row"
                    " by row; truncate it first (weightdiff convert DIFF LORA --to peft --rank 32)"
                )
        summed = combine(diffs, [1.0] * len(diffs))
        owners: dict[str, list[int]] = {}
        for i, diff in enumerate(diffs):
            for name, m in diff.modules.items():
                assert isinstance(m, LoraFactors)
                owners.setdefault(name, []).extend([i] * m.rank)
        return cls(
            tuple(diffs), SharedLora.from_diff(summed), {k: torch.tensor(v) for k, v in owners.items()}
        )

    def on(self, weights: Tensor) -> SharedLora:
        """The mixtures on the rows of a batch.

        Args:
            weights: [rows, diffs], each row's weight of each diff.
        """
        by_row = {name: weights[:, owner.to(weights.device)] for name, owner in self.owners.items()}
        return SharedLora(self.together.modules, self.together.scale, by_row=by_row)
