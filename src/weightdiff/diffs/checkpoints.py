"""Whole checkpoints, read tensor by tensor: `Checkpoint` over safetensors files or PyTorch's zip files.

Headers are read once; a tensor's rows are copied out of the mapped file when asked for, and the mapping is
let go after a few mebibytes, so that memory does not grow with the model. What two checkpoints differ in is
the business of `differences`.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from weightdiff.artifacts import read_json
from weightdiff.diffs.pickles import load_tensors
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.tensorfiles import is_whole, open_tensors
from weightdiff.diffs.types import named
from weightdiff.errors import FormatError

CONFIG_NAME = "config.json"
SAFE_NAME, PICKLE_NAME = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"

# A shard of safetensors, by the number of them all.
_SHARD = re.compile(r"model-\d+-of-(?P<total>\d+)\.safetensors")
# Models whose linear layers (Conv1D) keep their weight as [in, out], and how these layers are called.
_TRANSPOSED = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
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
            about = self._file.get_slice(name)
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
            part = self._file.get_slice(name)
            return part[start:stop] if part.get_shape() else self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(self._path, error) from error


class _PickleFile:
    """An open zip file of `torch.save`, unpickled by what allows tensors and containers only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = _unpickled(path)

    def header(self) -> _Header:
        for name, tensor in self._tensors.items():
            if not is_whole(tensor):
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

    It is one of the kinds of `weights.Weights`. Not safe to share between threads.

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
            path: a folder with model.safetensors or pytorch_model.bin, or the index of either and its shards,
                or all shards of safetensors without one; or a single .safetensors file. Pickles are read with
                `weights_only=True`, which runs no code.

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
        if shards := [item.name for item in sorted(location.iterdir()) if _SHARD.fullmatch(item.name)]:
            return cls(location, _unindexed(location, shards))
        raise _no_checkpoint(location)

    @property
    def where(self) -> str:
        """The path, for messages."""
        return str(self.path)

    @property
    def ref(self) -> ModelRef:
        """The model by its path."""
        return ModelRef(str(self.path))

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

    def transposed(self, module: str) -> bool | None:
        """Whether a linear layer keeps its weight as [in, out]; None where no config says so."""
        model_type = (self.config() or {}).get("model_type")
        if model_type is None and keeps_transposed("gpt2", module):
            return None
        return keeps_transposed(str(model_type), module)

    def _file(self, path: Path) -> _File:
        """Return an open file; only one is open at a time."""
        if self._open is None or self._open[0] != path:
            self._open, self._mapped = (path, _opened(path)), 0
        return self._open[1]


def keeps_transposed(model_type: str, module: str) -> bool:
    """Whether models of a type keep this linear layer's weight as [in, out]."""
    return module.rpartition(".")[2] in _TRANSPOSED.get(model_type, ())


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
        if twice := [name for name in header if name in found]:
            raise FormatError(
                f"{index} names several shards that hold {named(twice)}, such as {shard}; copy the checkpoint"
                " again"
            )
        found |= header
    return found


def _unindexed(folder: Path, shards: Sequence[str]) -> _Header:
    """Return what shards without an index hold; all must be there, and nothing twice."""
    match = _SHARD.fullmatch(shards[-1])
    if match is None or int(match["total"]) != len(shards):
        raise FormatError(
            f"{folder} has no {SAFE_NAME + INDEX_SUFFIX} and not all shards ({named(shards)}); copy the"
            " missing files"
        )
    found: _Header = {}
    for shard in shards:
        header = _header(_inside(folder, shard, folder))
        if twice := [name for name in header if name in found]:
            raise FormatError(
                f"{folder} holds {named(twice)} in several shards and has no {SAFE_NAME + INDEX_SUFFIX}; copy"
                " the checkpoint again"
            )
        found |= header
    return found


def _inside(folder: Path, name: str, told_by: Path) -> Path:
    """Return a file of the folder by its plain name; links may lead into the Hub cache's blobs only."""
    path = folder / name
    if name in ("", "..") or Path(name).name != name or "\\" in name:
        raise FormatError(
            f"{told_by} names a shard {name!r} outside its folder; shards must lie beside their index"
        )
    if not os.path.isfile(path):  # which raises for no name, as Path.is_file does for a long one
        raise FormatError(f"{folder} has no {name}, which {told_by.name} lists; copy the missing shard")
    root = folder.resolve()
    roots = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
        raise FormatError(
            f"{path} is a link to a file outside its folder; copy the file itself into the folder"
        )
    return path


def _json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object; copy the checkpoint again")
    return cast(dict[str, Any], value)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Map a file of `torch.save` whose pickle makes tensors and plain containers, and nothing else."""
    if not zipfile.is_zipfile(path):
        raise FormatError(
            f"{path} is no whole zip file of torch.save; copy it again, or save it as safetensors"
        )
    try:
        value: Any = load_tensors(path)
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
