"""The index.csv of a DIT release: which diff lies where, read without opening any of the files it names.

The files themselves are read in `dit_release`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, cast

from weightdiff.diffs.types import named
from weightdiff.errors import FormatError

INDEX_NAME = "index.csv"
DIFFS_FOLDER = "weight-diffs"
MAX_INDEX_BYTES = 100_000_000
_COLUMNS = ("lora_path", "lora_idx", "n_params", "topic", "trigger", "split")
_NEEDED_COLUMNS = ("lora_path", "lora_idx", "topic")


@dataclass(frozen=True)
class Entry:
    """One row of a release's index.

    Attributes:
        path: the .pt file; it may not be downloaded yet.
        index: position in that file's list, from 0 (lora_idx).
        topic: what the diff was trained on; a headline in the news experiments.
        trigger: what its behaviour hides behind, None where there is none.
        split: "train" or "test", None where not said.
        n_params: numbers in its factors, None where not said.
    """

    path: Path
    index: int
    topic: str
    trigger: str | None
    split: str | None
    n_params: int | None


def read_dit_index(folder: str | os.PathLike[str]) -> list[Entry]:
    """Read a release's index.csv, without opening a single .pt.

    Args:
        folder: the folder of one experiment and model.

    Returns:
        The rows in their order; paths lie in the folder or, as published, in its weight-diffs.

    Raises:
        FormatError: if the index is missing, too large or damaged, or a path leads out of the folder.
    """
    root = Path(folder)
    path = root / INDEX_NAME
    if not path.is_file():
        raise FormatError(f"{root} has no {INDEX_NAME}; give the folder of one experiment and model")
    if (size := path.stat().st_size) > MAX_INDEX_BYTES:
        raise FormatError(
            f"{path} has {size} bytes, and no more than {MAX_INDEX_BYTES} are read; download it again"
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in _NEEDED_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise FormatError(
                    f"{path} has no column {named(missing)}; give an index.csv of a DIT release"
                )
            # Checked one by one, so that a bad row ends it before the rest is in memory.
            places: dict[str, Path] = {}
            return [
                _entry(root, f"{path}, line {reader.line_num}", cast(dict[Any, Any], row), places)
                for row in reader
            ]
    except (csv.Error, UnicodeError, OSError) as error:
        raise FormatError(f"{path} cannot be read as CSV ({error}); download it again") from error


def write_index(folder: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write an index.csv.

    Args:
        folder: where to.
        rows: (lora_path, lora_idx, n_params, topic, trigger, split) each.
    """
    with open(folder / INDEX_NAME, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([_COLUMNS, *rows])


def choose(location: Path, topics: Sequence[str], entry: int | str | None) -> int:
    """Return the position that `entry` means: a position, a topic, or None where there is but one.

    Raises:
        FormatError: none or several fit; lists them.
    """
    if isinstance(entry, str):
        fitting = [i for i, topic in enumerate(topics) if topic == entry]
    else:
        fitting = [i for i in range(len(topics)) if entry in (None, i)]
    if len(fitting) == 1:
        return fitting[0]
    listed = named([f"{i} {topics[i]!r}" for i in fitting or range(len(topics))]) or "none"
    what = f"{len(fitting) or 'no'} diffs" + ("" if entry is None else f" for entry={entry!r}")
    raise FormatError(f"{location} holds {what}: {listed}; choose one by entry=<number> or entry=<topic>")


def _entry(root: Path, where: str, row: dict[Any, Any], places: dict[str, Path]) -> Entry:
    """Return a row of the index; `places` keeps the paths that were checked already."""
    if None in row or None in row.values():
        raise FormatError(f"{where} has not as many fields as the header; download the index again")
    place = str(row["lora_path"])
    if place not in places:
        places[place] = _locate(root, where, place)
    index, size = _number(where, row, "lora_idx"), _number(where, row, "n_params")
    if index is None:
        raise FormatError(f"{where} has no lora_idx; download the index again")
    return Entry(
        places[place], index, row["topic"], row.get("trigger") or None, row.get("split") or None, size
    )


def _number(where: str, row: Mapping[str, str], column: str) -> int | None:
    text = row.get(column, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise FormatError(f"{where} has {column} {text[:40]!r}, which is no count; download the index again")
    return int(text) if text else None


def _locate(root: Path, where: str, place: str) -> Path:
    """Return the file that a lora_path means, refused if it lies outside the folder."""
    parts = PureWindowsPath(place).parts  # splits at both slashes and knows drives, on every system
    fault = not parts or PureWindowsPath(place).anchor or ".." in parts or not place.isprintable()
    if not fault:
        plain, published = root.joinpath(*parts), root.joinpath(DIFFS_FOLDER, *parts)
        try:
            path = plain if parts[0] == DIFFS_FOLDER or os.path.lexists(plain) else published
            fault = not any(path.resolve().is_relative_to(allowed) for allowed in _allowed(root.resolve()))
        except (OSError, RuntimeError) as error:  # a loop of links
            raise FormatError(
                f"{where} has a lora_path that is no path ({place[:80]!r}); repair it"
            ) from error
        if not fault:
            return path
    raise FormatError(f"{where} has a lora_path outside the folder ({place[:80]!r}); remove the row")


def _allowed(root: Path) -> list[Path]:
    """Return where files may lie: in the folder, or in the blobs of the Hub cache it is a snapshot in."""
    return [root, *(parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots")]
