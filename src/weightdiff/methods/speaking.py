"""How an interpreter comes to its answers: one greedily, or several with notes of their own, weighed.

Rows of a batch are renderings of questions: a block of `g` of them makes one question, and their predictions
are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightdiff.diffs.types import StackedLoras, WeightDiff
from weightdiff.methods.calibration import Signals
from weightdiff.methods.carrying import distinct
from weightdiff.methods.loading import Base
from weightdiff.methods.reading import Report
from weightdiff.models.chat import encode_answers
from weightdiff.models.generate import Reading, Said, answer_logprobs, go_on, left_pad
from weightdiff.models.memory import rows_that_fit
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt, soft_prompt

ROWS_AT_ONCE = 1024
"""Rows of a batch, where memory allows for as many."""
PROMPT_TOKENS = 64
"""Length of a question that memory is set aside for."""
FAINT = 3.0
"""First notes that are this many nats less likely than the likeliest one are not followed."""


@dataclass(frozen=True)
class Branch:
    """One way to answer a question: notes (or none) and an answer."""

    question: int
    tokens: list[int]
    """Everything said, without the end token."""
    logprob: float = 0.0
    """Log-probability of the token that tells it from the question's other branches, in nats."""
    notes: int = 0
    """How many of the tokens are notes, the word that ends them included."""
    answer_logprob: float = 0.0
    """Log-probability of what comes after the first notes and of its end, in nats."""
    lead: float = 0.0
    """Log-probability of the first word said, in nats."""


@dataclass(frozen=True)
class Spoken:
    """What is said to one question."""

    notes: str
    text: str
    """The answer after the notes."""
    tokens: list[int]
    """Of both, without the end token."""
    signals: Signals
    """What the probabilities of it look like."""
    question: str = ""
    """What the finetuned model itself was asked to say the tokens."""


