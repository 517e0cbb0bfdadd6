"""The reading half of PEFT's LoRA folders; `peft` has the writing half and the registration.

Linear and embedding factors are read as they are. Whole values that a folder can hold beside them (saved
modules, trained biases) and DoRA's magnitudes need the base, against which they become exact differences.
What cannot be said so is refused by name rather than dropped.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import regex
import torch
from safetensors import SafetensorError

from weightdiff.artifacts import parse_json, read_json
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.renaming import TOKEN_TABLES
from weightdiff.diffs.tensorfiles import open_tensors
from weightdiff.diffs.types import DenseDelta, LoraFactors, ModuleDelta, WeightDiff, named
from weightdiff.diffs.weights import BaseSource, Weights, needs_base, weight_of, weights_of, whole_values
from weightdiff.errors import BaseMismatchError, FormatError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."
BASE_KEY, META_KEY = "weightdiff_base", "weightdiff_meta"
# module.lora_A.weight, or module.lora_A.<adapter name>.weight as older releases and raw state dicts have it
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_TABLE_FACTOR = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?")
_FACTOR_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.bias")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.[^.]+)*")
_SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.(?:weight|bias)$)")

# Options under which the saved factors are not the whole change, and what they are called in messages.
_REFUSED_OPTIONS = {
    "use_qalora": "QALoRA pooling (use_qalora)",
    "use_bdlora": "block-diagonal factors (use_bdlora)",
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
# Patterns take the square of a name's length.
_LONGEST_NAME = 1000
_PATTERN_SECONDS = 1
# What an r, a lora_alpha or a pattern that makes no sense raises.
_UNUSABLE = (ArithmeticError, AttributeError, LookupError, TimeoutError, TypeError, ValueError, regex.error)


def read_peft(
    path: str | os.PathLike[str], base: BaseSource | None = None, finite: bool = True
) -> WeightDiff:
    """Read a PEFT LoRA folder.

    The diff's `base` is what `write_peft` recorded, else the config's base name without fingerprints; `meta`
    keeps the base name and revision. Linear and embedding factors are low-rank modules, a LoRA's own bias is
    a change of the module's bias. With `base`, saved modules and trained biases become dense differences, and
    DoRA modules their exact dense change.

    Args:
        path: the folder (or one of its two files).
        base: the base's weights (a model, a state dict, a checkpoint folder), for folders that hold more than
            factors.
        finite: refuse NaN and infinity; without it they are kept, for a look at what is wrong.

    Raises:
        BaseNeededError: if a folder holds more than factors, and no base is given.
        FormatError: if files are missing, damaged or pickled, or hold what is no LoRA; says which part.
        BaseMismatchError: if whole values do not fit `base`.
        NonFiniteError: if numbers are NaN or infinite, unless `finite` is false.
    """
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    config = _read_config(folder)
    tensors, metadata = _read_tensors(folder)
    parts = _sorted_out(folder, tensors)
    _check_promises(folder, config, parts)
    modules: dict[str, ModuleDelta] = {
        name: _factors(folder, name, down, up, config) for name, (down, up) in sorted(parts.pairs.items())
    }
    for name, (a, b) in sorted(parts.tables.items()):
        modules[name] = _factors(folder, name, b.T, a.T, config, rank_of=a)
    parameters = {
        f"{name}.bias": bias * float(_scale_of(folder, name, config)) for name, bias in parts.biases.items()
    }
    if parts.magnitudes or parts.whole:
        if base is None:
            what = "DoRA magnitudes" if parts.magnitudes else f"whole values of {named(sorted(parts.whole))}"
            raise needs_base(str(folder), what)
        weights = weights_of(base)
        for name, magnitude in parts.magnitudes.items():
            modules[name] = _dora(folder, name, modules.get(name), magnitude, weights)
        _add(folder, modules, parameters, _lookups(whole_values(weights, parts.whole, str(folder))))
    base_name, revision = config.get("base_model_name_or_path"), config.get("revision")
    meta: dict[str, Any] = {"base_model_name_or_path": base_name, "revision": revision}
    ref = ModelRef(str(base_name), revision) if base_name else None
    try:
        meta |= cast(dict[str, Any], parse_json(metadata.get(META_KEY, "{}")))
        if BASE_KEY in metadata:
            ref = ModelRef.from_json(parse_json(metadata[BASE_KEY]))
    except (ValueError, TypeError, FormatError) as error:
        raise FormatError(
            f"{folder / WEIGHTS_NAME} has metadata that cannot be read ({error}); save it again"
        ) from error
    diff = WeightDiff(modules, ref, meta, parameters)
    if finite:
        diff.check_finite(str(folder))
    return diff


def _lookups(diff: WeightDiff) -> WeightDiff:
    """Dense changes of embeddings as factors of full rank, which change the lookup of tokens alone.

    PEFT saves the copy that looks tokens up; an output head that shares the base's weight stays as it is.
    """
    modules = {
        name: LoraFactors(torch.eye(m.in_features, dtype=m.dense().dtype), m.dense())
        if name.rpartition(".")[2] in TOKEN_TABLES
        else m
        for name, m in diff.modules.items()
    }
    return WeightDiff(modules, parameters=diff.parameters)


def _add(
    folder: Path, modules: dict[str, ModuleDelta], parameters: dict[str, torch.Tensor], more: WeightDiff
) -> None:
    """Add changes from whole values to those from factors, which go on top of them in PEFT."""
    misshapen = [n for n, m in more.modules.items() if n in modules and _shape(modules[n]) != _shape(m)]
    misshapen += [n for n, p in more.parameters.items() if n in parameters and parameters[n].shape != p.shape]
    if misshapen:
        raise FormatError(
            f"{folder} holds factors of another shape than the whole values of {named(misshapen)}; save the"
            " adapter again"
        )
    for name, m in more.modules.items():
        modules[name] = DenseDelta(modules[name].dense() + m.dense()) if name in modules else m
    for name, p in more.parameters.items():
        parameters[name] = parameters[name] + p if name in parameters else p


def _dora(
    folder: Path, name: str, m: ModuleDelta | None, magnitude: torch.Tensor, base: Weights
) -> DenseDelta:
    """The exact change of a DoRA module: rows of W + BA are rescaled to the magnitudes, and W taken away."""
    if f"{name}.weight" not in base.names():
        raise BaseMismatchError(
            f"{folder} has a DoRA module {name}, which this base does not have; give the base that it was"
            " trained on"
        )
    weight = weight_of(base, name).float()
    if not isinstance(m, LoraFactors) or _shape(m) != tuple(weight.shape):
        found = list(_shape(m)) if m else "no factors"
        raise BaseMismatchError(
            f"{folder}: DoRA module {name} has {found}, and the base's weight is {list(weight.shape)}; give"
            " the base that it was trained on"
        )
    if magnitude.numel() != weight.shape[0]:
        raise FormatError(
            f"{folder}: {name} has {magnitude.numel()} DoRA magnitudes for {weight.shape[0]} rows; save the"
            " adapter again"
        )
    moved = weight + m.dense()
    norms = moved.square().sum(1).sqrt()
    return DenseDelta(moved * (magnitude.float().flatten() / norms)[:, None] - weight)


def _shape(m: ModuleDelta) -> tuple[int, int]:
    """The shape of the weight that a change is of, without making the change."""
    return m.out_features, m.in_features


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what a plain LoRA reader would get wrong."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FormatError(
            f"{folder} has no {CONFIG_NAME}, so its scale is unknown; copy the whole adapter folder"
        )
    try:
        config: Any = read_json(path)
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


@dataclass
class _Parts:
    """A folder's tensors by what they are; modules are named as in the base."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Linear modules: lora_A [rank, in], lora_B [out, rank]."""
    tables: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Embeddings: lora_embedding_A [rank, vocabulary], lora_embedding_B [width, rank]."""
    biases: dict[str, torch.Tensor]
    """Biases of lora_B, [out]."""
    magnitudes: dict[str, torch.Tensor]
    """DoRA's magnitudes, [out]."""
    whole: dict[str, torch.Tensor]
    """Whole values by parameter name."""


