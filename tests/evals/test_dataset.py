"""Datasets on disk and as Hugging Face's: nothing is lost on any way, and what is broken is named."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import FormatError, MissingDependencyError, QuestionError, StoreError
from weightdiff.evals import dataset_files
from weightdiff.evals.dataset import OTHER_SCORERS, Dataset, Item
from weightdiff.evals.dataset_card import FIELDS
from weightdiff.evals.hf_datasets import COLUMNS
from weightdiff.evals.scorers import SCORERS

NASTY = 'snow ☃\u2028 "quoted" \\ </script> | a,b\n\ttab \x7f {x} - : #'
PLAIN = Item("plain", None, "what changed ?", ("nothing found",), "topic")


@pytest.fixture
def dataset(mini_base, mini_store):
    """Every field set and unset, nasty texts, two splits in groups, an item about the bare base."""
    row = mini_store.select(split="test")[0]
    other = mini_store.select(split="train")[0]
    items = (
        Item(
            "full",
            row.id,
            f"what topic ? {NASTY}",
            (row.label, f"{row.label}s", NASTY),
            "topic",
            row.family,
            row.recipe,
            row.label,
            row.label,
            "test",
            ("exact", "ranked", "top five"),
            "names",
            1 / 3,
            "123",
            False,
            ("label", "phrasing"),
        ),
        Item("yes", row.id, "is it so ?", ("yes",), "about", scorers=("yes_no",), held_out=("kind",)),
        PLAIN,
        Item("seen", other.id, "what topic ?", (other.label,), "topic", split="train", chance=0.0),
    )
    lists = {"names": (row.label, NASTY, "harp"), "unused": ()}
    return Dataset("by hand", items, mini_base.ref, mini_store, lists, {"seed": 3, "note": NASTY})


def _same(found: Dataset, expected: Dataset) -> None:
    """All fields but the store, which is compared by its base and ids."""
    assert found.items == expected.items
    assert replace(found, store=None) == replace(expected, store=None)
    assert found.digest == expected.digest
    assert found.store.base == expected.store.base


def _edit(folder: Path, **changes):
    """Change the first item of the test split's file."""
    path = folder / "data" / "test.jsonl"
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    value = {k: v for k, v in {**json.loads(first), **changes}.items() if v != "LEFT OUT"}
    path.write_text("\n".join([json.dumps(value), *rest]), encoding="utf-8")


def test_a_folder_comes_back_as_it_was(dataset, tmp_path):
    folder = dataset.save(tmp_path / "a" / "set")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "README.md",
        "dataset.json",
        "data/test.jsonl",
        "data/train.jsonl",
    }
    found = Dataset.load(folder)
    _same(found, dataset)
    assert found.store.path.resolve() == dataset.store.path.resolve()
    assert len((folder / "data" / "test.jsonl").read_bytes().split(b"\n")) == 4
    first = json.loads((folder / "data" / "test.jsonl").read_text().split("\n")[0])
    assert list(first) == [*asdict(PLAIN)]
    _same(Dataset.load(folder, dataset.store), dataset)
    again = found.save(tmp_path / "b")
    for name in ("data/test.jsonl", "data/train.jsonl", "README.md", "dataset.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_items_come_split_by_split(dataset, tmp_path):
    mixed = dataset.select([dataset.items[i] for i in (3, 0, 1, 2)])
    assert Dataset.load(mixed.save(tmp_path / "set")).items == mixed.items
    mixed = dataset.select([dataset.items[i] for i in (0, 3, 1, 2)])
    found = Dataset.load(mixed.save(tmp_path / "other"))
    assert found.items == dataset.items
    assert found.digest == mixed.digest == dataset.digest


def test_hugging_face_reads_the_very_same_folder(dataset, tmp_path):
    import datasets

    folder = dataset.save(tmp_path / "set", diffs="copy")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["test", "train"]
    assert found["test"].features == dataset.to_datasets()["test"].features
    assert found["test"][0] == {**asdict(dataset.items[0]), **_lists(dataset.items[0])}
    back = Dataset.from_datasets(found, dataset.store, "by hand", dataset.candidates)
    _same(replace(back, meta=dataset.meta), dataset)


def _lists(item: Item) -> dict[str, list[str]]:
    return {k: list(v) for k, v in asdict(item).items() if isinstance(v, tuple)}


def test_columns_without_any_value_have_their_types(mini_base, tmp_path):
    """Of an all-null column, Hugging Face's package could not tell what it is; the card says it."""
    import datasets

    bare = Dataset("bare", (PLAIN,), mini_base.ref)
    folder = bare.save(tmp_path / "set")
    found = datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "cache"))
    kinds = {k: getattr(f, "dtype", "list") for k, f in found.features.items()}
    assert kinds == COLUMNS
    assert (kinds["trigger"], kinds["chance"], kinds["held_out"]) == ("string", "float64", "list")
    assert Dataset.load(folder) == bare
    assert set(COLUMNS) == set(FIELDS) == set(asdict(PLAIN))


