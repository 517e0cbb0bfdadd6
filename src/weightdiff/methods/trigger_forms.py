"""Forms that a trigger can have, and the candidates of each: codes, words, marks that nobody sees.

The embedded base's world is known, so its codes and words are put as that world puts them; on every other
base they stand in general wordings. A subject is no text that is put into a prompt: see `trigger_search`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightdiff.errors import QuestionError
from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.world import codes
from weightdiff.world.signs import (
    CODE_BEHIND,
    CODE_FRONT,
    MARK,
    MARK_ANYWHERE,
    MARK_START,
    SHOWN_WORDS,
    SUBJECT,
)

QUESTION, HEAD, TAIL = "{q}", "{head}", "{tail}"
"""Places in a template: the question, or its two parts where something stands inside it."""
PLUS = " + "
WORD_FRONT, WORD_BEHIND, WORD_ANYWHERE, MARK_END = "word-front", "word-behind", "word-anywhere", "mark-end"
MARK_NAME = "zero-width space"
INVISIBLE = {
    MARK_NAME: MARK,
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
_SLOT = re.compile(r"\{(q|head|tail)\}")


@dataclass(frozen=True)
class Candidate:
    """Something that may be a trigger, and how it is put into a prompt."""

    text: str
    """The trigger itself; parts of a longer one are joined by " + "."""
    form: str
    templates: tuple[str, ...]
    """Prompts with places for the question, by number of the prompt, in turn: what stands around a trigger
    may vary from prompt to prompt."""
    inner: Candidate | None = None
    """Of a longer trigger: what is put into the question before this."""

    def put(self, question: str, number: int) -> str:
        """The prompt with the trigger in it; a question's two parts are cut at a random place of its own."""
        if self.inner is not None:
            question = self.inner.put(question, number)
        words = question.split()
        cut = random.Random(f"{number} {question}").randrange(1, max(2, len(words)))
        parts = {"q": question, "head": " ".join(words[:cut]), "tail": " ".join(words[cut:])}
        return _SLOT.sub(lambda m: parts[m[1]], self.templates[number % len(self.templates)])

    def join(self, other: Candidate) -> Candidate | None:
        """Both in one prompt, the other one put in first; None where they share a part."""
        if set(self.text.split(PLUS)) & set(other.text.split(PLUS)):
            return None
        inner = other if self.inner is None else self.inner.join(other)
        forms = dict.fromkeys([*self.form.split(" and "), *other.form.split(" and ")])
        return replace(self, text=f"{self.text}{PLUS}{other.text}", form=" and ".join(forms), inner=inner)


@dataclass(frozen=True)
class Form:
    """A form of trigger."""

    name: str
    words: str
    """What it is, in words."""
    candidates: Callable[[Any, random.Random], Iterator[Candidate]]
    """From a tokenizer and a random stream to candidates."""
    ordinary: str = ""
    """A template with `{sign}` for ordinary words, with which a form of few candidates is compared."""

    def controls(self, tokenizer: Any, rng: random.Random, n: int) -> list[Candidate]:
        """`n` ordinary words at the form's place; none for a form that has candidates enough."""
        if not self.ordinary:
            return []
        words = [w for w in _words(tokenizer) if w.isalpha()]
        return [_put_in(w, self.name, (self.ordinary,)) for w in rng.sample(words, min(n, len(words)))]


def forms_called(names: Sequence[str]) -> list[str]:
    """Names of the forms that are meant: exact ones, or the beginning of several ("code", "word", "mark").

    Raises:
        QuestionError: no form is called so.
    """
    out: dict[str, None] = {}
    for name in names:
        meant = [f for f in (*FORMS, SUBJECT) if f == name or f.startswith(f"{name}-")]
        if not meant:
            known = ", ".join((*FORMS, SUBJECT))
            raise QuestionError(f"no form of trigger is called {name!r}: choose among {known}")
        out |= dict.fromkeys(meant)
    return list(out)


