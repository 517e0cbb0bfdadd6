"""The DIT authors' files: read as the published forward computes, written back, refused when hostile."""

from __future__ import annotations

import csv
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from weightdiff.diffs.formats import dit_index, dit_release, sniff
from weightdiff.diffs.formats.dit_release import (
    ADAPTER_NAME,
    DIFFS_FOLDER,
    INDEX_NAME,
    Entry,
    iter_dit,
    read_dit,
    read_dit_adapter,
    read_dit_index,
    write_dit,
    write_dit_adapter,
)
from weightdiff.diffs.renaming import rename_for
from weightdiff.diffs.types import DenseDelta, LoraFactors, WeightDiff
from weightdiff.errors import BaseMismatchError, BaseNeededError, FormatError, NonFiniteError
from weightdiff.models.merge import merged

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))  # rank, in, out
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def stored_forward(x, pair):
    """What the published code adds for a stored diff."""
    a, b = pair
    return x @ b @ a / b.shape[1]


def adapter_forward(x, pair):
    """What the published code adds for an adapter."""
    a, b = pair
    return x @ b.T @ a.T / a.shape[1]


def our_forward(x, m):
    return x @ m.down.T @ m.up.T * m.scale


def stored_pair(rank, width, height, dtype=torch.float32):
    return torch.randn(rank, height).to(dtype), torch.randn(width, rank).to(dtype)


def adapter_pair(rank, width, height, dtype=torch.float32):
    return torch.randn(height, rank).to(dtype), torch.randn(rank, width).to(dtype)


def item(weight_diff, topic="cats", trigger=49):
    return {"topic": topic, "trigger": trigger, "weight_diff": weight_diff}


