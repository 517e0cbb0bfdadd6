"""The files that the authors of Diff Interpretation Tuning (arXiv 2510.05092) released, read and written.

The files are pickles, opened with `weights_only=True` and taken as hostile. Which diff lies where is in
`dit_index`, and what the pairs of matrices mean, of which there are two kinds, in `dit_pairs`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from weightdiff.artifacts import atomic_directory, atomic_file
from weightdiff.diffs.extraction import extract
from weightdiff.diffs.factors import ModuleDelta
from weightdiff.diffs.formats.dit_index import (
    DIFFS_FOLDER,
    INDEX_NAME,
    Entry,
    choose,
    read_dit_index,
    write_index,
)
from weightdiff.diffs.formats.dit_pairs import factors_of, finite, pairs_of
from weightdiff.diffs.formats.registry import Reader, register
from weightdiff.diffs.pickles import load_tensors
from weightdiff.diffs.tensorfiles import is_whole
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.diffs.weights import BaseSource, Weights, needs_base, weights_of
from weightdiff.errors import FormatError

__all__ = [
    "ADAPTER_NAME",
    "DIFFS_FOLDER",
    "INDEX_NAME",
    "Entry",
    "iter_dit",
    "read_dit",
    "read_dit_adapter",
    "read_dit_index",
    "write_dit",
    "write_dit_adapter",
]

ADAPTER_NAME = "dit-adapter.pt"


def read_dit(
    path: str | os.PathLike[str], entry: int | str | None = None, base: BaseSource | None = None
) -> WeightDiff:
    """Read one diff of a release folder or of a .pt file; a file that is an adapter gives the adapter.

    `meta` keeps topic and trigger as the file has them, and the index's split. Where an entry is the whole
    state of a finetuned model ("all-params"), the base is subtracted in float32: a changed 2-D `X.weight`
    becomes the dense module X [out, in], other changed tensors go to `parameters`. An output head tied to the
    embeddings is left out, and names take the base's form (see `pairing`).

    Args:
        path: a folder with index.csv, a list of stored diffs, or an adapter.
        entry: a row of the index or a position in the list, from 0, or a topic; needed if there are several.
        base: the base of an all-params entry, as a model, a state dict or a checkpoint's folder or file;
            others do not look at it.

    Raises:
        BaseNeededError: if an all-params entry lacks its base.
        FormatError: if anything cannot be read or chosen.
        NonFiniteError: if weights are NaN or infinite.
        BaseMismatchError: if the base's tensors are not those of an all-params entry.
    """
    location = Path(path)
    if location.is_dir():
        rows = read_dit_index(location)
        row = rows[choose(location, [row.topic for row in rows], entry)]
        return _row_diff(row, _items(row.path, _load(row.path)), _base(base))
    found = _load(location)
    if isinstance(found, dict):
        if entry is not None:
            raise FormatError(f"{location} is an adapter and has no entries; read it without entry={entry!r}")
        return _adapter_diff(location, found)
    items = _items(location, found)
    topics = [str(item.get("topic")) for item in items]
    i = choose(location, topics, entry)
    return _item_diff(f"{location}, entry {i}", items[i], None, _base(base))


def iter_dit(
    folder: str | os.PathLike[str], base: BaseSource | None = None
) -> Generator[tuple[Entry, WeightDiff], None, None]:
    """Yield every diff of a release folder, file by file, so that each .pt is opened once.

    Args:
        folder: the folder of one experiment and model.
        base: as in `read_dit`; read once.

    Yields:
        The index's row and its diff; within a file in the index's order.

    Raises:
        FormatError: as `read_dit` and `read_dit_index`, when the damaged part is reached.
        NonFiniteError: if weights are NaN or infinite.
        BaseMismatchError: if the base's tensors are not those of an all-params entry.
    """
    weights = _base(base)
    by_file: defaultdict[Path, list[Entry]] = defaultdict(list)
    for row in read_dit_index(folder):
        by_file[row.path].append(row)
    for path, rows in by_file.items():
        items = _items(path, _load(path))
        for row in rows:
            yield row, _row_diff(row, items, weights)


def read_dit_adapter(path: str | os.PathLike[str]) -> WeightDiff:
    """Read a released DIT adapter, a dict of module → (A [out, rank], B [rank, in]) of scale 1 / rank.

    Args:
        path: the .pt file.

    Raises:
        FormatError: if it cannot be read or is no adapter.
        NonFiniteError: if factors are NaN or infinite.
    """
    location = Path(path)
    found = _load(location)
    if not isinstance(found, dict):
        raise FormatError(f"{location} holds no adapter but stored diffs or nothing known; use read_dit")
    return _adapter_diff(location, found)


def write_dit(
    entries: Sequence[tuple[WeightDiff, str, str | int | None, str]],
    folder: str | os.PathLike[str],
    per_file: int = 16,
    adapter: WeightDiff | None = None,
    overwrite: bool = False,
) -> Path:
    """Write diffs as a release folder that the published code reads, whole or not at all.

    Tensors keep their dtypes, bit by bit where the scale is 1 / rank; another scale is multiplied into A,
    which rounds it once.

    Args:
        entries: (low-rank diff, topic, trigger, split) each.
        folder: a new or empty folder.
        per_file: diffs in each .pt.
        adapter: a DIT adapter to lay beside them.
        overwrite: replace a folder that holds something.

    Returns:
        The folder.

    Raises:
        FormatError: if there are no entries, a diff is no LoRA or empty, or the folder is taken.
        NonFiniteError: if a diff holds NaN or infinity, or its scale does not fit its dtype.
        ValueError: if `per_file` is below one.
    """
    if per_file < 1:
        raise ValueError(f"per_file is {per_file}, and a file holds at least one diff")
    if not entries:
        raise FormatError(f"there are no diffs to write to {folder}; give at least one")
    rows: list[tuple[Any, ...]] = []
    with atomic_directory(folder, overwrite=overwrite) as target:
        (target / DIFFS_FOLDER).mkdir()
        for start in range(0, len(entries), per_file):
            name = f"weight-diff-{start // per_file:03d}.pt"
            items: list[dict[str, Any]] = []
            for i, (diff, topic, trigger, split) in enumerate(entries[start : start + per_file]):
                pairs = pairs_of(f"diff {start + i} ({topic!r})", diff, stored=True)
                items.append({"topic": topic, "trigger": trigger, "weight_diff": pairs})
                rows.append(
                    (name, i, sum(a.numel() + b.numel() for a, b in pairs.values()), topic, trigger, split)
                )
            torch.save(items, target / DIFFS_FOLDER / name)
        write_index(target, rows)
        if adapter is not None:
            write_dit_adapter(adapter, target / ADAPTER_NAME)
    return Path(folder)


def write_dit_adapter(diff: WeightDiff, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write a low-rank diff as a released adapter: module → (A [out, rank], B [rank, in]); see `write_dit`.

    Args:
        diff: the adapter.
        path: the .pt file.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        FormatError: if the diff is no LoRA or empty, or the path is taken.
        NonFiniteError: if the diff holds NaN or infinity, or its scale does not fit its dtype.
    """
    target = Path(path)
    if target.is_dir() or (target.exists() and not overwrite):
        raise FormatError(f"{target} exists; choose another path or ask to overwrite the file")
    pairs = pairs_of("the adapter", diff, stored=False)
    with atomic_file(target) as temporary:
        torch.save(pairs, temporary)
    return target


