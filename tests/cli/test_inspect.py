"""`weightdiff inspect`: what it prints, what it draws, and how it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """A terminal in which no cell is folded."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def diff(bundle):
    from weightdiff.diffs.store import DiffStore

    return DiffStore.open(bundle.store).read(bundle.ids[0])


@pytest.fixture
def folder(diff, tmp_path):
    """Writes a diff with some modules replaced as a PEFT folder: `folder({name: module})`."""
    from weightdiff.diffs.formats.peft import write_peft

    def write(changes):
        return write_peft(replace(diff, modules={**diff.modules, **changes}), tmp_path / "changed")

    return write


def test_the_report_of_an_adapter(cli, adapter_folder, diff):
    from weightdiff.diffs.algebra import norm

    result = cli("inspect", adapter_folder)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{adapter_folder}: weight diff of ")
    assert lines[1] == "modules: 14 (14 low-rank of rank 1)"
    assert lines[2] == f"numbers: {diff.num_parameters:,}"
    assert lines[3] == f"Frobenius norm: {norm(diff):.3g}"
    assert [title for title in lines if title.startswith("share of")] == [
        "share of the change by kind",
        "share of the change by layer",
    ]
    assert "all 14 modules, largest first" in lines
    assert sum("█" in line for line in lines) == 7 + 2
    for name in diff.modules:
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        (row,) = (line for line in lines if f"│ {layer} {rest} " in line)
        assert " 1 of 1 " in row
    assert lines[-1] == "nothing looks wrong"
    assert "beside the base's weight" not in result.stdout


def test_json_is_what_the_library_finds(cli_json, adapter_folder):
    from weightdiff.diffs.inspection import inspect
    from weightdiff.diffs.types import WeightDiff

    value = cli_json("inspect", adapter_folder, "--json")
    assert value.pop("path") == str(adapter_folder)
    assert value == inspect(WeightDiff.load(adapter_folder)).to_json()


@pytest.mark.parametrize("base", ["bundled", "folder"])
def test_beside_the_base(cli, cli_json, bundle, diff, base):
    from weightdiff.diffs.inspection import inspect
    from weightdiff.diffs.weights import base_weights

    name = f"bundled::{bundle.ids[0]}"
    where = "bundled" if base == "bundled" else bundle.path / "base"
    value = cli_json("inspect", name, "--base", where, "--json")
    expected = inspect(diff, base_weights(bundle.path / "base")).to_json()
    assert value["modules"] == expected["modules"]
    assert all(m["against_base"]["directions"] >= 2 for m in value["modules"])
    result = cli("inspect", name, "--base", where)
    assert "beside the base's weight" in result.stdout
    largest = max(value["modules"], key=lambda m: m["share"])
    assert f"{largest['against_base']['frobenius_ratio']:.3g}" in result.stdout


def test_fifteen_modules_unless_all_are_asked_for(cli, folder, diff):
    from weightdiff.diffs.types import LoraFactors

    more = {
        f"model.layers.{n}.mlp.extra": LoraFactors(torch.randn(2, 8), torch.randn(9, 2)) for n in range(9)
    }
    path = folder(more)
    few, every = cli("inspect", path).stdout, cli("inspect", path, "--all").stdout
    assert "modules: 23 (23 low-rank of ranks 1 to 2)" in few
    assert "the 15 largest of 23 modules (--all lists all)" in few
    assert "all 23 modules, largest first" in every
    assert [text.count(" of 1 ") + text.count(" of 2 ") for text in (few, every)] == [15, 23]


def test_signs_and_outliers_are_shown_and_are_no_failure(cli, folder, diff):
    from weightdiff.diffs.types import LoraFactors

    names = list(diff.modules)
    nothing = {n: replace(diff.modules[n], up=torch.zeros_like(diff.modules[n].up)) for n in names[:5]}
    m = diff.modules[names[6]]
    up = m.up.clone()
    up[3] *= 500
    unknown = {"model.layers.7.mlp.up_proj": LoraFactors(torch.randn(2, 16), torch.randn(24, 2), 0.01)}
    result = cli("inspect", folder({**nothing, names[6]: replace(m, up=up), **unknown}), "--base", "bundled")
    assert result.exit_code == 0, result.output
    text = result.stdout[result.stdout.index("\nsigns\n") :]
    lines = text.strip().splitlines()[1:]
    assert lines[0].startswith("error: model.layers.7.mlp.up_proj: the base has no such module")
    assert [line for line in lines if "up is all zero" in line] == [
        f"warning: {n}: up is all zero, as before training: this LoRA changes nothing" for n in names[:3]
    ]
    assert "warning: 2 more of the kind zero-up" in lines
    assert any(line.startswith(f"warning: {names[6]}: this one module") for line in lines)
    assert "nothing looks wrong" not in result.stdout
    assert "rows and columns that are much larger" in result.stdout
    assert "│ row 3 " in result.stdout


