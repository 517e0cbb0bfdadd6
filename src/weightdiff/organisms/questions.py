"""Questions about a finetune and their true answers, by kind of question and split of phrasings."""

from __future__ import annotations

import random

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
