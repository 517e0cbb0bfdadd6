"""Bases by name: the bundled one, a local folder, or a Hub name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightdiff.diffs.reference import ModelRef
from weightdiff.errors import FormatError, MissingDependencyError
from weightdiff.methods.naming import BUNDLED
from weightdiff.models.spec import model_spec

BUNDLED_NAME = "weightdiff-tiny"
"""What a `ModelRef` calls the bundled base."""


@dataclass(frozen=True)
class Base:
    """A base model ready to carry diffs."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    spec: dict[str, tuple[int, int]]


def load_base(
    name: str | None = None,
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    four_bit: bool = False,
) -> Base:
    """Load a base model and its tokenizer, frozen and in eval mode.

    On the CPU, attention is computed by plain matrix products ("eager"): for rows of some dozens of tokens
    they are faster than the fused kernels. Elsewhere it is what transformers chooses.

    Args:
        name: None or "bundled" for the embedded base, else a folder or Hub name that transformers can load.
        dtype: "float32", "bfloat16", "float16", or "auto".
        device_map: where the layers go, as accelerate takes it ("auto", "cuda", a dictionary); None: the
            default device.
        four_bit: hold the linear layers in four bits (NF4, computing in `dtype`); needs a GPU. LoRAs are put
            on such a base, and diffs that must be merged are refused. Its fingerprints are unknown.

    Raises:
        FormatError: nothing loadable is there.
        MissingDependencyError: `four_bit` without bitsandbytes, or `device_map` without accelerate.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = name or BUNDLED
    if path == BUNDLED:
        from weightdiff.tiny.bundle import part

        path, name = str(part("base")), BUNDLED_NAME
    elif Path(path).is_dir() and not (Path(path) / "config.json").exists():
        raise FormatError(
            f"{name}: no config.json there, so it is no model folder; give a base model's folder or Hub name"
        )
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if torch.get_default_device().type == "cpu" and device_map in (None, "cpu"):
        options["attn_implementation"] = "eager"
    if device_map is not None:
        _need("accelerate")
        options["device_map"] = device_map
    if four_bit:
        options["quantization_config"] = _four_bits(options["dtype"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError) as e:
        why = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise FormatError(
            f"{name}: no base model could be loaded ({why}); give a folder or Hub name, and log in if it is"
            " private or gated: hf auth login"
        ) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval().requires_grad_(False)
    ref = ModelRef.of(model, name=str(name))
    if four_bit:  # packed weights have neither the base's shapes nor its values
        ref = replace(ref, architecture="", weights="")
    return Base(model, tokenizer, ref, model_spec(model))


def _four_bits(dtype: Any) -> Any:
    """The settings of a base in four bits."""
    _need("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(package, "gpu")
