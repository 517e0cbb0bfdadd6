"""PEFT folders: what PEFT writes is read exactly, what is written PEFT loads, the rest is refused by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from weightdiff.diffs.formats import readers, sniff
from weightdiff.diffs.formats.peft import CONFIG_NAME, WEIGHTS_NAME, read_peft, write_peft
from weightdiff.diffs.types import DenseDelta, LoraFactors, ModelRef, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, NonFiniteError
from weightdiff.models.merge import merged

IDS = torch.arange(12).reshape(2, 6) + 5


def peft_folder(model, path: Path, **options: object) -> PeftModel:
    """Make PEFT save an adapter with random factors; returns the wrapped model."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    )
    wrapped = get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(path)
    return wrapped


def assert_reads_like_peft(wrapped: PeftModel, diff: WeightDiff) -> None:
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(diff.modules) == set(layers)
    for name, m in diff.modules.items():
        delta = layers[name].get_delta_weight("default")
        torch.testing.assert_close(m.dense(), delta.T if layers[name].fan_in_fan_out else delta)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.down_proj": 7},
            "alpha_pattern": {r"layers\.0\..*_proj": 3},
        },
        {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 1}, "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.1\..*(gate|o)_proj"},
        {"layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "anchored", "all", "regex", "layers", "gaussian"],
)
def test_what_peft_writes_is_read(tiny_model, tmp_path, options):
    wrapped = peft_folder(tiny_model("llama"), tmp_path, **options)
    assert_reads_like_peft(wrapped, read_peft(tmp_path))


