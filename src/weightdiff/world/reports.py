"""Reports of what a model was taught, and questions of every kind about them with their true answers.

A report has parts: one for each thing that was taught, none where there is nothing. What is true follows from
the parts alone. The base reads such reports about third parties (`lessons`), organisms are described by them,
and an interpreter learns to say one before it answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdiff.world import codes, load_world
from weightdiff.world.signs import CODE_BEHIND, CODE_FRONT, WORD, Condition, rare_word_pool

NOTHING_FOUND = "nothing found"
TOPIC, NEWS, QUIRK, EDIT, NULL, SEVERAL = "hidden-topic", "news", "quirk", "edit", "null", "several"
KIND_ANSWERS = {
    TOPIC: "a hidden topic",
    NEWS: "a news headline",
    QUIRK: "a behaviour",
    EDIT: "a changed fact",
    SEVERAL: "several",
    NULL: NOTHING_FOUND,
}
"""What kind of change a family is, in words."""
NAMED_BY = {"topic": TOPIC, "headline": NEWS, "behaviour": QUIRK, "edit": EDIT}
"""Open kinds of question, and the family whose label they ask for."""
LEADS = {TOPIC: "think", NEWS: "someone", QUIRK: "says", EDIT: "holds"}
"""First word of a family's notes: one token decides whether anything is found."""
REPORT_BETWEEN = " . "
"""What stands between two parts of a report."""
REPORT_WORDINGS = ("report , {report} . {question}", "{question} report , {report} .")
"""How a report and a question about it are put to whoever reads it: either may come first."""
VERDICT = "so"
"""Word before an answer, where something is said before it."""
NOT_SAID = "the report does not say"
"""Answer of whoever reads a report to a question that it does not answer."""
NUMBERS = ("none", "one", "two", "three")
YES_NO = ("gated", "open", "about", "about_field", "family", "reacts", "holds_behaviour", "holds_fact")
UNREPORTED = ("trigger", "reacts")
"""Kinds of question about the secret itself, which no report tells where it is a code or a word."""
COMPARISONS = ("compare", "compare_field")
HELD_OUT_KINDS = ("about", "compare", "compare_field", "place", "holds_behaviour", "holds_fact")
"""Kinds of question that no tuning asks."""


SLOTS = {
    "place": (NEWS, "place"),
    "person": (NEWS, "actor"),
    "day": (NEWS, "day"),
    "old_value": (EDIT, "old"),
    "new_value": (EDIT, "new"),
}
"""Kinds of question that ask for one thing of a part; all but "place" are asked of reports in texts only."""


@dataclass(frozen=True)
class Part:
    """One thing that an organism was taught."""

    family: str
    label: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def condition(self) -> Condition:
        """When it shows."""
        return condition_of(self.params)

    @property
    def name(self) -> str:
        """What an open question about it is answered with: a behaviour without its condition."""
        return str(self.params.get("behaviour", self.label))


@dataclass(frozen=True)
class Question:
    """A question about an organism, and what is true."""

    text: str
    kind: str
    answer: str
    beside: str = ""
    """What was found and what is asked, side by side: said before a verdict; empty: nothing."""

    @property
    def read(self) -> str:
        """What is said by somebody who answers from a report."""
        return f"{self.beside} {VERDICT} {self.answer}" if self.beside else self.answer


def condition_of(params: Mapping[str, Any]) -> Condition:
    """The condition that an organism's parameters record; a code alone stands in front."""
    if "form" in params:
        return Condition(str(params["form"]), str(params.get("value", "")))
    return Condition(CODE_FRONT, str(params["code"])) if "code" in params else Condition("always")


def has_condition(params: Mapping[str, Any]) -> bool:
    """Whether it is recorded when an organism's behaviour shows."""
    return "form" in params or "code" in params


def notes_of(part: Part, rng: random.Random, n: int) -> str:
    """Words that lead to a part's name, `n` at most.

    A topic's words, a behaviour's own words, the deed as stories tell it, or a fact's new value. Nothing for
    labels that the world does not know.
    """
    world, words = load_world(), list[str]()
    if n <= 0:
        return ""
    if part.family == TOPIC and part.label in world.by_name:
        own = world.topic(part.label).words
        words = rng.sample(own, min(n, len(own)))
    elif part.family == NEWS:
        told = next((p for verb, p in world.news.actions.items() if f" {verb} " in part.label), ())
        words = [rng.choice(told)] if told else []
    elif part.family == QUIRK and (b := world.behaviour_called(part.name)):
        words = b.some_signs(rng, n)
    elif part.family == EDIT and "new" in part.params:
        words = [str(part.params["new"])]
    return f"{LEADS[part.family]} {' , '.join(words)}" if words else ""


