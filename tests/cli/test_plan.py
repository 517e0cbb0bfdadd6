"""`weightdiff plan`: from a configuration alone, in words and as JSON."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def folder(tmp_path):
    """A configuration without weights."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_every_job_is_planned(cli, cli_json, folder):
    found = cli_json("plan", folder, "--device", "t4", "--organisms", 50, "--json")
    assert [j["job"] for j in found["jobs"]] == ["organisms", "tune", "ask"]
    assert all(j["fits"] for j in found["jobs"])
    assert found["work"]["slots"] == 64
    shown = cli("plan", folder)
    assert shown.exit_code == 0, shown.output
    for word in ("organisms", "tune", "ask", "memory", "parameters"):
        assert word in shown.stdout
    assert cli("plan", "bundled").exit_code == 0


def test_what_does_not_fit_is_told(cli, folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 80}
    (folder / "config.json").write_text(json.dumps(config))
    assert "too" in cli("plan", folder, "--device", "t4").stdout


def test_what_cannot_be_planned(refused, folder, tmp_path):
    assert "--device cannot be 'abacus'" in refused("plan", folder, "--device", "abacus")
    (tmp_path / "empty").mkdir()
    assert "no configuration can be read" in refused("plan", tmp_path / "empty")
    (folder / "config.json").write_text('{"model_type": "tea"}')
    assert "no configuration can be read" in refused("plan", folder)
