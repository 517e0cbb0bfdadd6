"""PEFT folders: their configs and factors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from corpus import (
    CONFIG,
    DOWN,
    HUGE,
    LONG,
    MARK,
    NESTED,
    UP,
    WEIGHTS,
    A,
    B,
    Hostile,
    Q,
    adapter,
    add,
    case,
    load_on_base,
    model,
    saved,
    weights,
)
from safetensors.torch import save_file

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "r_of_a_milliard": ({"r": 10**9}, "rank 2, and adapter_config.json says 1000000000; copy"),
    "r_zero": ({"r": 0}, "rank 2, and adapter_config.json says 0; copy"),
    "r_negative": ({"r": -3}, "rank 2, and adapter_config.json says -3; copy"),
    "r_nan": ({"r": float("nan")}, "no usable r"),
    "r_infinity": ({"r": float("inf")}, "no usable r"),
    "r_infinity_in_words": ({"r": "Infinity"}, "no usable r"),
    "r_of_4000_digits": ({"r": 10**4000}, "copy both files"),
    "r_a_list": ({"r": [2]}, "no usable r"),
    "alpha_nan": ({"lora_alpha": float("nan")}, "NaN or infinity in"),
    "alpha_infinity": ({"lora_alpha": float("inf")}, "NaN or infinity in"),
    "alpha_infinity_in_words": ({"lora_alpha": "Infinity"}, "NaN or infinity in"),
    "alpha_beyond_floats": ({"lora_alpha": 10**400}, "no usable r and lora_alpha"),
    "alpha_none": ({"lora_alpha": None}, "no usable r and lora_alpha"),
    "pattern_a_list": ({"rank_pattern": ["q_proj"]}, "no usable r"),
    "pattern_no_expression": ({"alpha_pattern": {"(": 2}}, "no usable r"),
    "pattern_of_a_list": ({"rank_pattern": {"q_proj": [2]}}, "no usable r"),
    "type_of_a_megabyte": ({"peft_type": LONG}, "only LORA is read"),
    "type_a_list": ({"peft_type": ["LORA"]}, "only LORA is read"),
}
TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "none": ({}, "holds no LoRA factors; save"),
    "a_and_b_swapped": ({A: UP, B: DOWN}, "rank 4, and adapter_config.json says 2; copy"),
    "ranks_that_disagree": ({A: DOWN, B: torch.ones(4, 3)}, "low-rank factors must be"),
    "one_dimension": ({A: DOWN[0], B: UP}, "is no linear module"),
    "three_dimensions": ({A: DOWN[None], B: UP}, "is no linear module"),
    "no_dimension": ({A: torch.tensor(1.0), B: UP}, "is no linear module"),
    "integers": ({A: DOWN.int(), B: UP}, "must be floating point"),
    "booleans": ({A: DOWN.bool(), B: UP}, "must be floating point"),
    "complex_numbers": ({A: DOWN.to(torch.complex64), B: UP}, "must be floating point"),
    "eight_bit_floats": ({A: DOWN.to(torch.float8_e4m3fn), B: UP}, "must have 16 bits or more"),
    "nan": ({A: DOWN * float("nan"), B: UP}, "NaN or infinity in"),
    "infinity": ({A: DOWN, B: UP / 0}, "NaN or infinity in"),
    "half_a_pair": ({A: DOWN}, "lora_A without lora_B"),
    "two_adapters": (
        {A: DOWN, B: UP, A.replace("lora_A", "lora_A.other"): DOWN},
        "holds several adapters for",
    ),
    "no_lora": ({A: DOWN, B: UP, "x.lora_Q": DOWN}, r"no part of a LoRA: x\.lora_Q; merge"),
    "a_name_of_a_megabyte": ({A: DOWN, B: UP, f"{LONG}.lora_Q": DOWN}, "no part of a LoRA"),
    "a_module_of_a_megabyte": (
        {f"{LONG}.lora_A.weight": DOWN, f"{LONG}.lora_B.weight": UP},
        "no part of a LoRA",
    ),
    "a_module_of_a_megabyte_twice": (
        {f"{LONG}.lora_A.{i}.weight": DOWN for i in range(2)},
        "no part of a LoRA",
    ),
    "thousands_of_names": ({f"x{i:0200}.lora_Q": DOWN for i in range(2000)}, "and 1995 more; merge"),
    "names_with_line_breaks": ({A: DOWN, B: UP, "x\n\x1b[31m.lora_Q": DOWN}, "no part of a LoRA"),
    "a_bias_without_a_base": ({A: DOWN, B: UP, "base_model.model.x.bias": DOWN[0]}, "give the base"),
}

for name, (config, says) in CONFIGS.items():
    add(f"peft_{name}", lambda folder, config=config: adapter(folder, **config), says)
for name, (tensors, says) in TENSORS.items():
    add(f"peft_{name}", lambda folder, tensors=tensors: adapter(folder, tensors), says)


def patterned(folder: Path, pattern: str) -> Path:
    """A long module name that a pattern almost matches, in very many ways."""
    module = "a" * 200 + ".x"
    tensors = {f"base_model.model.{module}.lora_{side}.weight": t for side, t in (("A", DOWN), ("B", UP))}
    return adapter(folder, tensors, r=3, rank_pattern={pattern: 2})


@case("rank 2, and adapter_config.json says 3; copy")
def peft_catastrophic_pattern(folder: Path) -> Path:
    return patterned(folder, "(a+)+$")


@case("no usable r and lora_alpha .*timed out")
def peft_pattern_without_end(folder: Path) -> Path:
    return patterned(folder, "(a|aa)+$")


@case("has metadata that cannot be read")
def peft_nested_metadata(folder: Path) -> Path:
    path = adapter(folder)
    save_file({A: DOWN, B: UP}, path / WEIGHTS, {"weightdiff_meta": NESTED.decode()})
    return path


@case("has metadata that cannot be read")
def peft_metadata_without_names(folder: Path) -> Path:
    path = adapter(folder)
    save_file({A: DOWN, B: UP}, path / WEIGHTS, {"weightdiff_base": "[1]"})
    return path


@case("has no adapter_config.json")
def peft_weights_alone(folder: Path) -> Path:
    (adapter(folder) / CONFIG).unlink()
    return folder / "adapter" / WEIGHTS


@case(r"no adapter_model\.safetensors; copy")
def peft_config_alone(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).unlink()
    return folder / "adapter"


@case(r"no adapter_model\.safetensors; copy")
def peft_weights_are_a_pipe(folder: Path) -> Path:
    peft_config_alone(folder)
    os.mkfifo(folder / "adapter" / WEIGHTS)
    return folder / "adapter"


@case(r"no adapter_model\.safetensors; copy")
def peft_weights_are_a_folder(folder: Path) -> Path:
    peft_config_alone(folder)
    (folder / "adapter" / WEIGHTS).mkdir()
    return folder / "adapter"


@case(r"no adapter_model\.safetensors; copy")
def peft_weights_are_a_link_to_nothing(folder: Path) -> Path:
    peft_config_alone(folder)
    (folder / "adapter" / WEIGHTS).symlink_to(folder / "nothing")
    return folder / "adapter"


@case("is a pickle, which can run code")
def peft_hostile_pickle(folder: Path) -> Path:
    path = peft_config_alone(folder)
    saved(path / "adapter_model.bin", {A: Hostile(folder / MARK)})
    return path


@case("DoRA module .* the base's weight", load_on_base)
def peft_dora_of_a_trillion_numbers(folder: Path) -> Path:
    model(folder, weights(), "base")
    wide = {A: torch.ones(2, 1_000_000), B: torch.ones(1_000_000, 2)}
    magnitude = {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4)}
    return adapter(folder, wide | magnitude, use_dora=True)


@case("another shape", load_on_base)
def peft_saved_module_beside_other_factors(folder: Path) -> Path:
    model(folder, weights(), "base")
    whole = {f"base_model.model.{Q}.weight": torch.randn(4, 3)}
    return adapter(folder, {A: torch.ones(2, 1_000_000), B: torch.ones(1_000_000, 2)} | whole)


@case("the base has", load_on_base)
def peft_saved_module_of_another_shape(folder: Path) -> Path:
    model(folder, weights(), "base")
    return adapter(folder, {A: DOWN, B: UP, "base_model.model.model.norm.weight": torch.ones(HUGE >> 30)})


@case("floating point", load_on_base)
def peft_saved_module_of_eight_bits(folder: Path) -> Path:
    model(folder, weights(), "base")
    eight = torch.ones(3).to(torch.float8_e4m3fn)
    return adapter(folder, {A: DOWN, B: UP, "base_model.model.model.norm.weight": eight})
