"""Diffs added to the weights themselves, one at a time: the exact way for dense diffs, a reference for tests.

Everything low-rank belongs to `multilora`, which touches no weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from weightdiff.errors import BaseMismatchError
from weightdiff.models.spec import linear_size

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff


@torch.no_grad()
def merge_into(model: nn.Module, diff: WeightDiff) -> dict[str, Tensor]:
    """Add a diff to a model's weights; sums are taken in fp32 or wider and rounded once.

    Args:
        model: the base; it is changed.
        diff: low-rank or dense changes.

    Returns:
        Module name to the original weight tensor, untouched, for `unmerge`.

    Raises:
        BaseMismatchError: a module is missing, misshapen or quantized; nothing was changed.
    """
    modules = dict(model.named_modules())
    sizes = {name: linear_size(module) for name, module in modules.items()}
    diff.check_against({name: size for name, size in sizes.items() if size})
    weights = {name: cast(Tensor, modules[name].weight) for name in diff.modules}
    quantized = [name for name, weight in weights.items() if not weight.is_floating_point()]
    if quantized:
        raise BaseMismatchError(
            f"{len(quantized)} modules, such as {quantized[0]}, hold quantized weights, to which nothing can "
            "be added exactly: load the base unquantized, or attach the diff as a LoRA"
        )
    originals: dict[str, Tensor] = {}
    try:
        for name, change in diff.modules.items():
            weight = weights[name]
            delta = change.dense().to(weight.device)
            if not isinstance(modules[name], nn.Linear):  # Conv1D keeps [in, out]
                delta = delta.T
            total = (weight.to(delta.dtype) + delta).to(weight.dtype)
            originals[name], weight.data = weight.data, total
    except BaseException:
        unmerge(model, originals)
        raise
    return originals


def unmerge(model: nn.Module, originals: dict[str, Tensor]) -> None:
    """Put back the tensors that `merge_into` returned; the weights are then the very same ones as before."""
    # Backwards, so that a weight that two modules share ends at its first original.
    for name, weight in reversed(originals.items()):
        model.get_submodule(name).weight.data = weight


@contextmanager
def merged(model: nn.Module, diff: WeightDiff) -> Iterator[nn.Module]:
    """The finetuned model for the length of a `with` block; afterwards the base again, bit by bit.

    Args:
        model: the base.
        diff: low-rank or dense changes.

    Yields:
        `model`, with the diff in its weights.

    Raises:
        BaseMismatchError: see `merge_into`.
    """
    originals = merge_into(model, diff)
    try:
        yield model
    finally:
        unmerge(model, originals)
