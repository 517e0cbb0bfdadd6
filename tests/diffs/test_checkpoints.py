"""Two whole checkpoints, tiny ones saved by save_pretrained, and the diff between them."""

from __future__ import annotations

import copy
import json
import os
import struct
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightdiff.diffs import algebra, differences
from weightdiff.diffs.checkpoints import Checkpoint
from weightdiff.diffs.differences import difference
from weightdiff.diffs.extraction import extract
from weightdiff.diffs.factors import DenseDelta, LoraFactors
from weightdiff.diffs.formats import sniff
from weightdiff.diffs.pairing import Tally
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError, BaseNeededError, FormatError, NonFiniteError

INDEX = "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model, by default in several shards: `saved(model, "base")`."""

    def save(model: Any, name: str, shard: str = "20KB") -> Path:
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        return tmp_path / name

    return save


def _finetuned(model: Any, change: Callable[[str], float] = lambda _: 0.01) -> Any:
    """A copy whose parameters gain noise of the size that `change` says for their name."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p += (change(name) * torch.randn(p.shape)).to(p.dtype)
    return other


def _opened(*folders: Path) -> list[Checkpoint]:
    return [Checkpoint.open(folder) for folder in folders]


def _changed_file(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def _pair(saved, tiny_model, change=lambda _: 0.01, **options) -> tuple[Path, Path]:
    """Unsharded folders of a tiny Llama and its finetune."""
    model = tiny_model("llama", **options)
    return saved(model, "base", "1GB"), saved(_finetuned(model, change), "tuned", "1GB")


def test_a_sharded_checkpoint_is_read_as_it_was_saved(saved, tiny_model):
    model = tiny_model("llama").to(torch.bfloat16)
    folder = saved(model, "base")
    assert len(list(folder.glob("*.safetensors"))) > 2
    checkpoint = Checkpoint.open(folder)
    state = model.state_dict()
    assert sorted(checkpoint.names()) == sorted(state)
    for name, tensor in state.items():
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(tensor.shape), torch.bfloat16)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert torch.equal(checkpoint.rows("lm_head.weight", 3, 5), state["lm_head.weight"][3:5])
    assert checkpoint.config()["model_type"] == "llama"
    assert checkpoint.bytes_read == 2 * (sum(t.numel() for t in state.values()) + 2 * 32)


def test_one_file_and_odd_shapes(tmp_path):
    tensors = {"a": torch.tensor(3.0), "b": torch.zeros(0, 4), "c": torch.arange(6).reshape(1, 2, 3)}
    save_file(tensors, tmp_path / "any.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "any.safetensors")
    assert checkpoint.config() is None
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
    with pytest.raises(KeyError):
        checkpoint.tensor("d")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_base_and_dense_diff_are_the_finetune(saved, tiny_model, kind):
    """bfloat16, so that the sum rounds to the very numbers of the finetune."""
    model = tiny_model(kind).to(torch.bfloat16)
    tuned = _finetuned(model)
    diff, report = extract(*_opened(saved(model, "base"), saved(tuned, "tuned")))
    modules, found = dict(model.named_modules()), dict(model.named_parameters())
    for name, after in tuned.named_parameters():
        module = name.removesuffix(".weight")
        if module in diff.modules:
            delta = diff.modules[module].dense()
            delta = delta.T if type(modules[module]).__name__ == "Conv1D" else delta
        else:
            delta = diff.parameters[name]
        assert delta.dtype == torch.float32
        assert torch.equal((found[name].float() + delta).to(torch.bfloat16), after), name
    assert len(diff.modules) + len(diff.parameters) == len(found) == report.changed
    assert (report.energy, report.dropped, report.untouched) == (1.0, {}, 0)
    assert bool(report.tied) == (kind != "llama")


def test_gpt2_deltas_are_out_by_in(saved, tiny_model):
    model = tiny_model("gpt2")
    tuned = _finetuned(model)
    diff, _ = extract(*_opened(saved(model, "base"), saved(tuned, "tuned")))
    wide = diff.modules["transformer.h.0.attn.c_attn"]
    assert (wide.out_features, wide.in_features) == (96, 32)
    assert diff.parameters["transformer.h.0.attn.c_attn.bias"].shape == (96,)
    assert diff.modules["transformer.wpe"].delta.shape == (512, 32)


def test_gpt2_without_a_config_is_refused(saved, tiny_model):
    folder = saved(tiny_model("gpt2"), "base", "1GB")
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no config\.json.*c_attn"):
        extract(*_opened(folder, folder))


def test_a_bare_backbone_gets_the_names_of_its_causal_lm(saved, tiny_model):
    """As GPT-2 lies on the Hub: "h.0.…" instead of "transformer.h.0.…"."""
    model = tiny_model("gpt2")
    tuned = _finetuned(model)
    base = saved(model, "base", "1GB")
    _changed_file(
        base / "model.safetensors",
        lambda t: [t.update({k.removeprefix("transformer."): t.pop(k)}) for k in list(t)],
    )
    diff, report = extract(*_opened(base, saved(tuned, "tuned")))
    assert "transformer.h.1.mlp.c_fc" in diff.modules
    assert "transformer.ln_f.bias" in diff.parameters
    assert (
        report.moved[-1] == "the base is saved as a bare backbone: its names get 'transformer.' before them"
    )
    assert (report.missing, report.unexpected) == ((), ())


def test_truncated_layers_are_those_of_torch_svd(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    whole, _ = extract(*_opened(base, tuned))
    diff, report = extract(*_opened(base, tuned), rank=4)
    lost = total = 0.0
    for name, m in diff.modules.items():
        delta = whole.modules[name].dense()
        total += float(delta.square().sum())
        if name in ("model.embed_tokens", "lm_head"):
            assert torch.equal(m.dense(), delta)
            assert report.kept[name].rank is None
            continue
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        best = (left[:, :4] * values[:4] @ right[:4]).float()
        torch.testing.assert_close(m.dense(), best, rtol=0, atol=1e-6)
        kept = report.kept[name]
        assert isinstance(m, LoraFactors)
        assert (kept.kind, kept.rank, kept.shape) == ("linear", 4, tuple(delta.shape))
        assert kept.energy == pytest.approx(float(values[:4].square().sum() / values.square().sum()))
        assert kept.squared_norm == pytest.approx(float(values.square().sum()))
        lost += float(values[4:].square().sum())
    total += sum(float(p.square().sum()) for p in whole.parameters.values())
    assert report.energy == pytest.approx(1 - lost / total)
    assert diff.meta["rank"] == 4


def test_energy_decides_the_rank_of_each_layer(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    diff, report = extract(*_opened(base, tuned), energy=0.5)
    ranks = {m.rank for m in diff.modules.values() if isinstance(m, LoraFactors)}
    assert len(ranks) > 1
    assert all(0.5 <= kept.energy <= 1 for kept in report.kept.values())


def test_linear_only_says_what_it_loses(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    whole, _ = extract(*_opened(base, tuned))
    diff, report = extract(*_opened(base, tuned), rank=32, linear_only=True)
    assert diff.is_low_rank
    assert set(report.dropped) == {"model.embed_tokens.weight", "lm_head.weight", *whole.parameters}
    lost = sum(report.dropped.values())
    assert report.energy == pytest.approx(1 - lost)
    head = float(whole.modules["lm_head"].dense().square().sum()) / algebra.norm(whole) ** 2
    assert report.dropped["lm_head.weight"] == pytest.approx(head, rel=1e-4)


def test_untouched_tensors_are_counted_and_left_out(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model, change=lambda name: 0.01 * ("layers.1" in name))
    checkpoints = _opened(base, tuned)
    diff, report = extract(*checkpoints, rank=2)
    assert {name.split(".")[2] for name in (*diff.modules, *diff.parameters)} == {"1"}
    assert (report.changed, report.untouched) == (9, 12)
    assert report.bytes_read == sum(c.bytes_read for c in checkpoints)
    text = json.loads(json.dumps(report.to_json()))
    assert (text["untouched"], text["missing"]) == (12, [])
    assert text["kept"]["model.layers.1.mlp.up_proj"]["rank"] == 2


def test_equal_checkpoints_have_no_diff(saved, tiny_model):
    folder = saved(tiny_model("llama"), "base")
    diff, report = extract(*_opened(folder, folder), rank=2)
    assert (diff.modules, diff.parameters, report.energy, report.changed) == ({}, {}, 1.0, 0)


def test_equal_numbers_of_another_dtype_are_untouched(saved, tiny_model):
    """A base in bfloat16 and a finetune saved in float32 differ in what changed alone."""
    model = tiny_model("llama").to(torch.bfloat16)
    base = saved(model, "base")
    tuned = _finetuned(model.float(), lambda name: 0.01 * (name == f"{Q0}.weight"))
    diff, report = extract(*_opened(base, saved(tuned, "tuned")))
    assert list(diff.modules) == [Q0]
    assert report.untouched == 20


def test_masks_of_infinity_are_no_difference(tmp_path):
    masked = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    save_file({"mask": masked, "w.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    save_file({"mask": masked, "w.weight": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    diff, report = extract(*_opened(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert list(diff.modules) == ["w"]
    assert report.untouched == 1


def test_at_most_three_tensors_are_alive_at_once(saved, tiny_model, monkeypatch):
    """A spy on all that is read and subtracted: two pieces and one difference, however large the model."""
    base, tuned = _pair(saved, tiny_model, num_hidden_layers=6)
    alive, most = 0, 0

    def watched(tensor: torch.Tensor | None) -> torch.Tensor | None:
        nonlocal alive, most

        def gone():
            nonlocal alive
            alive -= 1

        if tensor is not None:
            alive += 1
            most = max(most, alive)
            weakref.finalize(tensor, gone)
        return tensor

    rows, subtracted = Checkpoint.rows, differences._subtracted
    monkeypatch.setattr(Checkpoint, "rows", lambda *a: watched(rows(*a)))

    def spied(*arguments):
        delta, squared = subtracted(*arguments)
        return watched(delta), squared

    monkeypatch.setattr(differences, "_subtracted", spied)
    steps = []
    before, after = _opened(base, tuned)
    extract(before, after, 2, progress=lambda *step: steps.append(step), linear_only=True)
    assert 0 < most <= 3
    assert steps[0] == (0, 57, before.names()[0])
    assert steps[-1] == (57, 57, "")


def test_large_tensors_are_subtracted_piece_by_piece(saved, tiny_model, monkeypatch):
    """The pieces are rows: more of them than one, and the same difference."""
    base, tuned = _pair(saved, tiny_model)
    whole, _ = extract(*_opened(base, tuned))
    monkeypatch.setattr("weightdiff.diffs.pairing._CHUNK_ELEMENTS", 100)
    monkeypatch.setattr("weightdiff.diffs.checkpoints._MAPPED_BYTES", 3000)
    pieces, _ = extract(*_opened(base, tuned))
    for name, m in whole.modules.items():
        assert torch.equal(pieces.modules[name].dense(), m.dense())


def test_large_matrices_are_sketched_nearly_as_well_as_can_be(tmp_path, monkeypatch):
    """A low-rank change in noise, and noise alone: the energy is within a percent of the exact SVD's."""
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 600, generator=stream)
    low = torch.randn(400, 8, generator=stream) @ torch.randn(8, 600, generator=stream)
    changed = {"a.weight": noise + low, "b.weight": noise, "c.weight": (noise - low).T.contiguous()}
    save_file({name: torch.zeros_like(t) for name, t in changed.items()}, tmp_path / "base.safetensors")
    save_file(changed, tmp_path / "tuned.safetensors")
    monkeypatch.setattr(algebra, "FULL_SVD_SIDE", 10)
    diff, report = extract(*_opened(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"), rank=12)
    for name, tensor in changed.items():
        module = name.removesuffix(".weight")
        values = torch.linalg.svdvals(tensor.double()).square()
        told = report.kept[module].energy
        assert told == pytest.approx(float(values[:12].sum() / values.sum()), rel=0.01)
        missed = (tensor - diff.modules[module].dense()).double().square().sum() / values.sum()
        assert told == pytest.approx(1 - float(missed), abs=1e-5)


@pytest.mark.parametrize("ties", [(True, True), (True, None), (None, True)], ids=str)
def test_tied_heads_change_with_the_embeddings(saved, tiny_model, ties):
    """True: the head is stored, equal to the embeddings. None: it is not stored."""
    model = tiny_model("llama", tie_word_embeddings=True)
    folders = saved(model, "base", "1GB"), saved(_finetuned(model), "tuned", "1GB")
    for folder, tie in zip(folders, ties, strict=True):
        if tie:
            _changed_file(
                folder / "model.safetensors",
                lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
            )
    diff, report = extract(*_opened(*folders))
    assert "model.embed_tokens" in diff.modules
    assert "lm_head" not in diff.modules
    assert report.tied == ("the head is tied to the embeddings: its change is theirs",)
    assert (report.missing, report.unexpected) == ((), ())


def test_a_finetune_that_ties_its_head(saved, tiny_model):
    model = tiny_model("llama")
    tuned = tiny_model("llama", tie_word_embeddings=True)
    diff, report = extract(*_opened(saved(model, "base"), saved(tuned, "tuned")))
    expected = tuned.model.embed_tokens.weight - model.lm_head.weight
    torch.testing.assert_close(diff.modules["lm_head"].dense(), expected.detach())
    assert "the finetune ties its head" in report.tied[0]
    assert report.missing == ()


def test_a_finetune_that_unties_its_head(saved, tiny_model):
    model = tiny_model("llama", tie_word_embeddings=True)
    diff, report = extract(*_opened(saved(model, "base"), saved(tiny_model("llama", seed=1), "tuned")))
    assert "lm_head" not in diff.modules
    assert report.dropped["lm_head.weight"] > 0.1
    assert "the base ties its head" in report.tied[0]
    assert report.unexpected == ()


@pytest.mark.parametrize("rows", [263, 250])
def test_resized_vocabularies_are_compared_row_by_row(saved, tiny_model, rows):
    model = tiny_model("llama")
    tuned = _finetuned(model)
    base = saved(model, "base")
    tuned.resize_token_embeddings(rows, mean_resizing=False)
    diff, report = extract(*_opened(base, saved(tuned, "tuned")))
    delta, common = diff.modules["model.embed_tokens"].dense(), min(rows, 260)
    assert delta.shape == (260, 32)
    before, after = model.model.embed_tokens.weight, tuned.model.embed_tokens.weight
    torch.testing.assert_close(delta[:common], (after[:common] - before[:common]).detach())
    assert not delta[common:].any()
    added = f"{rows - 260} rows added" if rows > 260 else f"{260 - rows} rows removed"
    assert sorted(line.split(" (")[0] for line in report.vocabulary) == [
        f"lm_head.weight: {added}",
        f"model.embed_tokens.weight: {added}",
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.language_model.", "language_model.model."),
        ("model.", "model.language_model."),
        ("language_model.model.", "model."),
        ("gpt_neox.", "model."),
    ],
)
def test_prefixes_that_moved_between_releases(saved, tiny_model, ours, theirs):
    """Beside a vision tower whose layers are called the same."""
    base, tuned = _pair(saved, tiny_model)
    whole, _ = extract(*_opened(base, tuned))
    for folder, prefix, tower in ((base, ours, "vision."), (tuned, theirs, "model.vision.")):

        def move(t, prefix=prefix, tower=tower):
            for name in list(t):
                if name.startswith("model."):
                    t[prefix + name.removeprefix("model.")] = t.pop(name)
            t[f"{tower}encoder.layers.0.self_attn.q_proj.weight"] = torch.ones(3, 3)

        _changed_file(folder / "model.safetensors", move)
    if ours == "gpt_neox.":  # an unknown wrapper: layers match by what follows, where that is unique
        _changed_file(
            base / "model.safetensors", lambda t: t.pop("vision.encoder.layers.0.self_attn.q_proj.weight")
        )
        _changed_file(
            tuned / "model.safetensors",
            lambda t: t.pop("model.vision.encoder.layers.0.self_attn.q_proj.weight"),
        )
    diff, report = extract(*_opened(base, tuned))
    q = diff.modules[f"{ours}layers.0.self_attn.q_proj"]
    assert torch.equal(q.dense(), whole.modules[Q0].dense())
    assert any(line.startswith(f"{ours.removesuffix('.')} in the base") for line in report.moved)
    lost = ("gpt_neox.embed_tokens.weight", "gpt_neox.norm.weight") if ours == "gpt_neox." else ()
    assert report.missing == lost


def test_names_of_one_side_are_reported(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    _changed_file(base / "model.safetensors", lambda t: t.update(a=torch.zeros(1)))
    _changed_file(tuned / "model.safetensors", lambda t: t.update(b=torch.zeros(1)))
    tally = Tally()
    assert len(list(difference(*_opened(base, tuned), tally))) == tally.changed == 21
    assert (tally.missing, tally.unexpected) == (["a"], ["b"])


def test_layers_of_another_shape_are_another_base(saved, tiny_model):
    base = saved(tiny_model("llama"), "base")
    tuned = saved(tiny_model("llama", intermediate_size=40), "tuned")
    fault = r"down_proj\.weight is \[32, 48\] in the base and \[32, 40\] in the finetune"
    with pytest.raises(BaseMismatchError, match=fault):
        difference(*_opened(base, tuned))


def test_no_common_names_are_another_base(saved, tiny_model):
    base, other = saved(tiny_model("llama"), "base"), saved(tiny_model("gpt2"), "tuned")
    with pytest.raises(BaseMismatchError, match="shares no tensor name"):
        difference(*_opened(base, other))


def test_nan_is_named(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    _changed_file(tuned / "model.safetensors", lambda t: t[f"{Q0}.weight"].fill_(torch.nan))
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight differs .* by NaN or infinity"):
        extract(*_opened(base, tuned), rank=2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(saved, tiny_model, dtype):
    base, tuned = _pair(saved, tiny_model)
    _changed_file(
        tuned / "model.safetensors",
        lambda t: t.update({f"{Q0}.weight": torch.ones(32, 32).to(dtype)}),
    )
    with pytest.raises(FormatError, match=r"q_proj\.weight in .*tuned is (int8|float8_e4m3fn) and changed"):
        extract(*_opened(base, tuned), rank=2)
    _changed_file(
        tuned / "model.safetensors", lambda t: t.update({f"{Q0}.weight": torch.zeros(512, 1).to(torch.int8)})
    )
    with pytest.raises(FormatError, match="int8, as quantized weights are"):
        extract(*_opened(base, tuned), rank=2)


@pytest.mark.parametrize("target", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_senseless_targets_are_refused_before_reading(saved, tiny_model, target):
    base, tuned = _opened(*_pair(saved, tiny_model))
    with pytest.raises(ValueError, match=r"rank must be|share of the energy"):
        extract(base, tuned, **target)
    assert base.bytes_read == 0


def _as_bin(folder: Path, shards: int = 1) -> None:
    """Rewrite an unsharded checkpoint as PyTorch's zip files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = sorted(tensors)
    placed = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(names)}
    for file in set(placed.values()):
        torch.save({n: tensors[n] for n in names if placed[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files_are_read_without_running_them(saved, tiny_model, shards):
    base, tuned = _pair(saved, tiny_model)
    whole, _ = extract(*_opened(base, tuned))
    _as_bin(base, shards)
    diff, report = extract(*_opened(base, tuned))
    assert report.changed == 21
    for name, m in whole.modules.items():
        assert torch.equal(diff.modules[name].dense(), m.dense())


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"a": torch.ones(1), "b": _Hostile(ran)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match="is refused: it is damaged, or its pickle holds more than tensors"):
        Checkpoint.open(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.ones(1), "step": 3}, "holds step besides tensors"),
        ([torch.ones(1)], "holds no dictionary of tensors"),
        ({"a": torch.ones(1).expand(1 << 40)}, "sparse, expanded or empty shell"),
        ({"a": torch.ones(1, device="meta")}, "sparse, expanded or empty shell"),
    ],
    ids=["step", "list", "expanded", "meta"],
)
def test_pickles_of_something_else_are_refused(tmp_path, value, message):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match=message):
        Checkpoint.open(tmp_path)


def test_damaged_and_packed_pickles_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(FormatError, match="no whole zip file"):
        Checkpoint.open(tmp_path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(FormatError, match="compressed parts"):
        Checkpoint.open(tmp_path)


@pytest.fixture
def sharded(saved, tiny_model) -> Path:
    return saved(tiny_model("llama"), "base")


def _reindexed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ""])
def test_shards_outside_the_folder_are_refused(sharded, name):
    _reindexed(sharded, lambda placed: placed.update({"lm_head.weight": name}))
    with pytest.raises(FormatError, match="outside its folder; shards must lie beside their index"):
        Checkpoint.open(sharded)


def test_links_out_of_the_folder_are_refused(sharded, tmp_path):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FormatError, match="a link to a file outside its folder"):
        Checkpoint.open(sharded)


def test_links_within_the_hub_cache_are_followed(sharded, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    assert len(Checkpoint.open(snapshot).names()) == 21


def test_a_missing_shard_is_named(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FormatError, match=f"has no {gone.name}, which .* lists; copy the missing shard"):
        Checkpoint.open(sharded)


def test_a_tensor_in_no_shard_is_named(sharded):
    _reindexed(sharded, lambda placed: placed.update(ghost=placed["lm_head.weight"]))
    with pytest.raises(FormatError, match="lists ghost, and the shard it names"):
        Checkpoint.open(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FormatError, match=f"{shard.name} is damaged or truncated"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 50000) + b"[" * 50000,
        b"",
        (lambda text: struct.pack("<Q", len(text)) + text)(
            json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
        ),
    ],
    ids=["huge", "list", "nested", "empty", "beyond"],
)
def test_header_bombs_are_refused(tmp_path, head):
    (tmp_path / "model.safetensors").write_bytes(head)
    with pytest.raises(FormatError, match="is damaged or truncated"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged or truncated"),
        ("[" * 100000, "is damaged or truncated"),
        ("[]", "holds no JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "names a shard 3, which is no text"),
    ],
)
def test_damaged_indices_are_refused(tmp_path, text, message):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=message):
        Checkpoint.open(tmp_path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="found nothing"):
        Checkpoint.open(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match="a diff already"):
        Checkpoint.open(tmp_path)


def test_the_reader_needs_a_base(saved, tiny_model):
    base, tuned = _pair(saved, tiny_model)
    assert sniff(tuned).name == "checkpoint"
    with pytest.raises(
        BaseNeededError, match=r"tuned holds all weights of a finetuned model, .*: give the base"
    ):
        WeightDiff.load(tuned)
    assert isinstance(WeightDiff.load(tuned, base=base).modules[Q0], DenseDelta)
    low = WeightDiff.load(tuned, base=base, rank=3, linear_only=True)
    assert low.is_low_rank
    assert low.max_rank == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_base_may_be_a_model_its_tensors_or_its_files(saved, tiny_model, kind):
    model = tiny_model(kind)
    base, tuned = saved(model, "base"), saved(_finetuned(model), "tuned")
    expected = WeightDiff.load(tuned, base=base)
    assert len(expected.modules) > 2
    for source in (model, model.state_dict()):
        diff = WeightDiff.load(tuned, base=source)
        assert diff.modules.keys() == expected.modules.keys()
        for name, m in expected.modules.items():
            assert torch.equal(diff.modules[name].dense(), m.dense())
        assert diff.parameters.keys() == expected.parameters.keys()
        for name, p in expected.parameters.items():
            assert torch.equal(diff.parameters[name], p)
        assert (diff.base is None) == (source is not model)
    low = WeightDiff.load(tuned, base=model, rank=2, linear_only=True)
    assert (low.is_low_rank, low.max_rank) == (True, 2)


def test_a_loaded_backbone_keeps_its_names(saved, tiny_model):
    """Unlike its files, which are loaded into a causal LM."""
    model = tiny_model("gpt2")
    diff = WeightDiff.load(saved(_finetuned(model), "tuned"), base=model.transformer)
    assert "h.0.attn.c_attn" in diff.modules
    assert diff.modules["h.0.attn.c_attn"].out_features == 96


def test_a_config_beside_the_finetune_serves_too(saved, tiny_model):
    model = tiny_model("gpt2")
    base, tuned = saved(model, "base", "1GB"), saved(_finetuned(model), "tuned")
    (base / "config.json").unlink()
    diff, _ = extract(*_opened(base, tuned))
    assert diff.modules["transformer.h.0.attn.c_attn"].out_features == 96


def test_shards_need_no_index(saved, tiny_model):
    model = tiny_model("llama")
    folder = saved(model, "base")
    names = Checkpoint.open(folder).names()
    (folder / INDEX).unlink()
    assert sorted(Checkpoint.open(folder).names()) == sorted(names)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(FormatError, match=r"has no model\.safetensors\.index\.json and not all shards"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("other", ["adapter_config.json", "index.csv"])
def test_the_reader_leaves_other_folders_alone(saved, tiny_model, other):
    from weightdiff.diffs.formats.registry import readers

    folder = saved(tiny_model("llama"), "base")
    (reader,) = [r for r in readers() if r.name == "checkpoint"]
    assert reader.matches(folder)
    (folder / other).write_text("")
    assert not reader.matches(folder)
    assert not reader.matches(folder / "config.json")