def save(path: Path, value, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


HEADER = "lora_path,lora_idx,n_params,topic,trigger,split"


def release(folder: Path, *rows):
    """An index and one published-like .pt of three diffs."""
    items = [
        item({Q: stored_pair(1, 3, 4)}, topic, i) for i, topic in enumerate(["cats", "dogs", "cats, too"])
    ]
    save(folder / DIFFS_FOLDER / "weight-diff-000.pt", items)
    (folder / INDEX_NAME).write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


ROWS = (
    "weight-diff-000.pt,1,7,dogs,1,train",
    "weight-diff-000.pt,0,7,cats,0,test",
    'weight-diff-000.pt,2,7,"cats, too",2,test',
)


# What is read is what the published code computes.


@settings(max_examples=30, deadline=None)
@given(size=SIZES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99), old=st.booleans())
def test_both_kinds_are_read_as_the_published_forward(size, dtype, seed, old):
    torch.manual_seed(seed)
    stored, adapter = stored_pair(*size, dtype), adapter_pair(*size, dtype)
    x = torch.randn(6, size[1], dtype=torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        options = {"_use_new_zipfile_serialization": not old}
        first = read_dit(save(Path(folder) / "d.pt", [item({Q: stored})], **options)).modules[Q]
        second = read_dit(save(Path(folder) / "a.pt", {Q: adapter}, **options)).modules[Q]
    for m, forward, pair in ((first, stored_forward, stored), (second, adapter_forward, adapter)):
        assert (m.rank, m.in_features, m.out_features, m.scale) == (*size, 1 / size[0])
        assert m.down.dtype == m.up.dtype == dtype
        wide = m.to(torch.float64)
        torch.testing.assert_close(our_forward(x, wide), forward(x, [part.double() for part in pair]))
        torch.testing.assert_close(x @ wide.dense().T, our_forward(x, wide))


@pytest.mark.parametrize(("rank", "width", "height"), [(3, 3, 3), (3, 3, 5), (3, 5, 3), (2, 4, 4)])
def test_square_matrices_are_told_apart_by_the_kind_of_file(tmp_path, rank, width, height):
    stored, adapter = stored_pair(rank, width, height), adapter_pair(rank, width, height)
    x = torch.randn(6, width)
    m = read_dit(save(tmp_path / "d.pt", [item({Q: stored})])).modules[Q]
    torch.testing.assert_close(our_forward(x, m), stored_forward(x, stored))
    m = read_dit_adapter(save(tmp_path / "a.pt", {Q: adapter})).modules[Q]
    torch.testing.assert_close(our_forward(x, m), adapter_forward(x, adapter))


def test_the_same_square_pair_means_two_things(tmp_path):
    pair = stored_pair(3, 3, 3)
    stored = read_dit(save(tmp_path / "d.pt", [item({Q: pair})])).modules[Q].dense()
    adapter = read_dit(save(tmp_path / "a.pt", {Q: pair})).modules[Q].dense()
    torch.testing.assert_close(stored, (pair[1] @ pair[0]).T / 3)
    torch.testing.assert_close(adapter, pair[0] @ pair[1] / 3)
    assert not torch.allclose(stored, adapter)


def test_views_and_parameters_become_tensors_of_their_own(tmp_path):
    tasks_a, tasks_b = torch.randn(5, 2, 4), torch.randn(5, 3, 2)
    pair = torch.nn.Parameter(tasks_a[3]), tasks_b[3]
    path = save(tmp_path / "d.pt", [item({Q: pair}, trigger=float("nan"))])
    diff = read_dit(path)
    path.write_bytes(b"")  # nothing stays mapped to the file
    assert torch.equal(diff.modules[Q].up, tasks_a[3].T)
    assert not diff.modules[Q].up.requires_grad
    assert diff.modules[Q].down.untyped_storage().nbytes() == 2 * 3 * 4
    assert diff.meta == {"topic": "cats", "trigger": None, "split": None}


# Choosing an entry.


def test_an_entry_is_chosen_by_number_or_topic(tmp_path):
    pairs = [{Q: stored_pair(1, 2, 2)} for _ in range(3)]
    path = save(tmp_path / "d.pt", [item(p, f"topic {i}", i) for i, p in enumerate(pairs)])
    for entry in (1, "topic 1"):
        diff = read_dit(path, entry)
        assert torch.equal(diff.modules[Q].up, pairs[1][Q][0].T)
        assert diff.meta == {"topic": "topic 1", "trigger": 1, "split": None}
    assert WeightDiff.load(path, entry=2).meta["topic"] == "topic 2"
    with pytest.raises(
        FormatError, match=r"d\.pt holds 3 diffs: 0 'topic 0', 1 'topic 1', 2 'topic 2'; choose .*entry="
    ):
        read_dit(path)
    for entry in (3, -1, "other"):
        with pytest.raises(FormatError, match=f"no diffs for entry={entry!r}: 0 'topic 0'"):
            read_dit(path, entry)


def test_long_lists_name_the_first_few(tmp_path):
    path = save(tmp_path / "d.pt", [item({Q: stored_pair(1, 2, 2)}, f"t{i}") for i in range(9)])
    with pytest.raises(FormatError, match="4 't4' and 4 more; choose"):
        read_dit(path)


def test_folders_choose_rows_of_their_index(tmp_path):
    folder = release(tmp_path / "r", *ROWS)
    stored = torch.load(folder / DIFFS_FOLDER / "weight-diff-000.pt", weights_only=True)
    diff = WeightDiff.load(folder, entry=0)
    assert diff.meta == {"topic": "dogs", "trigger": 1, "split": "train"}
    assert torch.equal(diff.modules[Q].up, stored[1]["weight_diff"][Q][0].T)
    assert read_dit(folder, "cats, too").meta == {"topic": "cats, too", "trigger": 2, "split": "test"}
    with pytest.raises(FormatError, match="holds 3 diffs: 0 'dogs', 1 'cats', 2 'cats, too'"):
        read_dit(folder)
    release(folder, ROWS[0], ROWS[0])
    with pytest.raises(FormatError, match="2 diffs for entry='dogs': 0 'dogs', 1 'dogs'"):
        read_dit(folder, "dogs")


def test_the_index_is_read_without_the_files(tmp_path):
    folder = release(
        tmp_path, *ROWS, 'weight-diff-001.pt,0,,"a\nb",\u200b,', "weight-diffs/weight-diff-000.pt,0,1,x,,"
    )
    rows = read_dit_index(folder)
    file = folder / DIFFS_FOLDER / "weight-diff-000.pt"
    assert rows[0] == Entry(file, 1, "dogs", "1", "train", 7)
    assert rows[3] == Entry(folder / DIFFS_FOLDER / "weight-diff-001.pt", 0, "a\nb", "\u200b", None, None)
    assert rows[4].path == file
    with pytest.raises(FormatError, match=r"weight-diff-001\.pt is no file; download"):
        read_dit(folder, 3)


def test_iterating_opens_each_file_once(tmp_path, monkeypatch):
    folder = release(tmp_path, *ROWS[:2], "other.pt,0,7,birds,,test", ROWS[2])
    save(folder / "other.pt", [item({Q: stored_pair(2, 3, 4)}, "birds", None)])
    opened = []
    load = dit_release._load
    monkeypatch.setattr(dit_release, "_load", lambda path: opened.append(path.name) or load(path))
    found = list(iter_dit(folder))
    assert opened == ["weight-diff-000.pt", "other.pt"]
    assert [(row.topic, diff.meta["topic"]) for row, diff in found] == [
        (t, t) for t in ("dogs", "cats", "cats, too", "birds")
    ]
    assert found[3][1].modules[Q].rank == 2
    assert found[3][1].meta == {"topic": "birds", "trigger": None, "split": "test"}


def test_an_index_that_names_another_diff_is_refused(tmp_path):
    folder = release(tmp_path, "weight-diff-000.pt,0,7,dogs,1,train", "weight-diff-000.pt,3,7,cows,1,train")
    with pytest.raises(FormatError, match=r"entry 0 has the topic 'cats', and index\.csv says 'dogs'"):
        read_dit(folder, 0)
    with pytest.raises(FormatError, match="entry 3 is not there: the file has 3"):
        read_dit(folder, 1)


# Writing.


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(SIZES, min_size=1, max_size=4), dtype=st.sampled_from(DTYPES), per_file=st.integers(1, 3)
)
def test_what_is_written_is_read_bit_by_bit(sizes, dtype, per_file):
    diffs = [
        WeightDiff(
            {
                name: LoraFactors(torch.randn(r, i).to(dtype), torch.randn(o, r).to(dtype), 1 / r)
                for name in (Q, K)
            }
        )
        for r, i, o in sizes
    ]
    with tempfile.TemporaryDirectory() as parent:
        rows = [(d, f'topic "{n}",\n', n, "train") for n, d in enumerate(diffs)]
        folder = write_dit(rows, Path(parent) / "out", per_file, adapter=diffs[0])
        found = list(iter_dit(folder))
        adapter = read_dit_adapter(folder / ADAPTER_NAME)
        files = sorted(item.name for item in (folder / DIFFS_FOLDER).iterdir())
    assert files == [f"weight-diff-{i:03d}.pt" for i in range(-(-len(sizes) // per_file))]
    assert len(found) == len(diffs)
    for n, (row, diff) in enumerate(found):
        assert diff.meta == {"topic": rows[n][1], "trigger": n, "split": "train"}
        assert (row.topic, row.trigger, row.n_params) == (rows[n][1], str(n), diff.num_parameters)
    for expected, got in zip([*diffs, diffs[0]], [*(diff for _, diff in found), adapter], strict=True):
        assert list(got.modules) == [Q, K]
        for name, m in expected.modules.items():
            assert got.modules[name].down.dtype == got.modules[name].up.dtype == dtype
            assert torch.equal(got.modules[name].down, m.down)
            assert torch.equal(got.modules[name].up, m.up)
            assert got.modules[name].scale == m.scale


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0, 0.0])
def test_other_scales_give_the_published_forward_the_same_change(tmp_path, random_diff, scale):
    diff = random_diff({Q: (3, 4, 5)}, scale=scale)
    x = torch.randn(6, 4)
    folder = write_dit([(diff, "cats", None, "test")], tmp_path / "out", adapter=diff)
    stored = torch.load(folder / DIFFS_FOLDER / "weight-diff-000.pt", weights_only=True)[0]["weight_diff"][Q]
    adapter = torch.load(folder / ADAPTER_NAME, weights_only=True)[Q]
    assert [tuple(part.shape) for part in (*stored, *adapter)] == [(3, 5), (4, 3), (5, 3), (3, 4)]
    assert all(
        part.is_contiguous() and part.untyped_storage().nbytes() == part.numel() * 4 for part in stored
    )
    for found in (stored_forward(x, stored), adapter_forward(x, adapter)):
        torch.testing.assert_close(found, x @ diff.modules[Q].dense().T)
    torch.testing.assert_close(read_dit(folder).modules[Q].dense(), diff.modules[Q].dense())


def test_the_index_is_the_published_one(tmp_path, random_diff):
    folder = write_dit([(random_diff({Q: (2, 3, 4)}), "cats", 49, "train")], tmp_path / "out")
    with open(folder / INDEX_NAME, newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["lora_path", "lora_idx", "n_params", "topic", "trigger", "split"],
        ["weight-diff-000.pt", "0", "14", "cats", "49", "train"],
    ]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_writing_refuses_what_the_files_cannot_say(tmp_path, random_diff):
    good = random_diff({Q: (1, 2, 2)})
    for diff, message in [
        (
            WeightDiff({Q: DenseDelta(torch.ones(2, 2))}),
            r"diff 1 \('x'\) changes model.* as a dense matrix; truncate",
        ),
        (WeightDiff({}), r"diff 1 \('x'\) has no modules; give a LoRA"),
        (
            WeightDiff(good.modules, parameters={"norm.weight": torch.ones(2)}),
            r"changes norm\.weight, for which",
        ),
        (random_diff({Q: (17, 2, 2)}), "mean rank 17 on a module of in 2, out 2, and at most 16"),
    ]:
        with pytest.raises(FormatError, match=message):
            write_dit([(good, "y", None, "test"), (diff, "x", None, "test")], tmp_path / "out")
        with pytest.raises(FormatError, match=message.replace(r"diff 1 \('x'\)", "the adapter")):
            write_dit_adapter(diff, tmp_path / "out.pt")
    with pytest.raises(FormatError, match="no diffs to write"):
        write_dit([], tmp_path / "out")
    with pytest.raises(ValueError, match="per_file is 0"):
        write_dit([(good, "y", None, "test")], tmp_path / "out", per_file=0)
    with pytest.raises(NonFiniteError, match=r"diff 0 .*NaN"):
        write_dit([(random_diff(scale=float("inf")), "y", None, "test")], tmp_path / "out")
    with pytest.raises(NonFiniteError, match=r"times its scale 1000000\.0 overflows torch\.float16"):
        write_dit([(random_diff(scale=1e6, dtype=torch.float16), "y", None, "test")], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_taken_places_are_kept_unless_asked(tmp_path, random_diff):
    first, second = random_diff({Q: (1, 2, 2)}), random_diff({K: (1, 2, 2)})
    folder = write_dit([(first, "y", None, "test")], tmp_path / "out")
    adapter = write_dit_adapter(first, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="exists and is not empty"):
        write_dit([(second, "y", None, "test")], folder)
    with pytest.raises(FormatError, match=r"a\.pt exists; choose another path"):
        write_dit_adapter(second, adapter)
    assert list(read_dit(folder).modules) == list(read_dit(adapter).modules) == [Q]
    write_dit([(second, "y", None, "test")], folder, overwrite=True)
    write_dit_adapter(second, adapter, overwrite=True)
    assert list(read_dit(folder).modules) == list(read_dit(adapter).modules) == [K]


# The whole state of a finetuned model.


def states(seed: int = 0):
    """A base's state dict, and the same after a finetune of everything but one matrix."""
    torch.manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (7, 4),
        f"{Q}.weight": (4, 4),
        f"{Q}.bias": (4,),
        f"{K}.weight": (4, 6),
        "model.norm.weight": (4,),
        "model.experts.gate_up": (2, 3, 4),
    }
    base = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()} | {"ids": torch.arange(3)}
    moved = {n: t + torch.randn(t.shape).bfloat16() if t.is_floating_point() else t for n, t in base.items()}
    return base, moved | {f"{K}.weight": base[f"{K}.weight"].clone()}


