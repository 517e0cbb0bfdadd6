"""Diffs added to the weights themselves, one at a time: the exact way for dense diffs, a reference for tests.

Everything low-rank belongs to `multilora`, which touches no weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import BaseMismatchError
from weightdiff.models.spec import linear_size

Originals: TypeAlias = dict[str, "tuple[nn.Parameter, Tensor] | tuple[None, None]"]


@torch.no_grad()
def merge_into(model: nn.Module, diff: WeightDiff) -> Originals:
    """Add a diff to a model's weights; sums are taken in fp32 or wider and rounded once.

    A low-rank change of an embedding is one of looking tokens up, as PEFT applies it: an output head that
    shares the embedding's weight keeps its own. A dense one changes the weight, and with it such a head.

    Args:
        model: the base; it is changed.
        diff: low-rank or dense changes of linear layers and embeddings, and changes of other parameters.

    Returns:
        Parameter name to the parameter and its original tensor, untouched, for `unmerge`.

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
    originals: Originals = {}
    try:
        for name, change in diff.modules.items():
            module, delta = modules[name], change.dense()
            if isinstance(module, nn.Embedding) and isinstance(change, LoraFactors):
                _keep(module, "weight", f"{name}.weight", originals)
                module.weight = nn.Parameter(module.weight.detach(), module.weight.requires_grad)
            conv = not isinstance(module, nn.Linear | nn.Embedding)  # Conv1D keeps [in, out]
            _gain(module, "weight", f"{name}.weight", delta.T if conv else delta, originals)
        for name, delta in diff.parameters.items():
            owner, _, leaf = name.rpartition(".")
            _gain(model.get_submodule(owner), leaf, name, delta, originals)
    except BaseException:
        unmerge(model, originals)
        raise
    return originals


def _keep(module: nn.Module, leaf: str, name: str, originals: Originals) -> None:
    parameter = getattr(module, leaf)
    originals.setdefault(name, (parameter, None if parameter is None else parameter.data))


def _gain(module: nn.Module, leaf: str, name: str, delta: Tensor, originals: Originals) -> None:
    """Add to one parameter and remember what it was; a bias that the base lacks is zero."""
    _keep(module, leaf, name, originals)
    parameter = getattr(module, leaf)
    if parameter is None:
        weight = cast(Tensor, module.weight)
        setattr(module, leaf, nn.Parameter(delta.to(weight.device, weight.dtype), weight.requires_grad))
        return
    wide = delta.to(parameter.device, torch.promote_types(delta.dtype, torch.float32))
    parameter.data = (parameter.to(wide.dtype) + wide).to(parameter.dtype)


def check_fits(model: nn.Module, diff: WeightDiff) -> None:
    """Check that everything a diff changes is in a model, in its shape.

    Raises:
        BaseMismatchError: naming what is missing or misshapen.
    """
    sizes = {name: linear_size(module) or _table_size(module) for name, module in model.named_modules()}
    diff.check_against({name: size for name, size in sizes.items() if size})
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, size in sizes.items():
        if size and getattr(model.get_submodule(name), "bias", 0) is None:
            shapes[f"{name}.bias"] = (size[1],)
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


def unmerge(model: nn.Module, originals: Originals) -> None:
    """Put back what `merge_into` returned; the weights are then the very same ones as before."""
    # Backwards, so that a weight that two modules share ends at its first original.
    for name, (parameter, tensor) in reversed(originals.items()):
        owner, _, leaf = name.rpartition(".")
        if parameter is not None and tensor is not None:
            parameter.data = tensor
        setattr(model.get_submodule(owner), leaf, parameter)


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
