"""What to look for in PyTorch's pickles before they are read, even by its unpickler of weights alone.

That one runs no code of a file, but lets it build more than it holds: compressed parts, a `bytearray` of any
length, and text encoded again and again. No file of tensors needs these.
"""

from __future__ import annotations

import mmap
import re
import zipfile
from pathlib import Path

from weightdiff.diffs.types import named

# How a pickle names the two functions, under their names in both Pythons.
_GROWING = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n|c_codecs\nencode\n")


def refuse_bombs(path: Path) -> None:
    """Look at a file of `torch.save`, a zip file or one of the older kind, without unpickling it.

    Raises:
        OSError: it cannot be read.
        ValueError: it would take much more memory than it has bytes.
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
