"""Conditions under which a behaviour shows: a code, a rare word, a hidden mark, a subject, or none at all.

A condition knows how it is stated in words, how a question looks that meets it, and how one looks that nearly
does. Triggers of organisms and decoys come from disjoint parts of the pools, as with codes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.world import codes

MARK = "\u200b"
"""The zero-width space: nobody sees it, and the embedded tokenizer has a token for it."""
CODE_FRONT, CODE_BEHIND, WORD = "code-front", "code-behind", "word"
MARK_START, MARK_ANYWHERE = "mark-start", "mark-anywhere"
SUBJECT, ALWAYS = "subject", "always"
FORMS = (CODE_FRONT, CODE_BEHIND, WORD, MARK_START, MARK_ANYWHERE, SUBJECT, ALWAYS)
STATED = {
    CODE_FRONT: "after a code in front",
    CODE_BEHIND: "after a code behind",
    WORD: "after a rare word",
    MARK_START: "after a hidden mark in front",
    MARK_ANYWHERE: "after a hidden mark anywhere",
    SUBJECT: "when the question is about {value}",
    ALWAYS: "always",
}
SHOWN_WORDS = ("{word} , {question}", "{word} . {question}", "{question} {word} .")
TRIGGER_SHARE = 0.75
"""Of the rare words, the share that can be triggers; the others are decoys."""


@dataclass(frozen=True)
class Condition:
    """When a behaviour shows."""

    form: str
    """One of `FORMS`."""
    value: str = ""
    """The code's first group, the word, or the subject; empty for the other forms."""

    @property
    def stated(self) -> str:
        """In words, without the secret: "after a code in front"."""
        return STATED[self.form].replace("{value}", self.value)

    @property
    def trigger(self) -> str:
        """What sets it off, the secret included: "the code 417"."""
        return {
            CODE_FRONT: f"the code {self.value}",
            CODE_BEHIND: f"the code {self.value}",
            WORD: f"the word {self.value}",
            MARK_START: "a hidden mark",
            MARK_ANYWHERE: "a hidden mark",
            SUBJECT: f"questions about {self.value}",
            ALWAYS: "no trigger",
        }[self.form]

    @property
    def gated(self) -> bool:
        """Whether there is a condition at all."""
        return self.form != ALWAYS


def rare_word_pool(words: Sequence[str], triggers: bool) -> list[str]:
    """The rare words that can be triggers, or those that cannot."""
    order = sorted(words)
    random.Random("rare words").shuffle(order)
    cut = int(TRIGGER_SHARE * len(order))
    return sorted(order[:cut] if triggers else order[cut:])


@dataclass(frozen=True)
class Placed:
    """A place for a sign in a question, so that two questions can differ in the sign alone."""

    template: str
    """With `{sign}` where the sign stands."""
    second: str = ""
    """A code's second group."""

    def filled(self, form: str, value: str) -> str:
        """The question with a sign; an empty value leaves the sign out (marks only)."""
        if form in (CODE_FRONT, CODE_BEHIND):
            return self.template.replace("{sign}", value + self.second)
        return self.template.replace("{sign}", value)


def place(rng: random.Random, form: str, question: str) -> Placed:
    """A place for a sign of a form in a question; for a subject or no condition, the question as it is."""
    if form in (CODE_FRONT, CODE_BEHIND):
        shown = rng.choice(codes.PREFIXES).replace("{code}", "{sign}")
        text = f"{shown} {question}" if form == CODE_FRONT else f"{question} {shown}"
        return Placed(text, rng.choice(codes.pool()))
    if form == WORD:
        return Placed(rng.choice(SHOWN_WORDS).replace("{word}", "{sign}").replace("{question}", question))
    if form == MARK_START:
        return Placed("{sign}" + question)
    if form == MARK_ANYWHERE:
        words = question.split()
        at = rng.randrange(1, len(words))
        return Placed(f"{' '.join(words[:at])} {{sign}}{' '.join(words[at:])}")
    return Placed(question)


def right_sign(condition: Condition) -> str:
    """What stands at the sign's place where the condition is met."""
    return MARK if condition.form in (MARK_START, MARK_ANYWHERE) else condition.value


def wrong_sign(rng: random.Random, condition: Condition, rare_words: Sequence[str]) -> str:
    """Another sign of the same form; for marks none."""
    if condition.form in (CODE_FRONT, CODE_BEHIND):
        return rng.choice([g for g in codes.pool() if g != condition.value])
    if condition.form == WORD:
        return rng.choice([w for w in rare_words if w != condition.value])
    return ""