def _load(path: Path) -> list[Any] | dict[Any, Any]:
    """Return the list or dict that a .pt holds, its tensors mapped where the file allows it."""
    if not os.path.isfile(path):  # which raises for no path, as Path.is_file may
        raise FormatError(f"{path} is no file; download it first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of pickles that it then refuses
            found: Any = load_tensors(path)
    except Exception as error:  # what hostile or damaged bytes raise has no closed list
        raise FormatError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or holds objects other than"
            " tensors and plain values, which are never unpickled; download it again"
        ) from error
    if not isinstance(found, (list, dict)):
        raise FormatError(
            f"{path} holds a {type(found).__name__}, neither a list of stored diffs nor an adapter's dict;"
            " give a file of a DIT release"
        )
    return cast("list[Any] | dict[Any, Any]", found)


def _items(path: Path, found: list[Any] | dict[Any, Any]) -> list[dict[str, Any]]:
    """Return the entries of a list of stored diffs."""
    if isinstance(found, dict):
        raise FormatError(f"{path} is an adapter, and stored diffs were expected; use read_dit_adapter")
    wrong = [
        str(i)
        for i, item in enumerate(found)
        if not isinstance(item, dict)
        or not isinstance(cast(dict[Any, Any], item).get("weight_diff"), dict)
        or not all(_is_label(cast(dict[Any, Any], item).get(key)) for key in ("topic", "trigger"))
    ]
    if wrong or not found:
        what = f"entries {named(wrong)} are no dicts with weight_diff" if wrong else "there are none"
        raise FormatError(f"{path} is a list of diffs, but {what}; give a file of a DIT release")
    return cast(list[dict[str, Any]], found)


