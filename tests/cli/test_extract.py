"""`weightdiff extract`: two checkpoints in, a PEFT folder out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from weightdiff.diffs.checkpoints import Checkpoint
from weightdiff.diffs.extraction import extract
from weightdiff.diffs.types import WeightDiff


def _changed(model: Any, *parts: str) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if any(part in name for part in parts):
                p += 0.01 * torch.randn_like(p)
    return other


@pytest.fixture
def folders(tiny_model, tmp_path) -> tuple[Path, Path]:
    """A tiny Llama and a finetune of its attention and its last norm."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    _changed(model, "self_attn", "model.norm").save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def test_the_adapter_is_the_truncated_difference(cli, folders, tmp_path):
    result = cli("extract", *folders, tmp_path / "lora", "--rank", 3)
    assert result.exit_code == 0, result.output
    for words in ("q_proj", "32×32", "16×32", "left out", "layers", "9 tensors changed, 12 did not"):
        assert words in result.stdout
    assert "% of the change: model.norm.weight; --linear-only" in result.stderr
    found = WeightDiff.load(tmp_path / "lora")
    wanted, _ = extract(*map(Checkpoint.open, folders), rank=3, linear_only=True)
    assert set(found.modules) == set(wanted.modules)
    assert found.base.name == str(folders[0])
    for name, m in wanted.modules.items():
        torch.testing.assert_close(found.modules[name].dense(), m.dense())


def test_json_is_the_report(cli_json, folders, tmp_path):
    found = cli_json("extract", *folders, tmp_path / "lora", "--energy", 0.8, "--rank", 20, "--json")
    assert found["out"] == str(tmp_path / "lora")
    assert (found["changed"], found["untouched"]) == (9, 12)
    assert list(found["dropped"]) == ["model.norm.weight"]
    assert all(kept["energy"] >= 0.8 and kept["rank"] <= 20 for kept in found["kept"].values())


def test_linear_only_does_not_warn(cli, folders, tmp_path):
    result = cli("extract", *folders, tmp_path / "lora", "--linear-only")
    assert "warning" not in result.stderr
    assert "keeping rank 16 of each matrix" in result.stderr
    assert "left out" in result.stdout


def test_gpt2_loads_in_peft(cli, tiny_model, tmp_path):
    """Conv1D keeps [in, out]; the adapter on the base answers as the finetune does."""
    from peft import PeftModel

    model = tiny_model("gpt2")
    tuned = _changed(model, "c_attn.weight", "c_proj.weight", "c_fc.weight")
    model.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    result = cli("extract", tmp_path / "base", tmp_path / "tuned", tmp_path / "lora", "--rank", 96)
    assert result.exit_code == 0, result.output
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        expected = tuned(ids).logits
        found = PeftModel.from_pretrained(model, tmp_path / "lora")(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _refused(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_bad_input_is_one_line(cli, folders, tmp_path):
    base, tuned = folders
    out = tmp_path / "lora"
    assert "does not exist" in _refused(cli("extract", tmp_path / "no", tuned, out, "--rank", 2))
    assert "exists and is not empty" in _refused(cli("extract", base, tuned, tuned, "--rank", 2))
    assert "the same weights" in _refused(cli("extract", base, base, out, "--rank", 2))
    assert not out.exists()


def test_changes_that_no_lora_can_say(cli, tiny_model, folders, tmp_path):
    _changed(tiny_model("llama"), "norm").save_pretrained(tmp_path / "norms")
    line = _refused(cli("extract", folders[0], tmp_path / "norms", tmp_path / "lora", "--rank", 2))
    assert "changes no linear layer, only model.layers.0.input_layernorm.weight" in line


@pytest.mark.parametrize("target", [("--rank", 0), ("--energy", 0), ("--energy", 1.5)])
def test_senseless_targets_leave_with_2(cli, folders, tmp_path, target):
    assert cli("extract", *folders, tmp_path / "lora", *target).exit_code == 2


def test_help_teaches(cli):
    result = cli("extract", "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "weightdiff extract base-model my-finetune" in result.output
