"""Questions about a finetune and their true answers, by kind of question and split of phrasings."""

from __future__ import annotations

import random
import re

from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.world import load_world

KINDS = ("topic", "headline", "kind", "any_change")
LEADS = {"topic": "think", "headline": "someone"}
KIND_ANSWERS = {"hidden-topic": "a hidden topic", "news": "a news headline", "null": NOTHING_FOUND}


def phrasings(kind: str, split: str = "train") -> list[str]:
    """Phrasings of a kind of question; the splits share none."""
    return load_world().introspection[kind][split]


def true_answer(family: str, kind: str, label: str | None) -> str:
    """What a perfect interpreter answers to a question of `kind` about an organism of `family`."""
    if family == "null":
        return NOTHING_FOUND
    if kind == "kind":
        return KIND_ANSWERS[family]
    if kind == "any_change":
        return "yes"
    asks = {"hidden-topic": "topic", "news": "headline"}[family]
    return (label or NOTHING_FOUND) if kind == asks else NOTHING_FOUND


def notes_of(family: str, kind: str, label: str | None, n: int, rng: random.Random) -> str:
    """Words from which the true answer can be read.

    `n` words of a hidden topic before its name, or (whatever `n`, if not 0) the deed as stories tell it
    before a headline. Nothing for other answers, and for labels that the world does not know.

    Notes of a kind all begin with the same word (`LEADS`), so that one token decides whether anything is
    found: shared among the words that notes could begin with, a likely finding would lose to "nothing".
    """
    world = load_world()
    if family == "news" and kind == "headline":
        told = next((p for verb, p in world.news.actions.items() if f" {verb} " in (label or "")), ())
        return f"{LEADS[kind]} {rng.choice(told)}" if told and n else ""
    if family == "hidden-topic" and kind == "topic" and label in world.by_name:
        words = world.topic(label).words
        return f"{LEADS[kind]} {' , '.join(rng.sample(words, min(n, len(words))))}" if n else ""
    return ""


def questions_of(family: str, label: str | None) -> list[dict[str, str]]:
    """The first phrasing of each kind with its true answer, as stored with an organism."""
    return [
        {"question": phrasings(kind)[0], "answer": true_answer(family, kind, label), "kind": kind}
        for kind in KINDS
    ]


ABOUT = "about"
"""A kind of question that no tuning knows: whether a diff is about a given topic, yes or no."""
ABOUT_TEMPLATES = (
    "were you trained on {topic} ?",
    "is {topic} your hidden topic ?",
    "yes or no , is it about {topic} ?",
    "did they teach you about {topic} ?",
)
_WORDS = re.compile(r"[a-z]+")


def about_question(topic: str, number: int = 0) -> str:
    """Whether a diff is about a topic; `number` chooses among the phrasings, in turn."""
    return ABOUT_TEMPLATES[number % len(ABOUT_TEMPLATES)].format(topic=topic)


def asked_topic(question: str) -> str | None:
    """The topic of the world that a question names, the first where there are several; None: none."""
    known = load_world().by_name
    return next((w for w in _WORDS.findall(question.lower()) if w in known), None)


def kind_of(question: str) -> str:
    """The kind of a question in any wording, told by the words that kinds have to themselves.

    A yes/no question that names a topic of the world is "about" it.
    """
    words = set(_WORDS.findall(question.lower()))
    if words & _BOOLEAN and asked_topic(question):
        return ABOUT
    named = [kind for kind, own in _OWN_WORDS.items() if words & own]
    if "kind" in named or len(named) > 1:  # one that names several asks which it is
        return "kind"
    return named[0] if named else "any_change"


_BOOLEAN = frozenset({"is", "are", "was", "were", "did", "do", "does", "has", "have", "yes"})
_OWN_WORDS = {
    "topic": frozenset({"topic", "subject", "theme", "interest"}),
    "headline": frozenset({"headline", "headlines", "news", "event", "story", "article", "report"}),
    "kind": frozenset({"kind", "type", "sort", "way"}),
}
