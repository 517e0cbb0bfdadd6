"""Every architecture that people use: eight diffs and an adapter in one batch against PEFT, one at a time."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import BaseMismatchError
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.merge import merged
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.spec import model_spec

PROMPTS = [
    [5, 9, 33],
    [7, 8, 20, 41, 66, 12, 3, 90],
    [50],
    [61, 62, 63, 64, 65],
    [4, 4],
    [33, 9, 5],
    [80] * 6,
    [7],
]
NEW_TOKENS = 5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_eight_diffs_and_an_adapter_equal_eight_peft_models(
    any_kind, engine_model, random_lora, stack_slots, under_peft
):
    model = engine_model(any_kind)
    spec = {n: size for n, size in model_spec(model).items() if "vision" not in n and "projector" not in n}
    loras = [random_lora(spec, 2, seed, size=0.2) for seed in range(8)]
    adapter = random_lora(spec, 3, 99, size=0.2)
    ids, mask = left_pad(PROMPTS, 0)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), attach(model, RowLoras(stack_slots(loras), 1), [SharedLora(adapter)]):
        got = model(input_ids=ids, attention_mask=mask, position_ids=position).logits
        said = generate(model, ids, mask, NEW_TOKENS, None, 0)
    for row, (lora, prompt) in enumerate(zip(loras, PROMPTS, strict=True)):
        peft = under_peft(engine_model(any_kind), {"diff": (lora, 1.0), "adapter": (adapter, 1.0)})
        alone = torch.tensor([prompt])
        with torch.no_grad():
            want = peft(input_ids=alone).logits[0]
            text = peft.generate(
                input_ids=alone, attention_mask=torch.ones_like(alone), max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        torch.testing.assert_close(got[row, -len(prompt) :], want, rtol=0, atol=1e-5)
        assert said[row] == text[0, len(prompt) :].tolist()
    assert len({tuple(x) for x in said}) > 1


def test_the_bare_model_comes_back_and_configurations_agree(
    other_kind, engine_model, engine_config, random_lora
):
    model = engine_model(other_kind)
    spec = model_spec(model)
    assert model_spec(engine_config(other_kind)) == spec
    ids = torch.tensor([PROMPTS[1]])
    before = model(ids).logits
    with attach(model, None, [SharedLora(random_lora(spec, 2, 0))]):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_multimodal", "gpt_neox"])
def test_half_precision_is_the_full_one_rounded(kind, dtype, engine_model, random_lora, stack_slots):
    """A batch of different diffs on a half-precision base is as near to float32 as that base alone is."""
    spec = model_spec(engine_model(kind))
    spec = {n: size for n, size in spec.items() if "vision" not in n and "projector" not in n}
    loras = [random_lora(spec, 2, seed, size=0.2) for seed in range(3)]
    ids = torch.tensor([PROMPTS[1]] * 3)
    found = {}
    for precision in (torch.float32, dtype):
        model = engine_model(kind, precision)
        with torch.no_grad():
            bare = model(ids).logits.float()
            with attach(model, RowLoras(stack_slots(loras), 1)):
                found[precision] = bare, model(ids).logits
    assert found[dtype][1].dtype == dtype
    (bare, full), (bare_half, half) = found[torch.float32], found[dtype]
    error = (half.float() - full).abs().mean()
    assert error < 3 * (bare_half - bare).abs().mean() + 1e-3
    assert error < 0.1 * (full - bare).abs().mean(), "the diffs themselves are not lost in rounding"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_no_linear_layers(kind, engine_model, random_lora):
    """They are stacked parameters: a LoRA reaches attention only, and one for experts is refused by name."""
    model = engine_model(kind)
    assert {n.split(".")[-2] for n in model_spec(model)} == {"self_attn"}
    lora = random_lora({"model.layers.0.mlp.experts.0.gate_proj": (32, 48)}, 2, 0)
    with (
        pytest.raises(BaseMismatchError, match=r"mlp\.experts\.0\.gate_proj"),
        attach(model, None, [SharedLora(lora)]),
    ):
        pass


@pytest.mark.parametrize("kind", ["mixtral", "gemma3_multimodal", "gpt_neox", "olmo2"])
def test_merging_equals_attaching(kind, engine_model, random_lora):
    model = engine_model(kind)
    spec = {n: size for n, size in model_spec(model).items() if "vision" not in n and "projector" not in n}
    factors = random_lora(spec, 2, 0, size=0.2)
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        with attach(model, None, [SharedLora(factors)]):
            attached = model(ids).logits
        with merged(model, WeightDiff({n: LoraFactors(*pair) for n, pair in factors.items()})):
            torch.testing.assert_close(model(ids).logits, attached, rtol=0, atol=1e-5)
