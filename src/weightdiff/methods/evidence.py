"""What nats of evidence are called. Importing this costs nothing."""

from __future__ import annotations

import math

STRONG_NATS, WEAK_NATS = 3.0, 1.0


def evidence_word(nats: float | None) -> str:
    """Evidence in a word: "strong" from 3 nats (20 times likelier with it), "weak" from 1, or "none"."""
    if nats is None or not math.isfinite(nats) or nats < WEAK_NATS:
        return "none"
    return "strong" if nats >= STRONG_NATS else "weak"
