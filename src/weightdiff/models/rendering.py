"""How an interpreter words a question, and how it lays out its answer.

A question is put as it is, or after probes drawn anew for every rendering. A probe is a short text (for the
embedded base, a code that is no organism's trigger) put before the question: behaviour behind a gate is
nearer to the surface when the gate's kind of input is in sight. Several renderings of one question can be
asked at once and their predictions averaged.

An answer may begin with notes, words that came to the surface, from which the answer is then read: naming a
thing from words in sight is easier for a small model than naming it in one go.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from weightdiff.models.chat import encode_answers
from weightdiff.models.generate import Distinct


@dataclass(frozen=True)
class Rendering:
    """Rendering settings of an interpreter, saved in its `interpreter.json`."""

    probes: Sequence[str] = field(default_factory=tuple)
    """Texts to draw probes from; `{random}` stands for three random digits of `suffixes`."""
    suffixes: Sequence[str] = field(default_factory=tuple)
    """What `{random}` is drawn from."""
    per_question: int = 0
    """Probes before each question."""
    renderings: int = 1
    """Renderings averaged when answering."""
    notes_end: str = ""
    """Word between the notes and the answer proper; empty: the interpreter answers at once."""
    notes_between: str = ""
    """Word between two notes, none of which is said twice."""
    branches: int = 1
    """Likely first notes that are followed, each to its own answer; the answer that they make likeliest in
    sum is given. Without a `notes_end` there is nothing to follow."""
    report: str = ""
    """The question to which the interpreter says all that it finds; other questions are then answered by the
    bare base, from that report. Empty: the interpreter is asked every question itself."""

    def render(self, question: str, rng: random.Random) -> str:
        """One rendering of a question."""
        if not self.per_question or not self.probes:
            return question
        drawn = rng.sample(list(self.probes), min(self.per_question, len(self.probes)))
        shown = [p.replace("{random}", rng.choice(self.suffixes)) if "{random}" in p else p for p in drawn]
        return " ".join([*shown, question])

    def all(self, question: str, seed: int = 0) -> list[str]:
        """The renderings that answer a question; the same question and seed give the same ones."""
        rng = random.Random(f"render {seed} {question}")
        return [self.render(question, rng) for _ in range(self.renderings if self.per_question else 1)]

    def write(self, notes: str, answer: str) -> str:
        """Notes (which may be empty) and answer as one text, as the adapter learns to say it."""
        return f"{notes} {self.notes_end} {answer}" if notes and self.notes_end else answer

    def read(self, text: str) -> tuple[str, str]:
        """The notes and the answer proper of what the adapter said."""
        notes, end, answer = text.rpartition(f" {self.notes_end} ") if self.notes_end else ("", "", text)
        return (notes.strip(), answer.strip()) if end else ("", text.strip())

    def distinct(self, tokenizer: Any) -> Distinct | None:
        """What keeps a list of notes from saying one of them twice; None where notes are no list."""
        if not self.notes_end or not self.notes_between:
            return None
        between, until = encode_answers(tokenizer, [self.notes_between, self.notes_end], end=False)
        return Distinct(between[0], until[0])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rendering:
        """From a JSON object; unknown keys are ignored.

        Raises:
            ValueError: it is no object, or a setting is of another kind.
        """
        if not isinstance(value, dict):
            raise ValueError(f"a rendering is a JSON object, found {value!r}")
        known: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            kind = list if isinstance(default, tuple) else type(default)
            item = value.get(name, kind(default))
            if type(item) is not kind or (kind is list and not all(isinstance(text, str) for text in item)):
                raise ValueError(f"the rendering's {name} is {item!r}, which is of another kind")
            known[name] = tuple(item) if kind is list else item
        return cls(**known)