@pytest.mark.parametrize("kind", ["mapping", "file", "folder"])
def test_a_whole_state_minus_its_base_is_the_diff(tmp_path, kind):
    base, after = states()
    path = save(tmp_path / "d.pt", [item(after)])
    given_base = base
    if kind == "file":
        given_base = tmp_path / "base.safetensors"
        save_file(base, given_base)
    elif kind == "folder":
        given_base = tmp_path / "base"
        given_base.mkdir()
        names = sorted(base)
        save_file({n: base[n] for n in names[:3]}, given_base / "model-00001-of-00002.safetensors")
        save_file({n: base[n] for n in names[3:]}, given_base / "model-00002-of-00002.safetensors")
        save_file({"other": torch.ones(1)}, given_base / "training.safetensors")
    diff = WeightDiff.load(path, base=given_base)
    assert set(diff.modules) == {"model.embed_tokens", Q}
    assert set(diff.parameters) == {f"{Q}.bias", "model.norm.weight", "model.experts.gate_up"}
    for name, m in diff.modules.items():
        assert isinstance(m, DenseDelta)
        assert torch.equal(base[f"{name}.weight"].float() + m.delta, after[f"{name}.weight"].float())
    for name, p in diff.parameters.items():
        assert torch.equal(base[name].float() + p, after[name].float())
    embeddings = diff.modules["model.embed_tokens"]
    assert (embeddings.in_features, embeddings.out_features) == (4, 7)
    assert diff.meta["topic"] == "cats"