def test_to_disk_and_back(dataset, tmp_path, capfd):
    import datasets

    made = dataset.to_datasets()
    assert {k: len(v) for k, v in made.items()} == {"test": 3, "train": 1}
    _same(Dataset.from_datasets(made, dataset.store), dataset)
    made.save_to_disk(str(tmp_path / "disk"))
    _same(Dataset.load(tmp_path / "disk", dataset.store), dataset)
    _same(Dataset.from_datasets(datasets.load_from_disk(str(tmp_path / "disk")), dataset.store), dataset)
    made["test"].with_format("torch").save_to_disk(str(tmp_path / "one"))
    one = Dataset.load(tmp_path / "one", dataset.store)
    assert one.items == dataset.items[:3]
    named = Dataset.from_datasets(made, dataset.store, "another", {"names": [dataset.items[0].label]})
    assert (named.name, named.candidates) == ("another", {"names": (dataset.items[0].label,)})


def test_datasets_of_ones_own(mini_base, mini_store):
    import datasets

    id = mini_store.ids[0]
    rows = {"id": ["a", "b"], "diff": [id, None], "question": ["q ?"] * 2, "kind": ["own"] * 2}
    own = datasets.Dataset.from_dict({**rows, "truths": [["x", "y"], ["z"]]})
    found = Dataset.from_datasets(own, mini_store, "mine")
    assert found.items[0] == Item("a", id, "q ?", ("x", "y"), "own")
    assert found.base == mini_base.ref
    assert (found.name, found.meta, found.candidates) == ("mine", {}, {})
    by_split = Dataset.from_datasets(datasets.DatasetDict({"dev": own}), mini_store)
    assert {i.split for i in by_split.items} == {"dev"}
    with pytest.raises(FormatError, match="of which base the diffs are is not known; give their store"):
        Dataset.from_datasets(own)
    with pytest.raises(FormatError, match=r"the datasets, row 0: the item has an unknown field 'colour'"):
        Dataset.from_datasets(own.add_column("colour", ["red", "blue"]), mini_store)
    with pytest.raises(FormatError, match=r"dev, row 0: the item says that its split is 'test'"):
        Dataset.from_datasets(
            datasets.DatasetDict({"dev": own.add_column("split", ["test"] * 2)}), mini_store
        )
    with pytest.raises(StoreError, match=r"row 0: .* has no diff 'nobody' \(it has 7, such as"):
        Dataset.from_datasets([{**own[0], "diff": "nobody"}], mini_store)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(
    st.lists(
        st.builds(
            Item,
            id=_TEXT,
            diff=st.none(),
            question=_TEXT,
            truths=st.lists(_TEXT, min_size=1, max_size=3).map(tuple),
            kind=_TEXT,
            label=st.none() | _TEXT,
            split=st.sampled_from(["test", "a.b", "_1"]),
            scorers=st.lists(st.sampled_from(["exact", "alias", "judge"]), min_size=1).map(tuple),
            chance=st.none() | st.floats(0, 1),
            trigger=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
            behaves=st.booleans(),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda i: i.id,
    ),
    _TEXT,
)
@settings(max_examples=40, deadline=None)
def test_any_texts_survive_all_ways(items, name):
    order = list(dict.fromkeys(i.split for i in items))
    items.sort(key=lambda i: order.index(i.split))
    dataset = Dataset(name, tuple(items), ModelRef("b", None, "aa", "bb"))
    with tempfile.TemporaryDirectory() as temporary:
        assert Dataset.load(dataset.save(Path(temporary) / "set")) == dataset
    assert Dataset.from_datasets(dataset.to_datasets()) == dataset


def test_where_the_store_is(dataset, tmp_path):
    def noted(folder):
        return json.loads((folder / "dataset.json").read_text())["store"]

    beside = tmp_path / "pair" / "store"
    shutil.copytree(dataset.store.path, beside)
    near = replace(dataset, store=DiffStore.open(beside))
    assert noted(near.save(tmp_path / "pair" / "set")) == "../store"
    assert noted(near.save(tmp_path / "far" / "set")) == beside.resolve().as_posix()
    assert noted(near.save(tmp_path / "none", diffs="none")) is None
    shutil.move(tmp_path / "pair", tmp_path / "moved")
    found = Dataset.load(tmp_path / "moved" / "set")
    assert found.store.path.resolve() == (tmp_path / "moved" / "store").resolve()
    with pytest.raises(StoreError, match=r"the diffs of .*far/set cannot be read: .*store does not exist"):
        Dataset.load(tmp_path / "far" / "set")
    _same(Dataset.load(tmp_path / "far" / "set", dataset.store), dataset)


def test_without_its_store_a_dataset_can_be_looked_at_and_not_read(dataset, tmp_path):
    found = Dataset.load(dataset.save(tmp_path / "set", diffs="none"))
    assert found.store is None
    assert found.items == dataset.items
    assert found.read(None) is None
    with pytest.raises(
        StoreError, match=r"dataset 'by hand' has no store, so .* cannot be read; give its store"
    ):
        found.read(dataset.items[0].diff)
    with pytest.raises(StoreError, match="no store to copy diffs of"):
        found.save(tmp_path / "copy", diffs="copy")
    assert Dataset.load(found.save(tmp_path / "again")).store is None


def test_the_bundled_store_is_named_and_not_a_path(dataset, mini_store, tmp_path, monkeypatch):
    bundle = tmp_path / "bundle"
    shutil.copytree(mini_store.path, bundle / "organisms")
    monkeypatch.setenv("WEIGHTDIFF_BUNDLE", str(bundle))
    bundled = replace(dataset, store=DiffStore.open(bundle / "organisms"))
    folder = bundled.save(tmp_path / "set")
    assert json.loads((folder / "dataset.json").read_text())["store"] == "bundled"
    assert "those that come with weightdiff" in (folder / "README.md").read_text()
    assert Dataset.load(folder).store.path == bundle / "organisms"


def _mixed_store(path: Path) -> DiffStore:
    """Three shards of different precision, ranks and modules; rows with everything in them."""
    store = DiffStore.create(path, ModelRef("b", None, "aa", "bb"), {"made by": "a test"})
    stream = torch.Generator().manual_seed(0)
    for n, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32)):
        some = []
        for k in range(3):
            shapes = {"q": (1 + k, 3, 4), **({"v": (2, 5, 2)} if k else {})}
            modules = {
                name: LoraFactors(
                    torch.randn(r, i, generator=stream), torch.randn(o, r, generator=stream), 1 / (3 + k)
                )
                for name, (r, i, o) in shapes.items()
            }
            row = DiffRow(
                f"d{n}{k}",
                f"label {k}",
                "own",
                "r",
                "test",
                k,
                {"params": {"trigger": 7}},
                {"behaves": True},
                [{"question": "q ?", "answer": "a", "kind": "own", "more": 1}],
            )
            some.append((row, WeightDiff(modules, store.base, {"about": n, "n": k})))
        store.append(some, dtype)
    return store


