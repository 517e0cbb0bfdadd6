"""Diff and interpreter as one LoRA: plain PEFT computes what the two compute together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, InterpreterError
from weightdiff.methods.export import ASKING, export
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.spec import model_spec
from weightdiff.training.factory import random_diff


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("which", [1, 2], ids=["everywhere", "on two modules"])
def test_peft_computes_and_says_the_same(interpreter, diffs, tmp_path, which):
    diff = replace(diffs[which], modules={k: replace(m, scale=0.5) for k, m in diffs[which].modules.items()})
    out = export(interpreter, diff, tmp_path / "out")
    model = AutoModelForCausalLM.from_config(interpreter.base.model.config)
    model.load_state_dict(interpreter.base.model.state_dict())
    served = PeftModel.from_pretrained(model, out).eval()
    asked = json.loads((out / ASKING).read_text())
    t = interpreter.base.tokenizer
    prompts = [t(p, add_special_tokens=False)["input_ids"] for p in asked["prompts"]]
    assert asked["user_messages"] == interpreter.rendering.all(asked["question"])
    rows = RowLoras({k: (m.down[None], m.scale * m.up[None]) for k, m in diff.modules.items()}, 1)
    for prompt in prompts:
        ids, mask = left_pad([prompt], t.pad_token_id)
        with (
            torch.no_grad(),
            attach(interpreter.base.model, rows, [SharedLora.from_diff(interpreter.adapter)]),
        ):
            want = interpreter.base.model(ids).logits
            said = generate(interpreter.base.model, ids, mask, 6, None, t.pad_token_id)[0]
        with torch.no_grad():
            torch.testing.assert_close(served(ids).logits, want, rtol=0, atol=1e-5)
            text = served.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False,
                pad_token_id=t.pad_token_id, eos_token_id=None,
            )  # fmt: skip
        assert text[0, len(prompt) :].tolist() == said
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == diff.max_rank + 2, "one rank for all modules"
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    readme = (out / "README.md").read_text()
    assert f"base_model: {interpreter.base.ref.name}" in readme
    assert json.dumps(asked["user_messages"][0]) in readme


def test_modules_that_moved_between_versions_are_found(interpreter, diffs, tmp_path):
    moved = WeightDiff({f"language_model.{k}": m for k, m in diffs[1].modules.items()})
    found = [
        export(interpreter, d, tmp_path / n) / "adapter_model.safetensors"
        for n, d in (("a", moved), ("b", diffs[1]))
    ]
    first, second = (load_file(file) for file in found)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_what_cannot_be_one_lora_is_refused(interpreter, diffs, embedded_base, tmp_path):
    dense = WeightDiff({k: DenseDelta(m.dense()) for k, m in diffs[0].modules.items()})
    with pytest.raises(FormatError, match=r"only a LoRA can be exported .* weightdiff extract"):
        export(interpreter, dense, tmp_path / "a")
    with pytest.raises(InterpreterError, match="without an adapter has nothing to export"):
        export(interpreter.without_adapter(), diffs[0], tmp_path / "a")
    other = random_diff({"model.layers.9.q": (3, 4)}, 1, 0, 1.0)
    with pytest.raises(BaseMismatchError, match=r"model\.layers\.9\.q"):
        export(interpreter, other, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    export(interpreter, diffs[0], tmp_path / "a")
    with pytest.raises(FormatError, match="exists and is not empty"):
        export(interpreter, diffs[0], tmp_path / "a")
    assert model_spec(interpreter.base.model) == embedded_base.spec
