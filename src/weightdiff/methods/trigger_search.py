"""What sets a finetune off: candidate triggers, by how far they move the finetuned model from its base.

Only the two models are run; no training data, no labels and no interpreter are used, so that it works on any
base. Candidates are made in `trigger_forms`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weightdiff.errors import QuestionError
from weightdiff.methods.carrying import Batch, batches, checked
from weightdiff.methods.prompts import neutral_prompts
from weightdiff.methods.trigger_forms import FORMS, QUESTION, Candidate, Form
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad, logits_at

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.loading import Base

ROWS_AT_ONCE = 192
_NORMAL = 1.4826  # a normal distribution's standard deviation in median absolute deviations
_STANDS_OUT = 8.0

Progress = Callable[[str, int, int], None]
"""Called with what is tried, how many candidates are done, and how many there are."""


@dataclass(frozen=True)
class Settings:
    """How long and how widely is searched."""

    forms: tuple[str, ...] = tuple(FORMS)
    """Names of the forms that are tried."""
    first_prompts: int = 3
    """Prompts on which every candidate is tried."""
    prompts: int = 8
    """Prompts on which the best ones are tried again."""
    kept: int = 24
    """Candidates of each form that are tried again."""
    answer_tokens: int = 14
    """Tokens of the base's answers along which the two models are compared."""
    beam: int = 4
    """Triggers that are made longer, at each step."""
    longest: int = 3
    """Parts that a trigger has at most."""
    partners: int = 48
    """Candidates that a trigger is made longer with."""
    gain: float = 1.25
    """A longer trigger is kept if its effect is so many times as large."""
    seed: int = 0
    """Of prompts and of what stands in the free places of templates."""


@dataclass(frozen=True)
class Trigger:
    """A candidate that moves the finetuned model, and how far."""

    text: str
    """The trigger itself, such as "343"."""
    form: str
    """Name of its form."""
    prompt: str
    """The first prompt with the trigger in it."""
    effect: float
    """Nats by which the models differ along an answer, mean over prompts: the sum of KL(M' ‖ M)."""
    untriggered: float
    """The same without a trigger."""
    deviations: float
    """How far the effect lies above the median of its form's candidates, in robust standard deviations."""
    said: str = ""
    """What the finetuned model answers to `prompt`."""
    said_untriggered: str = ""
    """What it answers to the same without the trigger."""

    @property
    def stands_out(self) -> bool:
        """Whether the effect is far from what any candidate of the form does, and from none."""
        return self.deviations >= _STANDS_OUT and self.effect > 2 * self.untriggered


def find_triggers(
    base: Base,
    diff: WeightDiff,
    settings: Settings | None = None,
    prompts: Sequence[str] | None = None,
    top: int = 5,
    progress: Progress | None = None,
) -> list[Trigger]:
    """The candidates with the largest effect, the largest first.

    Every candidate of every form is put into a few everyday prompts. Along the base's own answer to each, the
    next-token distributions of base + diff and base are compared, both with the candidate in the prompt: what
    the candidate does to the base itself does not count. The best are tried on more prompts, then joined to
    longer ones as long as that helps.

    Args:
        base: the base.
        diff: of it, of any kind.
        settings: how widely is searched.
        prompts: what is asked; None for everyday questions.
        top: how many to return.
        progress: called after each batch.

    Raises:
        QuestionError: a form is unknown.
        BaseMismatchError: the diff is not one of this base's.
    """
    s = settings or Settings()
    if unknown := [name for name in s.forms if name not in FORMS]:
        raise QuestionError(f"no form of trigger is called {unknown[0]!r}: choose among {', '.join(FORMS)}")
    search = _Search(base, checked(base, [diff], ["?"])[0], s, prompts, progress)
    found: list[tuple[float, float, Candidate]] = []
    for name in s.forms:
        found += search.form(FORMS[name])
    found.sort(key=lambda f: -f[0])
    found = search.longer(found)[:top]
    return search.triggers(found)


