"""Whole finetuned checkpoints as weight diffs: the difference to a base that the caller names.

The work is done in `weightdiff.diffs.extraction`.
"""

from __future__ import annotations

import os
from pathlib import Path

from weightdiff.diffs.checkpoints import Checkpoint
from weightdiff.diffs.extraction import extract
from weightdiff.diffs.formats.registry import Reader, register
from weightdiff.diffs.types import WeightDiff
from weightdiff.diffs.weights import BaseSource, needs_base, weights_of

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model*.index.json", "pytorch_model*.index.json")
_OTHERS = ("adapter_config.json", "index.csv")


def read_checkpoint(
    path: str | os.PathLike[str],
    base: BaseSource | None = None,
    rank: int | None = None,
    energy: float | None = None,
    *,
    linear_only: bool = False,
) -> WeightDiff:
    """Read a finetuned checkpoint as its difference to a base; see `extraction.extract`.

    Args:
        path: the finetune's folder.
        base: the base, as a model, a state dict or a checkpoint's folder or file.
        rank: most directions to keep of a matrix.
        energy: share of a matrix's squared norm to keep; with neither, the diff is dense.
        linear_only: leave out all but linear layers.

    Raises:
        BaseNeededError: no base is given.
        FormatError: a checkpoint is damaged or quantized.
        BaseMismatchError: the finetune is of another base.
        NonFiniteError: a difference is NaN or infinite.
        ValueError: a senseless `rank` or `energy`.
    """
    if base is None:
        raise needs_base(str(path), "all weights of a finetuned model")
    found, _ = extract(weights_of(base), Checkpoint.open(path), rank, energy, linear_only=linear_only)
    return found


def _matches(path: Path) -> bool:
    if not path.is_dir() or any((path / name).is_file() for name in _OTHERS):
        return False
    return any(item.is_file() for pattern in _WEIGHTS for item in path.glob(pattern))


register(
    Reader(
        "checkpoint",
        "a full model's folder (model.safetensors or its shards), read against base=…",
        _matches,
        read_checkpoint,
    )
)
