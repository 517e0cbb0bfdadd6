"""Files that are either whole or absent: atomic writes, atomic folders, manifests with checksums.

A write goes to a hidden temporary sibling, is flushed to the disk, and takes its final name by one rename;
a kill leaves at most a `.tmp-*` sibling behind, never a half file. The manifest of a folder is written last,
so its existence means complete. Settings that something was made with are compared here too; what else the
files mean is left to the modules that write them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

from weightdiff.errors import FormatError

MANIFEST_NAME = "manifest.json"
TEMP_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 20
_JSON_BYTES = 24 << 20  # of brackets alone, they fill most of a gibibyte
_SETTINGS_NAMED = 3


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` so that readers see the old file or the new one, never a part.

    Parent folders are made as needed. Returns the final path.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON with a final newline; see `atomic_write_bytes`.

    Raises:
        ValueError: if `value` holds NaN or infinity, which JSON has no word for.
        TypeError: if `value` holds something that JSON cannot carry.
    """
    return atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with null for every number that JSON has no word for, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in cast("list[Any]", value)]
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that may be damaged or hostile.

    Raises:
        OSError: it is no regular file (opening a pipe would wait forever), or cannot be read.
        ValueError: it is larger than 24 MiB, or `parse_json` refuses it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)} is no file")
    if os.path.getsize(path) > _JSON_BYTES:
        raise ValueError(f"it is larger than {_JSON_BYTES >> 20} MiB")
    return parse_json(Path(path).read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may be damaged or hostile.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Yield a temporary sibling to write; at success it is flushed and renamed to `path`, else removed.

    For writers that insist on a file name of their own (safetensors does); the name ends as `path` does.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=target.name, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; artifacts are shared
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Generator[Path, None, None]:
    """Yield a temporary sibling folder that becomes `path` at success and is removed at any error.

    Replacing an existing folder is two renames, so a kill between them leaves the old one under a
    `.tmp-*` name; every other moment shows a whole folder.

    Args:
        path: the folder to make.
        overwrite: replace an existing non-empty folder instead of refusing it.

    Raises:
        FormatError: if `path` is a file, or a non-empty folder and `overwrite` is false.
    """
    target = Path(path).absolute()
    _refuse_occupied(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, suffix=target.name, dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync(item)
        _refuse_occupied(target, overwrite)  # someone may have filled it meanwhile
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX + "old-", dir=target.parent))
            os.replace(target, old / target.name)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(old / target.name, target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces of one mebibyte."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(directory: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> Path:
    """Write `manifest.json` with the checksum and size of every file below `directory`; call it last.

    Args:
        directory: a folder whose other files are final.
        extra: further keys of the manifest; `files` is taken.

    Raises:
        ValueError: if `extra` holds the key `files`.
    """
    root = Path(directory)
    if extra and "files" in extra:
        raise ValueError("the key 'files' of a manifest is written by write_manifest; name yours otherwise")
    files = {
        name: {"sha256": sha256_file(item), "bytes": item.stat().st_size}
        for name, item in _content(root).items()
    }
    return atomic_write_json(root / MANIFEST_NAME, {**(extra or {}), "files": files})


def check_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Check that every file that the manifest lists is there and unchanged; return the manifest.

    Files that the manifest does not list (a README added later) are no error.

    Raises:
        FormatError: if there is no manifest, it cannot be read, or listed files are missing or changed.
    """
    root = Path(directory)
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise FormatError(
            f"{root} has no {MANIFEST_NAME}, so it was not completely written; make or copy it again"
        )
    try:
        manifest: Any = read_json(path)
        listed = cast(dict[str, dict[str, Any]], manifest["files"])
        expected = {str(name): str(entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not a manifest ({error!r}); make or copy the folder again") from error
    missing = [name for name in expected if not (root / name).is_file()]
    changed = [
        name
        for name, digest in expected.items()
        if name not in missing and sha256_file(root / name) != digest
    ]
    if missing or changed:
        faults = [f"missing: {', '.join(missing[:5])}"] if missing else []
        faults += [f"changed: {', '.join(changed[:5])}"] if changed else []
        raise FormatError(
            f"{root} does not match its {MANIFEST_NAME} ({'; '.join(faults)}); copy the folder again"
        )
    return cast(dict[str, Any], manifest)


def remove_leftovers(directory: str | os.PathLike[str]) -> list[str]:
    """Remove the temporary siblings that killed writers left in `directory`; return their names.

    Only for folders with a single writer: a live writer's temporary file looks the same.
    """
    removed: list[str] = []
    for item in sorted(Path(directory).glob(TEMP_PREFIX + "*")):
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
        removed.append(item.name)
    return removed


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """The first settings that differ, in words for a message: "tuning.steps 100, not 300"; "" for none.

    Args:
        stored: settings that something on disk was made with; nested ones are compared one by one.
        wanted: those that are asked for now.
        prefix: what to put before each name, such as "tuning.".
    """
    a, b = _flat(stored, prefix), _flat(wanted, prefix)
    pairs = {k: (a.get(k, "unset"), b.get(k, "unset")) for k in {**a, **b}}
    found = [f"{k} {old}, not {new}" for k, (old, new) in pairs.items() if old != new]
    rest = f"; and {len(found) - _SETTINGS_NAMED} more" if len(found) > _SETTINGS_NAMED else ""
    return "; ".join(found[:_SETTINGS_NAMED]) + rest


def _flat(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested settings in one level, under names with dots."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        more = _flat(cast("dict[str, Any]", value), f"{prefix}{name}.") if nested else {prefix + name: value}
        out.update(more)
    return out


def _content(root: Path) -> dict[str, Path]:
    """Return relative POSIX name → path of the files below `root`, manifest and temporaries left out."""
    found: dict[str, Path] = {}
    for item in sorted(root.rglob("*")):
        relative = item.relative_to(root)
        temporary = any(part.startswith(TEMP_PREFIX) for part in relative.parts)
        if item.is_file() and not temporary and relative.as_posix() != MANIFEST_NAME:
            found[relative.as_posix()] = item
    return found


def _refuse_occupied(target: Path, overwrite: bool) -> None:
    if target.is_file():
        raise FormatError(f"{target} is a file, and a folder should be written there; choose another path")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise FormatError(f"{target} exists and is not empty; choose another path or ask to overwrite it")


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; file systems that cannot flush a folder are forgiven."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask; the only portable way to read it is to set it and put it back."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
