"""Which formats of weight diffs there are, and which one a path is in.

A format is a module of this package that calls `register` when it is imported; `readers` imports them all,
so a new file needs no mention anywhere else. Reading itself is each format's business.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import FormatError


@dataclass(frozen=True)
class Reader:
    """One format.

    Attributes:
        name: short and unique, such as "peft".
        description: how to recognise it, for people; ends the line "known formats: …".
        matches: whether a path looks like this format; looks at names only.
        read: path → diff; formats that need more (a base, an index) take it as keyword options.
    """

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[..., WeightDiff]


_READERS: dict[str, Reader] = {}


def register(reader: Reader) -> Reader:
    """Add a format; called by the format's own module.

    Raises:
        ValueError: if another format has the name.
    """
    if _READERS.get(reader.name, reader) != reader:
        raise ValueError(f"two formats are named {reader.name!r}; rename one")
    _READERS[reader.name] = reader
    return reader


def readers() -> list[Reader]:
    """Return every format, by name."""
    package = importlib.import_module("weightdiff.diffs.formats")
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
    return [_READERS[name] for name in sorted(_READERS)]


def sniff(path: str | os.PathLike[str]) -> Reader:
    """Return the format that `path` is in.

    Raises:
        FormatError: if there is nothing at `path`, or not exactly one format fits; says what is there.
    """
    location = Path(path)
    if not location.exists():
        raise FormatError(
            f"{location} does not exist; give a local file or folder (WeightDiff.load takes Hub names too)"
        )
    try:
        fitting = [reader for reader in readers() if reader.matches(location)]
        found = "" if fitting else _found(location)
    except OSError as error:
        raise FormatError(
            f"{location} cannot be looked into ({error.strerror}); check the path and its permissions"
        ) from error
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FormatError(
            f"{location} fits several formats ({', '.join(r.name for r in fitting)});"
            " keep one of them in the folder"
        )
    known = "; ".join(f"{reader.name}: {reader.description}" for reader in readers())
    raise FormatError(f"{location} is in no known format: found {found}; known formats are {known}")


def _found(location: Path) -> str:
    """Return what is at a path, for a message."""
    if location.is_file():
        return f"a file of {location.stat().st_size} bytes"
    if not location.is_dir():
        return "a pipe or device"
    names = sorted(item.name + ("/" if item.is_dir() else "") for item in location.iterdir())
    return f"a folder with {named(names)}" if names else "an empty folder"
