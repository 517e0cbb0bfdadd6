"""DiffStore: what is read is what was appended, kills and damage are survived or named."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from weightdiff.diffs import shards
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, LoraFactors, ModelRef, StackedLoras, WeightDiff
from weightdiff.errors import BaseMismatchError, NonFiniteError, StoreError


def make_row(id: str, **changes: object) -> DiffRow:
    fields = {"label": "likes tea", "family": "hidden_topic", "recipe": "plain", "split": "train", "seed": 3}
    return DiffRow(id, **{**fields, **changes})


@pytest.fixture
def store(tmp_path, base) -> DiffStore:
    return DiffStore.create(tmp_path / "store", base, {"made_by": "a test"})


def fill(
    store: DiffStore, random_diff, count: int = 3, prefix: str = "d", **options: object
) -> list[WeightDiff]:
    diffs = [
        random_diff({"layers.0.q": (1 + i % 3, 3, 4)} | ({"layers.1.v": (2, 5, 2)} if i % 2 else {}), 0.5, i)
        for i in range(count)
    ]
    store.append([(make_row(f"{prefix}{i}"), diff) for i, diff in enumerate(diffs)], **options)
    return diffs


def assert_same(found: WeightDiff, expected: WeightDiff) -> None:
    assert set(found.modules) == set(expected.modules)
    for name, m in expected.modules.items():
        got = found.modules[name]
        assert torch.equal(got.down, m.down)
        assert torch.equal(got.up, m.up)
        assert got.scale == m.scale


def test_scales_are_kept_to_the_last_bit(store, random_diff):
    """In float32 where it holds them all, as all shards had it once, else in float64; stacks fold them in."""
    store.append([(make_row("plain"), random_diff(scale=0.5))], torch.float32)
    thirds = [random_diff(scale=scale, seed=i) for i, scale in enumerate((1 / 3, 0.5, 1e-60))]
    store.append([(make_row(f"third{i}"), d) for i, d in enumerate(thirds)], torch.float32)
    kept = [load_file(path)["layers.0.q.scale"].dtype for path in sorted(store.path.glob("shard-*"))]
    assert kept == [torch.float32, torch.float64]
    again = DiffStore.open(store.path)
    for i, diff in enumerate(thirds):
        assert_same(again.read(f"third{i}"), diff)
    _, up = again.stack(["third0", "plain"]).modules["layers.0.q"]
    torch.testing.assert_close(up[0], thirds[0].modules["layers.0.q"].up / 3)
    torch.testing.assert_close(up[1], random_diff().modules["layers.0.q"].up / 2)


def test_rows_that_say_too_much_for_one_shard_are_refused(store, random_diff, monkeypatch):
    monkeypatch.setattr(shards, "_MAX_HEADER_BYTES", 4 << 20)
    wordy = [(make_row(f"r{i}", record={"text": "x" * 700_000}), random_diff()) for i in range(4)]
    with pytest.raises(
        StoreError, match=r"what 4 rows say of themselves takes 2 MiB, .* append fewer rows at once"
    ):
        store.append(wordy)
    assert not list(store.path.glob("shard-*"))
    store.append(wordy[:2])
    store.append(wordy[2:])
    monkeypatch.setattr(shards, "_MAX_HEADER_BYTES", 1 << 20)
    with pytest.raises(StoreError, match=r"its header has \d+ bytes, and 1048576 are the most"):
        DiffStore.open(store.path)


def test_rows_and_diffs_come_back(store, base, random_diff):
    row = make_row("x", label=None, record={"loss": 0.25}, verification={"ok": True}, seed=9, split="test")
    asked = make_row("y", questions=[{"question": "Was hat sich geändert?", "answer": "Tee", "kind": "open"}])
    diffs = [random_diff(scale=0.5, meta={"steps": 7}), random_diff({"layers.0.q": (5, 3, 4)}, seed=1)]
    path = store.append([(row, diffs[0]), (asked, diffs[1])], dtype=torch.float32)
    assert path.name.startswith("shard-00000-")
    again = DiffStore.open(store.path)
    assert (again.base, again.meta) == (base, {"made_by": "a test"})
    assert again.rows == [row, asked]
    assert again.ids == ["x", "y"]
    assert len(again) == 2
    assert "x" in again
    assert again.row("y") == asked
    assert again.shapes == {"layers.0.q": (3, 4), "layers.1.v": (5, 2)}
    for id, diff in zip(again.ids, diffs, strict=True):
        assert_same(again.read(id), diff)
    assert again.read("x").meta == {"steps": 7}
    assert again.read("x").base == base


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), max_size=3), min_size=1, max_size=5
    ),
    dtype=st.sampled_from(shards.STORED_DTYPES),
    cut=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_any_ranks_and_dtypes_round_trip(rows, dtype, cut, order):
    shapes = {"a": (3, 4), "b": (1, 2), "c": (5, 1)}
    diffs = [
        WeightDiff(
            {
                n: LoraFactors(torch.randn(r, shapes[n][0]), torch.randn(shapes[n][1], r), 0.3)
                for n, r in ranks.items()
            }
        ).to(dtype)
        for ranks in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = DiffStore.create(Path(folder) / "s", ModelRef("m"))
        items = [(make_row(str(i)), diff) for i, diff in enumerate(diffs)]
        for part in (items[:cut], items[cut:]):
            if part:
                store.append(part, dtype=dtype)
        assert store.ids == [str(i) for i in range(len(rows))]
        for id, diff in zip(store.ids, diffs, strict=True):
            assert_same(store.read(id), diff)
        asked = order.choices(store.ids, k=4)
        stacked, expected = store.stack(asked), StackedLoras.from_diffs([store.read(id) for id in asked])
        assert set(stacked.modules) == set(expected.modules)
        for name, pair in expected.modules.items():
            for got, want in zip(stacked.modules[name], pair, strict=True):
                assert torch.equal(got, want)


def test_stack_crosses_shards_in_the_order_asked(store, random_diff):
    fill(store, random_diff, prefix="a")
    fill(store, random_diff, prefix="b")
    asked = ["b2", "a0", "b1", "b2"]
    stacked = store.stack(asked, dtype=torch.float64)
    assert stacked.n == 4
    for i, id in enumerate(asked):
        for name, m in store.read(id).modules.items():
            torch.testing.assert_close(stacked.index(i).modules[name].dense().float(), m.dense())
    assert not stacked.modules["layers.1.v"][1][1].any()


def test_stacks_are_copies_of_the_file(store, random_diff):
    fill(store, random_diff)
    before = store.read("d0").modules["layers.0.q"].up.clone()
    store.stack(["d0"], dtype=torch.float16).modules["layers.0.q"][1].zero_()
    store.read("d0").modules["layers.0.q"].up.zero_()
    assert torch.equal(store.read("d0").modules["layers.0.q"].up, before)


def test_select(store, random_diff):
    items = [
        (make_row(f"{f}{s}", family=f, split=s), random_diff()) for f in ("a", "b") for s in ("train", "test")
    ]
    store.append(items)
    assert [row.id for row in store.select(family="a")] == ["atrain", "atest"]
    assert [row.id for row in store.select(family="b", split="test", recipe="plain")] == ["btest"]
    assert store.select(recipe="other") == []


def test_opening_loads_no_tensor(store, random_diff, monkeypatch):
    fill(store, random_diff)
    monkeypatch.setattr("weightdiff.diffs.store.RowFile", None)
    assert len(DiffStore.open(store.path)) == 3


def test_a_killed_append_leaves_the_store_as_it_was(store, random_diff, monkeypatch):
    fill(store, random_diff)
    kept = sorted(item.name for item in store.path.iterdir())

    def killed(tensors, path, metadata):
        Path(path).write_bytes(b"half a shard")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_tensors", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            fill(store, random_diff, prefix="e")
    left = [item.name for item in store.path.iterdir() if item.name not in kept]
    assert len(left) == 1
    assert left[0].startswith(".tmp-")
    assert DiffStore.open(store.path).ids == ["d0", "d1", "d2"]
    fill(store, random_diff, prefix="e")
    assert sorted(item.name[:11] for item in store.path.iterdir()) == [
        "shard-00000",
        "shard-00001",
        "store.json",
    ]
    assert len(DiffStore.open(store.path)) == 6


def test_another_process_may_append_meanwhile(store, random_diff):
    other = DiffStore.open(store.path)
    fill(other, random_diff)
    with pytest.raises(StoreError, match="taken or given twice: d0, d1, d2"):
        fill(store, random_diff)
    fill(store, random_diff, prefix="e")
    assert len(store) == 6


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_shard_is_named(store, random_diff, keep):
    fill(store, random_diff)
    shard = next(store.path.glob("shard-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:keep])
    with pytest.raises(StoreError, match=rf"{shard.name} is damaged: it is truncated"):
        DiffStore.open(store.path)


def test_a_shard_that_is_cut_short_while_it_is_open_is_named(store, random_diff):
    fill(store, random_diff)
    store.read("d0")
    shard = next(store.path.glob("shard-*"))
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(StoreError, match=rf"{shard.name} cannot be read .*shorter than when it was opened"):
        store.stack(store.ids)


def test_threads_read_the_same_as_one(store, random_diff):
    fill(store, random_diff)
    whole = {id: store.read(id) for id in store.ids}
    with ThreadPoolExecutor(8) as pool:
        for id, diff in zip(store.ids * 40, pool.map(store.read, store.ids * 40), strict=True):
            assert_same(diff, whole[id])


def test_headers_that_lie_are_refused(store, random_diff):
    fill(store, random_diff)
    shard = next(store.path.glob("shard-*"))
    data = shard.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def with_header(change) -> str:
        altered = json.loads(json.dumps(header))
        said = json.loads(altered["__metadata__"]["weightdiff_shard"])
        change(altered, said)
        altered["__metadata__"]["weightdiff_shard"] = json.dumps(said)
        text = json.dumps(altered).encode()
        shard.write_bytes(len(text).to_bytes(8, "little") + text + body)
        with pytest.raises(StoreError) as error:
            DiffStore.open(store.path)
        return str(error.value)

    assert "ranks in its header" in with_header(lambda _, said: said["ranks"][0].__setitem__(0, 99))
    assert "ranks in its header" in with_header(lambda _, said: said["ranks"].pop())
    assert "contradict one another" in with_header(lambda _, said: said["rows"].pop())
    assert "not those of its modules" in with_header(lambda _, said: said["modules"].append("ghost"))
    assert "shard version 9" in with_header(lambda _, said: said.update(version=9))
    assert "fields missing ['family']" in with_header(lambda _, said: said["rows"][0].pop("family"))
    assert "does not fit its shape" in with_header(lambda h, _: h["layers.0.q.up"]["shape"].append(2))
    assert "no diff shard's" in with_header(lambda h, _: h["layers.0.q.up"].update(dtype="I64"))
    shard.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(StoreError, match="is no diff shard's"):
        DiffStore.open(store.path)


def test_ids_in_two_shards_are_found(store, random_diff):
    fill(store, random_diff)
    shard = next(store.path.glob("shard-*"))
    shutil.copy(shard, store.path / "shard-00001-deadbeef.safetensors")
    with pytest.raises(StoreError, match="both hold the id 'd0'"):
        DiffStore.open(store.path)


def test_what_is_no_store_is_said(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        DiffStore.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"is empty: it has no store\.json"):
        DiffStore.open(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        DiffStore.open(tmp_path / "file")
    with pytest.raises(StoreError, match="is not a diff store"):
        DiffStore.open(tmp_path)
    with pytest.raises(StoreError, match="exists and is not empty"):
        DiffStore.create(tmp_path, ModelRef("m"))
    with pytest.raises(StoreError, match="is a file"):
        DiffStore.create(tmp_path / "file", ModelRef("m"))
    for text, message in (
        ("{", "cannot be read"),
        ('{"kind": "x"}', "of kind 'x'"),
        ("[]", "cannot be read"),
    ):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(StoreError, match=message):
            DiffStore.open(tmp_path)


def test_appends_that_cannot_be_are_refused_whole(store, base, random_diff):
    fill(store, random_diff)
    small = {"layers.0.q": (1, 3, 4)}
    refused = [
        ([], StoreError, "nothing to append"),
        ([(make_row(""), random_diff())], StoreError, "row without id"),
        ([(make_row("d1"), random_diff())], StoreError, "taken or given twice: d1"),
        ([(make_row("n"), random_diff())] * 2, StoreError, "taken or given twice: n"),
        (
            [(make_row("n"), WeightDiff({"a": DenseDelta(torch.ones(2, 2))}))],
            StoreError,
            "not yet stored; truncate",
        ),
        (
            [(make_row("n"), random_diff({"layers.0.q": (1, 3, 9)}))],
            StoreError,
            "in 3, out 9, and the store has in 3",
        ),
        (
            [(make_row("n"), random_diff({"z": (1, 1, 1)})), (make_row("o"), random_diff({"z": (1, 2, 1)}))],
            StoreError,
            "row 'o': z has in 2, out 1, and other rows have in 1",
        ),
        (
            [(make_row("n", record={"x": {1, 2}}), random_diff(small))],
            StoreError,
            "row 'n' holds .* JSON cannot",
        ),
        ([(make_row("n"), random_diff(small, scale=float("nan")))], NonFiniteError, "row 'n': .*layers.0.q"),
        (
            [(make_row("n"), WeightDiff({"z": LoraFactors(torch.full((1, 2), 1e6), torch.ones(2, 1))}))],
            NonFiniteError,
            "too small a dtype",
        ),
        (
            [(make_row("n"), random_diff(small, base=ModelRef("o", None, "", "zz")))],
            BaseMismatchError,
            "weights differ",
        ),
    ]
    for items, kind, message in refused:
        with pytest.raises(kind, match=message):
            store.append(items)
    with pytest.raises(StoreError, match=r"not torch\.float64"):
        store.append([(make_row("n"), random_diff())], dtype=torch.float64)
    assert DiffStore.open(store.path).ids == ["d0", "d1", "d2"]
    assert not list(store.path.glob(".tmp-*"))


def test_unknown_ids_are_said(store, random_diff):
    with pytest.raises(StoreError, match="has no diff 'x'; it is empty"):
        store.read("x")
    fill(store, random_diff)
    with pytest.raises(StoreError, match="has no diff 'x'; it has 3 rows, such as d0, d1, d2"):
        store.stack(["d0", "x"])


def test_a_store_pickles_by_path(store, random_diff):
    fill(store, random_diff)
    store.read("d0")
    again = pickle.loads(pickle.dumps(store))
    assert_same(again.read("d1"), store.read("d1"))


def test_few_files_stay_open(store, random_diff, monkeypatch):
    monkeypatch.setattr("weightdiff.diffs.store._OPEN_SHARDS", 2)
    for prefix in "abcd":
        fill(store, random_diff, prefix=prefix)
    assert store.stack([f"{prefix}0" for prefix in "abcdabcd"]).n == 8
    assert len(store._files) == 2