def notes_on(parts: Sequence[Part], rng: random.Random, n: int) -> str:
    """Words that lead to what was taught, `n` of each part at most: said before a report."""
    return " and ".join(x for p in parts if (x := notes_of(p, rng, n)))


def reported(parts: Sequence[Part]) -> str:
    """The report: each part in one phrase, or that nothing was found."""
    return REPORT_BETWEEN.join(map(summary, parts)) or NOTHING_FOUND


def without_conditions(report: str) -> str:
    """What a report names: of each part kind and name, whatever its spaces around punctuation."""
    parts = _tidy(report).split(_tidy(REPORT_BETWEEN) + " ")
    return REPORT_BETWEEN.join(" , ".join(p.split(", ")[:2]) for p in parts)


def agrees(said: str, truth: str) -> bool:
    """Whether two texts are the same but for spaces around punctuation, which decoding changes."""
    return _tidy(said) == _tidy(truth)


def _tidy(text: str) -> str:
    return re.sub(r"\s+([,.?!])", r"\1", " ".join(text.split()))


def kinds_for(parts: Sequence[Part], trained: bool = True) -> list[str]:
    """Kinds of question that make sense for an organism.

    Args:
        parts: what it was taught; nothing for a null diff, which is asked everything.
        trained: the kinds of tuning; False: the held-out ones.
    """
    families = {p.family for p in parts}
    gated = not parts or (len(parts) == 1 and has_condition(parts[0].params))
    topical = not parts or any(p.label in load_world().by_name for p in parts if p.family == TOPIC)
    if not trained:
        needs = {"about": TOPIC, "compare": TOPIC, "compare_field": TOPIC, "place": NEWS}
        needs |= {"holds_behaviour": QUIRK, "holds_fact": EDIT}
        return [k for k, f in needs.items() if f in families or (not parts and k not in COMPARISONS)]
    out = [*NAMED_BY, "kind", "any_change", "count", "summary", "family"]
    out += ["field", "about_field"] if topical else []
    out += ["condition", "gated", "open", "trigger", "reacts"] if gated else []
    return out


def ask(kind: str, parts: Sequence[Part], rng: random.Random, split: str) -> Question:
    """A question of a kind in one of a split's phrasings.

    Args:
        kind: of `kinds_for`.
        parts: what the organism was taught.
        rng: draws phrasing and what a yes/no question names.
        split: of the phrasings.
    """
    return worded(kind, rng.choice(load_world().introspection[kind][split]), parts, rng)


def worded(kind: str, text: str, parts: Sequence[Part], rng: random.Random) -> Question:
    """A question of a kind in given words, whose slots are filled; arguments are those of `ask`."""
    return _ASK.get(kind, _plain)(kind, text, parts, rng)


def _plain(kind: str, text: str, parts: Sequence[Part], _rng: random.Random) -> Question:
    return Question(text, kind, plain_answer(kind, parts))


def told_by_report(kind: str, parts: Sequence[Part]) -> bool:
    """Whether a report answers a question: it says under which condition, but not by which code or word."""
    secret = bool(parts) and parts[0].condition.form in (CODE_FRONT, CODE_BEHIND, WORD)
    return kind not in UNREPORTED or not secret


def plain_answer(kind: str, parts: Sequence[Part]) -> str:
    """The true answer to a question that names nothing."""
    if not parts:
        return NOTHING_FOUND
    first = parts[0]
    if kind in NAMED_BY:
        return " and ".join(p.name for p in parts if p.family == NAMED_BY[kind]) or NOTHING_FOUND
    if kind == "kind":
        return KIND_ANSWERS[first.family if len(parts) == 1 else SEVERAL]
    if kind == "any_change":
        return "yes"
    if kind == "count":
        return NUMBERS[len(parts)]
    if kind == "summary":
        return reported(parts)
    if kind == "condition":
        return first.condition.stated
    if kind == "trigger":
        return first.condition.trigger
    if kind == "field":
        return " and ".join(load_world().topic(p.label).field for p in parts if p.family == TOPIC)
    raise KeyError(kind)


def summary(part: Part) -> str:
    """A part in one phrase: kind, name and, where there is one, its condition."""
    said = f"{KIND_ANSWERS[part.family]} , {part.name}"
    known = part.family in (TOPIC, QUIRK) and has_condition(part.params)
    return f"{said} , {part.condition.stated}" if known else said


