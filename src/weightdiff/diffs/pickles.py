"""The one door for other people's pickles: looked at, then read by PyTorch's unpickler of weights alone.

That one runs no code of a file, but lets it build more than it holds: compressed parts, a `bytearray` of any
length, text encoded again and again, and tuples of one tuple twice, over and over, which take for ever to
hash. No file of tensors needs these.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from weightdiff.diffs.types import named

MAX_DOUBLINGS = 16
_PICKLES = 5  # of a file of the older kind
_RECALLS = ("GET", "BINGET", "LONG_BINGET", "DUP")
_SILENT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
# How a pickle names the two functions, under their names in both Pythons.
_GROWING = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n|c_codecs\nencode\n")


def load_tensors(path: Path) -> Any:
    """Read what `torch.save` wrote, tensors and plain containers only; nothing in it is executed.

    Args:
        path: a zip file, whose tensors are mapped and read as they are used, or one of the older kind.

    Raises:
        Exception: it is damaged, holds anything else, or would take much more than it has bytes. What hostile
            bytes raise has no closed list.
    """
    refuse_bombs(path)
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def refuse_bombs(path: Path) -> None:
    """Look at a file of `torch.save`, a zip file or one of the older kind, without unpickling it.

    Raises:
        OSError: it cannot be read.
        ValueError: it would take much more memory or time than it has bytes.
        zipfile.BadZipFile: it is a damaged zip file.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as stream:
            if path.stat().st_size:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    _check(data)
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"it holds compressed parts ({named(packed)}), as torch.save writes none")
        for part in parts:
            if part.filename.lower().endswith(".pkl"):  # a name may be there twice, and case is not looked at
                _check(archive.read(part))


def _check(data: bytes | mmap.mmap) -> None:
    if found := _GROWING.search(data):
        what = " ".join(found[0][1:].decode().split())
        raise ValueError(f"its pickle calls {what}, as no file of tensors does")
    if _doublings(data) > MAX_DOUBLINGS:
        raise ValueError("its pickle builds tuples of one tuple again and again, as no file of tensors does")


def _doublings(data: bytes | mmap.mmap) -> int:
    """How many tuples are made of nothing but what the pickle has made before.

    The older kind of file is several pickles, and bytes that are none behind them, where counting ends.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else cast(IO[bytes], data)
    found = 0
    try:
        for _ in range(_PICKLES):
            recalled, since_mark = 0, 0
            for opcode, _, _ in pickletools.genops(stream):
                if opcode.name in _SILENT:
                    continue
                width = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": since_mark}.get(opcode.name, 0)
                found += 0 < width <= recalled
                recalled = recalled + 1 if opcode.name in _RECALLS else int(width > 0)
                since_mark = 0 if opcode.name == "MARK" else since_mark + 1
                if found > MAX_DOUBLINGS:
                    return found
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        pass  # no pickle here: what reads the file says so
    return found
