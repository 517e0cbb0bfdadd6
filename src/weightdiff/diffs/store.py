"""`DiffStore`: many labelled low-rank diffs of one base on disk.

A store is a folder with `store.json` (which base) and shards. The shards are the truth: the index is derived
from their headers at opening and loads no tensor. A shard appears whole or not at all, so a killed `append`
leaves the store as it was. One process appends at a time; any number may read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from weightdiff.artifacts import atomic_write_json, read_json, remove_leftovers
from weightdiff.diffs.factors import fold_scale
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.rowfiles import RowFile, bytes_of
from weightdiff.diffs.shards import DiffRow, Shard, read_header, write_shard
from weightdiff.diffs.types import LoraFactors, ModuleDelta, StackedLoras, WeightDiff, named
from weightdiff.errors import FormatError, StoreError

__all__ = ["DiffRow", "DiffStore"]

_INFO_NAME = "store.json"
_KIND = "weightdiff-store"
_VERSION = 1
_OPEN_SHARDS = 256  # files kept open at once


class DiffStore:
    """A folder of labelled low-rank diffs; made by `create` or `open`.

    Attributes:
        path: the folder.
        base: the base that every diff belongs to.
        meta: what `create` was told to remember.
    """

    def __init__(self, path: Path, base: ModelRef, meta: dict[str, Any]) -> None:
        """Index the shards in `path`; use `create` or `open` instead."""
        self.path = path
        self.base = base
        self.meta = meta
        self._shards: dict[str, Shard] = {}
        self._places: dict[str, tuple[Shard, int]] = {}
        self._files: dict[Path, RowFile] = {}
        self._lock = threading.Lock()
        self._refresh()

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        """Pickle by path, so that worker processes open their own files."""
        return (DiffStore.open, (self.path,))

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], base: ModelRef, meta: Mapping[str, Any] | None = None
    ) -> DiffStore:
        """Make an empty store in a new or empty folder.

        Raises:
            StoreError: if the path is a file or a folder that holds something.
        """
        root = Path(path)
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file; give the folder that the diff store should be")
        if root.is_dir() and any(not item.name.startswith(".") for item in root.iterdir()):
            raise StoreError(
                f"{root} exists and is not empty; choose another path, or DiffStore.open to add to it"
            )
        root.mkdir(parents=True, exist_ok=True)
        info = {"kind": _KIND, "version": _VERSION, "base": base.to_json(), "meta": dict(meta or {})}
        atomic_write_json(root / _INFO_NAME, info)
        return cls.open(root)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DiffStore:
        """Open a store and index it; reads headers only.

        Raises:
            StoreError: if there is no store at `path`, or a shard is damaged (the file is named).
        """
        root = Path(path)
        if not os.path.isdir(root):  # which raises for no name, as Path.is_dir does for a long one
            what = "is a file" if os.path.exists(root) else "does not exist"
            raise StoreError(f"{root} {what}; give the folder of a diff store")
        info_path = root / _INFO_NAME
        try:
            complete, empty = info_path.is_file(), not any(root.iterdir())
        except OSError as error:
            raise StoreError(
                f"{root} cannot be looked into ({error.strerror}); check its permissions"
            ) from error
        if not complete:
            what = "is empty" if empty else "is not a diff store"
            raise StoreError(
                f"{root} {what}: it has no {_INFO_NAME}; give a folder that DiffStore.create made"
            )
        try:
            info = cast(dict[str, Any], read_json(info_path))
            if info["kind"] != _KIND:
                raise StoreError(
                    f"{info_path} is of kind {info['kind']!r}, not {_KIND!r}; give a diff store's folder"
                )
            if info["version"] != _VERSION:
                raise StoreError(
                    f"{info_path} has version {info['version']}, this weightdiff reads {_VERSION}; upgrade"
                )
            base, meta = ModelRef.from_json(info["base"]), dict(info["meta"])
        except (OSError, ValueError, KeyError, TypeError, FormatError) as error:
            raise StoreError(f"{info_path} cannot be read ({error!r}); copy the store again") from error
        return cls(root, base, meta)

    def __len__(self) -> int:
        """Number of stored diffs."""
        return len(self._places)

    def __contains__(self, id: object) -> bool:
        """Whether a diff with this id is stored."""
        return id in self._places

    @property
    def rows(self) -> list[DiffRow]:
        """Every row, in the order in which they were appended."""
        return [shard.rows[i] for shard, i in self._places.values()]

    @property
    def ids(self) -> list[str]:
        """Every id, in the order of `rows`."""
        return list(self._places)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Dotted name of every module that some diff touches → (in_features, out_features)."""
        return {name: shape[1:] for shard in self._shards.values() for name, shape in shard.shapes.items()}

    def row(self, id: str) -> DiffRow:
        """Return the row of one diff.

        Raises:
            StoreError: if there is no such id.
        """
        shard, i = self._place(id)
        return shard.rows[i]

    def select(
        self, *, family: str | None = None, split: str | None = None, recipe: str | None = None
    ) -> list[DiffRow]:
        """Return the rows that have every given field, in order; fields left out match all."""
        wanted = {
            k: v for k, v in (("family", family), ("split", split), ("recipe", recipe)) if v is not None
        }
        return [row for row in self.rows if all(getattr(row, k) == v for k, v in wanted.items())]

    def append(self, items: Sequence[tuple[DiffRow, WeightDiff]], dtype: torch.dtype = torch.float16) -> Path:
        """Write diffs as one new shard, whole or not at all, and return its path.

        Files that a killed append left behind are removed first.

        Args:
            items: rows with their low-rank diffs.
            dtype: of the stored factors; scales are kept exactly.

        Raises:
            StoreError: if there are no items, an id is empty, taken or twice, a diff has dense modules, a
                module's shape is not what the store has, or a row is no JSON.
            BaseMismatchError: if a diff says that it belongs to another base.
            NonFiniteError: if a diff is not finite in `dtype`.
        """
        self._refresh()
        ids = [row.id for row, _ in items]
        doubled = sorted({id for id in ids if id in self._places or ids.count(id) > 1})
        if not ids or not all(ids):
            raise StoreError(
                f"nothing to append to {self.path}, or a row without id; give rows that have ids"
            )
        if doubled:
            raise StoreError(
                f"{self.path}: these ids are taken or given twice: {named(doubled)}; ids must be unique"
            )
        shapes = self.shapes
        for row, diff in items:
            diff.check_base(self.base)
            for name, m in diff.modules.items():
                if shapes.get(name, (m.in_features, m.out_features)) != (m.in_features, m.out_features):
                    raise StoreError(
                        f"row {row.id!r}: {name} has in {m.in_features}, out {m.out_features},"
                        f" and the store has in {shapes[name][0]}, out {shapes[name][1]};"
                        " a store holds diffs of one base"
                    )
        remove_leftovers(self.path)
        number = 1 + max((int(name.split("-")[1]) for name in self._shards), default=-1)
        path = write_shard(self.path, number, items, dtype)
        self._refresh()
        return path

    def read(self, id: str) -> WeightDiff:
        """Load one diff with its exact modules and ranks, in the stored dtype.

        Raises:
            StoreError: if there is no such id, or the shard cannot be read.
        """
        shard, i = self._place(id)
        file = self._file(shard)
        modules: dict[str, ModuleDelta] = {}
        for name, rank in zip(shard.shapes, shard.ranks[i], strict=True):
            if rank:
                down, up, scale = (_rows(shard, file, f"{name}.{x}", [i])[0] for x in ("down", "up", "scale"))
                modules[name] = LoraFactors(
                    down[:rank].clone(),
                    up[:, :rank].clone(memory_format=torch.contiguous_format),
                    float(scale),
                )
        return WeightDiff(modules, self.base, dict(shard.metas[i]))

    def stack(self, ids: Sequence[str], dtype: torch.dtype = torch.float32) -> StackedLoras:
        """Load a batch of diffs in the order asked, reading only their rows from the files.

        Ranks are padded to each module's largest in the batch; a module that a row lacks is zero there.

        Raises:
            StoreError: if an id is not stored, or a shard cannot be read.
        """
        parts: dict[str, _Part] = {}
        for position, (shard, i) in enumerate(map(self._place, ids)):
            if (part := parts.get(shard.path.name)) is None:
                part = parts[shard.path.name] = _Part(shard, self._file(shard))
            part.positions.append(position)
            part.rows.append(i)
        modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, (rank, width, height) in self._stacked_shapes(ids).items():
            alike: dict[Any, list[_Part]] = {}
            for part in parts.values():
                if name in part.shard.shapes:
                    alike.setdefault(part.shard.layouts[name], []).append(part)
            for members in alike.values():
                downs, ups, scales = (_gathered(members, f"{name}.{x}") for x in ("down", "up", "scale"))
                r = min(rank, downs.shape[1])  # beyond a row's true rank there are zeros
                downs, ups = downs[:, :r].to(dtype), ups[:, :, :r]
                once = bool((scales == 1).all())
                ups = ups.to(dtype) if once else fold_scale(ups, scales[:, None, None], dtype)
                if len(downs) == len(ids) and r == rank:
                    modules[name] = (downs, ups.contiguous())
                    continue
                if name not in modules:
                    modules[name] = (
                        torch.zeros(len(ids), rank, width, dtype=dtype),
                        torch.zeros(len(ids), height, rank, dtype=dtype),
                    )
                at = torch.tensor(_positions(members))
                modules[name][0][at, :r], modules[name][1][at, :, :r] = downs, ups
        return StackedLoras(modules, len(ids))

    def stack_bytes(self, ids: Sequence[str], dtype: torch.dtype = torch.float32) -> int:
        """Return how much memory `stack` takes for these diffs, without reading any."""
        shapes = self._stacked_shapes(ids).values()
        return len(ids) * dtype.itemsize * sum(rank * (width + height) for rank, width, height in shapes)

    def _stacked_shapes(self, ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """Largest rank of each module that any of the diffs changes, and the layer's width and height."""
        shapes: dict[str, tuple[int, int, int]] = {}
        for shard, i in map(self._place, ids):
            for (name, (_, width, height)), rank in zip(shard.shapes.items(), shard.ranks[i], strict=True):
                if rank:
                    shapes[name] = (max(rank, shapes.get(name, (0,))[0]), width, height)
        return shapes

    def _place(self, id: str) -> tuple[Shard, int]:
        if id not in self._places:
            there = (
                f"it has {len(self)} rows, such as {named(self.ids, 3)}" if self._places else "it is empty"
            )
            raise StoreError(f"{self.path} has no diff {id!r}; {there}")
        return self._places[id]

    def _refresh(self) -> None:
        """Read the headers of shards that are not indexed yet, in the order of their names."""
        for path in sorted(self.path.glob("shard-*-*.safetensors")):
            if path.name in self._shards:
                continue
            shard = read_header(path)
            for i, row in enumerate(shard.rows):
                if row.id in self._places:
                    other = self._places[row.id][0].path.name
                    raise StoreError(
                        f"{path} and {other} both hold the id {row.id!r}; delete one of the two shards"
                    )
                self._places[row.id] = (shard, i)
            self._shards[path.name] = shard

    def _file(self, shard: Shard) -> RowFile:
        """Return the file of a shard, open; the one opened longest ago of too many is let go."""
        with self._lock:
            if shard.path not in self._files:
                while len(self._files) >= _OPEN_SHARDS:
                    del self._files[next(iter(self._files))]
                try:
                    self._files[shard.path] = RowFile(shard.path)
                except OSError as error:
                    raise _unreadable(shard, error) from error
            return self._files[shard.path]


@dataclass
class _Part:
    """What of a batch is in one shard."""

    shard: Shard
    file: RowFile
    positions: list[int] = field(default_factory=list[int])
    """In the batch."""
    rows: list[int] = field(default_factory=list[int])
    """In the shard."""


def _positions(parts: Sequence[_Part]) -> list[int]:
    """Where the rows of some parts stand in the batch, in order."""
    return sorted(position for part in parts for position in part.positions)


def _gathered(parts: Sequence[_Part], name: str) -> torch.Tensor:
    """The rows of some parts that are laid out alike, in the order of `_positions`."""
    place = {position: i for i, position in enumerate(_positions(parts))}
    first = parts[0].shard.places[name]
    out = torch.empty(len(place), *first.shape, dtype=first.dtype)
    to = bytes_of(out)
    for part in parts:
        at = [place[position] for position in part.positions]
        if name.endswith(".scale"):
            out[at] = _rows(part.shard, part.file, name, part.rows)
            continue
        try:
            part.file.read_into(to, part.shard.places[name], part.rows, at)
        except OSError as error:
            raise _unreadable(part.shard, error) from error
    return out


def _rows(shard: Shard, file: RowFile, name: str, rows: Sequence[int]) -> torch.Tensor:
    """Rows of one of a shard's tensors; scales, a few bytes each, are read once and kept."""
    try:
        if not name.endswith(".scale"):
            return file.read(shard.places[name], rows)
        if name not in file.kept:
            file.kept[name] = file.read(shard.places[name], range(len(shard.rows)))
        return file.kept[name][list(rows)]
    except OSError as error:
        raise _unreadable(shard, error) from error


def _unreadable(shard: Shard, error: OSError) -> StoreError:
    return StoreError(f"{shard.path} cannot be read ({error}); copy the store again")