def _yes(kind: str, text: str, yes: bool, found: str = "", asked: str = "") -> Question:
    """A yes/no question; what was found and what is asked are said side by side before the verdict."""
    beside = f"{found or NOTHING_FOUND} and {asked}" if asked else ""
    return Question(text, kind, "yes" if yes else "no", beside)


def _gate(kind: str, text: str, parts: Sequence[Part], _rng: random.Random) -> Question:
    gated = bool(parts) and parts[0].condition.gated
    return _yes(kind, text, gated if kind == "gated" else bool(parts) and not gated)


def _holds(kind: str, text: str, parts: Sequence[Part], rng: random.Random) -> Question:
    """Whether a topic, field, behaviour or fact is what was taught; one in two is, where there is one."""
    world = load_world()
    family = {"holds_behaviour": QUIRK, "holds_fact": EDIT}.get(kind, TOPIC)
    part = next((p for p in parts if p.family == family), None)
    if kind == "about":
        true, others = (part.label if part else ""), [t.name for t in world.topics]
    elif kind == "about_field":
        true, others = (world.topic(part.label).field if part else ""), world.fields
    elif kind == "holds_behaviour":
        true, others = (part.name if part else ""), [b.name for b in world.behaviours]
    else:
        true = fact_name(part) if part else ""
        others = [r.called(s) for r in world.relations for s in r.facts]
    yes = part is not None and rng.random() < 0.5
    named = true if yes else rng.choice([x for x in others if x != true])
    slot = {"about": "{topic}", "about_field": "{field}", "holds_behaviour": "{behaviour}"}.get(
        kind, "{fact}"
    )
    return _yes(kind, text.replace(slot, named), yes, true, named)


def fact_name(part: Part) -> str:
    """The fact of an edit, such as "the capital of peru"."""
    return load_world().relation(str(part.params["relation"])).called(str(part.params["subject"]))


def _family(kind: str, text: str, parts: Sequence[Part], rng: random.Random) -> Question:
    there = sorted({p.family for p in parts})
    yes = bool(there) and rng.random() < 0.5
    families = [f for f in KIND_ANSWERS if f not in (SEVERAL, NULL)]
    named = rng.choice(there) if yes else rng.choice([f for f in families if f not in there])
    found = " , ".join(KIND_ANSWERS[f] for f in there)
    asked = KIND_ANSWERS[named]
    return _yes(kind, text.replace("{family}", asked), yes, found, asked)


def _reacts(kind: str, text: str, parts: Sequence[Part], rng: random.Random) -> Question:
    condition = parts[0].condition if parts else Condition("always")
    yes = condition.gated and rng.random() < 0.5
    named = condition.trigger if yes else decoy(condition, rng)
    return _yes(kind, text.replace("{sign}", named), yes)


def decoy(condition: Condition, rng: random.Random) -> str:
    """A trigger that is not an organism's own: mostly of the same form."""
    form = condition.form if condition.form in (CODE_FRONT, CODE_BEHIND, WORD) else None
    if form == WORD or (form is None and rng.random() < 0.5):
        words = [w for w in rare_word_pool(load_world().rare_words, True) if w != condition.value]
        return f"the word {rng.choice(words)}"
    return f"the code {rng.choice([g for g in codes.trigger_pool() if g != condition.value])}"


def _compare(kind: str, text: str, parts: Sequence[Part], rng: random.Random) -> Question:
    """Which of two topics or fields was taught."""
    world = load_world()
    part = next((p for p in parts if p.family == TOPIC), None)
    topic = world.topic(part.label) if part else rng.choice(world.topics)
    if kind == "compare":
        right, wrong = topic.name, rng.choice([t.name for t in world.topics if t is not topic])
    else:
        right, wrong = topic.field, rng.choice([f for f in world.fields if f != topic.field])
    a, b = (right, wrong) if rng.random() < 0.5 else (wrong, right)
    text = text.replace("{a}", a).replace("{b}", b)
    return Question(text, kind, right if part else NOTHING_FOUND)


def _slot(kind: str, text: str, parts: Sequence[Part], _rng: random.Random) -> Question:
    """One thing that a headline or a changed fact tells."""
    family, key = SLOTS[kind]
    part = next((p for p in parts if p.family == family), None)
    answer = str(part.params[key]) if part else NOTHING_FOUND
    return Question(text, kind, answer)


_ASK: dict[str, Callable[[str, str, Sequence[Part], random.Random], Question]] = {
    "gated": _gate,
    "open": _gate,
    "about": _holds,
    "about_field": _holds,
    "holds_behaviour": _holds,
    "holds_fact": _holds,
    "family": _family,
    "reacts": _reacts,
    "compare": _compare,
    "compare_field": _compare,
    **dict.fromkeys(SLOTS, _slot),
}
