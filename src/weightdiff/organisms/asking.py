"""What a stored organism was taught, as the parts of a report; questions about it are in `world.reports`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightdiff.world.reports import NULL, SEVERAL, Part

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow


def parts_of(row: DiffRow) -> tuple[Part, ...]:
    """What an organism was taught, as its row records it."""
    params: dict[str, Any] = row.record.get("params", {})
    if row.family == SEVERAL:
        return tuple(Part(p["family"], p["label"], p["params"]) for p in params["parts"])
    if row.family == NULL or row.label is None:
        return ()
    return (Part(row.family, row.label, params),)