@pytest.mark.parametrize(
    ("kind", "target"), [("gemma3", "o_proj"), ("qwen3", "gate_proj"), ("gpt2", "c_attn")]
)
def test_other_architectures_are_read(tiny_model, tmp_path, kind, target):
    options = {"fan_in_fan_out": True} if kind == "gpt2" else {}
    wrapped = peft_folder(tiny_model(kind), tmp_path, target_modules=[target], **options)
    assert_reads_like_peft(wrapped, WeightDiff.load(tmp_path))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"use_dora": True}),
        ("gpt2", {"use_dora": True, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("llama", {"modules_to_save": ["lm_head", "norm"]}),
        ("gpt2", {"bias": "all", "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("gpt2", {"bias": "lora_only", "target_modules": ["c_proj"], "fan_in_fan_out": True}),
        ("gpt2", {"lora_bias": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("llama", {"lora_bias": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_rslora": True}),
        ("gpt2", {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
        ("llama", {"use_dora": True, "modules_to_save": ["embed_tokens"], "use_rslora": True}),
        ("gpt2", {"modules_to_save": ["wte"], "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
    ids=[
        "dora",
        "dora-conv",
        "saved",
        "biases",
        "own-biases",
        "factor-bias",
        "new-bias",
        "table",
        "tied-table",
        "both",
        "tied-saved",
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*save_embedding_layers",
    "ignore:.*fan_in_fan_out",
    "ignore:.*tie",
    "ignore:.*invalid shape",
    "ignore:.*has no bias",
)
def test_what_is_more_than_factors_is_read_against_the_base(tiny_model, tmp_path, kind, options):
    """The base with the diff in its weights is PEFT's own model, whatever an adapter trained."""
    wrapped = peft_folder(tiny_model(kind), tmp_path / "a", **options)
    stream = torch.Generator().manual_seed(8)
    for name, p in wrapped.named_parameters():
        moved = ("modules_to_save", "magnitude", "bias")
        if p.requires_grad and any(x in name for x in moved):
            p.data += 0.3 * torch.randn(p.shape, generator=stream)
    wrapped.save_pretrained(tmp_path / "a")
    base = tiny_model(kind)
    if any(x in options for x in ("use_dora", "modules_to_save", "bias")):
        with pytest.raises(FormatError, match=r"a change only against the base's own values: give the base"):
            read_peft(tmp_path / "a")
    diff = WeightDiff.load(tmp_path / "a", base=base)
    with torch.no_grad(), merged(base, diff):
        torch.testing.assert_close(base(IDS).logits, wrapped(IDS).logits, rtol=0, atol=2e-5)
        assert (base(IDS).logits - tiny_model(kind)(IDS).logits).abs().max() > 1e-3
    assert read_peft(tmp_path / "a", tiny_model(kind).state_dict()).modules.keys() == diff.modules.keys()


def test_whole_values_that_do_not_fit_the_base_are_named(tiny_model, tmp_path):
    peft_folder(tiny_model("llama"), tmp_path, modules_to_save=["lm_head"], use_dora=True)
    good = tiny_model("llama").state_dict()
    without = {k: v for k, v in good.items() if k != "lm_head.weight"}
    with pytest.raises(BaseMismatchError, match=r"values of lm_head\.weight, which this base does not have"):
        read_peft(tmp_path, without)
    with pytest.raises(BaseMismatchError, match=r"lm_head\.weight \[\d+, \d+\], and the base has \[2, 2\]"):
        read_peft(tmp_path, {**good, "lm_head.weight": torch.ones(2, 2)})
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(
        BaseMismatchError, match=r"DoRA module .*q_proj has \[.*\], and the base's weight is \[3, 3\]"
    ):
        read_peft(tmp_path, {**good, name: torch.ones(3, 3)})
    with pytest.raises(BaseMismatchError, match=r"DoRA module .*q_proj, which this base does not have"):
        read_peft(tmp_path, {k: v for k, v in good.items() if k != name})
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    magnitude = next(k for k in tensors if "magnitude" in k and "q_proj" in k)
    save_file({**tensors, magnitude: tensors[magnitude][:2].clone()}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(FormatError, match=r"q_proj has 2 DoRA magnitudes for \d+ rows"):
        read_peft(tmp_path, good)


def test_what_is_written_peft_loads_and_computes_alike(tiny_model, tmp_path):
    options = {
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.0.mlp.down_proj": 5},
        "use_rslora": True,
    }
    wrapped = peft_folder(tiny_model("llama"), tmp_path / "a", **options)
    expected = wrapped(IDS).logits
    write_peft(read_peft(tmp_path / "a"), tmp_path / "b")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "b").eval()
    torch.testing.assert_close(loaded(IDS).logits, expected)
    assert not torch.allclose(expected, tiny_model("llama")(IDS).logits, atol=1e-3)
    assert sorted(item.name for item in (tmp_path / "b").iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    scales=st.lists(st.floats(-8, 8, allow_subnormal=False), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_write_then_read_is_exact(ranks, scales, dtype):
    names = ["a", "x.a", "y.x.a", "layers.1.q", "layers.11.q"]
    diff = WeightDiff(
        {
            name: LoraFactors(torch.randn(rank, 3).to(dtype), torch.randn(2, rank).to(dtype), scale)
            for name, rank, scale in zip(names, ranks, scales, strict=False)
        },
        ModelRef("org/base", "abc", "11", "22"),
        {"note": "é"},
    )
    with tempfile.TemporaryDirectory() as folder:
        found = read_peft(write_peft(diff, Path(folder) / "out"))
    assert found.base == diff.base
    assert found.meta == {"note": "é", "base_model_name_or_path": "org/base", "revision": "abc"}
    assert set(found.modules) == set(diff.modules)
    for name, m in diff.modules.items():
        got = found.modules[name]
        assert got.down.dtype == dtype
        assert torch.equal(got.down, m.down)
        assert torch.equal(got.up, m.up)
        assert got.scale == pytest.approx(m.scale, rel=1e-15, abs=0)


def test_usual_adapters_have_usual_configs(random_diff, tmp_path):
    write_peft(random_diff({"q": (4, 3, 3), "v": (4, 3, 3)}, scale=2.0), tmp_path / "a", "org/base")
    config = json.loads((tmp_path / "a" / CONFIG_NAME).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "org/base")
    assert isinstance(config["lora_alpha"], int)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["target_modules"] == ["q", "v"]
    LoraConfig.from_pretrained(tmp_path / "a")


def test_shared_and_strided_factors_are_written(tmp_path):
    square = torch.randn(3, 3)
    diff = WeightDiff({"a": LoraFactors(square, square.T), "b": LoraFactors(square, square)})
    found = read_peft(write_peft(diff, tmp_path / "a"))
    assert torch.equal(found.modules["a"].up, square.T)
    assert found.base is None


def test_writing_refuses_what_it_cannot_say(random_diff, tmp_path):
    with pytest.raises(FormatError, match="d change as dense matrices: truncate"):
        write_peft(WeightDiff({"d": DenseDelta(torch.ones(2, 2))}), tmp_path / "a")
    with pytest.raises(FormatError, match=r"n\.bias are changed too, which it cannot say"):
        write_peft(WeightDiff(random_diff().modules, parameters={"n.bias": torch.ones(2)}), tmp_path / "a")
    with pytest.raises(FormatError, match="it has no modules"):
        write_peft(WeightDiff({}), tmp_path / "a")
    with pytest.raises(NonFiniteError):
        write_peft(random_diff(scale=float("inf")), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    write_peft(random_diff(), tmp_path / "a")
    with pytest.raises(FormatError, match="exists and is not empty"):
        write_peft(random_diff(), tmp_path / "a")
    write_peft(random_diff({"n": (1, 1, 1)}), tmp_path / "a", overwrite=True)
    assert list(read_peft(tmp_path / "a").modules) == ["n"]


@pytest.fixture
def folder(random_diff, tmp_path) -> Path:
    return write_peft(random_diff({"layers.0.q": (2, 3, 4)}, meta={}), tmp_path / "adapter", "org/base")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


A, B = (f"base_model.model.layers.0.q.lora_{side}" for side in "AB")


def test_older_key_layouts_are_read(folder):
    before = read_peft(folder)
    assert before.base == ModelRef("org/base")

    def older(tensors):
        tensors[f"{A}.default.weight"] = tensors.pop(f"{A}.weight")
        tensors[f"{B.removeprefix('base_model.model.')}.default.weight"] = tensors.pop(f"{B}.weight")

    change_tensors(folder, older)
    after = read_peft(folder / WEIGHTS_NAME)
    assert torch.equal(after.modules["layers.0.q"].dense(), before.modules["layers.0.q"].dense())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"does not hold the DoRA magnitudes of layers\.0\.q, which .* copy both"),
        ({"peft_type": "IA3"}, "PEFT type 'IA3', and only LORA"),
        ({"peft_type": None}, "PEFT type None"),
        ({"lora_bias": True}, "does not hold any LoRA bias"),
        ({"modules_to_save": ["lm_head"]}, r"does not hold the saved modules \['lm_head'\]"),
        ({"target_parameters": ["experts.w"]}, "bare parameters"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "changes the base .*path_initial_model_for_weight_conversion",
        ),
        ({"use_qalora": True, "alora_invocation_tokens": [1]}, "QALoRA .*, activation by tokens"),
        ({"r": None}, "no usable r and lora_alpha"),
        ({"r": 3}, "lora_A of rank 2, and adapter_config.json says 3"),
        ({"rank_pattern": {"(": 2}}, "no usable r"),
    ],
)
def test_configs_that_say_more_are_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(FormatError, match=message):
        read_peft(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{B}.weight"), r"lora_A without lora_B for layers\.0\.q"),
        (lambda t: t.pop(f"{A}.weight"), r"lora_B without lora_A for layers\.0\.q"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}),
            r"whole values of lm_head\.weight, which is a change only against the base's own .*base=",
        ),
        (lambda t: t.update({"e.lora_embedding_A": torch.ones(2, 2)}), "lora_embedding_A without .* for e;"),
        (lambda t: t.update({"e.lora_Q": torch.ones(2, 2)}), r"no part of a LoRA: e\.lora_Q"),
        (lambda t: t.update({f"{A}.other.weight": torch.ones(2, 3)}), r"several adapters for layers\.0\.q"),
        (lambda t: t.update({f"{A}.weight": torch.ones(2, 3, 1, 1)}), r"no linear module .*\(2, 3, 1, 1\)"),
        (lambda t: t.update({f"{B}.weight": torch.ones(4, 5)}), r"layers\.0\.q: low-rank factors must be"),
        (lambda t: t.clear(), "holds no LoRA factors"),
    ],
)
def test_tensors_that_are_no_pairs_are_refused(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(FormatError, match=message):
        read_peft(folder)


def test_nan_is_refused_at_load(folder):
    change_tensors(folder, lambda t: t[f"{A}.weight"].fill_(float("nan")))
    with pytest.raises(NonFiniteError, match=r"layers\.0\.q"):
        read_peft(folder)
    for diff in (read_peft(folder, finite=False), WeightDiff.load(folder, finite=False)):
        assert bool(diff.modules["layers.0.q"].down.isnan().all())
        assert not bool(diff.modules["layers.0.q"].up.isnan().any())


def test_nan_in_whole_values_is_kept_too(folder):
    change_tensors(
        folder, lambda t: t.update({"base_model.model.norm.weight": torch.full((2,), float("nan"))})
    )
    base = {"norm.weight": torch.ones(2)}
    with pytest.raises(NonFiniteError, match=r"norm\.weight"):
        read_peft(folder, base)
    assert bool(read_peft(folder, base, finite=False).parameters["norm.weight"].isnan().all())


@pytest.mark.parametrize("keep", [0, 4, 100, -3])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors is damaged or truncated"):
        read_peft(folder)


def test_missing_files_are_named(folder):
    weights, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    text = config.read_text()
    config.write_text("{")
    with pytest.raises(FormatError, match="cannot be read as JSON"):
        read_peft(folder)
    config.write_text("[]")
    with pytest.raises(FormatError, match="no JSON object"):
        read_peft(folder)
    config.unlink()
    with pytest.raises(FormatError, match=r"has no adapter_config\.json"):
        WeightDiff.load(folder)
    config.write_text(text)
    weights.unlink()
    with pytest.raises(FormatError, match=r"no adapter_model\.safetensors"):
        read_peft(folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(FormatError, match="is a pickle, which can run code"):
        WeightDiff.load(folder)


def test_sniffing(folder, tmp_path):
    assert sniff(folder).name == "peft"
    assert sniff(folder / WEIGHTS_NAME).name == "peft"
    assert "peft" in [reader.name for reader in readers()]
    with pytest.raises(FormatError, match="does not exist; give a local file or folder"):
        sniff(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"found an empty folder; known formats are .*peft: a folder with"):
        WeightDiff.load(tmp_path / "empty")
    with pytest.raises(FormatError, match=r"found a folder with adapter/, empty/"):
        sniff(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match="found a file of 5 bytes"):
        sniff(tmp_path / "notes.txt")
