"""Datasets as those of Hugging Face's package `datasets`, and back: one column for each field of an item.

What is not items (name, base, candidates, meta) travels in the description, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from weightdiff.artifacts import parse_json
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.errors import FormatError, MissingDependencyError
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.items import check_dataset
from weightdiff.evals.typed_json import Mismatch, typed

LIST = "list"
COLUMNS = {
    f.name: {
        "str": "string",
        "str | None": "string",
        "float | None": "float64",
        "bool": "bool",
        "tuple[str, ...]": LIST,
    }[str(f.type)]
    for f in fields(Item)
}
"""Field of an item → type of its column; a list is one of strings."""
KEY = "weightdiff"
"""Key, in a description, of what travels there."""


@dataclass(frozen=True)
class _About:
    """What travels in the description."""

    name: str = "dataset"
    base: ModelRef | None = None
    candidates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def to_datasets(dataset: Dataset) -> Any:
    """See `Dataset.to_datasets`."""
    package = _package()
    check_dataset(dataset)
    about = _About(dataset.name, dataset.base, dataset.candidates, dataset.meta)
    said = json.dumps({KEY: asdict(about)})
    text = package.Value("string")
    features = package.Features(
        {name: package.List(text) if kind == LIST else package.Value(kind) for name, kind in COLUMNS.items()}
    )
    splits: dict[str, list[Item]] = {}
    for item in dataset.items:
        splits.setdefault(item.split, []).append(item)
    out = package.DatasetDict()
    for split, items in splits.items():
        rows = [asdict(item) for item in items]
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        info = package.DatasetInfo(description=said, features=features)
        out[split] = package.Dataset.from_dict(columns, features, info, package.NamedSplit(split))
    return out


def from_datasets(
    found: Any,
    store: DiffStore | None = None,
    name: str = "",
    candidates: Mapping[str, Sequence[str]] | None = None,
    where: str = "the datasets",
) -> Dataset:
    """See `Dataset.from_datasets`.

    Args:
        found: one of Hugging Face's datasets, or several by split.
        store: of the diffs.
        name: what to call it.
        candidates: lists of possible answers.
        where: what to call `found` in messages.
    """
    items: list[Item] = []
    places: list[str] = []
    for place, split, row in _rows(found, where):
        try:
            items.append(typed(Item, row if split is None else {"split": split, **row}, "the item"))
        except Mismatch as error:
            raise FormatError(f"{place}: {error}; its columns should be fields of an item") from error
        if split is not None and items[-1].split != split:
            raise FormatError(f"{place}: the item says that its split is {items[-1].split!r}; correct either")
        places.append(place)
    about = _about(found)
    base = about.base or (store.base if store is not None else None)
    if base is None:
        raise FormatError(f"{where}: of which base the diffs are is not known; give their store")
    lists = about.candidates if candidates is None else {k: tuple(v) for k, v in candidates.items()}
    return check_dataset(Dataset(name or about.name, tuple(items), base, store, lists, about.meta), places)


def from_disk(folder: Path) -> Any:
    """What the package's own `save_to_disk` wrote.

    Raises:
        FormatError: it cannot be read.
        MissingDependencyError: the package is not installed.
    """
    package = _package()
    try:
        return package.load_from_disk(str(folder))
    except Exception as error:  # whatever that package raises about files that are damaged
        raise FormatError(
            f"{folder} cannot be read by datasets ({type(error).__name__}: {error}); save it again"
        ) from error


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "eval") from error
    return datasets


def _parts(found: Any) -> list[tuple[str | None, Any]]:
    """Split and dataset; the split of a single one is not known."""
    return [(str(k), v) for k, v in found.items()] if isinstance(found, Mapping) else [(None, found)]


def _rows(found: Any, where: str) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Where each row stands, its split, and the row as plain objects."""
    for split, table in _parts(found):
        plain = table.with_format(None) if hasattr(table, "with_format") else table
        for number, row in enumerate(plain):
            yield f"{where}, {split + ', ' if split else ''}row {number}", split, row


def _about(found: Any) -> _About:
    """What travelled in the description; of datasets made elsewhere, nothing is known."""
    for _, table in _parts(found):
        try:
            said = parse_json(str(getattr(getattr(table, "info", None), "description", "") or ""))
            return typed(_About, said[KEY], "the description")
        except (ValueError, KeyError, TypeError):
            continue
    return _About()
