"""The bundle that ships with the package: the embedded base, its interpreter, and held-out organisms.

A folder with `base/` (model and tokenizer), `interpreter/`, `organisms/` (a diff store) and `manifest.json`,
which is written last. Making it is the business of `weightdiff reproduce`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from weightdiff.artifacts import MANIFEST_NAME
from weightdiff.errors import FormatError

BUNDLE = Path(__file__).parent / "bundle"
"""The packaged folder."""
VARIABLE = "WEIGHTDIFF_BUNDLE"
"""Environment variable that names another folder."""
PARTS = {"base": "config.json", "interpreter": "interpreter.json", "organisms": "store.json"}
"""Each part and the file by which it is known."""


def folder() -> Path:
    """The bundle's folder: `$WEIGHTDIFF_BUNDLE` where set, else the packaged one."""
    return Path(os.environ.get(VARIABLE) or BUNDLE)


def part(name: str, root: Path | None = None) -> Path:
    """The folder of one part: "base", "interpreter" or "organisms".

    Args:
        name: of the part.
        root: the bundle; by default `folder()`.

    Raises:
        FormatError: there is no such part, or it is not there.
    """
    if name not in PARTS:
        raise FormatError(f"the bundle has no part {name!r}: choose one of {', '.join(PARTS)}")
    path = (root or folder()) / name
    if not (path / PARTS[name]).is_file():
        raise _missing(f"{path} is not there")
    return path


def manifest(root: Path | None = None) -> dict[str, Any]:
    """What the bundle (`root`, by default `folder()`) says of itself: how it was made, checksums.

    Raises:
        FormatError: there is none, or it cannot be read.
    """
    path = (root or folder()) / MANIFEST_NAME
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _missing(f"{path} is not there") from error
    except ValueError as error:
        raise FormatError(f"{path} cannot be read ({error}); reinstall weightdiff") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds no JSON object; reinstall weightdiff")
    return found


def _missing(what: str) -> FormatError:
    return FormatError(
        f"the bundle is missing ({what}): make it with `weightdiff reproduce`,"
        f" or set {VARIABLE} to a bundle's folder"
    )