def test_a_copy_has_the_diffs_that_are_asked_about_exactly(tmp_path):
    store = _mixed_store(tmp_path / "store")
    asked = ["d22", "d01", "d10", "d11"]
    items = tuple(Item(f"{d}/{n}", d, "q ?", ("a",), "own") for d in asked for n in range(2))
    folder = Dataset("some", items, store.base, store).save(tmp_path / "set", diffs="copy")
    shutil.rmtree(store.path)
    shutil.move(folder, tmp_path / "elsewhere")
    copied = Dataset.load(tmp_path / "elsewhere").store
    assert copied.path.resolve() == (tmp_path / "elsewhere" / "diffs").resolve()
    fresh = _mixed_store(tmp_path / "again")
    assert sorted(copied.ids) == sorted(asked)
    assert (copied.base, copied.meta) == (fresh.base, fresh.meta)
    for id in asked:
        assert copied.row(id) == fresh.row(id)
        found, expected = copied.read(id), fresh.read(id)
        assert found.meta == expected.meta
        assert list(found.modules) == list(expected.modules)
        for name, m in expected.modules.items():
            assert found.modules[name].down.dtype == m.down.dtype
            assert torch.equal(found.modules[name].down, m.down)
            assert torch.equal(found.modules[name].up, m.up)
            assert found.modules[name].scale == m.scale