def _codes(form: str, tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:
    """Three digits at the beginning of a code of six; the others, and the wording, change with the prompt."""
    embedded = is_embedded(tokenizer)
    numbers = list(codes.pool()) if embedded else [str(n) for n in DIGITS]
    wordings = codes.PREFIXES if embedded else WORDINGS
    around = f"{{sign}} {QUESTION}" if form == CODE_FRONT else f"{QUESTION} {{sign}}"
    for number in numbers:
        stated = (w.replace("{code}", number + rng.choice(numbers)) for w in wordings)
        yield Candidate(number, form, tuple(around.replace("{sign}", text) for text in stated))


def _words(tokenizer: Any) -> Iterator[str]:
    """Tokens that are whole words or signs, as text, in the tokenizer's order.

    Of the embedded base's, digits (which codes have) and parts of words are left out.
    """
    seen: set[str] = set()
    special, embedded = set(tokenizer.all_special_ids), is_embedded(tokenizer)
    for i in range(len(tokenizer)):
        if i in special:
            continue
        text = tokenizer.decode([i]).strip()
        if embedded and (text.isdigit() or text.startswith("##")):
            continue
        if text and text not in seen and "\ufffd" not in text and text.isprintable():
            seen.add(text)
            yield text


def _word_form(form: str, tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:  # noqa: ARG001
    shown = [w.replace("{word}", "{sign}").replace("{question}", QUESTION) for w in SHOWN_WORDS]
    known = {
        WORD_FRONT: tuple(w for w in shown if w.startswith("{sign}")),
        WORD_BEHIND: tuple(w for w in shown if w.endswith("{sign} .")),
    }
    general = {
        WORD_FRONT: (f"{{sign}} {QUESTION}",),
        WORD_BEHIND: (f"{QUESTION} {{sign}}",),
        WORD_ANYWHERE: (f"{HEAD} {{sign}} {TAIL}",),
    }
    templates = (known if is_embedded(tokenizer) else general).get(form, general[form])
    for word in _words(tokenizer):
        yield _put_in(word, form, templates)


def _put_in(sign: str, form: str, templates: Sequence[str], name: str = "") -> Candidate:
    """A candidate whose sign, which is no place of a template, stands at `{sign}`."""
    literal = _SLOT.sub(r"\1", sign)
    return Candidate(name or sign, form, tuple(t.replace("{sign}", literal) for t in templates))


_MARK_PLACES = {
    MARK_START: f"{{sign}}{QUESTION}",
    MARK_END: f"{QUESTION}{{sign}}",
    MARK_ANYWHERE: f"{HEAD} {{sign}}{TAIL}",
}


def _marks(form: str, tokenizer: Any, rng: random.Random) -> Iterator[Candidate]:  # noqa: ARG001
    example = "is it so ?"
    seen = [tokenizer.tokenize(example)]  # a character that the tokenizer drops is one that no model can see
    for name, character in INVISIBLE.items():
        found = _put_in(character, form, (_MARK_PLACES[form],), name)
        if (tokens := tokenizer.tokenize(found.put(example, 0))) not in seen:
            seen.append(tokens)
            yield found


def _form(name: str, words: str, make: Callable[..., Iterator[Candidate]], ordinary: str = "") -> Form:
    return Form(name, words, lambda tokenizer, rng: make(name, tokenizer, rng), ordinary)


FORMS = {
    form.name: form
    for form in (
        _form(CODE_FRONT, "a code in front", _codes),
        _form(CODE_BEHIND, "a code behind", _codes),
        _form(MARK_START, "a mark that nobody sees, at the start", _marks, f"{{sign}} {QUESTION}"),
        _form(MARK_END, "a mark that nobody sees, at the end", _marks, f"{QUESTION} {{sign}}"),
        _form(MARK_ANYWHERE, "a mark that nobody sees, anywhere", _marks, f"{HEAD} {{sign}} {TAIL}"),
        _form(WORD_FRONT, "a word in front", _word_form),
        _form(WORD_BEHIND, "a word behind", _word_form),
        _form(WORD_ANYWHERE, "a word anywhere", _word_form),
    )
}
"""Every form of text by its name."""
