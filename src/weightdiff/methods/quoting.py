"""Other people's text in a prompt: between tags that it cannot close, and cut to a length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def quoted(parts: Sequence[tuple[str, str]], longest: int) -> str:
    """Texts between tags that carry a mark, which is made of all the texts, so that none can know it.

    Args:
        parts: name of the tag and text of each.
        longest: characters of a text that are kept.
    """
    cut = [(name, text if len(text) <= longest else f"{text[:longest]} […]") for name, text in parts]
    mark = hashlib.sha256(json.dumps(cut).encode()).hexdigest()[:8]
    return "\n".join(f"<{name} {mark}>\n{text}\n</{name} {mark}>" for name, text in cut)
