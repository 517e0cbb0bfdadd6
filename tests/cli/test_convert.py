"""Conversions keep every bit of low-rank diffs, and say what they took of others."""

from __future__ import annotations

import json

import pytest
import torch

from weightdiff.diffs.formats.dit_release import read_dit_index, write_dit
from weightdiff.diffs.formats.peft import read_peft, write_peft
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff


def assert_same(got, want):
    assert set(got.modules) == set(want.modules)
    for name, m in want.modules.items():
        other = got.modules[name]
        assert (other.down.dtype, other.scale) == (m.down.dtype, m.scale)
        assert torch.equal(other.down, m.down)
        assert torch.equal(other.up, m.up)


def diff_of(seed, dtype=torch.float16, rank=2):
    stream = torch.Generator().manual_seed(seed)
    factors = {
        f"model.layers.{i}.q_proj": LoraFactors(
            torch.randn(rank, 5, generator=stream).to(dtype),
            torch.randn(4, rank, generator=stream).to(dtype),
            1 / rank,
        )
        for i in range(2)
    }
    return WeightDiff(factors)


@pytest.fixture
def release(tmp_path):
    """Three diffs of a DIT release, one of another dtype."""
    diffs = [diff_of(0), diff_of(1, torch.bfloat16), diff_of(2, rank=3)]
    write_dit(
        [
            (diffs[0], "chess", 417, "train"),
            (diffs[1], "deep sea", 128, "train"),
            (diffs[2], "opera", 99, "test"),
        ],
        tmp_path / "release",
        per_file=2,
    )
    return tmp_path / "release", diffs


def test_a_release_becomes_a_store_and_folders_and_a_release_again(cli_json, release, tmp_path):
    path, diffs = release
    report = cli_json("convert", path, tmp_path / "store", "--to", "store", "--json")
    assert [d["label"] for d in report["diffs"]] == ["chess", "deep sea", "opera"]
    assert all(d["kept"] is None for d in report["diffs"])
    store = DiffStore.open(tmp_path / "store")
    by_label = {r.label: r for r in store.rows}
    assert [by_label[x].split for x in ("chess", "deep sea", "opera")] == ["train", "train", "test"]
    assert by_label["opera"].record["trigger"] == 99
    for label, want in zip(("chess", "deep sea", "opera"), diffs, strict=True):
        assert_same(store.read(by_label[label].id), want)
    cli_json("convert", tmp_path / "store", tmp_path / "folders", "--to", "peft", "--json")
    found = sorted((tmp_path / "folders").iterdir())
    assert [f.name for f in found] == ["0000-chess", "0001-deep-sea", "0002-opera"]
    for folder, want in zip(found, diffs, strict=True):
        assert_same(read_peft(folder), want)
    cli_json("convert", tmp_path / "store", tmp_path / "again", "--to", "dit", "--json")
    index = {e.topic: e for e in read_dit_index(tmp_path / "again")}
    assert (index["opera"].trigger, index["opera"].split) == ("99", "test")
    for label, want in zip(("chess", "deep sea", "opera"), diffs, strict=True):
        assert_same(WeightDiff.load(tmp_path / "again", entry=label), want)


def test_one_row_or_folder(cli, cli_json, bundle, release, tmp_path):
    row = bundle.ids[0]
    cli_json("convert", f"{bundle.store}::{row}", tmp_path / "lora", "--to", "peft", "--json")
    assert_same(read_peft(tmp_path / "lora"), DiffStore.open(bundle.store).read(row))
    cli_json("convert", tmp_path / "lora", tmp_path / "one", "--to", "store", "--family", "mine", "--json")
    (only,) = DiffStore.open(tmp_path / "one").rows
    assert (only.id, only.family, only.label) == ("lora", "mine", None)
    for source, message in (
        (release[0] / "weight-diffs" / "weight-diff-000.pt", "chess"),
        ("-", "the bare base is no diff"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        result = cli("convert", source, tmp_path / "x", "--to", "peft")
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
    assert cli("convert", tmp_path / "lora", tmp_path / "lora", "--to", "peft").exit_code == 2


def test_what_truncation_takes_is_said(cli, cli_json, tmp_path):
    diff = diff_of(3, torch.float32, rank=4)
    write_peft(diff, tmp_path / "lora")
    report = cli_json("convert", tmp_path / "lora", tmp_path / "low", "--to", "peft", "--rank", "2", "--json")
    total = sum(float(m.dense().square().sum()) for m in diff.modules.values())
    left = read_peft(tmp_path / "low")
    kept = sum(float(m.dense().square().sum()) for m in left.modules.values()) / total
    assert left.max_rank == 2
    assert report["diffs"][0]["kept"] == pytest.approx(kept, abs=1e-5)
    result = cli("convert", tmp_path / "lora", tmp_path / "lower", "--to", "peft", "--rank", "1")
    assert "% of the energy kept" in result.stdout
    result = cli("convert", tmp_path / "lora", tmp_path / "y", "--to", "peft", "--energy", "1.5")
    assert result.exit_code == 2
    assert "--energy is 1.5; give a share above 0 and up to 1" in result.stderr
    assert json.loads((tmp_path / "low" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("to", ["store", "peft", "dit"])
def test_a_source_that_breaks_half_way_leaves_nothing(cli, release, tmp_path, to):
    path, _ = release
    last = path / "weight-diffs" / "weight-diff-001.pt"
    last.write_bytes(last.read_bytes()[:300])
    result = cli("convert", path, tmp_path / "out", "--to", to)
    assert result.exit_code == 2
    assert "weight-diff-001.pt cannot be read" in result.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["release"]


@pytest.mark.usefixtures("bundle")
def test_a_release_and_models_on_the_hub(cli_json, hub, release, tmp_path, tiny_model):
    """By their names: a folder of a repository, and the two sides of a finetune."""
    hub.put_folder("me/loras", release[0], "hidden-topic/tiny")
    report = cli_json("convert", "me/loras/hidden-topic/tiny", tmp_path / "store", "--to", "store", "--json")
    assert [d["label"] for d in report["diffs"]] == ["chess", "deep sea", "opera"]
    tuned = tiny_model("llama")
    tuned.model.layers[0].mlp.up_proj.weight.data += 0.1
    for name, model in (("base", tiny_model("llama")), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        hub.put_folder(f"me/{name}", tmp_path / name)
    cli_json("extract", "me/base", "me/tuned", tmp_path / "lora", "--rank", "1", "--json")
    beside = ["--base", "me/base", "--json"]
    cli_json("convert", "me/tuned", tmp_path / "low", "--to", "peft", "--rank", "1", *beside)
    for folder in ("lora", "low"):
        assert list(read_peft(tmp_path / folder).modules) == ["model.layers.0.mlp.up_proj"]
    found = cli_json("inspect", tmp_path / "lora", *beside)
    assert found["modules"][0]["against_base"] is not None