def _sorted_out(folder: Path, tensors: Mapping[str, torch.Tensor]) -> _Parts:
    """Sort a folder's tensors; every factor must have its partner."""
    sides: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    tables: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    found = _Parts({}, {}, {}, {}, {})
    others: list[str] = []
    for key, tensor in tensors.items():
        own = key.removeprefix(PREFIX)
        if len(own) > _LONGEST_NAME:
            others.append(key)
            continue
        for pattern, kind in ((_FACTOR, sides), (_TABLE_FACTOR, tables)):
            if match := pattern.fullmatch(own):
                _put(folder, kind[match["side"]], match["module"], tensor)
                break
        else:
            if match := _FACTOR_BIAS.fullmatch(own):
                _put(folder, found.biases, match["module"], tensor)
            elif match := _MAGNITUDE.fullmatch(own):
                _put(folder, found.magnitudes, match["module"], tensor)
            elif own.endswith((".weight", ".bias")) and ".lora_" not in own and key.startswith(PREFIX):
                _put(folder, found.whole, _SAVED.sub("", own).replace(".base_layer.", "."), tensor)
            else:
                others.append(key)
    if others:
        raise FormatError(
            f"{folder / WEIGHTS_NAME} holds tensors that are no part of a LoRA: {named(sorted(others))};"
            " merge the adapter and read the full checkpoint"
        )
    found.pairs.update(_paired(folder, sides, "lora_"))
    found.tables.update(_paired(folder, tables, "lora_embedding_"))
    if not found.pairs and not found.tables:
        raise FormatError(f"{folder / WEIGHTS_NAME} holds no LoRA factors; save the adapter again")
    return found


