"""`base_weights`: the weight matrices of a base by module, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from weightdiff.diffs.weights import BaseSource, Weights, weights_of

_SUFFIX = ".weight"


def base_weights(source: BaseSource) -> dict[str, Callable[[], Tensor]]:
    """Index the weights of a base; of a checkpoint, only headers are read.

    Args:
        source: a checkpoint folder or file, a loaded model, or a state dict.

    Returns:
        Dotted module name → what reads its weight, a matrix as [out, in] however the model stores it. Reading
        raises FormatError where a file was damaged meanwhile.

    Raises:
        FormatError: the path holds no checkpoint, or a damaged one.
    """
    weights = weights_of(source)
    modules = [name.removesuffix(_SUFFIX) for name in weights.names() if name.endswith(_SUFFIX)]
    return {module: partial(_read, weights, module) for module in modules}


def _read(weights: Weights, module: str) -> Tensor:
    weight = weights.tensor(module + _SUFFIX)
    return weight.T if weight.ndim == 2 and weights.transposed(module) else weight