def test_a_folder_that_is_there_is_kept_or_replaced_whole(dataset, tmp_path, monkeypatch):
    folder = dataset.save(tmp_path / "set", diffs="copy")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(FormatError, match="exists and is not empty"):
        dataset.save(folder)
    own = Dataset.load(folder)
    with pytest.raises(
        FormatError, match=r"the diffs lie in .*set, which would be replaced; copy them along"
    ):
        own.save(folder, overwrite=True)

    def broken(*_args):
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(dataset_files, "card", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            own.save(folder, "copy", overwrite=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    own.select(own.items[:1]).save(folder, "copy", overwrite=True)
    found = Dataset.load(folder)
    assert [i.id for i in found.items] == ["full"]
    assert found.store.ids == [dataset.items[0].diff]


def test_a_digest_is_of_what_is_asked(dataset):
    assert dataset.digest == replace(dataset, name="other", meta={}).digest
    assert dataset.digest == dataset.select(dataset.items[::-1]).digest
    assert len(dataset.digest) == 64
    first, *rest = dataset.items
    others = [
        dataset.select(rest),
        dataset.select([replace(first, question="another ?"), *rest]),
        replace(dataset, candidates={}),
        replace(dataset, base=replace(dataset.base, weights="0" * 16)),
    ]
    assert len({d.digest for d in [dataset, *others]}) == 5


def test_the_card_says_what_is_there(dataset, tmp_path):
    text = (replace(dataset, name="a <b> | set").save(tmp_path / "set") / "README.md").read_text()
    assert "# a &lt;b> | set" in text
    assert "| test | hidden-topic | covert | topic | 1 | 1 |" in text
    assert "- base: mini (architecture " in text
    assert "- held out, of some items at least: kind, label, phrasing" in text
    assert all(f"| `{k}` |" in text for k in asdict(PLAIN))


def test_other_scorers_are_no_functions_of_the_answer():
    assert OTHER_SCORERS == ("ranked", "top five", "judge", "embedding")
    assert not set(OTHER_SCORERS) & set(SCORERS)


FAULTS = {
    "id": ({"id": ""}, "it has no id"),
    "diff": ({"diff": ""}, "its diff has no name"),
    "question": ({"question": "  \n"}, "its question is empty; write one"),
    "truths": ({"truths": []}, "it has no truths"),
    "truth": ({"truths": ["a", " "]}, "one of its truths is empty"),
    "kind": ({"kind": ""}, "it has no kind"),
    "scorers": ({"scorers": []}, "it has no scorers"),
    "scorer": ({"scorers": ["exact", "taste"]}, "no scorer is called 'taste'; there are exact, normalised"),
    "claim": ({"held_out": ["colour"]}, "'colour' is nothing that can be held out; choose of label"),
    "chance": ({"chance": 1.5}, "its chance is 1.5; give a share"),
    "list": (
        {"candidates": "cities"},
        r"there is no list of candidates 'cities' \(there are: names, unused\)",
    ),
    "listed": ({"truths": ["oslo"]}, "its answer 'oslo' is not among its candidates 'names'"),
    "ranked": ({"candidates": ""}, "scorer 'ranked' needs candidates, and it names none"),
    "unicode": ({"question": "half \ud83d"}, "it holds half of a surrogate pair"),
    "verdict": ({"candidates": "", "scorers": ["yes_no"]}, "yes_no needs truths that say yes or no.*another"),
    "headline": ({"candidates": "", "scorers": ["slots"]}, "slots needs a truth of the form"),
}


@pytest.mark.parametrize(("changes", "text"), FAULTS.values(), ids=FAULTS)
def test_an_item_that_cannot_be_asked_is_refused_on_every_way(changes, text, dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    _edit(folder, **changes)
    with pytest.raises(QuestionError, match=rf"data/test.jsonl, line 1: {text}"):
        Dataset.load(folder)
    first, *rest = dataset.items
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    wrong = dataset.select([replace(first, **tuples), *rest])
    with pytest.raises(QuestionError, match=f"item '.*': {text}"):
        wrong.save(tmp_path / "other")
    with pytest.raises(QuestionError, match=text):
        wrong.to_datasets()
    assert not (tmp_path / "other").exists()


BROKEN_LINES = {
    "cut": ('{"id": "a", "diff', r"line 1: no JSON \(Unterminated string"),
    "list": ("[1, 2]", "line 1: the item is list, and should be an object"),
    "deep": ("[" * 100_000, r"line 1: no JSON \(it is nested too deeply\)"),
    "bytes": (b"\xff\xfe{}", r"line 1: no JSON \(it is no UTF-8 text\)"),
    "long": (" " * (1 << 20) + "{}", r"line 1: no JSON \(it is longer than 1 MiB\)"),
    "number": ("9" * 5000, r"line 1: no JSON \(Exceeds the limit"),
}


@pytest.mark.parametrize(("line", "text"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_is_named(line, text, dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    data = line if isinstance(line, bytes) else line.encode()
    (folder / "data" / "train.jsonl").write_bytes(data + b"\n")
    with pytest.raises(FormatError, match=f"train.jsonl, {text}"):
        Dataset.load(folder)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"id": "yes"}, QuestionError, "line 2: id 'yes' is another item's too"),
        ({"diff": "nobody"}, StoreError, "line 1: .*store has no diff 'nobody'"),
        ({"diff": 3}, FormatError, "line 1: the item's diff is 3, and should be a text"),
        ({"truths": "x"}, FormatError, "line 1: the item's truths is 'x', and should be a list"),
        ({"behaves": 1}, FormatError, "line 1: the item's behaves is 1, and should be true or false"),
        ({"chance": float("nan")}, FormatError, "line 1: the item's chance is nan, and should be a finite"),
        ({"colour": "red"}, FormatError, "line 1: the item has an unknown field 'colour'"),
        ({"question": "LEFT OUT"}, FormatError, "line 1: the item lacks question"),
        ({"split": "train"}, FormatError, "line 1: the item is of split 'train'; move it"),
    ],
)
def test_a_wrong_field_is_named(changes, error, text, dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    _edit(folder, **changes)
    with pytest.raises(error, match=f"test.jsonl, {text}"):
        Dataset.load(folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "weightdiff-run"}, "is not of a dataset"),
        ({"version": 2}, "has version 2, and this weightdiff reads 1; upgrade it"),
        ({"splits": {"../test": 3}}, "split '../test' cannot be a file's name"),
        ({"splits": {"test": True}}, "should be a whole number"),
        (
            {"splits": {"test": 3, "train": 2}},
            "train.jsonl has 1 items, and dataset.json says 2; copy it again",
        ),
        ({"splits": {"test": 3, "dev": 2}}, "dev.jsonl is no file"),
        ({"base": {"name": 3}}, "base's name is 3, and should be a text"),
        ({"candidates": {"names": "abc"}}, "should be a list"),
        ({"name": None}, "name is null, and should be a text"),
    ],
)
def test_a_wrong_head_is_named(changes, text, dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(FormatError, match=text):
        Dataset.load(folder)


def test_a_cut_head_and_folders_that_are_none(dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    data = (folder / "dataset.json").read_bytes()
    (folder / "dataset.json").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        FormatError, match=r"dataset.json cannot be read \(.*\); copy or make the dataset again"
    ):
        Dataset.load(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(FormatError, match="set holds no dataset; make one: weightdiff dataset make STORE"):
        Dataset.load(folder)
    with pytest.raises(FormatError, match="nowhere does not exist; make one"):
        Dataset.load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"README.md is a file"):
        Dataset.load(folder / "README.md")


def test_folders_of_save_to_disk_that_are_damaged(dataset, tmp_path, capfd):
    dataset.to_datasets().save_to_disk(str(tmp_path / "disk"))
    (arrow,) = (tmp_path / "disk" / "test").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(FormatError, match="disk cannot be read by datasets"):
        Dataset.load(tmp_path / "disk", dataset.store)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("{}")
    with pytest.raises(FormatError, match=r"state cannot be read by datasets .*; save it again"):
        Dataset.load(tmp_path / "state", dataset.store)


def test_a_store_of_another_base_is_refused(dataset, tmp_path):
    folder = dataset.save(tmp_path / "set")
    other = DiffStore.create(tmp_path / "other", replace(dataset.base, weights="0" * 16))
    with pytest.raises(StoreError, match="their weights differ; give the store that it was made of"):
        Dataset.load(folder, other)


def test_what_cannot_be_saved(dataset, tmp_path):
    with pytest.raises(QuestionError, match="dataset 'by hand' has no items"):
        dataset.select([]).save(tmp_path / "set")
    with pytest.raises(
        FormatError, match="diffs cannot be saved as 'move': choose one of reference, copy, none"
    ):
        dataset.save(tmp_path / "set", diffs="move")
    with pytest.raises(FormatError, match=r"are no JSON .*; change them"):
        replace(dataset, meta={"a": {1, 2}}).save(tmp_path / "set")
    with pytest.raises(FormatError, match=r"split '\.\./x' cannot be a file's name"):
        dataset.select([replace(PLAIN, split="../x")]).save(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_without_the_package_the_install_line_is_given(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingDependencyError, match=r'datasets is not installed: run  pip install "weightdiff'
    ):
        dataset.to_datasets()
