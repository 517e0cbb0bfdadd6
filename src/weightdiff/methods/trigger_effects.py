"""How far a diff moves its base at given prompts: effects of candidate triggers, in nats along an answer.

What to try, and what to make of the numbers, is left to `trigger_search`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightdiff.methods.carrying import Batch, batches
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad, logits_at

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.loading import Base
    from weightdiff.methods.trigger_forms import Candidate

ROWS_AT_ONCE = 192
LOGITS_AT_ONCE = 40_000_000
"""Bounds the rows of a batch on bases with a large vocabulary."""

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is tried, how many are done, and how many there are."""


@dataclass
class Memory:
    """What a base says without any diff; searches of one base that share it need not ask it again."""

    answers: dict[tuple[str, int], list[int]] = field(default_factory=dict[tuple[str, int], list[int]])
    """(prompt, most tokens) → the base's greedy answer to it."""
    logprobs: dict[tuple[str, tuple[int, ...]], list[float]] = field(
        default_factory=dict[tuple[str, tuple[int, ...]], list[float]]
    )
    """(prompt, answer) → log-probability of each of the answer's tokens to the base, in nats."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and an answer along which the two models are compared."""

    prompt: str
    answer: tuple[int, ...]


class Effects:
    """A base and one diff of it, compared along the base's own answers."""

    def __init__(
        self, base: Base, diff: WeightDiff | None, answer_tokens: int, memory: Memory | None
    ) -> None:
        """Keep what is compared; `diff` is checked already.

        Args:
            base: the base.
            diff: of it; None for a diff that changes nothing.
            answer_tokens: length at which answers are cut.
            memory: of this base; None for a new one.
        """
        self.base, self.answer_tokens = base, answer_tokens
        self.memory = memory or Memory()
        self._batch: Batch = next(iter(batches(base, [diff], 1)))
        self._at_once = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // (len(base.tokenizer) * answer_tokens)))

    def answers(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """The base's greedy answer to each prompt, with its end where it came in time."""
        known, n = self.memory.answers, self.answer_tokens
        new = [p for p in dict.fromkeys(prompts) if (p, n) not in known]
        for part in _parts(new, self._at_once):
            said = self._generate(part, with_diff=False)
            end = self.base.tokenizer.eos_token_id
            known |= {(p, n): [*x, end][:n] for p, x in zip(part, said, strict=True)}
        return [tuple(known[p, n]) for p in prompts]

    def says(self, prompts: Sequence[str]) -> list[str]:
        """What the finetuned model says to each prompt, greedily."""
        said = [x for part in _parts(prompts, self._at_once) for x in self._generate(part, with_diff=True)]
        return [x.strip() for x in self.base.tokenizer.batch_decode(said, skip_special_tokens=True)]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[str], with_diff: bool) -> list[list[int]]:
        t = self.base.tokenizer
        ids, mask = left_pad(encode_prompts(t, prompts), t.pad_token_id)
        with self._carried(len(prompts), with_diff):
            return generate(self.base.model, ids, mask, self.answer_tokens, t.eos_token_id, t.pad_token_id)

    def _carried(self, rows: int, with_diff: bool) -> AbstractContextManager[None]:
        return self._batch.on(self.base, [0] * rows) if with_diff else nullcontext()

    @torch.no_grad()
    def divergences(self, asked: Sequence[Asked], each: Callable[[int], None] | None = None) -> list[float]:
        """Sum over the answer of KL(M' ‖ M) before each of its tokens, in nats, one a prompt.

        Args:
            asked: prompts with answers.
            each: called with how many are done.
        """
        out: list[float] = []
        for part in _parts(asked, self._at_once):
            rows = self._rows(part)
            after = self._distributions(rows, with_diff=True)
            before = self._distributions(rows, with_diff=False)
            kl = (after.exp() * (after - before)).sum(dim=-1)
            owner = torch.tensor([k for k, (_, answer) in enumerate(rows) for _ in answer])
            out += torch.zeros(len(rows)).index_add(0, owner, kl.cpu()).tolist()
            if each:
                each(len(out))
        return out

    @torch.no_grad()
    def shifts(self, asked: Sequence[Asked], each: Callable[[int], None] | None = None) -> list[float]:
        """By how much M' and M differ in the log-probabilities of the answer's tokens, in nats, one a prompt.

        It tells the same as `divergences`, a little less surely, at half the cost where the base is known.
        """
        known = self.memory.logprobs
        out: list[float] = []
        for part in _parts(asked, self._at_once):
            if new := [a for a in part if (a.prompt, a.answer) not in known]:
                found = self._likelihoods(new, with_diff=False)
                known |= {(a.prompt, a.answer): x for a, x in zip(new, found, strict=True)}
            after = self._likelihoods(part, with_diff=True)
            for a, values in zip(part, after, strict=True):
                out.append(sum(abs(x - y) for x, y in zip(values, known[a.prompt, a.answer], strict=True)))
            if each:
                each(len(out))
        return out

    def of_candidates(
        self,
        candidates: Sequence[Candidate],
        prompts: Sequence[str],
        quick: bool = False,
        progress: Progress | None = None,
        what: str = "",
    ) -> list[float]:
        """Effect of each candidate, in nats: the mean over prompts, along the base's answers without it.

        Args:
            candidates: what is put into every prompt.
            prompts: ordinary ones.
            quick: by `shifts` instead of `divergences`.
            progress: told how far it is.
            what: is tried, for `progress`.
        """
        answers = self.answers(prompts)
        asked = [
            Asked(c.put(p, k), a)
            for c in candidates
            for k, (p, a) in enumerate(zip(prompts, answers, strict=True))
        ]
        per = len(prompts)

        def each(done: int) -> None:
            if progress and what:
                progress(what, done // per, len(candidates))

        found = (self.shifts if quick else self.divergences)(asked, each)
        return [sum(found[i : i + per]) / per for i in range(0, len(found), per)]

    def _rows(self, asked: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
        prompts = encode_prompts(self.base.tokenizer, [a.prompt for a in asked])
        return [(p, list(a.answer)) for p, a in zip(prompts, asked, strict=True)]

    def _likelihoods(self, asked: Sequence[Asked], with_diff: bool) -> list[list[float]]:
        """Log-probability of each token of each answer, in nats."""
        rows = self._rows(asked)
        logits = self._logits(rows, with_diff)
        tokens = torch.tensor([x for _, answer in rows for x in answer], device=logits.device)
        found = iter((-cross_entropy(logits, tokens, reduction="none")).tolist())
        return [[next(found) for _ in answer] for _, answer in rows]

    def _distributions(self, rows: Sequence[tuple[list[int], list[int]]], with_diff: bool) -> Tensor:
        """Log-probabilities before each token of the answers, fp32 [tokens of all answers, vocabulary]."""
        return self._logits(rows, with_diff).log_softmax(dim=-1)

    def _logits(self, rows: Sequence[tuple[list[int], list[int]]], with_diff: bool) -> Tensor:
        device = next(self.base.model.parameters()).device
        ids, mask = left_pad([[*p, *a] for p, a in rows], self.base.tokenizer.pad_token_id, device)
        width = ids.shape[1]
        row = torch.tensor([k for k, (_, a) in enumerate(rows) for _ in a], device=device)
        place = torch.tensor([width - 1 - len(a) + j for _, a in rows for j in range(len(a))], device=device)
        with self._carried(len(rows), with_diff):
            return logits_at(self.base.model, ids, mask, row, place).float()


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
