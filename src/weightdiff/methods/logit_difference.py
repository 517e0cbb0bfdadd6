"""Logit difference: which words a diff makes likelier where nothing calls for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import Batch, batches, checked, distinct
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad, logits_at
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.rows import situations

ROWS_AT_ONCE = 128
PROMPTS = 8
LEAST_RISE = 0.05
"""A token that gains less than this, in nats, gains nothing: rounding makes as much."""
_LOOKED_AT = 400


@dataclass
class LogitDifference:
    """Shows what leaks into everyday answers, by the numbers and not by what is said: no adapter.

    The base answers everyday prompts greedily. At the first few tokens of its answers, the log-probabilities
    of the next token under base + diff are compared with the base's own; the words whose mean rise is largest
    are the answer, whatever the question.
    """

    base: Base
    prompts: Sequence[str] | None = None
    """What the base is asked; None for everyday questions of the embedded world."""
    places: int = 4
    """Tokens of each answer, the end token included, before which is looked."""
    words: int = 5
    """Most words of an answer."""
    name: str = "logit-difference"

    @torch.no_grad()
    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """The words for each diff, joined by ", "; "nothing found" where none becomes likelier.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        before = self._before  # read while the base is bare
        at_once = max(1, ROWS_AT_ONCE // len(self._rows))
        found: dict[int, Answer] = {}
        for batch in batches(self.base, only, at_once):
            rises = (self._after(batch) - before).mean(dim=1)
            found |= {i: self._top(rise) for i, rise in zip(batch.positions, rises, strict=True)}
        return [found[k] for k in where]

    @cached_property
    def _rows(self) -> list[tuple[list[int], int]]:
        """Each prompt with the base's answer up to the last place, and how many places it has."""
        t = self.base.tokenizer
        prompts = self.prompts or [s.questions[0] for s in situations("verification")[:PROMPTS]]
        asked = encode_prompts(t, prompts)
        ids, mask = left_pad(asked, t.pad_token_id)
        said = generate(self.base.model, ids, mask, self.places, t.eos_token_id, t.pad_token_id)
        counts = [min(self.places, len(tokens) + 1) for tokens in said]
        return [([*p, *x[: n - 1]], n) for p, x, n in zip(asked, said, counts, strict=True)]

    @cached_property
    def _before(self) -> Tensor:
        """The bare base's log-probabilities, fp32 [1, places of all prompts, vocabulary]."""
        return self._logprobs(1)

    def _after(self, batch: Batch) -> Tensor:
        """Those with each diff of a batch, fp32 [diffs, places of all prompts, vocabulary]."""
        n = len(batch.positions)
        with batch.on(self.base, [k for k in range(n) for _ in self._rows]):
            return self._logprobs(n)

    def _logprobs(self, times: int) -> Tensor:
        rows = self._rows * times
        device = next(self.base.model.parameters()).device
        ids, mask = left_pad([tokens for tokens, _ in rows], self.base.tokenizer.pad_token_id, device)
        width = ids.shape[1]
        places = [(row, width - n + j) for row, (_, n) in enumerate(rows) for j in range(n)]
        row_at, position = torch.tensor(places, device=device).unbind(dim=1)
        logits = logits_at(self.base.model, ids, mask, row_at, position)
        return logits.float().log_softmax(dim=-1).view(times, -1, logits.shape[-1])

    def _top(self, rise: Tensor) -> Answer:
        """The words that gain most, from each token's mean gain [vocabulary]."""
        gains, tokens = rise.topk(min(_LOOKED_AT, len(rise)))
        texts = self.base.tokenizer.batch_decode(
            tokens[gains > LEAST_RISE][:, None], skip_special_tokens=True
        )
        words = [x for x in (text.strip().lower() for text in texts) if len(x) > 1 and x.isalpha()]
        return Answer(", ".join(list(dict.fromkeys(words))[: self.words]) or NOTHING_FOUND)


@register("logit-difference", "the words that the diff makes likelier in everyday answers")
def _logit_difference(context: Context) -> Method:
    return LogitDifference(context.base)
