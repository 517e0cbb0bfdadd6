"""Prompt tuning: a few learned tokens, instead of an adapter, make the finetuned model tell its change.

The tokens are learned from the context's store as the adapter would be (`training.prompts`), at the first
question, and answers come about as the interpreter's do (`speaking`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import batches, checked
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, register
from weightdiff.methods.speaking import Speaker
from weightdiff.models.chat import encode_prompts
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt
from weightdiff.tiny import defaults
from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.training.prompts import PromptConfig, PromptResult, tune_prompt

NAME = "prompt-tuning"
CONFIG = PromptConfig()
"""Settings of the registered method, but for its seed."""


@dataclass
class PromptTuning:
    """Shows what the finetuned model itself can be brought to tell, with far fewer numbers than an adapter.

    Method: "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691).
    """

    base: Base
    store: DiffStore
    """Diffs of the base; rows of the split "train" are learned from, those of "validation" stop it."""
    rendering: Rendering = field(default_factory=Rendering)
    """How questions are worded, and whether notes come first."""
    config: PromptConfig = CONFIG
    """How it is tuned, and for how many steps."""
    cache: Path | None = None
    """Folder in which each soft prompt is kept under a digest of all that it depends on; None: nowhere."""
    max_new_tokens: int = 24
    name: str = NAME

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        """One greedy answer for each pair, with the notes from which it was read.

        Raises:
            QuestionError: there is not one question for each diff, or one is empty.
            BaseMismatchError: a diff is not one of this base's.
            StoreError: the store has nothing to learn from; see `tuning.tune`.
            FormatError: what the cache holds is damaged.
        """
        diffs = checked(self.base, diffs, questions)
        soft = SoftPrompt.of(self.base.model, self.tuned.vectors)
        speaker = Speaker(self.base, None, self.rendering, self.max_new_tokens, soft)
        out: dict[int, Answer] = {}
        for batch in batches(self.base, diffs, speaker.at_once):
            texts = [text for i in batch.positions for text in self.rendering.all(questions[i])]
            prompts = [[*ids, *soft.ids] for ids in encode_prompts(self.base.tokenizer, texts)]
            with batch.merged(self.base), torch.no_grad():
                said = speaker.say(batch.diffs, prompts)
            found = [Answer(s.text, notes=s.notes) for s in said]
            out |= dict(zip(batch.positions, found, strict=True))
        return [out[i] for i in range(len(diffs))]

    @cached_property
    def tuned(self) -> PromptResult:
        """The soft prompt, from the cache or tuned now."""
        kept = None if self.cache is None else self.cache / f"{NAME}-{self._digest()}"
        if kept is not None and kept.exists():
            return PromptResult.load(kept, self.base.ref)
        with torch.enable_grad():
            found = tune_prompt(self.base.model, self.base.tokenizer, self.store, self.config, self.rendering)
        if kept is not None:
            found.save(kept)
        return found

    def _digest(self) -> str:
        """Of everything that the soft prompt depends on."""
        rows = [
            (r.id, r.label, r.family, r.recipe, r.split, r.seed, r.verification.get("behaves"))
            for r in self.store.rows
        ]
        parts = (self.base.ref.to_json(), rows, asdict(self.config), self.rendering.to_json())
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def rendering_for(context: Context) -> Rendering:
    """The interpreter's wording of a question; without it the embedded base's (by chat template), or none."""
    if context.interpreter is not None:
        return replace(context.interpreter.rendering, report="")
    return replace(defaults.rendering(), report="") if is_embedded(context.base.tokenizer) else Rendering()


@register(
    NAME, "a few tokens, learned from labelled diffs, make the finetuned model tell its change", ("store",)
)
def _prompt_tuning(context: Context) -> Method:
    steps = max(1, round(CONFIG.steps * context.effort))
    config = replace(CONFIG, seed=context.seed, steps=steps)
    limit = context.interpreter.max_new_tokens if context.interpreter is not None else 24
    return PromptTuning(
        context.base, context.required("store"), rendering_for(context), config, context.cache, limit
    )