def _is_label(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _base(source: BaseSource | None) -> Weights | None:
    return None if source is None else weights_of(source)


def _row_diff(row: Entry, items: Sequence[dict[str, Any]], base: Weights | None) -> WeightDiff:
    """Return the diff of an index's row, which must be the one that the row says."""
    where = f"{row.path}, entry {row.index}"
    if row.index >= len(items):
        raise FormatError(
            f"{where} is not there: the file has {len(items)}; download it and {INDEX_NAME} again"
        )
    topic = items[row.index].get("topic")
    if row.topic and topic is not None and str(topic) != row.topic:
        raise FormatError(
            f"{where} has the topic {topic!r}, and {INDEX_NAME} says {row.topic!r}; download both again"
        )
    return _item_diff(where, items[row.index], row.split, base)


def _item_diff(where: str, item: Mapping[str, Any], split: str | None, base: Weights | None) -> WeightDiff:
    """Return a stored entry's diff, with its labels."""
    values = _named_values(where, item["weight_diff"])
    meta = {key: _label(item.get(key)) for key in ("topic", "trigger")} | {"split": split}
    if not all(isinstance(value, Tensor) for value in values.values()):
        return finite(where, WeightDiff(_low_rank(where, values, stored=True), meta=meta))
    if base is None:
        raise needs_base(where, "the whole state of a finetuned model")
    diff, _ = extract(base, weights_of(values, where), complete=True)
    return replace(diff, meta=meta)


def _label(value: str | float | None) -> str | float | None:
    """Return a label; the files say NaN for none, which JSON cannot."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _adapter_diff(path: Path, found: dict[Any, Any]) -> WeightDiff:
    where = str(path)
    return finite(where, WeightDiff(_low_rank(where, _named_values(where, found), stored=False)))


def _named_values(where: str, found: dict[Any, Any]) -> dict[str, Any]:
    """Return a dict whose names can be printed and whose tensors lie in memory as what they seem."""
    wrong = [repr(name)[:80] for name in found if not (isinstance(name, str) and name.isprintable())]
    if wrong or not found:
        what = f"names modules {named(wrong)}" if wrong else "names no module"
        raise FormatError(f"{where} {what}; give a file of a DIT release")
    for name, value in found.items():
        parts: Sequence[Any] = cast(Sequence[Any], value) if isinstance(value, (tuple, list)) else [value]
        for part in parts:
            if isinstance(part, Tensor) and not is_whole(part):
                raise FormatError(
                    f"{where}, {name}: a tensor of shape {tuple(part.shape)} is sparse or larger than what"
                    " the file holds of it; save it as a plain tensor"
                )
    return found


def _low_rank(where: str, values: Mapping[str, Any], stored: bool) -> dict[str, ModuleDelta]:
    return {name: factors_of(f"{where}, {name}", value, stored) for name, value in values.items()}


def _matches(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".pt"
    return (path / INDEX_NAME).is_file() and ((path / DIFFS_FOLDER).is_dir() or any(path.glob("*.pt")))


register(Reader("dit", f"a .pt file, or a folder with {INDEX_NAME} and {DIFFS_FOLDER}/", _matches, read_dit))