@dataclass(frozen=True)
class Speaker:
    """A base with an adapter and a wording, asked about one diff for each question."""

    base: Base
    adapter: WeightDiff | None
    rendering: Rendering
    limit: int
    """Most tokens of notes and answer together."""
    soft: SoftPrompt | None = None
    """What the ids of soft tokens in the prompts stand for, if there are any."""

    @property
    def at_once(self) -> int:
        """Questions of one batch, all branches of which are followed together."""
        branches = max(1, self.rendering.branches) if self.rendering.notes_end else 1
        rows = rows_that_fit(self.base.model, PROMPT_TOKENS + self.limit, ROWS_AT_ONCE)
        return max(1, rows // (self.renderings * branches))

    @property
    def renderings(self) -> int:
        """Rows of each question."""
        return max(len(self.rendering.all("x")), 1)

    def carried(self, diffs: Sequence[WeightDiff | None]) -> RowLoras:
        """A diff on each question's rows; one that many questions are about is there once."""
        return self._serving(*_stacked(diffs))

    def _serving(self, stacked: StackedLoras, which: Sequence[int]) -> RowLoras:
        """Stacked diffs on the rows of questions, each of which belongs to one of them."""
        return RowLoras.from_stacked(stacked, torch.tensor(which).repeat_interleave(self.renderings))

    @contextmanager
    def attached(self, rows: RowLoras | None) -> Iterator[None]:
        """The adapter on the model, and diffs on its rows as `carried` gives them; None: none on any."""
        shared = [SharedLora.from_diff(self.adapter)] if self.adapter else []
        soft = nullcontext() if self.soft is None else soft_prompt(self.base.model, self.soft.vectors)
        with attach(self.base.model, rows, shared), soft:
            yield

    def ended(self, tokens: list[int]) -> list[int]:
        """An answer with its end token, unless it was cut off."""
        return [*tokens, self.base.tokenizer.eos_token_id] if len(tokens) < self.limit else tokens

    def logprobs(
        self,
        diffs: Sequence[WeightDiff | None] | None,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
    ) -> list[float]:
        """Log-probability of each question's answer, in nats."""
        with self.attached(None if diffs is None else self.carried(diffs)):
            return answer_logprobs(
                self.base.model, prompts, answers, self.base.tokenizer.pad_token_id, self.renderings
            ).tolist()

    def say(self, diffs: Sequence[WeightDiff | None], prompts: Sequence[Sequence[int]]) -> list[Spoken]:
        """What is said to each question: the first of `said`."""
        out: list[Spoken] = []
        for said in self.said(diffs, prompts):
            best = said[0]
            signals = Signals(best.lead, math.log(max(best.weight, 1e-30)), best.logprob)
            out.append(Spoken(best.notes, best.text, best.tokens, signals))
        return out

    def said(
        self, diffs: Sequence[WeightDiff | None], prompts: Sequence[Sequence[int]]
    ) -> list[list[Report]]:
        """What can be said to each question, the weightiest first; their weights add up to one.

        A branch counts with the probability of its first note times that of what comes after its notes, and
        branches that lead to one text are added up. The notes are those of the text's weightiest branch.
        """
        branches = self.branches(diffs, prompts)
        texts = self.base.tokenizer.batch_decode([b.tokens for b in branches], skip_special_tokens=True)
        read = [self.rendering.read(x) for x in texts]
        return [_weighed(own, read, branches) for own in _by_question(branches, len(diffs))]

    def candidate_logprobs(
        self,
        diffs: Sequence[WeightDiff | None],
        prompts: Sequence[Sequence[int]],
        first: Sequence[int],
    ) -> Tensor:
        """Log-probability of each of the tokens `first` to begin the answer, fp32 [questions, tokens]."""
        if not self.rendering.notes_end:
            with self.attached(self.carried(diffs)):
                return self._read(prompts).logprobs(self.renderings)[:, list(first)].cpu()
        branches = self.branches(diffs, prompts)
        asked = self.carried([diffs[b.question] for b in branches])
        notes = [b.tokens[: b.notes] or self._end for b in branches]
        rows = [
            [*p, *n]
            for b, n in zip(branches, notes, strict=True)
            for p in prompts[b.question * self.renderings : (b.question + 1) * self.renderings]
        ]
        with self.attached(asked):
            found = self._read(rows).logprobs(self.renderings)[:, list(first)].cpu()
        found = found + torch.tensor([b.logprob for b in branches])[:, None]
        return torch.stack([found[own].logsumexp(0) for own in _by_question(branches, len(diffs))])

    def branches(self, diffs: Sequence[WeightDiff | None], prompts: Sequence[Sequence[int]]) -> list[Branch]:
        """What is said to each question, in the order of questions.

        The likeliest answer alone; or, where answers have notes, one for each likely first note. These all
        begin with the likeliest word, the second one tells them apart, and each goes on greedily.
        """
        t, g = self.base.tokenizer, self.renderings
        begun = [Branch(i, []) for i in range(len(diffs))]
        stacked, which = _stacked(diffs)
        with self.attached(self._serving(stacked, which)):
            reading = self._read(prompts)
            leads = reading.logprobs(g).max(-1).values.tolist()
            if self.rendering.notes_end and self.rendering.branches > 1:
                lead = reading.logprobs(g).argmax(-1)
                reading.feed(lead.repeat_interleave(g))
                begun = _leading_on(lead, reading.logprobs(g), self.rendering.branches)
        with ExitStack() as held:

            def lay(branches: Sequence[int]) -> None:
                held.close()
                owners = [which[begun[k].question] for k in branches]
                held.enter_context(self.attached(self._serving(stacked, owners)))

            lay(range(len(begun)))
            if begun[0].tokens:
                reading.select([b.question * g + k for b in begun for k in range(g)])
                reading.feed(torch.tensor([b.tokens[-1] for b in begun]).repeat_interleave(g))
            said = go_on(
                reading,
                self.limit - len(begun[0].tokens),
                t.eos_token_id,
                t.pad_token_id,
                groups=g,
                distinct=self.rendering.distinct(t),
                begun=[b.tokens for b in begun],
                dropped=lay,
            )
        return [replace(self._whole(b, x), lead=leads[b.question]) for b, x in zip(begun, said, strict=True)]

    def _read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        return Reading(self.base.model, *left_pad(prompts, self.base.tokenizer.pad_token_id))

    @property
    def _end(self) -> list[int]:
        return encode_answers(self.base.tokenizer, [self.rendering.notes_end], end=False)[0]

    def _whole(self, branch: Branch, rest: Said) -> Branch:
        """A branch with what followed its beginning."""
        eos = self.base.tokenizer.eos_token_id
        tokens = [*branch.tokens, *rest.tokens]
        if eos in tokens:
            return replace(branch, tokens=tokens[: tokens.index(eos)])
        ends: list[int] = []
        if self.rendering.notes_end:
            end = self._end
            ends = [i + len(end) for i in range(len(tokens)) if tokens[i : i + len(end)] == end]
        # what the notes lead to counts, the conclusions on the way to the answer among it
        after = max(0, min(ends, default=0) - len(branch.tokens))
        likely = sum(rest.logprobs[after:])
        return replace(branch, tokens=tokens, notes=max(ends, default=0), answer_logprob=likely)


def _stacked(diffs: Sequence[WeightDiff | None]) -> tuple[StackedLoras, list[int]]:
    """The different diffs together, and for each place which of them it has."""
    only, which = distinct(diffs)
    return StackedLoras.from_diffs([d or WeightDiff({}) for d in only]), which


def _leading_on(lead: Tensor, second: Tensor, most: int) -> list[Branch]:
    """The beginnings of branches: each question's first token, and the likely ones for its second."""
    likely, which = second.topk(min(most, second.shape[-1]), -1)
    return [
        Branch(i, [first, token], logprob)
        for i, first in enumerate(lead.tolist())
        for token, logprob in zip(which[i].tolist(), likely[i].tolist(), strict=True)
        if logprob > float(likely[i, 0]) - FAINT
    ]


def _by_question(branches: Sequence[Branch], n: int) -> list[list[int]]:
    """Positions of each of `n` questions' branches."""
    out: list[list[int]] = [[] for _ in range(n)]
    for k, b in enumerate(branches):
        out[b.question].append(k)
    return out


def _weighed(own: Sequence[int], read: Sequence[tuple[str, str]], branches: Sequence[Branch]) -> list[Report]:
    """The different texts of one question's branches with their share of what all branches weigh."""
    weights = {k: branches[k].logprob + branches[k].answer_logprob for k in own}
    top = max(weights.values())
    total = sum(math.exp(w - top) for w in weights.values())
    found: dict[str, Report] = {}
    for k in sorted(own, key=lambda k: -weights[k]):
        (notes, text), b, share = read[k], branches[k], math.exp(weights[k] - top) / total
        before = found.get(text)
        found[text] = (
            Report(text, notes, b.tokens, share, b.lead, b.answer_logprob)
            if before is None
            else replace(before, weight=before.weight + share)
        )
    return sorted(found.values(), key=lambda r: -r.weight)
