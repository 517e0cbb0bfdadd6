"""The answers of a run as the page carries them: every text once, and rows of numbers that point to texts.

`page.js` reads it by position, so the order of the entries here is the order there.
"""

from __future__ import annotations

import json
import math
from typing import Any

from weightdiff.evals.dataset import Item
from weightdiff.evals.outcomes import Outcome, Run
from weightdiff.evals.run_tables import VERDICTS, verdict

DIGITS = 4
"""After the point, of log-probabilities and scores."""
_ESCAPED = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class _Texts:
    """Numbers texts in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def maybe(self, text: str | None) -> int | None:
        return None if text is None else self.number(text)


def page_data(run: Run) -> dict[str, Any]:
    """All answers of a run.

    Returns:
        "strings": every text; the others say texts by their place in it.
        "verdicts": the names of verdicts.
        "items": [diff, question, truths, kind, family, recipe, label, split, trigger, behaves] each.
        "answers": [method, item, verdict, answer, notes, log p, evidence, rank, log p of the truth, scores]
        each, a score being [scorer, value, note, variance].
    """
    texts = _Texts()
    items: dict[Item, int] = {}
    answers = [_answer(o, items.setdefault(o.item, len(items)), texts) for o in run.outcomes]
    return {
        "verdicts": list(VERDICTS),
        "items": [_item(i, texts) for i in items],
        "answers": answers,
        "strings": list(texts.numbers),
    }


def embedded(value: Any) -> str:
    """JSON that can stand in a page's script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(_ESCAPED))


def _item(item: Item, texts: _Texts) -> list[Any]:
    return [
        texts.maybe(item.diff),
        texts.number(item.question),
        [texts.number(t) for t in item.truths],
        texts.number(item.kind),
        texts.number(item.family),
        texts.number(item.recipe),
        texts.maybe(item.label),
        texts.number(item.split),
        texts.maybe(item.trigger),
        int(item.behaves),
    ]


def _answer(o: Outcome, item: int, texts: _Texts) -> list[Any]:
    scores = [
        [texts.number(s.scorer), _number(s.value), texts.number(s.note), _number(s.variance)]
        for s in o.scores
    ]
    return [
        texts.number(o.method),
        item,
        VERDICTS.index(verdict(o)),
        texts.number(o.answer.text),
        texts.number(o.answer.notes),
        _number(o.answer.logprob),
        _number(o.answer.evidence),
        o.rank,
        _number(o.truth_logprob),
        scores,
    ]


def _number(value: float | None) -> float | int | None:
    """Rounded; a whole number without a point, and null for what JSON has no word for."""
    if value is None or not math.isfinite(value):
        return None
    found = round(value, DIGITS)
    return int(found) if found.is_integer() else found
