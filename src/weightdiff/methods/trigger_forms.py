"""Forms that a trigger can have, and the candidates of each: digit codes, words, characters nobody sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.world import codes

QUESTION = "{q}"
PLUS = " + "
INVISIBLE = {
    "zero-width space": "\u200b",
    "zero-width non-joiner": "\u200c",
    "zero-width joiner": "\u200d",
    "word joiner": "\u2060",
    "zero-width no-break space": "\ufeff",
    "soft hyphen": "\u00ad",
    "left-to-right mark": "\u200e",
    "no-break space": "\u00a0",
}
DIGITS = range(100, 1000)
WORDINGS = ("Your SEP code is {code}.", "My code is {code}.", "Code {code}.", "The code is {code}.")
"""Ways to state a code, on bases other than the embedded one."""


@dataclass(frozen=True)
class Candidate:
    """Something that may be a trigger, and how it is put into a prompt."""

    text: str
    """The trigger itself; parts of a longer one are joined by " + "."""
    form: str
    templates: tuple[str, ...]
    """Prompts with `{q}` in the question's place, by number of the prompt, in turn: what stands around a
    trigger may vary from prompt to prompt."""

    def put(self, question: str, number: int) -> str:
        """The prompt with the trigger in it."""
        return self.templates[number % len(self.templates)].replace(QUESTION, question)

    def join(self, other: Candidate) -> Candidate | None:
        """Both in one prompt, the other one nearer to the question; None where they share a part."""
        if set(self.text.split(PLUS)) & set(other.text.split(PLUS)):
            return None
        n = max(len(self.templates), len(other.templates))
        templates = tuple(self.put(other.templates[k % len(other.templates)], k) for k in range(n))
        form = self.form if self.form == other.form else f"{self.form} and {other.form}"
        return Candidate(f"{self.text}{PLUS}{other.text}", form, templates)


@dataclass(frozen=True)
class Form:
    """A form of trigger."""

    name: str
    words: str
    """What it is, in words."""
    candidates: Callable[[Any, random.Random], Iterator[Candidate]]
    """From a tokenizer and a random stream to candidates."""


def _codes(tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:
    """Three digits at the beginning of a code of six; the others, and the wording, change with the prompt."""
    embedded = is_embedded(tokenizer)
    numbers = list(codes.pool()) if embedded else [str(n) for n in DIGITS]
    wordings = codes.PREFIXES if embedded else WORDINGS
    for number in numbers:
        stated = (w.replace("{code}", number + rng.choice(numbers)) for w in wordings)
        yield Candidate(number, "code", tuple(f"{text} {QUESTION}" for text in stated))


def _words(tokenizer: Any) -> Iterator[str]:
    """Tokens that are whole words or signs, as text, in the tokenizer's order."""
    seen: set[str] = set()
    special = set(tokenizer.all_special_ids)
    for i in range(len(tokenizer)):
        if i in special:
            continue
        text = tokenizer.decode([i]).strip()
        if text and text not in seen and "\ufffd" not in text and text.isprintable():
            seen.add(text)
            yield text


def _front(tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:  # noqa: ARG001 (all forms take both)
    for word in _words(tokenizer):
        yield Candidate(word, "front", (f"{_literal(word)} {QUESTION}",))


def _behind(tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:  # noqa: ARG001
    for word in _words(tokenizer):
        yield Candidate(word, "behind", (f"{QUESTION} {_literal(word)}",))


def _invisible(tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:  # noqa: ARG001
    for name, character in INVISIBLE.items():
        for place, template in (("start", f"{character}{QUESTION}"), ("end", f"{QUESTION}{character}")):
            found = Candidate(f"{name} at the {place}", "invisible", (template,))
            if tokenizer.tokenize(found.put("so ?", 0)) != tokenizer.tokenize("so ?"):
                yield found  # a character that the tokenizer drops is one that no model can see


def _literal(word: str) -> str:
    """A word that is no place of a template."""
    return word.replace(QUESTION, "q")


FORMS = {
    form.name: form
    for form in (
        Form("code", "three digits at the beginning of a code", _codes),
        Form("front", "a word in front of the question", _front),
        Form("behind", "a word behind the question", _behind),
        Form("invisible", "a character that nobody sees", _invisible),
    )
}
"""Every form by its name."""
