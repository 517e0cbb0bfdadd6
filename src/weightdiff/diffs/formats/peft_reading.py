"""The reading half of PEFT's LoRA folders; `peft` has the writing half and the registration.

What a low-rank product alone cannot say (DoRA, biases, whole saved modules, …) is refused by name rather than
dropped, and so is every tensor that is no factor of a linear module.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.tensorfiles import open_tensors
from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import FormatError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
BASE_KEY, META_KEY = "weightdiff_base", "weightdiff_meta"
# module.lora_A.weight, or module.lora_A.<adapter name>.weight as older releases and raw state dicts have it
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")

# Options under which the saved factors are not the whole change, and what they are called in messages.
_REFUSED_OPTIONS = {
    "use_dora": "DoRA magnitudes (use_dora)",
    "use_qalora": "QALoRA pooling (use_qalora)",
    "use_bdlora": "block-diagonal factors (use_bdlora)",
    "lora_bias": "LoRA biases (lora_bias)",
    "modules_to_save": "whole saved modules (modules_to_save)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "target_parameters": "factors of bare parameters (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activation by tokens (alora_invocation_tokens)",
    "arrow_config": "routing between adapters (arrow_config)",
    "kasa_config": "KaSA's singular values (kasa_config)",
    "monteclora_config": "MonteCLoRA's sampling (monteclora_config)",
}
# Initialisations that take the starting factors out of the base's weights: base + BA is then not the model.
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_peft(path: str | os.PathLike[str]) -> WeightDiff:
    """Read a PEFT LoRA folder.

    The diff's `base` is what `write_peft` recorded, else the config's base name without fingerprints; `meta`
    keeps the base name and revision.

    Args:
        path: the folder (or one of its two files).

    Raises:
        FormatError: if files are missing, damaged or pickled, or hold what is no plain LoRA; says which part.
        NonFiniteError: if factors are NaN or infinite.
    """
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    config = _read_config(folder)
    tensors, metadata = _read_tensors(folder)
    pairs = _pair(folder, tensors)
    modules = {name: _factors(folder, name, down, up, config) for name, (down, up) in sorted(pairs.items())}
    base_name, revision = config.get("base_model_name_or_path"), config.get("revision")
    meta: dict[str, Any] = {"base_model_name_or_path": base_name, "revision": revision}
    base = ModelRef(str(base_name), revision) if base_name else None
    try:
        meta |= cast(dict[str, Any], json.loads(metadata.get(META_KEY, "{}")))
        if BASE_KEY in metadata:
            base = ModelRef.from_json(json.loads(metadata[BASE_KEY]))
    except (ValueError, TypeError, FormatError) as error:
        raise FormatError(
            f"{folder / WEIGHTS_NAME} has metadata that cannot be read ({error}); save it again"
        ) from error
    diff = WeightDiff(dict(modules), base, meta)
    diff.check_finite()
    return diff


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what a plain LoRA reader would get wrong."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FormatError(
            f"{folder} has no {CONFIG_NAME}, so its scale is unknown; copy the whole adapter folder"
        )
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{path} cannot be read as JSON ({error}); copy the adapter folder again"
        ) from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} holds no JSON object; copy the adapter folder again")
    config = cast(dict[str, Any], config)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FormatError(
            f"{path} is of PEFT type {kind!r}, and only LORA is read; convert it to a plain LoRA"
        )
    refused = [what for key, what in _REFUSED_OPTIONS.items() if config.get(key)]
    bias = config.get("bias", "none")
    refused += [f"trained biases (bias={bias!r})"] if bias != "none" else []
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_REFUSED_INITS):
        refused.append(
            f"an initialisation that changes the base (init_lora_weights={init!r}; save with"
            " path_initial_model_for_weight_conversion)"
        )
    if refused:
        raise FormatError(
            f"{path} uses what a plain LoRA cannot say: {', '.join(refused)}; merge it and read"
            " the full checkpoint, or train without it"
        )
    return config


def _read_tensors(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and metadata of adapter_model.safetensors."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / PICKLE_NAME).is_file():
            raise FormatError(
                f"{folder / PICKLE_NAME} is a pickle, which can run code when it is read; load it with"
                " PEFT where you trust it and save_pretrained it again, which writes safetensors"
            )
        raise FormatError(
            f"{folder} has a {CONFIG_NAME} but no {WEIGHTS_NAME}; copy the whole adapter folder"
        )
    try:
        handle = open_tensors(path)
        # cloned, so that nothing stays mapped to a file that may be replaced
        tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}  # noqa: SIM118
        return tensors, handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} is damaged or truncated ({error}); copy the adapter folder again"
        ) from error


def _pair(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return module → (down, up); every tensor must be a factor, and every factor have its partner."""
    sides: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    others: list[str] = []
    for key, tensor in tensors.items():
        match = _FACTOR.fullmatch(key)
        if not match:
            others.append(key)
            continue
        module = match["module"].removeprefix(PREFIX)
        if module in sides[match["side"]]:
            raise FormatError(f"{folder} holds several adapters for {module}; save one adapter a folder")
        sides[match["side"]][module] = tensor
    if others:
        raise FormatError(
            f"{folder / WEIGHTS_NAME} holds tensors that are no linear LoRA factors: {named(sorted(others))};"
            " merge the adapter and read the full checkpoint, or train on linear modules only"
        )
    for side, other in (("A", "B"), ("B", "A")):
        alone = sorted(set(sides[side]) - set(sides[other]))
        if alone:
            raise FormatError(
                f"{folder / WEIGHTS_NAME} has lora_{side} without lora_{other} for {named(alone)};"
                " save the adapter again"
            )
    if not sides["A"]:
        raise FormatError(f"{folder / WEIGHTS_NAME} holds no LoRA factors; save the adapter again")
    return {module: (down, sides["B"][module]) for module, down in sides["A"].items()}


def _factors(
    folder: Path, module: str, down: torch.Tensor, up: torch.Tensor, config: Mapping[str, Any]
) -> LoraFactors:
    """Return a module's factors with its scale, checked against the config's rank."""
    if down.ndim != 2 or up.ndim != 2:
        raise FormatError(
            f"{folder}: {module} is no linear module (lora_A has shape {tuple(down.shape)}), which is all"
            " that is read; merge the adapter and read the full checkpoint"
        )
    try:
        rank = int(_lookup(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_lookup(config.get("alpha_pattern"), module, config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise FormatError(
            f"{folder / CONFIG_NAME} has no usable r and lora_alpha ({error!r}); save it again"
        ) from error
    if down.shape[0] != rank:
        raise FormatError(
            f"{folder}: {module} has lora_A of rank {down.shape[0]}, and {CONFIG_NAME} says {rank}; copy both"
            " files of one adapter"
        )
    try:
        return LoraFactors(down, up, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    except FormatError as error:
        raise FormatError(f"{folder}: {module}: {error}; save the adapter again") from error


def _lookup(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return a pattern's value for a module as PEFT does: the first key that matches the end of its name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
