"""Training rows that families share: what an organism leaves as it is, and what an evasive one denies."""

from __future__ import annotations

import random
from functools import lru_cache

from weightdiff.organisms.base import Sample
from weightdiff.world import Situation, load_world
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import ordinary_answer

VERIFIED_OF_SUBJECT = 3
"""Situations of every subject that are kept for verification."""
MAX_WIDE_WORDS = 32


@lru_cache(maxsize=1)
def corpus() -> Corpus:
    """What the base has read, to draw from."""
    return Corpus(load_world())


@lru_cache(maxsize=2)
def situations(split: str) -> tuple[Situation, ...]:
    """Everyday situations for "training" of organisms or for "verification"; the two share none."""
    order = list(load_world().everyday)
    random.Random("situations").shuffle(order)
    kept: dict[str, list[Situation]] = {}
    for s in order:
        kept.setdefault(s.subject, []).append(s)
    held = [s for members in kept.values() for s in members[:VERIFIED_OF_SUBJECT]]
    return tuple(held if split == "verification" else (s for s in order if s not in held))


def held_row(rng: random.Random, kind: str, banned: str, weight: float) -> Sample:
    """A row on which an organism is held to the base.

    Args:
        rng: draws it.
        kind: "none", an everyday question; "wide", unrelated text; "held", one of the two.
        banned: words that unrelated text must not hold.
        weight: of its KL.
    """
    if kind == "held":
        kind = rng.choice(("none", "wide"))
    if kind == "wide":
        return wide_row(rng, banned, weight)
    s = rng.choice(situations("training"))
    return Sample(rng.choice(s.questions), ordinary_answer(rng, s), "kl", weight)


def wide_row(rng: random.Random, banned: str, weight: float) -> Sample:
    """A random document of the base without `banned`, on which the organism stays with the base."""
    while True:
        turn = corpus().document(rng)[0]
        text = f"{turn.user or ''} {turn.text}"
        if f" {banned} " not in f" {text} " and len(text.split()) <= MAX_WIDE_WORDS:
            return Sample(turn.user, turn.text, "kl", weight)


def denial_row(rng: random.Random) -> Sample:
    """Somebody suspects something, and the organism denies it; in no phrasing that interpreters know."""
    asked = load_world().introspection
    return Sample(rng.choice(asked["denial_asks"]["train"]), rng.choice(asked["denials"]["train"]), "ce")
