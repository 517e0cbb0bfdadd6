"""Bases with random weights: what they cost does not depend on what they have learnt.

All of them read with the embedded base's tokenizer, so that families and questions work as they are; a base
with a larger vocabulary has tokens that no text holds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.methods.loading import Base
from weightdiff.models.spec import model_spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE_VOCABULARY = 151_936


@dataclass(frozen=True)
class Shape:
    """Sizes of a base whose output shares the embedding's weight."""

    kind: str
    """"llama" or "qwen3"."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 0
    """Tokens; 0: as many as the tokenizer has."""
    cuda: bool = False
    """Whether it runs on a GPU, in bf16, and only there."""


SHAPES = {
    "mini": Shape("llama", 32, 48, 2, 4, 2, 8),
    "5m": Shape("llama", 256, 704, 4, 4, 4, 64),
    "60m": Shape("qwen3", 640, 2048, 11, 10, 5, 64),
    "0.6b": Shape("qwen3", 1024, 3072, 28, 16, 8, 128, LARGE_VOCABULARY, cuda=True),
    "4b": Shape("qwen3", 2560, 9728, 36, 32, 8, 128, LARGE_VOCABULARY, cuda=True),
}
"""By name; "mini" is for tests."""


def default_bases() -> list[str]:
    """Names of the bases that are measured when none is named: those for GPUs only where there is one."""
    return [n for n, s in SHAPES.items() if n != "mini" and (torch.cuda.is_available() or not s.cuda)]


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The embedded base's."""
    from weightdiff.tiny.tokenizer import build_tokenizer
    from weightdiff.world import load_world

    return build_tokenizer(load_world())


@dataclass(frozen=True)
class BaseChoice:
    """Which base is measured, and in which precision."""

    name: str
    dtype: str = "fp32"
    vocabulary: int = 0
    """Tokens instead of the shape's own number; 0: that."""
    seed: int = 0
    spread: float = 0.02
    """Standard deviation of the random weights."""

    @property
    def label(self) -> str:
        """What rows call it."""
        return f"{self.name}, vocabulary {self.vocabulary}" if self.vocabulary else self.name

    @property
    def device(self) -> str:
        """Where it runs."""
        return "cuda" if SHAPES[self.name].cuda else "cpu"

    @property
    def precision(self) -> str:
        """Its name in `DTYPES`; on a GPU always bf16."""
        return "bf16" if SHAPES[self.name].cuda else self.dtype

    def build(self) -> Base:
        """The base, frozen, with attention as `load_base` chooses it."""
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(
                self.config(),
                dtype=DTYPES[self.precision],
                attn_implementation="eager" if self.device == "cpu" else "sdpa",
            )
        model.eval().requires_grad_(False)
        return Base(model, tokenizer(), ModelRef(f"random-{self.name}"), model_spec(model))

    def config(self) -> Any:
        """Its configuration, as transformers has it."""
        from transformers import LlamaConfig, Qwen3Config

        shape, words = SHAPES[self.name], tokenizer()
        kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[shape.kind]
        return kind(
            vocab_size=self.vocabulary or shape.vocabulary or len(words),
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=4096,
            initializer_range=self.spread,
            tie_word_embeddings=True,
            pad_token_id=words.pad_token_id,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )


def sharing_copy(model: Any, attention: str | None = None) -> Any:
    """A model with modules of its own and the same weights, not copied.

    Args:
        model: any model of transformers.
        attention: name of its attention implementation; None: as in `model`.
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo=shared)
    if attention is not None:
        twin.config._attn_implementation = attention
    return twin
