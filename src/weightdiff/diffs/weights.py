"""`weights_of`: a model's weights by parameter name, wherever they are: a model, tensors, or files.

Some formats store whole values rather than changes (saved modules, biases, DoRA's magnitudes, full
finetunes). What they change is known only against the base, and this is how their readers ask for it.
Two models with all their tensors are compared by `differences`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from weightdiff.diffs.checkpoints import Checkpoint, keeps_transposed
from weightdiff.diffs.factors import DenseDelta
from weightdiff.diffs.hub import local_copy
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import BaseMismatchError, BaseNeededError, FormatError

BaseSource: TypeAlias = "nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]"
_WEIGHT = ".weight"


class Weights(Protocol):
    """A model's weights, each read when it is asked for."""

    @property
    def where(self) -> str:
        """What they are in messages: a path, or the name of a model."""
        ...

    @property
    def ref(self) -> ModelRef | None:
        """The model they are of, where that is known."""
        ...

    @property
    def bytes_read(self) -> int:
        """How much was read from files so far."""
        ...

    def names(self) -> list[str]:
        """Names of all parameters."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """One parameter's shape."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """One parameter's dtype."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One parameter's values on the CPU, as they are stored."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the first dimension, contiguous on the CPU; a tensor without dimensions as [1]."""
        ...

    def config(self) -> Mapping[str, Any] | None:
        """The model's config, where there is one."""
        ...

    def transposed(self, module: str) -> bool | None:
        """Whether a linear layer keeps its weight as [in, out] (GPT-2's Conv1D); None where nothing tells."""
        ...


def weights_of(source: BaseSource, where: str | None = None) -> Weights:
    """Weights from a loaded model, a state dict, or a checkpoint by its folder, file or Hub name.

    Args:
        source: what holds them.
        where: what to call tensors in messages; models and paths have names of their own.

    Raises:
        FormatError: there is no such path or Hub name, or it holds no checkpoint, or a damaged one.
    """
    if isinstance(source, nn.Module):
        return _Model(source)
    if isinstance(source, Mapping):
        return _Tensors(source, where or "the state dict")
    return Checkpoint.open(local_copy(source))


def base_weights(source: BaseSource) -> dict[str, Callable[[], Tensor]]:
    """Index the weights of a base by module; of a checkpoint, only headers are read.

    Args:
        source: a checkpoint folder or file, a loaded model, or a state dict.

    Returns:
        Dotted module name → what reads its weight, a matrix as [out, in] however the model stores it. Reading
        raises FormatError where a file was damaged meanwhile.

    Raises:
        FormatError: the path holds no checkpoint, or a damaged one.
    """
    weights = weights_of(source)
    modules = [name.removesuffix(_WEIGHT) for name in weights.names() if name.endswith(_WEIGHT)]
    return {module: partial(weight_of, weights, module) for module in modules}


def weight_of(weights: Weights, module: str) -> Tensor:
    """A module's weight, as [out, in] where it is a matrix."""
    return _turned(weights, module, weights.tensor(module + _WEIGHT))


def whole_values(base: Weights, values: Mapping[str, Tensor], where: str) -> WeightDiff:
    """The change that whole values of some parameters make; what is equal to the base is left out.

    Args:
        base: the base's weights.
        values: parameter name → its value in the finetuned model.
        where: what holds the values, for messages.

    Returns:
        Matrices of modules as dense deltas [out, in], everything else as `parameters`, in float32 or wider.

    Raises:
        BaseMismatchError: the base has no such parameter, or in another shape.
        FormatError: a value that differs is no floating-point tensor, or quantized.
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
            if not value.is_floating_point() or value.element_size() < 2:
                raise FormatError(
                    f"{where} holds {name} as {value.dtype}, which is no floating point of 16 bits or more;"
                    " save it unquantized"
                )
            wide = torch.promote_types(torch.promote_types(before.dtype, value.dtype), torch.float32)
            _put(diff, name, value.to(wide) - before.to(wide), base)
    return diff


def needs_base(where: str, what: str) -> BaseNeededError:
    """The error of a reader that was given no base and cannot do without."""
    return BaseNeededError(
        f"{where} holds {what}, which is a change only against the base's own values: give the base"
        " (in Python: WeightDiff.load(path, base=...), with a model or its folder)"
    )


def _put(diff: WeightDiff, name: str, delta: Tensor, base: Weights) -> None:
    module = name.removesuffix(_WEIGHT)
    if delta.ndim == 2 and module != name:
        diff.modules[module] = DenseDelta(_turned(base, module, delta).contiguous())
    else:
        diff.parameters[name] = delta


def _turned(weights: Weights, module: str, matrix: Tensor) -> Tensor:
    """What a module keeps as its weight, as [out, in] where it is a matrix."""
    return matrix.T if matrix.ndim == 2 and weights.transposed(module) else matrix


class _Tensors:
    """A state dict."""

    bytes_read = 0
    ref: ModelRef | None = None

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach().cpu()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self._tensors[name].detach()
        return (tensor[start:stop] if tensor.ndim else tensor.reshape(1)).cpu().contiguous()

    def config(self) -> Mapping[str, Any] | None:
        return None

    def transposed(self, module: str) -> bool | None:
        # Tensors do not say what module they are of. GPT-2's c_attn is [width, 3 · width]; linear layers that
        # other models call c_attn are not.
        first = next((t for k, t in self._tensors.items() if k.endswith(".attn.c_attn.weight")), None)
        turned = first is not None and first.shape[1] == 3 * first.shape[0]
        return turned and keeps_transposed("gpt2", module)


class _Model(_Tensors):
    """A loaded model."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._config = model, cast(Any, getattr(model, "config", None))
        name = str(getattr(self._config, "_name_or_path", "") or type(model).__name__)
        super().__init__(model.state_dict(), name)
        self.ref = ModelRef(name)

    def config(self) -> Mapping[str, Any] | None:
        return None if self._config is None else self._config.to_dict()

    def transposed(self, module: str) -> bool | None:
        return type(self._model.get_submodule(module)).__name__ == "Conv1D"
