"""`weights_of`: a base's weights by parameter name, wherever they are: a model, tensors, or files.

Some formats store whole values rather than changes (saved modules, biases, DoRA's magnitudes, full
finetunes). What they change is known only against the base, and this is how their readers ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from weightdiff.diffs.factors import DenseDelta
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import BaseMismatchError, BaseNeededError

BaseSource: TypeAlias = "nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]"
# Models whose linear layers (Conv1D) keep their weight as [in, out], and how these layers are called.
_TRANSPOSED = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
_WEIGHT = ".weight"


class Weights(Protocol):
    """A base's weights, each read when it is asked for."""

    def names(self) -> Collection[str]:
        """Names of all parameters."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One parameter's values, as they are stored."""
        ...

    def transposed(self, module: str) -> bool:
        """Whether a linear layer keeps its weight as [in, out] (GPT-2's Conv1D)."""
        ...


def weights_of(source: BaseSource) -> Weights:
    """A base's weights from a loaded model, a state dict, or a checkpoint folder or file.

    Raises:
        FormatError: the path holds no checkpoint, or a damaged one.
    """
    if isinstance(source, nn.Module):
        return _Model(source)
    if isinstance(source, Mapping):
        return _Tensors(source)
    from weightdiff.diffs.checkpoints import Checkpoint

    return _Files(Checkpoint.open(Path(source)))


def keeps_transposed(model_type: str, module: str) -> bool:
    """Whether models of a type keep this linear layer's weight as [in, out]."""
    return module.rpartition(".")[2] in _TRANSPOSED.get(model_type, ())


def whole_values(base: Weights, values: Mapping[str, Tensor], where: str) -> WeightDiff:
    """The change that whole parameter values make to a base; what is equal to the base is left out.

    Args:
        base: the base's weights.
        values: parameter name → its value in the finetuned model.
        where: what holds the values, for messages.

    Returns:
        Matrices of modules as dense deltas [out, in], everything else as `parameters`, in float32 or wider.

    Raises:
        BaseMismatchError: the base has no such parameter, or in another shape.
    """
    unknown = sorted(set(values) - set(base.names()))
    if unknown:
        raise BaseMismatchError(
            f"{where} holds values of {named(unknown)}, which this base does not have; give the base that it"
            " was trained on"
        )
    diff = WeightDiff({})
    for name, value in values.items():
        before = base.tensor(name)
        if before.shape != value.shape:
            raise BaseMismatchError(
                f"{where} holds {name} {list(value.shape)}, and the base has {list(before.shape)}; give the"
                " base that it was trained on (a resized vocabulary cannot be read from an adapter)"
            )
        if not torch.equal(before.to(value.dtype), value):
            wide = torch.promote_types(torch.promote_types(before.dtype, value.dtype), torch.float32)
            _put(diff, name, value.to(wide) - before.to(wide), base)
    return diff


def _put(diff: WeightDiff, name: str, delta: Tensor, base: Weights) -> None:
    module = name.removesuffix(_WEIGHT)
    if delta.ndim == 2 and module != name:
        turned = base.transposed(module)
        diff.modules[module] = DenseDelta(delta.T.contiguous() if turned else delta)
    else:
        diff.parameters[name] = delta


@dataclass(frozen=True)
class _Model:
    model: nn.Module

    def names(self) -> Collection[str]:
        return self.model.state_dict().keys()

    def tensor(self, name: str) -> Tensor:
        return cast(Tensor, self.model.state_dict()[name]).detach()

    def transposed(self, module: str) -> bool:
        return type(self.model.get_submodule(module)).__name__ == "Conv1D"


@dataclass(frozen=True)
class _Tensors:
    tensors: Mapping[str, Tensor]

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def transposed(self, module: str) -> bool:
        # Tensors do not say what module they are of. GPT-2's c_attn is [width, 3 · width]; linear layers that
        # other models call c_attn are not.
        first = next((t for k, t in self.tensors.items() if k.endswith(".attn.c_attn.weight")), None)
        turned = first is not None and first.shape[1] == 3 * first.shape[0]
        return turned and keeps_transposed("gpt2", module)


@dataclass(frozen=True)
class _Files:
    checkpoint: Any

    def names(self) -> Collection[str]:
        return self.checkpoint.names()

    def tensor(self, name: str) -> Tensor:
        return self.checkpoint.tensor(name)

    def transposed(self, module: str) -> bool:
        config = cast(dict[str, Any], self.checkpoint.config() or {})
        return keeps_transposed(str(config.get("model_type", "")), module)


def needs_base(where: str, what: str) -> BaseNeededError:
    """The error of a reader that was given no base and cannot do without."""
    return BaseNeededError(
        f"{where} holds {what}, which is a change only against the base's own values: give the base"
        " (in Python: WeightDiff.load(path, base=...), with a model or its folder)"
    )