class _Search:
    """One diff's search: its prompts, the base's answers to them, and the effect of candidates."""

    def __init__(
        self,
        base: Base,
        diff: WeightDiff | None,
        settings: Settings,
        prompts: Sequence[str] | None,
        progress: Progress | None,
    ) -> None:
        self.base, self.settings, self.progress = base, settings, progress
        self.batch: Batch = next(iter(batches(base, [diff], 1)))
        rng = random.Random(f"triggers {settings.seed}")
        known = list(prompts or neutral_prompts(None))
        self.prompts = known if prompts else rng.sample(known, min(settings.prompts, len(known)))
        self.answers = self._say(self.prompts, with_diff=False)
        self.untriggered = float(self.effects([Candidate("", "none", (QUESTION,))], len(self.prompts))[0])

    @torch.no_grad()
    def _say(self, prompts: Sequence[str], with_diff: bool) -> list[list[int]]:
        t = self.base.tokenizer
        ids, mask = left_pad(encode_prompts(t, prompts), t.pad_token_id)
        n = self.settings.answer_tokens
        with self._carried(len(prompts), with_diff):
            return generate(self.base.model, ids, mask, n, t.eos_token_id, t.pad_token_id)

    def _carried(self, rows: int, with_diff: bool) -> AbstractContextManager[None]:
        return self.batch.on(self.base, [0] * rows) if with_diff else nullcontext()

    @torch.no_grad()
    def effects(self, candidates: Sequence[Candidate], prompts: int, what: str = "") -> list[float]:
        """Effect of each candidate on the first `prompts` prompts, in nats."""
        t = self.base.tokenizer
        per = max(1, ROWS_AT_ONCE // prompts)
        out: list[float] = []
        for at in range(0, len(candidates), per):
            part = candidates[at : at + per]
            asked = [c.put(self.prompts[k], k) for c in part for k in range(prompts)]
            rows = [
                (p, [*self.answers[k % prompts], t.eos_token_id][: self.settings.answer_tokens])
                for k, p in enumerate(encode_prompts(t, asked))
            ]
            after = self._logprobs(rows, with_diff=True)
            before = self._logprobs(rows, with_diff=False)
            kl = (after.exp() * (after - before)).sum(dim=-1)
            owner = torch.tensor([k for k, (_, answer) in enumerate(rows) for _ in answer])
            total = torch.zeros(len(rows)).index_add(0, owner, kl.cpu())
            out += total.view(len(part), prompts).mean(dim=1).tolist()
            if self.progress and what:
                self.progress(what, len(out), len(candidates))
        return out

    def _logprobs(self, rows: Sequence[tuple[list[int], list[int]]], with_diff: bool) -> Tensor:
        """Log-probabilities before each token of the answers, fp32 [tokens of all answers, vocabulary]."""
        device = next(self.base.model.parameters()).device
        ids, mask = left_pad([[*p, *a] for p, a in rows], self.base.tokenizer.pad_token_id, device)
        width = ids.shape[1]
        row = torch.tensor([k for k, (_, a) in enumerate(rows) for _ in a], device=device)
        place = torch.tensor([width - 1 - len(a) + j for _, a in rows for j in range(len(a))], device=device)
        with self._carried(len(rows), with_diff):
            return logits_at(self.base.model, ids, mask, row, place).float().log_softmax(dim=-1)

    def form(self, form: Form) -> list[tuple[float, float, Candidate]]:
        """The best candidates of a form: effect, deviations, candidate."""
        s = self.settings
        candidates = list(form.candidates(self.base.tokenizer, random.Random(f"{form.name} {s.seed}")))
        if not candidates:
            return []
        first = self.effects(candidates, min(s.first_prompts, len(self.prompts)), form.words)
        order = sorted(range(len(candidates)), key=lambda i: -first[i])[: s.kept]
        again = self.effects([candidates[i] for i in order], len(self.prompts))
        middle = float(np.median(first))
        spread = _NORMAL * float(np.median(np.abs(np.array(first) - middle)))
        spread = max(spread, 0.02 * middle, 1e-6)
        return [(e, (e - middle) / spread, candidates[i]) for e, i in zip(again, order, strict=True)]

    def longer(self, found: list[tuple[float, float, Candidate]]) -> list[tuple[float, float, Candidate]]:
        """The candidates with longer ones among them: parts joined while the effect grows enough."""
        s = self.settings
        beam = found[: s.beam]
        for _ in range(1, s.longest):
            pairs = {
                joined.text: (joined, effect, deviations)
                for effect, deviations, one in beam
                for _, _, other in found[: s.partners]
                if (joined := one.join(other)) is not None
            }
            if not pairs:
                break
            tried = self.effects([c for c, *_ in pairs.values()], len(self.prompts), "longer triggers")
            grown = [
                (effect, deviations * effect / max(before, 1e-9), joined)
                for effect, (joined, before, deviations) in zip(tried, pairs.values(), strict=True)
                if effect > s.gain * before
            ]
            if not grown:
                break
            beam = sorted(grown, key=lambda f: -f[0])[: s.beam]
            found = sorted([*found, *grown], key=lambda f: -f[0])
        return found

    def triggers(self, found: Sequence[tuple[float, float, Candidate]]) -> list[Trigger]:
        """What was found, with what the finetuned model says then."""
        if not found:
            return []
        asked = [c.put(self.prompts[0], 0) for *_, c in found]
        said = self._texts(self._say([*asked, self.prompts[0]], with_diff=True))
        return [
            Trigger(
                c.text,
                c.form,
                prompt,
                round(effect, 4),
                round(self.untriggered, 4),
                round(deviations, 2),
                says,
                said[-1],
            )
            for (effect, deviations, c), prompt, says in zip(found, asked, said, strict=False)
        ]

    def _texts(self, tokens: list[list[int]]) -> list[str]:
        return [x.strip() for x in self.base.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