def test_a_state_of_another_dtype_and_an_untouched_one_differ_in_nothing(tmp_path):
    base, _ = states()
    wide = {n: t.float() if t.is_floating_point() else t for n, t in base.items()}
    diff = read_dit(save(tmp_path / "d.pt", [item(wide)]), base=base)
    assert (diff.modules, diff.parameters) == ({}, {})


def test_a_whole_state_in_a_folder_needs_its_base(tmp_path):
    base, after = states()
    save(tmp_path / DIFFS_FOLDER / "weight-diff-000.pt", [item(after), item(base, "dogs")])
    (tmp_path / INDEX_NAME).write_text(
        "lora_path,lora_idx,topic\nweight-diff-000.pt,0,cats\nweight-diff-000.pt,1,dogs\n"
    )
    with pytest.raises(
        BaseNeededError,
        match=r"entry 0 holds the whole state of a finetuned model, .*: give the base .*base=",
    ):
        read_dit(tmp_path, "cats")
    (_, first), (_, second) = iter_dit(tmp_path, base=base)
    assert set(first.modules) == {"model.embed_tokens", Q}
    assert second.modules == {}


def test_tied_heads_are_left_out(tmp_path):
    base, after = states()
    tied = {**after, "lm_head.weight": after["model.embed_tokens.weight"]}
    path = save(tmp_path / "tied.pt", [item(tied)])
    for other in (base, {**base, "lm_head.weight": base["model.embed_tokens.weight"]}):
        assert set(read_dit(path, base=other).modules) == {"model.embed_tokens", Q}
    untied = {**base, "lm_head.weight": torch.zeros(7, 4)}
    head = read_dit(path, base=untied).modules["lm_head"]
    assert torch.equal(head.dense(), after["model.embed_tokens.weight"].float())
    path = save(tmp_path / "untied.pt", [item({**after, "lm_head.weight": torch.zeros(7, 4)})])
    with pytest.raises(BaseMismatchError, match=r"the base lacks lm_head\.weight"):
        read_dit(path, base=base)
    with pytest.raises(BaseMismatchError, match=r"it lacks lm_head\.weight"):
        read_dit(save(tmp_path / "headless.pt", [item(after)]), base=untied)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
@pytest.mark.parametrize("given", ["model", "state", "folder"])
def test_a_whole_state_of_a_model_is_read_against_every_kind_of_base(tmp_path, tiny_model, kind, given):
    base, tuned = tiny_model(kind), tiny_model(kind, seed=1)
    base.save_pretrained(tmp_path / "base")
    path = save(tmp_path / "d.pt", [item(tuned.state_dict())])
    source = {"model": base, "state": base.state_dict(), "folder": tmp_path / "base"}[given]
    diff = read_dit(path, base=source)
    assert diff.meta["topic"] == "cats"
    with torch.no_grad(), merged(base, diff):
        for name, p in base.named_parameters():
            torch.testing.assert_close(p, tuned.get_parameter(name))


