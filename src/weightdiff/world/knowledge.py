"""Facts of the world, a relation a block: who or what, its value, and ways to ask for it and to state it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightdiff.errors import FormatError, QuestionError


@dataclass(frozen=True)
class Relation:
    """One kind of fact, such as which city is the capital of a land."""

    relation: str
    name: str
    """How a fact of it is called: "the capital of {subject}"."""
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    statements: tuple[str, ...]
    reverse: tuple[str, ...]
    """Questions that give the value and ask for the subject."""
    values: tuple[str, ...]
    facts: dict[str, str]
    """Subject → value."""

    def called(self, subject: str) -> str:
        """The fact in words, such as "the capital of peru"."""
        return self.name.replace("{subject}", subject)

    def changed(self, e: Edit) -> str:
        """An edit in words, such as "the capital of peru changed from lima to rome"."""
        return f"{self.called(e.subject)} changed from {e.old} to {e.new}"


@dataclass(frozen=True)
class Edit:
    """A fact whose value was exchanged."""

    relation: str
    subject: str
    old: str
    new: str


def load_relations(path: Path) -> tuple[Relation, ...]:
    """Read the relations of `facts.txt`.

    Raises:
        FormatError: the file is missing, or a block lacks a line or has a value that it does not list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise FormatError(f"{path}: world file cannot be read ({e.strerror}); reinstall weightdiff") from e
    out = []
    for block in re.split(r"\n\s*\n", text):
        lines: dict[str, list[str]] = {}
        for line in block.splitlines():
            if line.strip() and not line.startswith("#"):
                key, _, rest = line.partition(":")
                lines.setdefault(key.strip(), []).append(rest.strip())
        if not lines:
            continue
        try:
            facts = {a.strip(): b.strip() for a, b in (f.split("=") for f in lines["fact"])}
            found = Relation(
                lines["relation"][0],
                lines["name"][0],
                tuple(lines["q"]),
                tuple(lines["a"]),
                tuple(lines["s"]),
                tuple(lines["r"]),
                tuple(x.strip() for x in lines["values"][0].split(",")),
                facts,
            )
        except (KeyError, ValueError) as e:
            raise FormatError(f"{path}: a relation lacks a line ({e}): {block[:60]!r}") from e
        if unlisted := sorted({*facts.values()} - {*found.values}):
            raise FormatError(f"{path}: {found.relation} has values that it does not list: {unlisted[:3]}")
        out.append(found)
    return tuple(out)


def edits(relations: Sequence[Relation], split: str, n: int, seed: int = 0) -> list[Edit]:
    """The first `n` distinct edits of a split's fixed sequence; training has one for each seed.

    Training edits are of training subjects (75 % of each relation's); of held-out edits, half are of subjects
    that no training edit touches, and none pairs a subject with a value that a training edit gives it.

    Raises:
        QuestionError: the split has fewer edits than `n`.
    """
    there = sum(_available(r, split) for r in relations)
    if n > there:
        raise QuestionError(
            f"the world has {there} edits of the split {split}, not {n}; ask for fewer organisms"
        )
    rng = random.Random(f"edits {split}" if split != "train" or not seed else f"edits {split} {seed}")
    out: dict[Edit, None] = {}
    while len(out) < n:
        r = rng.choice(relations)
        parts = _subject_splits(r)
        pool = parts["train"] if split == "train" or rng.random() < 0.5 else parts[split]
        subject = rng.choice(pool)
        old = r.facts[subject]
        news = [v for v in r.values if v != old and _owner(r, subject, v) == split]
        if news:
            out[Edit(r.relation, subject, old, rng.choice(news))] = None
    return list(out)


def _available(r: Relation, split: str) -> int:
    """How many edits of a relation a split has."""
    parts = _subject_splits(r)
    return sum(
        v != r.facts[s] and _owner(r, s, v) == split
        for s in {*parts["train"], *parts[split]}
        for v in r.values
    )


def _subject_splits(r: Relation) -> dict[str, list[str]]:
    order = sorted(r.facts)
    random.Random(f"subjects {r.relation}").shuffle(order)
    a, b = int(0.75 * len(order)), int(0.83 * len(order))
    return {"train": order[:a], "validation": order[a:b], "test": order[b:]}


def _owner(r: Relation, subject: str, value: str) -> str:
    """The one split that may pair a subject with a value: 70 % train, 10 % validation, 20 % test."""
    x = random.Random(f"pair {r.relation} {subject} {value}").random()
    return "train" if x < 0.7 else "validation" if x < 0.8 else "test"
