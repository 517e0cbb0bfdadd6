"""Diffs and stores by the names that people give them: a path, a Hub name, `STORE::ID`, "bundled".

Bases by name are in `loading`. Importing this costs nothing: what reads files is imported when it is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdiff.errors import BaseNeededError, FormatError, StoreError

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.diffs.types import WeightDiff

BUNDLED = "bundled"
"""What the embedded base, interpreter and organisms are called, each in its place."""
BETWEEN = "::"
NO_DIFF = "-"


def open_store(name: str) -> DiffStore:
    """A store by its folder, or the bundled one.

    Raises:
        StoreError: there is none.
    """
    from weightdiff.diffs.store import DiffStore
    from weightdiff.tiny.bundle import part

    return DiffStore.open(part("organisms") if name == BUNDLED else name)


def read_diff(name: str, base: Any = None, finite: bool = True) -> WeightDiff | None:
    """A diff by its path or Hub name, by `STORE::ID`, or None for `-`.

    Args:
        name: as people give it.
        base: a model or its folder, for formats that store whole values.
        finite: refuse NaN; only PEFT folders can be read without.

    Raises:
        BaseNeededError: what is there is a change only against a base, and none was given.
        FormatError: no format fits, or the Hub fails; for a store, says how to name a row.
        StoreError: the store has no such row.
    """
    from weightdiff.diffs.types import WeightDiff

    if name == NO_DIFF:
        return None
    store, found, row = name.rpartition(BETWEEN)
    if found and not Path(name).exists():
        return open_store(store).read(row)
    if (Path(name) / "store.json").is_file():
        ids = open_store(name).ids
        if not ids:
            raise StoreError(f"{name} is an empty diff store; make some: weightdiff organisms train")
        raise FormatError(
            f"{name} is a store of {len(ids)} diffs: name one of them, such as {name}::{ids[0]}"
        )
    if not name.strip():
        raise FormatError("a diff's path is empty; give a PEFT folder, a Hub name or STORE::ID")
    options: dict[str, Any] = {} if base is None else {"base": base}
    return WeightDiff.load(name, **options) if finite else WeightDiff.load(name, finite=False, **options)


def read_beside(name: str, base: Any) -> WeightDiff | None:
    """A diff by its name, read beside a base where it is a change only against that; see `read_diff`."""
    try:
        return read_diff(name)
    except BaseNeededError:  # such as a full finetune
        return read_diff(name, base)
