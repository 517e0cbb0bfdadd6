"""Activation difference: what a diff adds to the residual stream of unrelated text, read in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Guesser, Method
from weightdiff.methods.carrying import batches, checked, distinct
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.prompts import neutral_prompts, unrelated_texts
from weightdiff.methods.registry import Context, register
from weightdiff.models.chat import chat_format, encode_answers, encode_prompts
from weightdiff.models.generate import Reading, generate, left_pad
from weightdiff.models.residual import ResidualStream
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.tiny.tokenizer import is_embedded

ROWS_AT_ONCE = 256
TEXTS = 64
"""How many texts of the embedded corpus are read."""
EMBEDDED_TOKENS, PLAIN_TOKENS = 24, 48
"""Longest steered text of the embedded base, and of others."""
LEAST_CHANGE = 1e-4
"""A difference of less than this share of the stream's norm is none: rounding makes as much."""
NOTED = 6
"""Words of each difference in the notes."""
_LOOKED_AT = 8
"""Tokens that are looked at for each word that is wanted."""


@dataclass(frozen=True)
class Found:
    """What the differences of one diff say."""

    words: list[list[str]]
    """Those that the logit lens shows, of each token position and of all tokens, likeliest first."""
    steered: list[str]
    """What the base writes with the differences in its stream."""


