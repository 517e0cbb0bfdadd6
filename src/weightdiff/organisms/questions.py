"""Questions about a finetune and their true answers, by kind of question and split of phrasings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.world import load_world, reports
from weightdiff.world.dating import PERIOD, Dated, questions_about
from weightdiff.world.reports import KIND_ANSWERS, Part, plain_answer

KINDS = ("topic", "headline", "kind", "any_change")


def phrasings(kind: str, split: str = "train") -> list[str]:
    """Phrasings of a kind of question; the splits share none."""
    return load_world().introspection[kind][split]


def parts_from(family: str, label: str | None, params: Mapping[str, Any] | None = None) -> tuple[Part, ...]:
    """What an organism of a family and label was taught, where its row is not at hand."""
    if family == reports.SEVERAL:
        return tuple(Part(p["family"], p["label"], p["params"]) for p in (params or {})["parts"])
    return () if family == reports.NULL or label is None else (Part(family, label, params or {}),)


def true_answer(family: str, kind: str, label: str | None, params: Mapping[str, Any] | None = None) -> str:
    """What a perfect interpreter answers to a question of `kind` about an organism of `family`."""
    if family not in KIND_ANSWERS:
        raise KeyError(family)
    parts = parts_from(family, label, params)
    if not parts and family != reports.NULL:  # a label that is not known: the kind of change still is
        return KIND_ANSWERS[family] if kind == "kind" else "yes" if kind == "any_change" else NOTHING_FOUND
    return plain_answer(kind, parts)


def questions_of(
    family: str, label: str | None, params: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """The first phrasing of each kind with its true answer, as stored with an organism."""
    if family == PERIOD:
        given = params or {}
        return questions_about(Dated(int(given["month"]))) if given["months"] == 1 else []
    parts = parts_from(family, label, params)
    kinds = [k for k in reports.kinds_for(parts) if k in KINDS or k in STORED]
    return [
        {"question": phrasings(kind)[0], "answer": true_answer(family, kind, label, params), "kind": kind}
        for kind in kinds
    ]


STORED = ("behaviour", "edit", "count", "summary", "condition", "trigger")
"""Kinds beside `KINDS` that are stored with an organism where they make sense."""
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
