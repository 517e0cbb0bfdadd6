"""A dataset's folder, which weightdiff and Hugging Face's package `datasets` both read.

`data/<split>.jsonl` holds the items, `dataset.json` all else, and `diffs/` the diffs where they were copied.
What is read is checked field by field: files may be cut off, edited, or somebody else's.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from weightdiff.artifacts import atomic_directory, atomic_write_bytes, atomic_write_text, read_json
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff, tensors_of
from weightdiff.errors import FormatError, StoreError
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.dataset_card import CARD, card
from weightdiff.evals.hf_datasets import from_datasets, from_disk
from weightdiff.evals.items import check_dataset
from weightdiff.evals.own_questions import json_lines
from weightdiff.evals.typed_json import Mismatch, typed
from weightdiff.methods.naming import BUNDLED, open_store
from weightdiff.tiny.bundle import part

INFO, DATA, DIFFS = "dataset.json", "data", "diffs"
KIND, VERSION = "weightdiff-dataset", 1
WAYS = ("reference", "copy", "none")
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
"""Files by which a folder of Hugging Face datasets' `save_to_disk` is known."""
_SPLIT = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_DIFFS_AT_ONCE = 64


@dataclass(frozen=True)
class _Info:
    """What `dataset.json` holds."""

    kind: str
    version: int
    name: str
    base: ModelRef
    store: str | None
    splits: dict[str, int]
    candidates: dict[str, tuple[str, ...]]
    meta: dict[str, Any]


def write(dataset: Dataset, folder: Path, diffs: str, overwrite: bool) -> Path:
    """See `Dataset.save`."""
    if diffs not in WAYS:
        raise FormatError(f"diffs cannot be saved as {diffs!r}: choose one of {', '.join(WAYS)}")
    check_dataset(dataset)
    splits: dict[str, list[Item]] = {}
    for item in dataset.items:
        splits.setdefault(item.split, []).append(item)
    if wrong := [s for s in splits if not _SPLIT.fullmatch(s)]:
        raise FormatError(f"split {wrong[0]!r} cannot be a file's name; use letters, digits, _ and dots")
    place = _place(dataset, folder, diffs, overwrite)
    sizes = {split: len(items) for split, items in splits.items()}
    info = _Info(KIND, VERSION, dataset.name, dataset.base, place, sizes, dataset.candidates, dataset.meta)
    try:
        said = json.dumps(asdict(info), ensure_ascii=False, allow_nan=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"the name, candidates or meta of dataset {dataset.name!r} are no JSON ({error}); change them"
        ) from error
    with atomic_directory(folder, overwrite=overwrite) as new:
        for split, items in splits.items():
            lines = [json.dumps(asdict(i), ensure_ascii=False, allow_nan=False) + "\n" for i in items]
            atomic_write_bytes(new / DATA / f"{split}.jsonl", "".join(lines).encode())
        if place == f"./{DIFFS}":
            _copy(dataset, new / DIFFS)
        atomic_write_bytes(new / INFO, said + b"\n")
        atomic_write_text(new / CARD, card(dataset, {s: f"{DATA}/{s}.jsonl" for s in splits}, place))
    return folder


def read(folder: Path, store: DiffStore | None) -> Dataset:
    """See `Dataset.load`."""
    if (folder / INFO).is_file():
        return _read(folder, store)
    if any((folder / name).is_file() for name in SAVED_TO_DISK):
        return from_datasets(from_disk(folder), store, where=str(folder))
    what = "holds no dataset" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
    raise FormatError(f"{folder} {what}; make one: weightdiff dataset make STORE --out DIR")


def is_bundled(store: DiffStore) -> bool:
    """Whether a store is the bundle's."""
    try:
        return store.path.resolve() == part("organisms").resolve()
    except FormatError:  # there is no bundle
        return False


def _read(folder: Path, store: DiffStore | None) -> Dataset:
    path = folder / INFO
    try:
        value = read_json(path)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise FormatError(f"{path} is not of a dataset; give a folder of: weightdiff dataset make")
        if value.get("version") != VERSION:
            raise FormatError(
                f"{path} has version {value.get('version')!r}, and this weightdiff reads {VERSION};"
                " upgrade it"
            )
        info = typed(_Info, value, "the dataset")
        if wrong := [s for s in info.splits if not _SPLIT.fullmatch(s)]:
            raise Mismatch(f"split {wrong[0]!r} cannot be a file's name")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FormatError(f"{path} cannot be read ({why}); copy or make the dataset again") from error
    items: list[Item] = []
    places: list[str] = []
    for split, size in info.splits.items():
        file = folder / DATA / f"{split}.jsonl"
        for number, line in json_lines(file):
            places.append(f"{file}, line {number}")
            try:
                items.append(typed(Item, line, "the item"))
            except Mismatch as error:
                raise FormatError(f"{places[-1]}: {error}; correct it, or copy the dataset again") from error
            if items[-1].split != split:
                raise FormatError(
                    f"{places[-1]}: the item is of split {items[-1].split!r}; move it to that split's file"
                )
        if (n := sum(i.split == split for i in items)) != size:
            raise FormatError(
                f"{file} has {n} items, and {INFO} says {size}; copy it again, or write {n} there if the"
                " change was meant"
            )
    if store is None:
        store = _store(folder, info.store)
    found = Dataset(info.name, tuple(items), info.base, store, info.candidates, info.meta)
    return check_dataset(found, places)


def _store(folder: Path, place: str | None) -> DiffStore | None:
    """The store that `dataset.json` names."""
    if place is None:
        return None
    try:
        return open_store(BUNDLED if place == BUNDLED else str(folder / place))
    except StoreError as error:
        raise StoreError(f"the diffs of {folder} cannot be read: {error}") from error


def _place(dataset: Dataset, folder: Path, diffs: str, overwrite: bool) -> str | None:
    """Where the store will be, as `dataset.json` says it; None for nowhere."""
    asked = any(i.diff is not None for i in dataset.items)
    store = dataset.store
    if diffs == "none" or not asked or (store is None and diffs == "reference"):
        return None
    if store is None:
        raise StoreError(f"dataset {dataset.name!r} has no store to copy diffs of; give its store")
    if diffs == "copy":
        return f"./{DIFFS}"
    if is_bundled(store):
        return BUNDLED
    at, target = store.path.resolve(), folder.resolve()
    if overwrite and at.is_relative_to(target):
        raise FormatError(
            f"the diffs lie in {folder}, which would be replaced; copy them along (diffs='copy'), or choose"
            " another folder"
        )
    if not at.is_relative_to(target.parent):
        return at.as_posix()
    relative = Path(os.path.relpath(at, target)).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def _copy(dataset: Dataset, folder: Path) -> None:
    """Copy the diffs that items name, with their rows, into a new store; factors keep values and type."""
    store = dataset.store
    if store is None:
        return
    asked = {item.diff for item in dataset.items}
    new = DiffStore.create(folder, store.base, store.meta)
    rows = ((store.row(id), store.read(id)) for id in store.ids if id in asked)
    for dtype, group in itertools.groupby(rows, lambda row: _dtype(row[1])):
        while some := list(itertools.islice(group, _DIFFS_AT_ONCE)):
            new.append(some, dtype)


def _dtype(diff: WeightDiff) -> torch.dtype:
    """What all its factors are of; float32, which holds them all, where they differ."""
    found = {t.dtype for m in diff.modules.values() for t in tensors_of(m)}
    return found.pop() if len(found) == 1 else torch.float32
