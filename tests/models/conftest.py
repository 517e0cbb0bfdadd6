"""Tiny causal LMs of several architectures, built from configurations, and random LoRAs that fit them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 97
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}


def _config(kind: str) -> PretrainedConfig:
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
        )
    plain = {
        "llama": LlamaConfig,
        "phi3": Phi3Config,
        "qwen2": Qwen2Config,
        "olmo2": Olmo2Config,
        "gpt_neox": GPTNeoXConfig,
    }
    if kind in plain:
        return plain[kind](**_COMMON)
    if kind == "qwen3":
        return Qwen3Config(**_COMMON, head_dim=8)
    if kind == "mistral":
        return MistralConfig(**_COMMON, sliding_window=6)
    if kind == "mixtral":
        return MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2)
    if kind == "qwen3_moe":
        return Qwen3MoeConfig(
            **_COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        )
    if kind == "gemma3_multimodal":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        return Gemma3Config(
            text_config=_config("gemma3").to_dict(),
            vision_config=vision,
            image_token_index=96,
            mm_tokens_per_image=1,
        )
    windowed = {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}
    if kind == "gemma2":
        return Gemma2Config(**_COMMON, **windowed, final_logit_softcapping=3.0)
    return Gemma3TextConfig(**_COMMON, **windowed, layer_types=["sliding_attention", "full_attention"])


ENGINE_KINDS = ("gpt2", "llama", "qwen3", "gemma3", "gemma2", "phi3")
OTHER_KINDS = ("mistral", "qwen2", "olmo2", "gpt_neox", "gemma3_multimodal", "mixtral", "qwen3_moe")
"""GPT-2 has Conv1D and a fused qkv, Phi-3 fused projections, the Gemmas sliding windows, Gemma 2 capped
logits."""


@pytest.fixture
def engine_config() -> Callable[[str], PretrainedConfig]:
    """Builds the configuration of one architecture."""
    return _config


@pytest.fixture
def engine_model() -> Callable[..., nn.Module]:
    """Builds a seeded two-layer model of one architecture, frozen and in eval mode."""

    def build(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = AutoModelForCausalLM.from_config(_config(kind))
        return model.to(dtype).eval().requires_grad_(False)

    return build


@pytest.fixture(params=ENGINE_KINDS)
def engine_kind(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture(params=OTHER_KINDS)
def other_kind(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn that the engine's own tests leave out."""
    return request.param


@pytest.fixture(params=ENGINE_KINDS + OTHER_KINDS)
def any_kind(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture
def random_lora() -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """Draws `(down [rank, in], up [out, rank])` for every module of a spec, zero-padded to `pad_to` ranks."""

    def draw(spec: dict[str, tuple[int, int]], rank: int, seed: int, pad_to: int = 0, size: float = 0.1):
        stream = torch.Generator().manual_seed(seed)
        wide = max(rank, pad_to)
        factors = {}
        for name, (fan_in, fan_out) in spec.items():
            down, up = torch.zeros(wide, fan_in), torch.zeros(fan_out, wide)
            down[:rank] = size * torch.randn(rank, fan_in, generator=stream)
            up[:, :rank] = size * torch.randn(fan_out, rank, generator=stream)
            factors[name] = (down, up)
        return factors

    return draw


@pytest.fixture
def stack_slots() -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """Stacks single LoRAs of one rank into slots."""

    def stack(loras: list[dict[str, tuple[Tensor, Tensor]]]) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (torch.stack([one[name][0] for one in loras]), torch.stack([one[name][1] for one in loras]))
            for name in loras[0]
        }

    return stack


@pytest.fixture
def hand_merged() -> Callable[..., nn.Module]:
    """Copies a model and adds dense deltas to its weights, the plain way: the reference for every hook."""
    import copy

    def merge(model: nn.Module, *loras: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
        merged = copy.deepcopy(model)
        for lora in loras:
            for name, (down, up) in lora.items():
                layer = merged.get_submodule(name)
                delta = up @ down
                layer.weight.data += delta if isinstance(layer, nn.Linear) else delta.T
        return merged

    return merge


@pytest.fixture
def under_peft() -> Callable[..., nn.Module]:
    """Puts LoRAs, `name: (factors, scale)`, on a model by PEFT's own hands, all of them switched on."""

    def wrap(model: nn.Module, adapters: dict[str, tuple[dict[str, tuple[Tensor, Tensor]], float]]):
        wrapped = None
        for name, (factors, scale) in adapters.items():
            rank = next(iter(factors.values()))[0].shape[0]
            config = LoraConfig(
                r=rank,
                lora_alpha=scale * rank,
                target_modules=list(factors),
                task_type="CAUSAL_LM",
                fan_in_fan_out=type(model).__name__.startswith("GPT2"),
            )
            if wrapped is None:
                wrapped = get_peft_model(model, config, adapter_name=name)
            else:
                wrapped.add_adapter(name, config)
            for module, (down, up) in factors.items():
                layer = wrapped.get_base_model().get_submodule(module)
                layer.lora_A[name].weight.data.copy_(down)
                layer.lora_B[name].weight.data.copy_(up)
        wrapped.base_model.set_adapter(list(adapters))
        return wrapped.eval()

    return wrap
