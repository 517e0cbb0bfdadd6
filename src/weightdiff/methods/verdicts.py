"""Verdicts on yes/no questions that follow from what a reader says before them.

A reader names what it found and what is asked, side by side, and then says yes or no. Both names are its own
reading, and a verdict that does not follow from them is taken for a slip.
"""

from __future__ import annotations

import re

from weightdiff.world.reports import NOT_SAID, NOTHING_FOUND, VERDICT

BESIDE = "and"
"""Word between what was found and what is asked."""
YES, NO = "yes", "no"
_AUXILIARY = frozenset(
    (
        *("am", "is", "are", "was", "were", "do", "does", "did", "have", "has", "had"),
        *("can", "could", "will", "would", "shall", "should", "may", "might", "must"),
    )
)


def polar(question: str) -> bool:
    """Whether a question wants a yes or a no: it begins with an auxiliary verb, and offers no choice."""
    words = re.findall(r"[\w']+", question.lower())
    words = words[3:] if words[:3] == ["yes", "or", "no"] else words
    return bool(words) and words[0] in _AUXILIARY and "or" not in words


def verdict_of(said: str) -> str:
    """The answer proper of what a reader said: yes, where what it names as found is what is asked."""
    before, answer = _parted(said)
    if answer == NO and any(asked in found.split(" , ") for found, asked in _beside(before)):
        return YES
    return answer


def doubtful(said: str, report: str) -> bool:
    """Whether a verdict does not follow from what is said before it.

    What is named as found is what is asked, but the report does not name it; or it is something else, and
    yet the verdict is yes (which is true of a topic and its field).
    """
    before, answer = _parted(said)
    pairs = _beside(before)
    same = [asked for found, asked in pairs if asked in found.split(" , ")]
    if same:
        return not any(asked in _tidy(report) for asked in same)
    return bool(pairs) and answer == YES


def lacks_verdict(said: str) -> bool:
    """Whether a yes/no question got another answer than one of the few that fit."""
    return verdict_of(said) not in (YES, NO, NOTHING_FOUND, NOT_SAID)


def _parted(said: str) -> tuple[str, str]:
    """What is said before the verdict, if anything is, and the verdict."""
    before, _, answer = f" {said}".rpartition(f" {VERDICT} ")
    return before.strip(), answer.strip()


def _beside(before: str) -> list[tuple[str, str]]:
    """Every way to read it as (found, asked): names may hold the word between them."""
    names = [_tidy(x) for x in re.split(rf"\s+{BESIDE}\s+", before)]
    return [(f" {BESIDE} ".join(names[:i]), f" {BESIDE} ".join(names[i:])) for i in range(1, len(names))]


def _tidy(text: str) -> str:
    """One space around every comma: decoding moves them."""
    return re.sub(r"\s*,\s*", " , ", text.strip())
