"""Diffs added to the weights themselves, one at a time: the exact way for dense diffs, a reference for tests.

Everything low-rank belongs to `multilora`, which touches no weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import BaseMismatchError
from weightdiff.models.spec import linear_size


@torch.no_grad()
def merge_into(model: nn.Module, diff: WeightDiff) -> dict[str, Tensor]:
    """Add a diff to a model's weights; sums are taken in fp32 or wider and rounded once.

    Args:
        model: the base; it is changed.
        diff: low-rank or dense changes of linear layers and embeddings, and changes of other parameters.

    Returns:
        Parameter name to its original tensor, untouched, for `unmerge`.

    Raises:
        BaseMismatchError: a module or parameter is missing, misshapen or quantized; nothing was changed.
    """
    check_fits(model, diff)
    modules = {name: model.get_submodule(name) for name in diff.modules}
    weights = {f"{name}.weight": cast(Tensor, module.weight) for name, module in modules.items()}
    quantized = [name for name, weight in weights.items() if not weight.is_floating_point()]
    if quantized:
        raise BaseMismatchError(
            f"{len(quantized)} modules, such as {quantized[0]}, hold quantized weights, to which nothing can "
            "be added exactly: load the base unquantized, or attach the diff as a LoRA"
        )
    originals: dict[str, Tensor] = {}
    try:
        for name, change in diff.modules.items():
            delta = change.dense()
            if isinstance(modules[name], nn.Linear | nn.Embedding):
                _gain(weights[f"{name}.weight"], f"{name}.weight", delta, originals)
            else:  # Conv1D keeps [in, out]
                _gain(weights[f"{name}.weight"], f"{name}.weight", delta.T, originals)
        for name, delta in diff.parameters.items():
            _gain(model.get_parameter(name), name, delta, originals)
    except BaseException:
        unmerge(model, originals)
        raise
    return originals


def _gain(weight: Tensor, name: str, delta: Tensor, originals: dict[str, Tensor]) -> None:
    """Add to one parameter and remember what it was."""
    wide = delta.to(weight.device, torch.promote_types(delta.dtype, torch.float32))
    total = (weight.to(wide.dtype) + wide).to(weight.dtype)
    originals[name], weight.data = weight.data, total


def check_fits(model: nn.Module, diff: WeightDiff) -> None:
    """Check that everything a diff changes is in a model, in its shape.

    Raises:
        BaseMismatchError: naming what is missing or misshapen.
    """
    sizes = {name: linear_size(module) or _table_size(module) for name, module in model.named_modules()}
    diff.check_against({name: size for name, size in sizes.items() if size})
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wrong = [
        f"{name} {list(p.shape)} (the base has {list(shapes[name]) if name in shapes else 'none'})"
        for name, p in diff.parameters.items()
        if shapes.get(name) != tuple(p.shape)
    ]
    if wrong:
        raise BaseMismatchError(
            f"the weight diff does not fit this base: parameters {named(wrong)}; load the base that it was"
            " trained on"
        )


def _table_size(module: nn.Module) -> tuple[int, int] | None:
    """`(width, vocabulary)` of an embedding, None for everything else."""
    return (module.embedding_dim, module.num_embeddings) if isinstance(module, nn.Embedding) else None


def unmerge(model: nn.Module, originals: dict[str, Tensor]) -> None:
    """Put back the tensors that `merge_into` returned; the weights are then the very same ones as before."""
    # Backwards, so that a weight that two modules share ends at its first original.
    for name, weight in reversed(originals.items()):
        module, _, leaf = name.rpartition(".")
        getattr(model.get_submodule(module), leaf).data = weight


@contextmanager
def merged(model: nn.Module, diff: WeightDiff) -> Iterator[nn.Module]:
    """The finetuned model for the length of a `with` block; afterwards the base again, bit by bit.

    Args:
        model: the base.
        diff: changes of any kind.

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