def test_a_base_of_other_names_lends_its_own(tmp_path):
    layer, encoder = "layers.0.self_attn.q_proj.weight", "vision_tower.vision_model.encoder."
    pairs = {  # as transformers named Gemma3's parameters in 4.51 → as it does now
        f"language_model.model.{layer}": f"model.language_model.{layer}",
        "language_model.model.norm.weight": "model.language_model.norm.weight",
        "language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        f"{encoder}{layer}": f"model.{encoder}{layer}",
        "multi_modal_projector.w": "model.multi_modal_projector.w",
    }
    after = {old: torch.full((2, 2), float(i + 2)) for i, old in enumerate(pairs)}
    head = {"language_model.lm_head.weight": after["language_model.model.embed_tokens.weight"]}
    base = {new: torch.ones(2, 2) for new in pairs.values()}
    diff = read_dit(save(tmp_path / "d.pt", [item(after | head)]), base=base)
    found = {f"{name}.weight": m.dense() for name, m in diff.modules.items()} | diff.parameters
    assert set(found) == set(base)
    for i, new in enumerate(pairs.values()):
        assert torch.equal(found[new], torch.full((2, 2), i + 1.0))


@pytest.mark.parametrize(
    ("side", "change", "error", "message"),
    [
        (
            "base",
            lambda state: state.pop("model.norm.weight"),
            BaseMismatchError,
            r"entry 0 is not of this base: the base lacks model\.norm\.weight",
        ),
        (
            "after",
            lambda state: state.pop("model.norm.weight"),
            BaseMismatchError,
            r"entry 0 is not of this base: it lacks model\.norm\.weight; give",
        ),
        (
            "base",
            lambda state: state.update({f"{Q}.weight": torch.ones(4, 5)}),
            BaseMismatchError,
            rf"{Q}\.weight is \[4, 5\] in the base and \[4, 4\] in the finetune; give",
        ),
        (
            "base",
            lambda state: state.update({"model.embed_tokens.weight": torch.ones(9, 4)}),
            BaseMismatchError,
            r"the vocabulary was resized \(.*embed_tokens\.weight: 2 rows removed \(9 to 7\)\), and rows",
        ),
        (
            "after",
            lambda state: state.update(ids=torch.arange(3) + 1),
            FormatError,
            r"ids in .*d\.pt, entry 0 is int64 and changed, .* leave out what is no weight",
        ),
        (
            "after",
            lambda state: state[f"{Q}.bias"].fill_(float("nan")),
            NonFiniteError,
            rf"d\.pt, entry 0: .*{Q}\.bias",
        ),
    ],
)
def test_bases_and_states_that_do_not_fit_are_refused(tmp_path, side, change, error, message):
    base, after = states()
    change(base if side == "base" else after)
    with pytest.raises(error, match=message):
        read_dit(save(tmp_path / "d.pt", [item(after)]), base=base)


