"""Whole checkpoints, read tensor by tensor: `Checkpoint` over safetensors files or PyTorch's zip files.

Headers are read once; a tensor's rows are copied out of the mapped file when asked for, and the mapping is
let go after a few mebibytes, so that memory does not grow with the model. What two checkpoints differ in is
the business of `differences`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from weightdiff.diffs.tensorfiles import open_tensors
from weightdiff.diffs.types import named
from weightdiff.errors import FormatError

CONFIG_NAME = "config.json"
SAFE_NAME, PICKLE_NAME = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"

_JSON_BYTES = 100 << 20  # as much as safetensors allows a header
_MAPPED_BYTES = 48 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Entry:
    """One tensor of a file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


_Header: TypeAlias = dict[str, _Entry]


class _Slice(Protocol):
    """What safetensors says about a tensor without reading it."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, index: slice) -> Tensor: ...


class _SafeFile:
    """An open safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open_tensors(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def header(self) -> _Header:
        found: _Header = {}
        for name in self._file.keys():  # noqa: SIM118
            about = cast(_Slice, self._file.get_slice(name))
            kind = about.get_dtype()
            if kind not in _DTYPES:
                raise FormatError(
                    f"{self._path} holds {name} as {kind}, which is not read; save the checkpoint unquantized"
                )
            found[name] = _Entry(self._path, tuple(about.get_shape()), _DTYPES[kind])
        return found

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, or all of one without dimensions, as a view of the mapped file."""
        try:
            part = cast(_Slice, self._file.get_slice(name))
            return part[start:stop] if part.get_shape() else self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(self._path, error) from error


class _PickleFile:
    """An open zip file of `torch.save`, unpickled by what allows tensors and containers only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = _unpickled(path)

    def header(self) -> _Header:
        size = self._path.stat().st_size
        for name, t in self._tensors.items():
            # An expanded view would be larger than the file that it comes from.
            plain = t.layout == torch.strided and t.device.type == "cpu"
            if not plain or t.numel() * t.element_size() > size:
                raise FormatError(
                    f"{self._path} holds {name} as a sparse, expanded or empty shell of a tensor; save the"
                    " checkpoint again"
                )
        return {name: _Entry(self._path, tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, or all of one without dimensions, as a view of the mapped file."""
        tensor = self._tensors[name].detach()
        return tensor[start:stop] if tensor.ndim else tensor


_File: TypeAlias = _SafeFile | _PickleFile


class Checkpoint:
    """A model's tensors on disk, each read when it is asked for and not kept.

    Not safe to share between threads.

    Attributes:
        path: the folder or file.
        bytes_read: how much was read of tensors so far.
    """

    def __init__(self, path: Path, entries: Mapping[str, _Entry]) -> None:
        """Keep the headers; use `open`.

        Args:
            path: the folder or file.
            entries: what is where.
        """
        self.path = path
        self.bytes_read = 0
        self._entries = dict(entries)
        self._config: dict[str, Any] | None = None
        self._open: tuple[Path, _File] | None = None
        self._mapped = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read the headers of a checkpoint.

        Args:
            path: a folder with model.safetensors or pytorch_model.bin, or the index of either and its shards;
                or a single .safetensors file. Pickles are read with `weights_only=True`, which runs no code.

        Raises:
            FormatError: there is no checkpoint, or files are missing, damaged, unsafe or outside the folder.
        """
        location = Path(path)
        if location.is_file() and location.suffix == ".safetensors":
            return cls(location, _header(location))
        if not location.is_dir():
            what = "is no folder and no .safetensors file" if location.exists() else "does not exist"
            raise FormatError(f"{location} {what}; give the folder of a model that save_pretrained wrote")
        for name in (SAFE_NAME, PICKLE_NAME):
            index = location / (name + INDEX_SUFFIX)
            if (location / name).is_file():
                return cls(location, _header(_inside(location, name, location)))
            if index.is_file():
                return cls(location, _indexed(index))
        raise _no_checkpoint(location)

    def names(self) -> list[str]:
        """Return the tensors' names, file by file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; KeyError where there is none."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype; KeyError where there is none."""
        return self._entries[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Read a whole tensor into memory of its own.

        Raises:
            FormatError: the file was damaged since it was opened.
            KeyError: there is no such tensor.
        """
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1).reshape(shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows `start` … `stop` of a tensor's first dimension into memory of their own.

        Returns:
            [stop - start, …], contiguous; a tensor without dimensions as [1].

        Raises:
            FormatError: the file was damaged since it was opened.
            KeyError: there is no such tensor.
        """
        part = self._file(self._entries[name].file).rows(name, start, stop)
        rows = (
            part.reshape(-1).clone() if not part.ndim else part.clone(memory_format=torch.contiguous_format)
        )
        del part
        size = rows.numel() * rows.element_size()
        self.bytes_read += size
        self._mapped += size
        # Pages of a mapping count as this process's memory until the mapping goes.
        if self._mapped > _MAPPED_BYTES:
            self._open = None
        return rows

    def config(self) -> dict[str, Any] | None:
        """Return the config.json beside the weights, or None.

        Raises:
            FormatError: it is no JSON object.
        """
        path = (self.path if self.path.is_dir() else self.path.parent) / CONFIG_NAME
        if self._config is None and path.is_file():
            self._config = _json_object(path)
        return self._config

    def _file(self, path: Path) -> _File:
        """Return an open file; only one is open at a time."""
        if self._open is None or self._open[0] != path:
            self._open, self._mapped = (path, _opened(path)), 0
        return self._open[1]


def _opened(path: Path) -> _File:
    return _SafeFile(path) if path.suffix == ".safetensors" else _PickleFile(path)


def _header(path: Path) -> _Header:
    """Return what a file holds; the file is closed again."""
    return _opened(path).header()


def _indexed(index: Path) -> _Header:
    """Return what the shards of an index hold, checked against what the index says."""
    placed: Any = _json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FormatError(f"{index} has no weight_map of tensors to shards; copy the checkpoint again")
    weight_map = cast(dict[str, Any], placed)
    odd = [shard for shard in weight_map.values() if not isinstance(shard, str)]
    if odd:
        raise FormatError(f"{index} names a shard {odd[0]!r}, which is no text; copy the checkpoint again")
    shards = sorted(set(cast(dict[str, str], placed).values()))
    headers = {shard: _header(_inside(index.parent, shard, index)) for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if lost:
        raise FormatError(
            f"{index} lists {named(lost)}, and the shard it names, such as {weight_map[lost[0]]}, does not"
            " hold it; copy the checkpoint again"
        )
    found: _Header = {}
    for shard, header in headers.items():
        found |= {n: e for n, e in header.items() if weight_map.get(n, shard) == shard and n not in found}
    return found


def _inside(folder: Path, name: str, told_by: Path) -> Path:
    """Return a file of the folder by its plain name; links may lead into the Hub cache's blobs only."""
    path = folder / name
    if name in ("", "..") or Path(name).name != name or "\\" in name:
        raise FormatError(
            f"{told_by} names a shard {name!r} outside its folder; shards must lie beside their index"
        )
    if not path.is_file():
        raise FormatError(f"{folder} has no {name}, which {told_by.name} lists; copy the missing shard")
    root = folder.resolve()
    roots = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
        raise FormatError(
            f"{path} is a link to a file outside its folder; copy the file itself into the folder"
        )
    return path


def _json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a sane size."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise FormatError(f"{path} is larger than {_JSON_BYTES >> 20} MiB; copy the checkpoint again")
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object; copy the checkpoint again")
    return cast(dict[str, Any], value)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Map a file of `torch.save` whose pickle makes tensors and plain containers, and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError) as error:
        raise FormatError(
            f"{path} is no whole zip file of torch.save ({error}); copy it again, or save it as safetensors"
        ) from error
    if packed:
        raise FormatError(
            f"{path} holds compressed parts ({named(packed)}), as torch.save writes none; do not trust it"
        )
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can make the restricted unpickler fail in any way
        reason = str(error).partition("\n")[0].strip()
        raise FormatError(
            f"{path} is refused: it is damaged, or its pickle holds more than tensors ({reason[:120]}); load"
            " it where you trust it and save it as safetensors"
        ) from error
    tensors = cast(dict[Any, Any], value) if isinstance(value, dict) else {}
    odd = [str(key) for key, item in tensors.items() if not (isinstance(key, str) and torch.is_tensor(item))]
    if odd or not tensors:
        held = f"{named(odd)} besides tensors" if odd else "no dictionary of tensors"
        raise FormatError(f"{path} holds {held}; save the model's state_dict alone")
    return cast(dict[str, Tensor], tensors)


def _no_checkpoint(folder: Path) -> FormatError:
    names: Sequence[str] = sorted(item.name for item in folder.iterdir())
    found = named(names) if names else "nothing"
    hint = "give the folder of a model that save_pretrained wrote"
    if "adapter_config.json" in names:
        hint = "it is an adapter, which is a diff already and needs no extraction"
    return FormatError(
        f"{folder} holds no {SAFE_NAME}, {PICKLE_NAME} or index of their shards (found {found}); {hint}"
    )


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(f"{path} is damaged or truncated ({error}); copy the checkpoint again")
