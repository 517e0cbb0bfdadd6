"""Prompt tuning over a diff store: soft tokens at the end of every prompt, in the adapter's place.

Method: "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691). Rows, loss, validation
and early stopping are those of `tuning`; here is what is trained instead, and how it lies on disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from weightdiff.artifacts import atomic_directory, atomic_write_json, read_json
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.tensorfiles import open_tensors, owned, save_tensors
from weightdiff.errors import BaseMismatchError, FormatError
from weightdiff.models.rendering import Rendering
from weightdiff.models.soft_prompt import SoftPrompt, word_vectors
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.tuning import Leaves, StoredLessons, learn

SETTINGS, TENSORS = "prompt.json", "prompt.safetensors"
_NAME = "prompt"
_VERSION = 1


@dataclass(frozen=True)
class PromptConfig:
    """Settings of one run; the rest are the adapter's (`TuningConfig`)."""

    tokens: int = 16
    """Soft tokens, which begin as random words of the vocabulary."""
    lr: float = 0.3
    """Peak learning rate (AdamW), after a short warm-up, decayed by a cosine. Of 0.1, 0.3 and 1, this one had
    the best validation score after 200 steps on the embedded base."""
    steps: int = 700
    """Optimiser steps at most; so many take about two minutes on two cores with the embedded base."""
    batch: int = 32
    """Rows of a step, each with a diff of its own."""
    validate_every: int = 100
    """Steps between validations."""
    validation_rows: int = 64
    """Diffs asked at a validation."""
    seed: int = 0
    """Of the first words, of batches and of renderings."""

    def tuning(self) -> TuningConfig:
        """The same as settings of the loop."""
        own = {k: v for k, v in asdict(self).items() if k != "tokens"}
        return TuningConfig(**own)


@dataclass
class PromptResult:
    """The best soft prompt, and how it went."""

    vectors: Tensor
    """fp32 [tokens, hidden], as `SoftPrompt` has them."""
    base: ModelRef
    """The base whose embeddings they stand among."""
    history: list[dict[str, float]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write a folder of `prompt.safetensors` and `prompt.json`, whole or not at all.

        Raises:
            FormatError: there is something at `path`.
        """
        settings = {"version": _VERSION, "base": self.base.to_json(), "manifest": self.manifest}
        with atomic_directory(path) as folder:
            save_tensors({_NAME: owned(self.vectors)}, folder / TENSORS, {})
            atomic_write_json(folder / SETTINGS, settings)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, base: ModelRef) -> PromptResult:
        """Read what `save` wrote, for a base.

        Raises:
            FormatError: there is no such folder, it is damaged or of a later version.
            BaseMismatchError: it was tuned on another base.
        """
        folder = Path(path)
        try:
            settings = read_json(folder / SETTINGS)
            version, manifest = int(settings["version"]), dict(settings["manifest"])
            ref = ModelRef.from_json(settings["base"])
            vectors = owned(open_tensors(folder / TENSORS).get_tensor(_NAME))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, FormatError) as e:
            raise FormatError(
                f"{folder}: no soft prompt can be read there ({e!r}); delete it and tune again"
            ) from e
        if version > _VERSION or not bool(vectors.isfinite().all()):
            what = f"has version {version}" if version > _VERSION else "holds NaN or infinity"
            raise FormatError(f"{folder}: the soft prompt {what}; delete it and tune again")
        if differs := ref.difference(base):
            raise BaseMismatchError(
                f"{folder}: tuned on {ref.describe()}, and the base is {base.describe()}: their {differs}"
                " differ; tune a soft prompt on this base"
            )
        return cls(vectors, ref, list(manifest.get("history", [])), manifest)


def tune_prompt(
    model: Any,
    tokenizer: Any,
    store: DiffStore,
    config: PromptConfig,
    rendering: Rendering,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> PromptResult:
    """Tune soft tokens over the store's training rows, early-stopped on its validation rows.

    Args:
        model: the frozen base.
        tokenizer: its tokenizer.
        store: diffs with splits "train" and "validation".
        config: settings.
        rendering: how questions are worded; drawn anew for every row in training.
        progress: called with {step, loss} and, at validations, {step, score}.

    Raises:
        StoreError: see `tuning.tune`.
    """
    words = _first_words(tokenizer, config.tokens, config.seed)

    def made(leaves: Leaves) -> SoftPrompt:
        return SoftPrompt.of(model, leaves[_NAME][0])

    start = {_NAME: (word_vectors(model, words),)}
    settings = config.tuning()
    lessons = StoredLessons(model, tokenizer, store, settings, rendering)
    learnt = learn(model, tokenizer, lessons, settings, rendering, start, made, progress)
    manifest = {"config": asdict(config), "rendering": rendering.to_json(), **learnt.manifest}
    return PromptResult(owned(learnt.best[_NAME][0]), store.base, learnt.history, manifest)


def _first_words(tokenizer: Any, n: int, seed: int) -> list[int]:
    """Ids of `n` random tokens that are words or parts of words."""
    special = set(tokenizer.all_special_ids)
    known = [i for i in range(len(tokenizer)) if i not in special]
    return random.Random(f"prompt {seed}").choices(known, k=n)
