"""Bases by name: the bundled one, a local folder, or a Hub name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdiff.diffs.reference import ModelRef
from weightdiff.errors import FormatError
from weightdiff.models.spec import model_spec

BUNDLED = "bundled"
BUNDLED_NAME = "weightdiff-tiny"
"""What a `ModelRef` calls the bundled base."""


@dataclass(frozen=True)
class Base:
    """A base model ready to carry diffs."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    spec: dict[str, tuple[int, int]]


def load_base(name: str | None = None, dtype: str = "float32") -> Base:
    """Load a base model and its tokenizer, frozen and in eval mode.

    On the CPU, attention is computed by plain matrix products ("eager"): for rows of some dozens of tokens
    they are faster than the fused kernels. Elsewhere it is what transformers chooses.

    Args:
        name: None or "bundled" for the embedded base, else a folder or Hub name that transformers can load.
        dtype: "float32", "bfloat16", "float16", or "auto".

    Raises:
        FormatError: nothing loadable is there.
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
    if torch.get_default_device().type == "cpu":
        options["attn_implementation"] = "eager"
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
    return Base(model, tokenizer, ModelRef.of(model, name=str(name)), model_spec(model))