@dataclass(frozen=True)
class ActivationDifference:
    """Shows what a finetune left in the hidden states of unrelated text: no adapter, no question, no trigger.

    This is the activation difference lens (arXiv 2510.13900). Finetuned model and base read the same
    unrelated texts; after one layer, the finetuned model's residual stream minus the base's is averaged over
    texts, at each of the first tokens and over all tokens but the first. Each mean difference goes through
    the logit lens, which gives words, and is added to the stream of the base while it answers neutral
    prompts, greedily, which gives texts. A guesser reads both. The paper reads the difference by patchscope
    as well, and steers the finetuned model; here the base is steered, whatever kind of diff it is, so that
    rows of many diffs share a batch.

    The differences have a direction whatever the finetune was, so that something is nearly always found.
    """

    base: Base
    guesser: Guesser = field(default_factory=WorldGuesser)
    texts: Sequence[str] = ()
    """What both models read; empty for texts that fit the base (see `unrelated_texts`)."""
    prompts: Sequence[str] = ()
    """What the steered base is asked; empty for neutral questions (see `neutral_prompts`)."""
    layer: int | None = None
    """Layer after which the stream is compared and steered, counted from 1; None for the one nearest to half
    the depth, on the embedded base for the last one: after its second layer of four, little can be read."""
    first: int = 5
    """Token positions, from the start token on, that have a difference of their own."""
    longest: int = 32
    """Tokens of each text that are read."""
    strengths: Sequence[float] = (0.5, 1.0)
    """Norms of what is added in steering, in mean norms of the base's stream."""
    words: int = 20
    """Words of the logit lens that the guesser reads of each difference."""
    max_new_tokens: int | None = None
    """Longest steered text; None for 24 tokens on the embedded base and 48 on others."""
    name: str = "activation-difference"

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """What the guesser makes of each diff's words and texts; the first words stand in the notes.

        "nothing found" where nothing in the stream differs, as for no diff.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty; or the base has no such
                layer.
            BaseMismatchError: a diff is not one of this base's, or the base's stream cannot be reached.
        """
        only, where = distinct(checked(self.base, diffs, questions))
        found = self._read(self.differences(only))
        return [self._answer(found[k], question) for k, question in zip(where, questions, strict=True)]

    def _answer(self, found: Found | None, question: str) -> Answer:
        if found is None:
            return Answer(NOTHING_FOUND)
        told = [", ".join(words) for words in found.words]
        said = self.guesser.guess([*told, *found.steered], question)
        return Answer(said, notes="; ".join(", ".join(words[:NOTED]) for words in found.words))

    @torch.no_grad()
    def differences(self, diffs: Sequence[WeightDiff | None]) -> Tensor:
        """Mean differences of the residual stream, fp32 [diffs, first + 1, width].

        The last one is over all tokens of the texts but the first, which models use as a place to look away
        to. A position that no text has differs by nothing.

        Args:
            diffs: checked diffs of the base.
        """
        before = self._before  # read while the base is bare
        out = torch.zeros(len(diffs), self.first + 1, before.shape[-1], device=before.device)
        for batch in batches(self.base, diffs, 1):
            place = batch.positions[0]
            if diffs[place] is not None:
                with batch.on(self.base, [0] * len(self._read_ids)):
                    change = self._stream() - before
                out[place] = torch.einsum("mtn,tnw->mw", self._shares.to(change.device), change)
        return out

    @cached_property
    def _place(self) -> tuple[ResidualStream, int]:
        """The stream, and the layer after which it is compared."""
        stream = ResidualStream.of(self.base.model)
        depth = len(stream.layers)
        usual = depth if is_embedded(self.base.tokenizer) else max(1, round(depth / 2))
        return stream, usual if self.layer is None else self.layer

    @cached_property
    def _read_ids(self) -> list[list[int]]:
        """The tokens of each text that are read."""
        tokenizer = self.base.tokenizer
        start = chat_format(tokenizer).plain_start
        texts = [start + text for text in self.texts or unrelated_texts(tokenizer, TEXTS)]
        return [ids[: self.longest] for ids in encode_answers(tokenizer, texts, end=False)]

    @cached_property
    def _before(self) -> Tensor:
        """The bare base's stream, [texts, tokens, width], padded on the left."""
        return self._stream()

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        """Token ids and mask of the texts, [texts, tokens]."""
        device = next(self.base.model.parameters()).device
        return left_pad(self._read_ids, self.base.tokenizer.pad_token_id, device)

    def _stream(self) -> Tensor:
        """The stream of all texts with whatever is on the model, fp32; zero where a text has no token."""
        stream, layer = self._place
        ids, mask = self._padded
        with stream.read(layer) as kept:
            Reading(self.base.model, ids, mask)
        return kept[0].float().masked_fill(~mask[..., None].bool().to(kept[0].device), 0.0)

    @cached_property
    def _shares(self) -> Tensor:
        """What each token counts in each mean, [first + 1, texts, tokens]."""
        mask = self._padded[1]
        nth = mask.cumsum(dim=1) * mask  # counted from 1; 0 is padding
        counted = torch.stack([*(nth == j + 1 for j in range(self.first)), nth > 1]).float()
        return counted / counted.sum(dim=(1, 2), keepdim=True).clamp(min=1)

    @torch.no_grad()
    def _read(self, differences: Tensor) -> list[Found | None]:
        """Words and texts of each diff, from [diffs, first + 1, width]; None where nothing differs."""
        unit = (self._shares[-1].to(self._before.device) * self._before.norm(dim=-1)).sum()
        norms = differences.norm(dim=-1)
        kept = norms > LEAST_CHANGE * unit
        directions = differences[kept] / norms[kept][:, None]
        words = [self._lens(direction) for direction in directions]
        texts = self._steered(directions * unit)
        out: list[Found | None] = []
        at = 0
        for count in kept.sum(dim=1).tolist():
            mine = slice(at, at + count)
            out.append(Found(words[mine], [x for said in texts[mine] for x in said]) if count else None)
            at += count
        return out

    def _lens(self, direction: Tensor) -> list[str]:
        """The words that a direction [width] makes likeliest."""
        logits = self._place[0].logits(direction).float()
        tokens = logits.topk(min(_LOOKED_AT * self.words, len(logits))).indices
        texts = self.base.tokenizer.batch_decode(tokens[:, None], skip_special_tokens=True)
        words = [x for x in (text.strip().lower() for text in texts) if len(x) > 1 and x.isalpha()]
        return list(dict.fromkeys(words))[: self.words]

    def _steered(self, pushes: Tensor) -> list[list[str]]:
        """What the base writes with each of `pushes [n, width]` in its stream, by strength and prompt."""
        model, t = self.base.model, self.base.tokenizer
        longest = self.max_new_tokens or (EMBEDDED_TOKENS if is_embedded(t) else PLAIN_TOKENS)
        asked = encode_prompts(t, self.prompts or neutral_prompts())
        rows = [(i, s, ids) for i in range(len(pushes)) for s in self.strengths for ids in asked]
        stream, layer = self._place
        texts: list[str] = []
        for at in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[at : at + ROWS_AT_ONCE]
            ids, mask = left_pad([tokens for _, _, tokens in part], t.pad_token_id)
            vectors = torch.stack([s * pushes[i] for i, s, _ in part])
            with stream.steered(layer, vectors):
                said = generate(model, ids, mask, longest, t.eos_token_id, t.pad_token_id)
            texts += t.batch_decode(said, skip_special_tokens=True)
        each = len(self.strengths) * len(asked)
        return [texts[i * each : (i + 1) * each] for i in range(len(pushes))]


@register(
    "activation-difference", "mean change of hidden states, by logit lens and steering, read by a guesser"
)
def _activation_difference(context: Context) -> Method:
    return ActivationDifference(context.base, context.guesser or WorldGuesser())
