"""The stage that tries mixtures of diffs on texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.floor import Floor, pack
from benchmarks.speed.lockstep import Way, Ways
from benchmarks.speed.recipes import random_lora, text
from weightdiff.diffs.algebra import combine
from weightdiff.evals.sweep import box, sweep, texts_of
from weightdiff.methods.loading import Base
from weightdiff.models.chat import Encoded
from weightdiff.models.generate import answer_logprobs
from weightdiff.models.merge import merged

BARE, ONE_BY_ONE = "the bare base over the same rows", "each mixture merged into the weights"


@dataclass(frozen=True, kw_only=True)
class SweepCase(Case):
    """The loss of a text under many mixtures of two diffs."""

    stage: ClassVar[str] = "sweep"
    side: int = 10
    """Weights of each of the two diffs; a mixture is a pair."""
    rank: int = 8
    words: int = 40
    """Length of the text."""
    looped: int = 4
    """Mixtures that are merged into the weights, one by one."""

    @property
    def setting(self) -> str:
        """In words."""
        mixtures = f"{self.side**2} mixtures of 2 diffs of rank {self.rank}"
        return f"{mixtures}, {self.words} tokens, {self.based.precision}"

    def ways(self, base: Base | None, folder: Path) -> Ways:  # noqa: ARG002
        """A round is a whole sweep."""
        assert base is not None
        diffs = [random_lora(base.spec, self.rank, seed) for seed in range(2)]
        mixtures = box(2, self.side)
        (said,) = texts_of(base.tokenizer, [text(random.Random(0), self.words)])
        rows = len(mixtures)

        def ours(done: Callable[[], None]) -> None:
            while True:
                sweep(base, diffs, mixtures, [said])
                done()

        def floor() -> Way:
            packed = pack([Encoded(said.ids, said.given)] * rows, base.model.device)
            bare = Floor(base.model)
            bare.choose(packed)
            return Way(lambda _: bare.read(packed))

        @torch.no_grad()
        def scored(n: int) -> None:
            answer_logprobs(
                base.model,
                [said.ids[: said.given]] * n,
                [said.ids[said.given :]] * n,
                base.tokenizer.pad_token_id,
            )

        def one_by_one(_: int) -> None:
            for weights in mixtures[: self.looped]:
                with merged(base.model, combine(diffs, weights)):
                    scored(1)

        others = {
            BARE: lambda: Way(lambda _: scored(rows)),
            ONE_BY_ONE: lambda: Way(one_by_one, min(self.looped, rows) / rows),
        }
        return Ways(ours, floor, others, {"mixtures/s": float(rows)})
