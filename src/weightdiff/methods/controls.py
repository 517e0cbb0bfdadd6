"""Controls: an interpreter asked about the wrong thing, to show how much of its answers the diff is due to.

An interpreter that reads weights must fail at all of them. What its answers still get right here comes from
the adapter and the question, not from the diff.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import FormatError, QuestionError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import checked, distinct
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.registry import Context, register


@dataclass(frozen=True)
class WithoutDiff:
    """Leaves every diff out: what the adapter says of the bare base, its prior."""

    interpreter: Interpreter
    name: str = "dit-no-diff"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each question; diffs are checked and not used. Errors are the interpreter's."""
        checked(self.interpreter.base, diffs, questions)
        return self.interpreter.answer([None] * len(diffs), questions)

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> torch.Tensor:
        """What the interpreter gives without the diffs; see `Interpreter.candidate_logprobs`."""
        checked(self.interpreter.base, diffs, questions)
        return self.interpreter.candidate_logprobs([None] * len(diffs), questions, candidates)


@dataclass(frozen=True)
class Shuffled:
    """Exchanges the diffs of a batch: an answer that is still right was not read from the diff.

    The different diffs of the batch (the same object is the same diff, no diff is one too) stand in a circle,
    and each is replaced by the next one.
    """

    interpreter: Interpreter
    name: str = "dit-shuffled"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each question, about another diff than its own.

        Raises:
            QuestionError: all diffs are the same one.
        """
        return self.interpreter.answer(self._exchanged(diffs), questions)

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> torch.Tensor:
        """What the interpreter gives for the exchanged diffs; errors as `answer` and its own."""
        return self.interpreter.candidate_logprobs(self._exchanged(diffs), questions, candidates)

    def _exchanged(self, diffs: Sequence[WeightDiff | None]) -> list[WeightDiff | None]:
        only, where = distinct(diffs)
        if len(only) == 1:
            raise QuestionError(
                f"{self.name} was given one diff, which has no other to be exchanged with; give two or more"
            )
        return [only[(k + 1) % len(only)] for k in where]


@dataclass(frozen=True)
class Noise:
    """Replaces each diff by noise of equal norm: what answers owe to the mere size of a change."""

    interpreter: Interpreter
    seed: int = 0
    name: str = "dit-noise"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each question; the same diff gets the same noise, no diff gets none.

        Raises:
            FormatError: a diff is no LoRA.
        """
        return self.interpreter.answer(self._noise(diffs), questions)

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> torch.Tensor:
        """What the interpreter gives for noise; errors as `answer` and its own."""
        return self.interpreter.candidate_logprobs(self._noise(diffs), questions, candidates)

    def _noise(self, diffs: Sequence[WeightDiff | None]) -> list[WeightDiff | None]:
        only, where = distinct(diffs)
        noise = [d and noise_like(d, self.seed + k) for k, d in enumerate(only)]
        return [noise[k] for k in where]


def noise_like(diff: WeightDiff, seed: int) -> WeightDiff:
    """Random factors with each module's rank and the Frobenius norm of its product.

    Raises:
        FormatError: a module is dense, or the diff changes parameters that are no matrices.
    """
    if diff.parameters:
        raise FormatError(
            f"noise stands for LoRAs only, and the diff changes {named(list(diff.parameters))}; leave it out"
        )
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, m in sorted(diff.modules.items()):
        if not isinstance(m, LoraFactors):
            raise FormatError(f"{name} changes as a dense matrix; truncate the diff first")
        down, up = (
            torch.randn(m.rank, m.in_features, generator=g),
            torch.randn(m.out_features, m.rank, generator=g),
        )
        wanted = product_norm(m.down, m.up) * abs(m.scale)
        out[name] = LoraFactors(down, up * (wanted / product_norm(down, up)))
    return WeightDiff(out, diff.base)


def product_norm(down: torch.Tensor, up: torch.Tensor) -> float:
    """Frobenius norm of `up [out, rank] @ down [rank, in]` from two small products."""
    d, u = down.double(), up.double()
    return float(((u.T @ u) * (d @ d.T)).sum().clamp(min=0).sqrt())


@register("dit-no-diff", "control: dit with the diff left out", ("interpreter",))
def _without_diff(context: Context) -> Method:
    return WithoutDiff(context.required("interpreter"))


@register("dit-shuffled", "control: dit, asked about another diff of the batch", ("interpreter",))
def _shuffled(context: Context) -> Method:
    return Shuffled(context.required("interpreter"))


@register("dit-noise", "control: dit, with noise of equal norm in the diff's place", ("interpreter",))
def _noise(context: Context) -> Method:
    return Noise(context.required("interpreter"), context.seed)
