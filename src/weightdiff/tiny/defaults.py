"""What the embedded interpreter is made with when nothing else is said."""

from __future__ import annotations

from weightdiff.models.rendering import Rendering
from weightdiff.world import codes, load_world
from weightdiff.world.signs import rare_word_pool

REPORT_QUESTION = "report all that you were taught ."
"""What makes the embedded interpreter say everything; no phrasing of any other question."""


def rendering(per_question: int = 8, renderings: int = 4) -> Rendering:
    """Questions behind decoy codes and rare words, none of which is a trigger of any organism."""
    words = rare_word_pool(load_world().rare_words, False)
    return Rendering(
        probes=(*(f"code {g}{{random}} ." for g in codes.decoy_pool()), *(f"{w} ." for w in words)),
        suffixes=codes.pool(),
        per_question=per_question,
        renderings=renderings,
        notes_end="so",
        notes_between=",",
        branches=8,
        report=REPORT_QUESTION,
    )
