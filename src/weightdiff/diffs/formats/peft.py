"""PEFT's LoRA folders, read and written: `adapter_config.json` beside `adapter_model.safetensors`.

PEFT's lora_A is our `down`, its lora_B our `up`, and lora_alpha / r (or / √r with rsLoRA) our `scale`.
Written folders load in plain PEFT; what only we know travels in the safetensors metadata. Reading is in
`peft_reading`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weightdiff.artifacts import atomic_directory, atomic_write_json
from weightdiff.diffs.formats.peft_reading import (
    BASE_KEY,
    CONFIG_NAME,
    META_KEY,
    PICKLE_NAME,
    PREFIX,
    WEIGHTS_NAME,
    read_peft,
)
from weightdiff.diffs.formats.registry import Reader, register
from weightdiff.diffs.tensorfiles import owned, save_tensors
from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import FormatError

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "read_peft", "write_peft"]


def write_peft(
    diff: WeightDiff,
    path: str | os.PathLike[str],
    base_name: str | None = None,
    *,
    target_modules: Sequence[str] | str | None = None,
    fan_in_fan_out: bool = False,
    task_type: str = "CAUSAL_LM",
    overwrite: bool = False,
) -> Path:
    """Write a low-rank diff as a PEFT LoRA folder, whole or not at all, and return the folder.

    Scales become lora_alpha = scale · r; modules that differ from the commonest rank or alpha get an entry in
    rank_pattern or alpha_pattern. Factors keep their dtypes.

    Args:
        diff: low-rank modules only.
        path: a new or empty folder.
        base_name: `base_model_name_or_path`; by default the diff's base's name.
        target_modules: by default the full name of each module, which is exact on any model; leaf names
            ("q_proj") or a regular expression are for servers that want these.
        fan_in_fan_out: true for bases that keep weights as [in, out] (GPT-2); matters to PEFT's merging.
        task_type: PEFT's task type.
        overwrite: replace a folder that holds something.

    Raises:
        FormatError: if the diff is empty, has dense modules or changes of other parameters, or the folder is
            taken.
        NonFiniteError: if the diff holds NaN or infinity.
    """
    diff.check_finite()
    modules = {name: m for name, m in sorted(diff.modules.items()) if isinstance(m, LoraFactors)}
    if not modules or len(modules) < len(diff.modules):
        dense = [name for name in diff.modules if name not in modules]
        what = (
            f"{named(dense)} change as dense matrices: truncate the diff first"
            if dense
            else "it has no modules"
        )
        raise FormatError(f"cannot write {path} as a PEFT LoRA, {what}")
    if diff.parameters:
        raise FormatError(
            f"cannot write {path} as a PEFT LoRA, {named(sorted(diff.parameters))} are changed too, which it"
            " cannot say; leave them out if they do not matter"
        )
    base_name = base_name or (diff.base.name if diff.base else None)
    ranks = {name: m.rank for name, m in modules.items()}
    alphas = {name: _alpha(m.scale, m.rank) for name, m in modules.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "revision": diff.base.revision if diff.base else None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": list(modules) if target_modules is None else target_modules,
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, m in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = owned(m.down)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = owned(m.up)
    metadata = {"format": "pt", META_KEY: json.dumps(diff.meta)}
    if diff.base:
        metadata[BASE_KEY] = json.dumps(diff.base.to_json())
    with atomic_directory(path, overwrite=overwrite) as folder:
        save_tensors(tensors, folder / WEIGHTS_NAME, metadata)
        atomic_write_json(folder / CONFIG_NAME, config)
    return Path(path)


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Return the entries that differ from `default`, so that PEFT's matching finds each module its own.

    PEFT takes the first key that matches the end of a name, so names come longest first, and a module that a
    shorter key would also match gets its entry even where it has the default.
    """
    differing = [name for name, value in values.items() if value != default]
    needed = [
        name for name in values if name in differing or any(name.endswith("." + other) for other in differing)
    ]
    return {re.escape(name): values[name] for name in sorted(needed, key=lambda name: (-len(name), name))}


def _alpha(scale: float, rank: int) -> float:
    """Return the lora_alpha with which alpha / rank is `scale`, to the last bit where a float can say it."""
    alpha = scale * rank
    for candidate in (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf)):
        if candidate / rank == scale:
            return int(candidate) if candidate.is_integer() else candidate
    return alpha


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _matches(path: Path) -> bool:
    names = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME)
    return path.name in names if path.is_file() else any((path / name).is_file() for name in names)


register(Reader("peft", f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}", _matches, read_peft))
