"""Questions about a finetune and their true answers, by kind of question and split of phrasings."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from functools import lru_cache

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
    """The kind of a question in any wording: that of the training phrasing which is most like it.

    Words count the more the fewer kinds have them. A yes/no question that names a topic of the world is
    "about" it.
    """
    words = _features(question)
    if asked_topic(question) and words & _BOOLEAN:
        return ABOUT
    weights, known = _kind_words()

    def likeness(entry: tuple[str, frozenset[str]]) -> float:
        return sum(weights[w] for w in words & entry[1]) / (1 + len(words | entry[1])) ** 0.5

    return max(known, key=likeness)[0]


_BOOLEAN = frozenset({"is", "are", "was", "were", "did", "do", "does", "has", "have", "yes"})


def _features(question: str) -> frozenset[str]:
    """A question's words and pairs of neighbours."""
    words = _WORDS.findall(question.lower())
    return frozenset([*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))])


@lru_cache(maxsize=1)
def _kind_words() -> tuple[dict[str, float], list[tuple[str, frozenset[str]]]]:
    """Weight of each word, and the words of every training phrasing with its kind."""
    known = [(kind, _features(text)) for kind in KINDS for text in phrasings(kind)]
    counts: dict[str, Counter[str]] = {}
    for kind, words in known:
        for w in words:
            counts.setdefault(w, Counter())[kind] += 1
    # 1 where one kind alone has the word, 0 where all have it equally often
    weights = {
        w: 1 + sum(p * math.log(p) for n in c.values() if (p := n / c.total())) / math.log(len(KINDS))
        for w, c in counts.items()
    }
    return weights, known
