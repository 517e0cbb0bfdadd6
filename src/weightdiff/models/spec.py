"""Which linear layers a causal LM has, and their sizes.

Reads names and shapes only: from a configuration the model is built on the meta device, so no weight is read
or allocated. Checking a diff against a spec is left to `weightdiff.diffs`; applying it, to `multilora`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def linear_size(module: nn.Module) -> tuple[int, int] | None:
    """Size of a linear layer.

    Args:
        module: any module.

    Returns:
        `(in_features, out_features)` for an `nn.Linear` (or a quantized subclass of it) or a transformers
        `Conv1D`, None for everything else.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # GPT-2's Conv1D keeps its weight as [in, out]; told by its class name, so that transformers stays
    # unimported here.
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        nx, nf = cast(Tensor, module.weight).shape
        return nx, nf
    return None


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into logits (lm_head), or None where the model names none."""
    getter = getattr(model, "get_output_embeddings", None)
    return cast("nn.Module | None", getter()) if getter is not None else None


def model_spec(model_or_config: PreTrainedModel | PretrainedConfig) -> dict[str, tuple[int, int]]:
    """Names and sizes of the linear layers that a weight diff may change.

    Args:
        model_or_config: a loaded causal LM, or its configuration.

    Returns:
        Dotted module name, exactly as `model.named_modules()` gives it, to `(in_features, out_features)`, in
        the model's own order. The output embeddings (lm_head) are left out.
    """
    model = model_or_config if isinstance(model_or_config, nn.Module) else _skeleton(model_or_config)
    head = output_embeddings(model)
    spec: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        size = linear_size(module)
        if size is not None and module is not head and name != "lm_head":
            spec[name] = size
    return spec


def _skeleton(config: PretrainedConfig) -> nn.Module:
    """The model of `config` on the meta device: all names and shapes, no storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