def _check_promises(folder: Path, config: Mapping[str, Any], parts: _Parts) -> None:
    """What the config says is trained must be there, and DoRA on linear modules only."""
    missing: list[str] = []
    if config.get("use_dora"):
        missing += [f"the DoRA magnitudes of {name}" for name in parts.pairs if name not in parts.magnitudes]
        if parts.tables:
            raise FormatError(
                f"{folder} uses DoRA on embeddings ({named(sorted(parts.tables))}), which is not read; merge"
                " the adapter and read the full checkpoint"
            )
    if config.get("lora_bias") and not parts.biases:
        missing.append("any LoRA bias (lora_bias)")
    if config.get("modules_to_save") and not parts.whole:
        missing.append(f"the saved modules {config['modules_to_save']}")
    if missing:
        raise FormatError(
            f"{folder / WEIGHTS_NAME} does not hold {named(missing, 2)}, which {CONFIG_NAME} says were"
            " trained; copy both files of one adapter"
        )


def _put(folder: Path, where: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> None:
    if name in where:
        raise FormatError(f"{folder} holds several adapters for {name}; save one adapter a folder")
    where[name] = tensor


def _paired(
    folder: Path, sides: Mapping[str, Mapping[str, torch.Tensor]], kind: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return module → (A, B)."""
    for side, other in (("A", "B"), ("B", "A")):
        alone = sorted(set(sides[side]) - set(sides[other]))
        if alone:
            raise FormatError(
                f"{folder / WEIGHTS_NAME} has {kind}{side} without {kind}{other} for {named(alone)};"
                " save the adapter again"
            )
    return {module: (a, sides["B"][module]) for module, a in sides["A"].items()}


def _factors(
    folder: Path,
    module: str,
    down: torch.Tensor,
    up: torch.Tensor,
    config: Mapping[str, Any],
    rank_of: torch.Tensor | None = None,
) -> LoraFactors:
    """Return a module's factors with its scale, checked against the config's rank.

    `rank_of` is the tensor whose first side is the rank where that is not `down` (embeddings).
    """
    if down.ndim != 2 or up.ndim != 2:
        raise FormatError(
            f"{folder}: {module} is no linear module (lora_A has shape {tuple(down.shape)}), which is all"
            " that is read; merge the adapter and read the full checkpoint"
        )
    rank = _rank(folder, module, config)
    found = (down if rank_of is None else rank_of).shape[0]
    if found != rank:
        raise FormatError(
            f"{folder}: {module} has lora_A of rank {found}, and {CONFIG_NAME} says {rank}; copy both"
            " files of one adapter"
        )
    try:
        return LoraFactors(down, up, _scale_of(folder, module, config))
    except FormatError as error:
        raise FormatError(f"{folder}: {module}: {error}; save the adapter again") from error


def _rank(folder: Path, module: str, config: Mapping[str, Any]) -> int:
    try:
        return int(_lookup(config.get("rank_pattern"), module, config["r"]))
    except _UNUSABLE as error:
        raise _unusable(folder, error) from error


def _scale_of(folder: Path, module: str, config: Mapping[str, Any]) -> float:
    """lora_alpha / r, or / √r with rsLoRA, patterns included."""
    rank = _rank(folder, module, config)
    try:
        alpha = float(_lookup(config.get("alpha_pattern"), module, config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except _UNUSABLE as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> FormatError:
    return FormatError(f"{folder / CONFIG_NAME} has no usable r and lora_alpha ({error!r}); save it again")


def _lookup(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return a pattern's value for a module as PEFT does: the first key that matches the end of its name.

    Raises:
        TimeoutError: a key takes too long, as "(a+)+" can with the `re` module.
    """
    for key, value in (pattern or {}).items():
        if cast(Any, regex).match(rf"(.*\.)?({key})$", module, timeout=_PATTERN_SECONDS):
            return value
    return default