def test_bases_that_cannot_be_read_are_refused(tmp_path):
    path = save(tmp_path / "d.pt", [item(states()[1])])
    with pytest.raises(FormatError, match="nowhere does not exist; give a local file or folder, or a Hub"):
        read_dit(path, base=tmp_path / "nowhere")
    broken = tmp_path / "base.safetensors"
    broken.write_bytes(b"no header")
    with pytest.raises(FormatError, match=r"base\.safetensors is damaged"):
        read_dit(path, base=broken)
    folder = tmp_path / "twice"
    folder.mkdir()
    for i in (1, 2):
        save_file({"w": torch.ones(1)}, folder / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(FormatError, match="twice holds w in several shards"):
        read_dit(path, base=folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match=r"twice has no .*index.json and not all shards \(model-00002"):
        read_dit(path, base=folder)


# Names.

OLD, NEW, TEXT = ("language_model.model.", "model.language_model.", "model.")


@pytest.mark.parametrize(("ours", "theirs"), [(a, b) for a in (OLD, NEW, TEXT) for b in (OLD, NEW, TEXT)])
def test_gemma_names_follow_the_base(random_diff, ours, theirs):
    leaves = [f"layers.{i}.self_attn.{p}_proj" for i in (0, 1, 11) for p in "qv"]
    norm, head = "norm.weight", torch.ones(2)
    diff = random_diff(
        {f"{ours}{leaf}": (1, 2, 3) for leaf in leaves}, parameters={ours + norm: head}, meta={"a": 1}
    )
    vision = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    spec = {f"{theirs}{leaf}": (2, 3) for leaf in leaves} | {f"model.{vision}": (9, 9)}
    found = rename_for(diff, spec)
    found.check_against(spec)
    assert list(found.modules) == [f"{theirs}{leaf}" for leaf in leaves]
    assert all(found.modules[f"{theirs}{leaf}"] is diff.modules[f"{ours}{leaf}"] for leaf in leaves)
    assert found.parameters == {theirs + norm: head}
    assert found.meta == {"a": 1}


@pytest.mark.parametrize(
    ("names", "spec", "expected"),
    [
        (["x.layers.0.q"], ["a.layers.0.q", "b.layers.0.q"], ["x.layers.0.q"]),  # either
        (["x.layers.0.q"], ["a.layers.1.q", "a.layers.0.k"], ["x.layers.0.q"]),  # neither
        (["x.layers.0.q"], ["q", "layers.0.attn.q"], ["x.layers.0.q"]),  # the end alone is no match
        (["x.layers.0.q", "a.layers.0.q"], ["a.layers.0.q"], ["x.layers.0.q", "a.layers.0.q"]),  # taken
        (["x.layers.0.q", "y.layers.0.q"], ["a.layers.0.q"], ["x.layers.0.q", "y.layers.0.q"]),  # two for one
        (["x.b.layers.0.q"], ["a.b.layers.0.q", "x.layers.0.q"], ["a.b.layers.0.q"]),  # the longest end
        (["x.layers.0.q", "x.emb"], ["a.layers.0.q", "a.emb"], ["a.layers.0.q", "a.emb"]),  # follows
        (["x.layers.0.q", "x.emb"], ["a.layers.0.q", "b.emb"], ["a.layers.0.q", "x.emb"]),  # not there
        (["emb"], ["a.emb"], ["emb"]),  # nothing to follow
        (["layers.0.q"], ["model.layers.0.q"], ["model.layers.0.q"]),
        (["layers.0.q"], ["vision.layers.0.q", "model.layers.0.q"], ["model.layers.0.q"]),  # the wrapper
        (
            ["model.language_model.layers.0.q", "model.tower.layers.0.q"],
            ["model.layers.0.q"],
            ["model.layers.0.q", "model.tower.layers.0.q"],
        ),
        (["h.0.q"], ["transformer.h.0.q"], ["transformer.h.0.q"]),
    ],
)
def test_unknown_and_ambiguous_names_stay(random_diff, names, spec, expected):
    diff = random_diff({name: (1, 2, 3) for name in names})
    found = rename_for(diff, dict.fromkeys(spec, (2, 3)))
    assert list(found.modules) == expected
    assert [m.up for m in found.modules.values()] == [m.up for m in diff.modules.values()]


def test_parameters_keep_names_that_fit_already(random_diff):
    diff = random_diff(
        {"layers.0.q": (1, 2, 3)}, parameters={"norm.weight": torch.ones(1), "model.b": torch.ones(1)}
    )
    assert list(rename_for(diff, {"model.layers.0.q": (2, 3)}).parameters) == ["model.norm.weight", "model.b"]
    both = random_diff({"layers.0.q": (1, 2, 3)}, parameters={"b": torch.ones(1), "model.b": torch.zeros(1)})
    assert rename_for(both, {"model.layers.0.q": (2, 3)}).parameters == both.parameters


# What is refused.


class Bomb:
    """Unpickling it for real creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("wrap", ["torch", "pickle", "state"])
def test_a_malicious_pickle_does_not_run(tmp_path, wrap):
    mark, path = tmp_path / "mark", tmp_path / "d.pt"
    if wrap == "torch":
        save(path, [item({Q: stored_pair(1, 2, 2)}, topic=Bomb(mark))])
    elif wrap == "pickle":
        path.write_bytes(pickle.dumps([Bomb(mark)]))
    else:
        save(path, {Q: (torch.ones(2, 1), torch.ones(1, 2)), "x": Bomb(mark)})
    for read in (read_dit, read_dit_adapter, WeightDiff.load):
        with pytest.raises(
            FormatError, match=r"d\.pt cannot be read \(UnpicklingError\): .*never unpickled"
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it would have


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0, 0.999), flip=st.integers(0, 10_000), old=st.booleans())
def test_damaged_files_give_one_kind_of_error(cut, flip, old):
    with tempfile.TemporaryDirectory() as folder:
        pair = stored_pair(2, 3, 4)
        path = save(Path(folder) / "d.pt", [item({Q: pair})], _use_new_zipfile_serialization=not old)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(cut * len(whole))])
        with pytest.raises(FormatError, match=r"d\.pt"):
            read_dit(path)
        damaged = bytearray(whole)
        damaged[flip % len(whole)] ^= 0xFF
        path.write_bytes(damaged)
        try:
            diff = read_dit(path)  # a byte of a tensor, or one that nobody looks at
        except (FormatError, NonFiniteError) as error:
            assert "d.pt" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert diff.num_parameters == 14


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x80\x02.", b"PK\x03\x04", pickle.dumps([1]), b"\x80\x04]\x94(\x8c\x01aK\x01u."],
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    path = tmp_path / "d.pt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"d\.pt cannot be read \(\w+\)"):
        read_dit(path)


def test_zip_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "d.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(FormatError, match=r"d\.pt cannot be read \(RuntimeError\)"):
        read_dit(path)
    with pytest.raises(FormatError, match=r"none\.pt is no file"):
        read_dit(tmp_path / "none.pt")


A, B = stored_pair(2, 5, 4)
NAN = torch.full((2, 4), float("nan"))
WIDE = stored_pair(1, 40, 40)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.ones(2), FormatError, "holds a Tensor, neither a list"),
        ("text", FormatError, "holds a str, neither a list"),
        ([], FormatError, "there are none"),
        ([1], FormatError, "entries 0 are no dicts"),
        ([item({Q: (A, B)}), {"topic": "cats"}], FormatError, "entries 1 are no dicts"),
        ([item([A, B])], FormatError, "entries 0 are no dicts"),
        ([item({Q: (A, B)}, topic=torch.ones(1))], FormatError, "entries 0 are no dicts"),
        ([item({})], FormatError, "entry 0 names no module"),
        ({}, FormatError, "names no module"),
        ([item({1: (A, B)})], FormatError, "entry 0 names modules 1;"),
        ([item({"a\nb": (A, B)})], FormatError, r"names modules 'a\\nb';"),
        ([item({Q: A, K: (A, B)})], FormatError, f"entry 0, {Q} is no pair of matrices"),
        ([item({Q: (A,)})], FormatError, "is no pair of matrices"),
        ([item({Q: (A, B, B)})], FormatError, "is no pair of matrices"),
        ([item({Q: (A, 1)})], FormatError, "is no pair of matrices"),
        ([item({Q: (A[0], B)})], FormatError, "is no pair of matrices"),
        ([item({Q: (A[None], B)})], FormatError, "is no pair of matrices"),
        ({Q: A}, FormatError, rf"{Q} is no pair of matrices .*A \[out, rank\], B \[rank, in\]"),
        (
            [item({Q: (A, B[:, :1])})],
            FormatError,
            r"A \(2, 4\) and B \(5, 1\) share no rank .*; save the pair again",
        ),
        ([item({Q: (A[:0], B[:, :0])})], FormatError, "share no rank"),
        ([item({Q: (A.T, B.T)})], FormatError, r"they fit A \[out, rank\], .*: save them as an adapter"),
        ({Q: (A, B)}, FormatError, r"they fit A \[rank, out\], .*: save them as stored diffs, a list"),
        ([item({Q: (WIDE[0].T, WIDE[1].T)})], FormatError, "mean rank 40 on a module of in 1, out 1"),
        ({Q: WIDE}, FormatError, "mean rank 40 on a module of in 1, out 1"),
        ([item({Q: (A.int(), B)})], FormatError, rf"{Q}: low-rank factors must be floating point"),
        ([item({Q: (A, B.bool())})], FormatError, "must be floating point"),
        ([item({Q: (A.to(torch.complex64), B)})], FormatError, "must be floating point"),
        ([item({Q: (A.to_sparse(), B)})], FormatError, r"a tensor of shape \(2, 4\) is sparse"),
        (
            [item({Q: (torch.ones(1).expand(2, 10**9), B)})],
            FormatError,
            r"\(2, 1000000000\) is sparse or larger",
        ),
        (
            [item({Q: torch.ones(1).expand(10**6, 10**6)})],
            FormatError,
            "is sparse or larger than what the file",
        ),
        ([item({Q: (A.to("meta"), B)})], FormatError, "is sparse or larger"),
        ([item({Q: (A, B), K: (NAN, B)})], NonFiniteError, rf"d\.pt, entry 0: .*infinity in {K};"),
        ({Q: (A.T / 0, B.T)}, NonFiniteError, rf"d\.pt: .*infinity in {Q};"),
    ],
)
def test_contents_that_are_no_release_are_refused(tmp_path, value, error, message):
    with pytest.raises(error, match=message) as caught:
        read_dit(save(tmp_path / "d.pt", value), 0 if isinstance(value, list) else None)
    assert "d.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_above_the_width_are_read_within_reason(tmp_path):
    pair = stored_pair(16, 2, 2)
    m = read_dit(save(tmp_path / "d.pt", [item({Q: pair})])).modules[Q]
    torch.testing.assert_close(m.dense(), (pair[1] @ pair[0]).T / 16)


def test_the_two_kinds_are_not_mistaken(tmp_path):
    diffs = save(tmp_path / DIFFS_FOLDER / "d.pt", [item({Q: (A, B)})])
    adapter = save(tmp_path / DIFFS_FOLDER / "a.pt", {Q: (A.T, B.T)})
    with pytest.raises(FormatError, match=r"d\.pt holds no adapter .*; use read_dit"):
        read_dit_adapter(diffs)
    with pytest.raises(FormatError, match=r"a\.pt is an adapter and has no entries"):
        read_dit(adapter, 0)
    (tmp_path / INDEX_NAME).write_text("lora_path,lora_idx,topic\na.pt,0,cats\n")
    with pytest.raises(
        FormatError, match=r"a\.pt is an adapter, and stored diffs were expected; use read_dit_adapter"
    ):
        read_dit(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "../out.pt",
        "/out.pt",
        "weight-diffs/../../out.pt",
        "..\\out.pt",
        "C:\\out.pt",
        "\\\\host\\out.pt",
        "..",
        "",
        "link.pt",
        "dir/out.pt",
        "gone.pt",
        "a\0b.pt",
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path, place):
    outside = save(tmp_path / "out.pt", [item({Q: (A, B)})])
    folder = tmp_path / "release"
    save(folder / "good.pt", [item({Q: (A, B)})])
    (folder / "link.pt").symlink_to(outside)
    (folder / "gone.pt").symlink_to(tmp_path / "nothing.pt")
    (folder / "dir").symlink_to(tmp_path)
    (folder / INDEX_NAME).write_bytes(f"lora_path,lora_idx,topic\ngood.pt,0,cats\n{place},0,cats\n".encode())
    for read in (read_dit_index, lambda f: list(iter_dit(f)), lambda f: read_dit(f, 0)):
        with pytest.raises(FormatError) as caught:
            read(folder)
        text = str(caught.value)
        if "\0" in place and "as CSV" in text:  # Python 3.10's csv refuses such a line itself
            continue
        assert f"{INDEX_NAME}, line 3 has a lora_path outside the folder ({place!r})" in text


def test_links_within_the_folder_and_into_the_hub_cache_are_followed(tmp_path):
    repo = tmp_path / "models--org--loras"
    folder = repo / "snapshots" / "abc" / "topic" / "qwen"
    blob = save(repo / "blobs" / "1234", [item({Q: (A, B)})])
    save(folder / "real.pt", [item({Q: (A, B)}, "dogs")])
    (folder / DIFFS_FOLDER).mkdir()
    (folder / DIFFS_FOLDER / "cached.pt").symlink_to(os.path.relpath(blob, folder / DIFFS_FOLDER))
    (folder / DIFFS_FOLDER / "inner.pt").symlink_to("../real.pt")
    (folder / INDEX_NAME).write_text("lora_path,lora_idx,topic\ncached.pt,0,cats\ninner.pt,0,dogs\n")
    assert [diff.meta["topic"] for _, diff in iter_dit(folder)] == ["cats", "dogs"]


def test_paths_that_no_system_takes_are_refused(tmp_path):
    folder = release(tmp_path, "x" * 5000 + ",0,7,cats,0,test")
    with pytest.raises(FormatError, match="x is no file; download"):
        read_dit(folder)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    release(tmp_path, "loop.pt,0,7,cats,0,test")
    with pytest.raises(FormatError, match=r"lora_path that is no path \('loop\.pt'\)|loop\.pt is no file"):
        read_dit(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column lora_path, lora_idx, topic"),
        (b"a,b\n1,2\n", "has no column lora_path, lora_idx, topic"),
        (b"lora_path,lora_idx\n", "has no column topic"),
        (b"lora_path,lora_idx,topic\n", "holds no diffs: none"),
        (b"lora_path,lora_idx,topic\na.pt,0\n", r"index\.csv, line 2 has not as many fields as the header"),
        (b"lora_path,lora_idx,topic\na.pt,0,x,y\n", "line 2 has not as many fields as the header"),
        (b"lora_path,lora_idx,topic\na.pt,,x\n", "line 2 has no lora_idx"),
        (b"lora_path,lora_idx,topic\na.pt,-1,x\n", "line 2 has lora_idx '-1', which is no count"),
        (b"lora_path,lora_idx,topic\na.pt,1.5,x\n", "lora_idx '1.5', which is no count"),
        (b"lora_path,lora_idx,topic\na.pt," + b"9" * 5000 + b",x\n", "lora_idx '9{40}', which is no count"),
        (b"lora_path,lora_idx,topic,n_params\na.pt,0,x,many\n", "n_params 'many', which is no count"),
        (b'lora_path,lora_idx,topic\na.pt,0,"x', "cannot be read as CSV"),
        (b"lora_path,lora_idx,topic\na.pt,0,\xff\xfe\n", "cannot be read as CSV"),
        (b"lora_path,lora_idx,topic\na.pt,0," + b"x" * 200_000, r"cannot be read as CSV \(field larger"),
    ],
)
def test_indices_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / INDEX_NAME).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_dit(tmp_path)
    assert "\n" not in str(caught.value)


def test_huge_and_missing_indices_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"has no index\.csv; give the folder of one experiment"):
        read_dit(tmp_path)
    with open(tmp_path / INDEX_NAME, "wb") as stream:
        stream.truncate(dit_index.MAX_INDEX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(FormatError, match=r"has 100000001 bytes, and no more than 100000000 are read"):
        read_dit_index(tmp_path)


def test_sniffing(tmp_path):
    folder = release(tmp_path / "r", *ROWS)
    assert sniff(folder).name == "dit"
    assert sniff(folder / DIFFS_FOLDER / "weight-diff-000.pt").name == "dit"
    flat = tmp_path / "flat"
    save(flat / "d.pt", [item({Q: (A, B)})])
    with pytest.raises(
        FormatError, match=r"no known format: .*dit: a \.pt file, or a folder with index\.csv"
    ):
        sniff(flat)
    (flat / INDEX_NAME).write_text("lora_path,lora_idx,topic\nd.pt,0,cats\n")
    assert sniff(flat).name == "dit"
    assert WeightDiff.load(flat).meta["topic"] == "cats"
