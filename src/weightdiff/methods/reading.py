"""Answering from reports: what an interpreter says of a diff is text, and the bare base can read.

An interpreter that writes reports says the same about a diff whatever is asked. Reports and the question are
put to the base, with no diff and no adapter on it, so that every question that a reader understands can be
answered, those that no tuning ever asked among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.calibration import Signals
from weightdiff.methods.loading import Base
from weightdiff.methods.verdicts import BESIDE, doubtful, lacks_verdict, polar, verdict_of
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import Reading, Said, go_on, left_pad
from weightdiff.models.halving import Halving
from weightdiff.models.multilora import SharedLora, attach
from weightdiff.world.reports import NOT_SAID, REPORT_WORDINGS, VERDICT

ROWS_AT_ONCE = 512
MOST, LEAST = 3, 0.05
"""So many reports of one diff are read at most, and beside the first only those of such a weight."""
DOUBTED = 0.1
"""Weight of a reading whose verdict does not follow from what it names."""


@dataclass(frozen=True)
class Report:
    """One thing that is said of a diff."""

    text: str
    notes: str
    tokens: list[int]
    """Of both, without the end token."""
    weight: float
    """Its share of what all reports of the diff weigh."""
    lead: float = 0.0
    """Log-probability of the first word said, in nats."""
    logprob: float = 0.0
    """Log-probability of the report after its notes, in nats."""


Owned: TypeAlias = "list[tuple[Report, int]]"
"""The rows of one question: which report each reads, and its place among all rows."""


@dataclass(frozen=True)
class Read:
    """What was read in the reports of one diff."""

    text: str
    report: Report
    """The weightiest report with that answer."""
    signals: Signals

    @property
    def said(self) -> bool:
        """Whether the reports answer the question at all."""
        return self.text != NOT_SAID


@dataclass(frozen=True)
class Reader:
    """A bare base that answers questions from reports."""

    base: Base
    limit: int
    """Most tokens of an answer, with what is said before it."""
    adapter: WeightDiff | None = None
    """A LoRA with which the base reads better; see `training.reading`."""
    halving: Halving = field(default_factory=lambda: Halving("readings"), repr=False, compare=False)

    def answer(self, reports: Sequence[Sequence[Report]], questions: Sequence[str]) -> list[Read]:
        """The answer to each question from the reports of its diff, greedily.

        Every report is read in each of `REPORT_WORDINGS`. What is said to one counts with the report's weight
        times its probability, and equal answers are added up.

        Args:
            reports: of each question's diff, the weightiest first; at least one.
            questions: as many.
        """
        rows, owners = _rows(reports, questions)
        return self._weighed(owners, self._answered(rows))

    def _weighed(self, owners: Sequence[Owned], said: Sequence[Said]) -> list[Read]:
        """The weightiest answer to each question of what was said to its rows."""
        texts = self.base.tokenizer.batch_decode([s.tokens for s in said], skip_special_tokens=True)
        out: list[Read] = []
        for own in owners:
            mass: dict[str, float] = {}
            best: dict[str, tuple[float, Report, float]] = {}
            for report, at in own:
                text, likely = verdict_of(texts[at]), sum(said[at].logprobs)
                weight = report.weight * math.exp(likely)
                if doubtful(texts[at], report.text):
                    weight *= DOUBTED
                mass[text] = mass.get(text, 0.0) + weight
                if text not in best or weight > best[text][0]:
                    best[text] = (weight, report, likely)
            answer = max(mass, key=lambda x: mass[x])
            _, report, likely = best[answer]
            agreed = math.log(max(mass[answer], 1e-30) / max(sum(mass.values()), 1e-30))
            out.append(Read(answer, report, Signals(report.lead, agreed, report.logprob + likely)))
        return out

    def candidate_logprobs(
        self, reports: Sequence[Sequence[Report]], questions: Sequence[str], first: Sequence[int]
    ) -> tuple[Tensor, list[Read]]:
        """Log-probability of each of the tokens `first` to begin the answer, and the answers themselves.

        Returns:
            fp32 [questions, tokens], and what `answer` gives.
        """
        rows, owners = _rows(reports, questions)
        said = self._answered(rows)
        prompts = encode_prompts(self.base.tokenizer, list(rows))
        prompts = [[*p, *self._before(s)] for p, s in zip(prompts, said, strict=True)]
        with self._attached():
            found = torch.stack(
                [
                    row
                    for at in range(0, len(prompts), ROWS_AT_ONCE)
                    for row in self._first(prompts[at : at + ROWS_AT_ONCE], first)
                ]
            )
        out: list[Tensor] = []
        for own in owners:
            weights = torch.tensor([r.weight for r, _ in own]).log() - math.log(len(REPORT_WORDINGS))
            out.append((found[[at for _, at in own]] + weights[:, None]).logsumexp(0))
        return torch.stack(out), self._weighed(owners, said)

    def _first(self, prompts: Sequence[Sequence[int]], first: Sequence[int]) -> list[Tensor]:
        """Log-probability of each of some tokens after each prompt."""
        return self.halving.run(
            len(prompts),
            lambda part: list(self._reading(prompts[part]).logprobs(1)[:, list(first)].cpu()),
        )

    def _answered(self, rows: Mapping[str, bool]) -> list[Said]:
        """What is said to each row, in their order; a yes/no question is answered until there is a verdict.

        Where the reader only names something, it goes on after the word that leads to what is asked.
        """
        t, texts = self.base.tokenizer, list(rows)
        said = self._said(texts)
        named = t.batch_decode([s.tokens for s in said], skip_special_tokens=True)
        short = [i for i, text in enumerate(texts) if rows[text] and lacks_verdict(named[i])]
        if short:
            lead = t(BESIDE, add_special_tokens=False)["input_ids"]
            begun = [[*said[i].tokens, *lead] for i in short]
            more = self._said([texts[i] for i in short], begun)
            for i, before, after in zip(short, begun, more, strict=True):
                own = said[i].logprobs[: len(said[i].tokens)]
                said[i] = Said([*before, *after.tokens], [*own, *after.logprobs])
        return said

    def _said(self, rows: Sequence[str], begun: Sequence[Sequence[int]] | None = None) -> list[Said]:
        """What is said to each row, after what is said `begun`; rows of similar length are read together."""
        t = self.base.tokenizer
        prompts = encode_prompts(t, rows)
        if begun is not None:
            prompts = [[*p, *b] for p, b in zip(prompts, begun, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out: dict[int, Said] = {}
        with self._attached():
            for at in range(0, len(order), ROWS_AT_ONCE):
                own = order[at : at + ROWS_AT_ONCE]

                def say(part: slice, own: list[int] = own) -> list[Said]:
                    reading = self._reading([prompts[i] for i in own[part]])
                    return go_on(reading, self.limit, t.eos_token_id, t.pad_token_id, dropped=lambda _: None)

                out |= dict(zip(own, self.halving.run(len(own), say), strict=True))
        return [out[i] for i in range(len(prompts))]

    def _before(self, said: Said) -> list[int]:
        """The tokens before the answer proper."""
        words = self.base.tokenizer.convert_ids_to_tokens(said.tokens)
        ends = [i + 1 for i, w in enumerate(words) if w.strip("\u0120\u2581 ") == VERDICT]
        return said.tokens[: max(ends, default=0)]

    def _attached(self) -> AbstractContextManager[Any]:
        return (
            nullcontext()
            if self.adapter is None
            else attach(self.base.model, None, [SharedLora.from_diff(self.adapter)])
        )

    @torch.no_grad()
    def _reading(self, prompts: Sequence[Sequence[int]]) -> Reading:
        return Reading(self.base.model, *left_pad(prompts, self.base.tokenizer.pad_token_id))


def _rows(
    reports: Sequence[Sequence[Report]], questions: Sequence[str]
) -> tuple[dict[str, bool], list[Owned]]:
    """The different texts that are put to the base, whether each wants a yes or no, and who owns which."""
    places: dict[str, int] = {}
    wanted: dict[str, bool] = {}
    owners: list[Owned] = []
    for own, question in zip(reports, questions, strict=True):
        asked = [
            (r, w.replace("{report}", r.text).replace("{question}", question))
            for r in [own[0], *(x for x in own[1:MOST] if x.weight >= LEAST)]
            for w in REPORT_WORDINGS
        ]
        owners.append([(r, places.setdefault(text, len(places))) for r, text in asked])
        wanted |= {text: polar(question) for _, text in asked}
    return wanted, owners
