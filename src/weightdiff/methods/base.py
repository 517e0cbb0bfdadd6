"""The one protocol of all methods: diffs and questions in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from weightdiff.diffs.types import WeightDiff

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """What a method says about one diff."""

    text: str
    """The answer in plain words."""
    logprob: float | None = None
    """log p(answer | diff, question) in nats, notes included, where the method has one."""
    evidence: float | None = None
    """log p(answer | δ) − log p(answer | no δ) in nats: how much is due to the diff, not the prior."""
    notes: str = ""
    """Words that came before the answer and from which it was read."""
    probability: float | None = None
    """How likely the answer is to be right, where the method is calibrated."""
    agreement: float | None = None
    """Share of the method's own probability, over all notes that it followed, that goes to this answer."""
    withheld: str = ""
    """What would have been answered, had it been likely enough to pass the threshold."""


class Method(Protocol):
    """Answers question i about diff i; `None` stands for no diff at all."""

    @property
    def name(self) -> str:
        """Short and unique; what tables call it."""
        ...

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One answer for each pair of diff and question."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """A method that can also tell how likely each of given answers is."""

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """Log-probability of each candidate, fp32 [questions, candidates], in nats."""
        ...


class Guesser(Protocol):
    """Reads what a finetuned model said and answers a question about the model from it."""

    @property
    def name(self) -> str:
        """What tells its answers from another guesser's."""
        ...

    def guess(self, texts: Sequence[str], question: str) -> str:
        """The answer; "nothing found" where the texts tell nothing."""
        ...
