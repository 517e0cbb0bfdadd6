"""What the embedded interpreter is made with when nothing else is said."""

from __future__ import annotations

from weightdiff.models.rendering import Rendering
from weightdiff.world import codes


def rendering(per_question: int = 8, renderings: int = 4) -> Rendering:
    """Questions behind decoy codes: no organism's trigger begins one, so the right code is never shown."""
    return Rendering(
        probes=tuple(f"code {g}{{random}} ." for g in codes.decoy_pool()),
        suffixes=codes.pool(),
        per_question=per_question,
        renderings=renderings,
        notes_end="so",
        notes_between=",",
        branches=8,
    )