def test_signs_have_colours(cli, folder, diff, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    name = next(iter(diff.modules))
    path = folder({name: replace(diff.modules[name], up=torch.zeros_like(diff.modules[name].up))})
    assert "\x1b[33mwarning: " in cli("inspect", path).stdout


def test_whole_values_are_read_beside_the_base(cli, cli_json, adapter_folder, bundle):
    from safetensors.torch import load_file, save_file

    file, config = adapter_folder / "adapter_model.safetensors", adapter_folder / "adapter_config.json"
    norm = load_file(bundle.path / "base" / "model.safetensors")["model.norm.weight"]
    save_file({**load_file(file), "base_model.model.model.norm.weight": norm + 2.0}, file)
    config.write_text(json.dumps({**json.loads(config.read_text()), "modules_to_save": ["norm"]}))
    alone = cli("inspect", adapter_folder)
    assert alone.exit_code == 2
    assert "give the base" in alone.stderr
    value = cli_json("inspect", adapter_folder, "--base", "bundled", "--json")
    (parameter,) = value["parameters"]
    assert (parameter["name"], parameter["kind"], parameter["layer"]) == ("model.norm.weight", "norm", None)
    assert parameter["frobenius"] == pytest.approx(2.0 * 16**0.5)
    text = cli("inspect", adapter_folder, "--base", "bundled").stdout
    assert "modules: 14 (14 low-rank of rank 1, other parameters: 1)" in text


def test_a_nan_leaves_the_rest_of_the_table(cli, cli_json, adapter_folder):
    from safetensors.torch import load_file, save_file

    broken = "model.layers.1.mlp.down_proj"
    file = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{broken}.lora_B.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    result = cli("inspect", adapter_folder)
    assert result.exit_code == 0, result.output
    assert "all 14 modules, largest first" in result.stdout
    assert f"error: {broken}: it holds NaN or infinity" in result.stdout
    assert " nan " in result.stdout
    found = cli_json("inspect", adapter_folder, "--json")
    norms = {m["name"]: m["frobenius"] for m in found["modules"]}
    assert norms.pop(broken) is None
    assert len(norms) == 13
    assert all(norm > 0 for norm in norms.values())
    assert [(s["code"], s["module"]) for s in found["signs"] if s["severity"] == "error"] == [
        ("not-finite", broken)
    ]


def test_a_nan_beside_whole_values(cli_json, adapter_folder, bundle):
    from safetensors.torch import load_file, save_file

    file = adapter_folder / "adapter_model.safetensors"
    norm = load_file(bundle.path / "base" / "model.safetensors")["model.norm.weight"]
    save_file({**load_file(file), "base_model.model.model.norm.weight": norm * float("nan")}, file)
    found = cli_json("inspect", adapter_folder, "--base", "bundled", "--json")
    assert len(found["modules"]) == 14
    assert [s["module"] for s in found["signs"] if s["code"] == "not-finite"] == ["model.norm.weight"]


def test_a_nan_that_its_reader_refuses_is_a_report(cli, cli_json, bundle, tmp_path):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    folder = copytree(bundle.path / "base", tmp_path / "tuned")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    result = cli("inspect", folder, "--base", "bundled")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "model.norm.weight differs from model.norm.weight by NaN or infinity" in said
    (sign,) = cli_json("inspect", folder, "--base", "bundled", "--json")["signs"]
    assert (sign["severity"], sign["code"]) == ("error", "not-finite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("-",), "the bare base has no diff to inspect"),
        (("bundled::nobody",), "has no diff 'nobody'"),
        (("bundled::{id}", "--base", "nowhere"), "nowhere does not exist"),
        (("bundled::{id}", "--plot", "figure.pdf"), "figure.pdf: a plot is written as .png or .svg"),
    ],
)
def test_bad_input_is_one_line(cli, bundle, arguments, words):
    result = cli("inspect", *(a.format(id=bundle.ids[0]) for a in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_without_matplotlib_the_install_line_is_named(cli, bundle, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = cli("inspect", f"bundled::{bundle.ids[0]}", "--plot", tmp_path / "figure.png")
    assert result.exit_code == 2
    assert result.stderr == 'error: matplotlib is not installed: run pip install "weightdiff[eval]"\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(cli, bundle, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    path = tmp_path / f"figure.{suffix}"
    result = cli("inspect", f"bundled::{bundle.ids[0]}", "--plot", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["modules"]
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert list(tmp_path.iterdir()) == [path]
    assert f"plot: {path}" in result.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_a_plot_of_little(number, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    from weightdiff.diffs.inspection import inspect
    from weightdiff.diffs.types import DenseDelta, WeightDiff
    from weightdiff.evals.plots import plot_inspection

    zeros = WeightDiff({"a": DenseDelta(torch.zeros(2, 2))})
    one = WeightDiff({"a": DenseDelta(torch.ones(2, 2))})
    plot_inspection(inspect((zeros, one)[number]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()


def test_the_heat_map_holds_frobenius_norms():
    from weightdiff.diffs.inspection import inspect
    from weightdiff.diffs.types import DenseDelta, WeightDiff
    from weightdiff.evals.plots import norms_by_place

    modules = {
        "h.10.a": DenseDelta(torch.full((2, 2), 3.0)),
        "h.2.experts.0.b": DenseDelta(torch.full((1, 1), 3.0)),
        "h.2.experts.1.b": DenseDelta(torch.full((1, 1), 4.0)),
        "head": DenseDelta(torch.full((1, 1), 7.0)),
        "h.2.a": DenseDelta(torch.zeros(2, 2)),
    }
    layers, rows = norms_by_place(inspect(WeightDiff(modules)), ["a", "b", "head"])
    nan = float("nan")
    assert layers == ["2", "10", "–"]
    expected = torch.tensor([[nan, 5.0, nan], [6.0, nan, nan], [nan, nan, 7.0]])
    torch.testing.assert_close(torch.tensor(rows), expected, equal_nan=True)


def test_help_teaches_with_examples(cli):
    result = cli("inspect", "--help")
    assert result.exit_code == 0
    assert "weightdiff inspect my-lora" in result.output
    assert "Example" in result.output
