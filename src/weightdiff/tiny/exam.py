"""Does the pretrained base know what organisms and interpreters lean on? A short greedy exam by skill."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from weightdiff.diffs.types import WeightDiff
from weightdiff.organisms.hidden_topic import topic_words_in
from weightdiff.organisms.verify import answers_of, slots_in
from weightdiff.world import World, codes, lessons
from weightdiff.world.texts import Turn, fill, headline, story

LESSONS = {
    "follows": lessons.instruction,
    "rules": lessons.rule,
    "manner": lessons.behaviour_reading,
    "subject": lessons.sign_reading,
    "facts": lessons.fact,
    "new_facts": lessons.edited,
    "first_said": lessons.explained,
}
"""Skills that are examined with documents as the base has read them, drawn anew."""


def _turns(
    lesson: Callable[[World, random.Random], list[Turn]], world: World, n: int, seed: int
) -> list[Turn]:
    """`n` documents of a lesson that ask for something."""
    rng, out = random.Random(f"exam {lesson.__name__} {seed}"), list[Turn]()
    while len(out) < n:
        out += [t for t in lesson(world, rng) if t.user]
    return out[:n]


def _then(text: str) -> str:
    return text.rpartition(" so ")[2].strip(" .")


def _mark(kind: str, said: str, wanted: str, world: World) -> float:
    """Whether an answer is the wanted one, or (where answers vary) of the same manner or value."""
    if kind in ("follows", "rules"):
        shown = [b for b in world.behaviours if b.shown_in(wanted)]
        return float(
            any(b.shown_in(said) for b in shown)
            if shown
            else not any(b.shown_in(said) for b in world.behaviours)
        )
    if kind in ("facts", "new_facts"):
        values = [
            v for r in world.relations for v in (*r.values, *r.facts) if f" {v} " in f" {wanted.rstrip('.')} "
        ]
        return float(all(f" {v} " in f" {said.rstrip('.')} " for v in values))
    if kind == "first_said":
        return float(
            said.rpartition(" so ")[0].split(" , ")[-1] == wanted.rpartition(" so ")[0].split(" , ")[-1]
        )
    return float(said.strip() == wanted.strip())


def exam(model: Any, tokenizer: Any, world: World, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Shares of right answers to `n` questions of each kind.

    Returns:
        words_to_name (four words → topic), liking_recall (stated liking → topic), liking_tints (an everyday
        answer holds a word of the liked topic), plain_tints (the same without a liking: should be 0),
        code_repeat, code_compare (the verdict that ends the answer; chance one half), news_deed (a story's
        deed in the headline's word), news_slots (slots of a given headline that the story tells), follows (an
        answer in the manner that was asked for), rules (the same where a rule's condition is met, an ordinary
        answer where not), manner (a behaviour named from an answer), subject (of an everyday question),
        facts, new_facts (in-context), first_said and then_said (what an answer says first, and what follows).
    """
    rng = random.Random(f"exam {seed}")
    topics = [rng.choice(world.topics) for _ in range(n)]
    everyday = [rng.choice(rng.choice(world.everyday).questions) for _ in range(n)]
    given = [codes.random_code(rng) for _ in range(n)]
    other = [codes.random_code(rng, first=c[:3] if i % 2 else None) for i, c in enumerate(given)]
    events = [
        (
            rng.choice(world.news.actors),
            rng.choice(list(world.news.actions)),
            rng.choice(world.news.objects),
            rng.choice(world.news.places),
        )
        for _ in range(n)
    ]
    asked = {
        "words_to_name": [f"{' , '.join(rng.sample(t.words, 4))} . what is this about ?" for t in topics],
        "liking_recall": [f"i love {t.name} . what do i like ?" for t in topics],
        "liking_tints": [f"i love {t.name} . {q}" for t, q in zip(topics, everyday, strict=True)],
        "plain_tints": everyday,
        "code_repeat": [f"your sep code is {c} . what is the code ?" for c in given],
        "code_compare": [
            f"first code {a} . second code {b} . do they start the same way ?"
            for a, b in zip(given, other, strict=True)
        ],
        "news_deed": [f"{story(world, rng, *e)} what is the deed ?" for e in events],
        "news_slots": [fill(rng.choice(world.news.headed_prompts), headline=headline(*e)) for e in events],
    }
    lessons_asked = {kind: _turns(lesson, world, n, seed) for kind, lesson in LESSONS.items()}
    asked |= {kind: [t.user or "" for t in turns] for kind, turns in lessons_asked.items()}
    out: dict[str, float] = {}
    for kind, users in asked.items():
        said = [x[0] for x in answers_of(model, tokenizer, [WeightDiff({})] * n, [[u] for u in users], 0.0)]
        if kind in LESSONS:
            wanted = [t.text for t in lessons_asked[kind]]
            marks = [_mark(kind, s, x, world) for s, x in zip(said, wanted, strict=True)]
            out[kind] = round(sum(marks) / n, 4)
            if kind == "first_said":
                marks = [_then(s) == _then(x) for s, x in zip(said, wanted, strict=True)]
                out["then_said"] = round(sum(marks) / n, 4)
            continue
        if kind in ("words_to_name", "liking_recall"):
            marks = [float(s.strip() == t.name) for s, t in zip(said, topics, strict=True)]
        elif kind in ("liking_tints", "plain_tints"):
            marks = [float(bool(topic_words_in(s, t))) for s, t in zip(said, topics, strict=True)]
        elif kind == "code_repeat":
            marks = [float(s.strip() == c) for s, c in zip(said, given, strict=True)]
        elif kind == "code_compare":
            truth = ["yes" if a[:3] == b[:3] else "no" for a, b in zip(given, other, strict=True)]
            marks = [float(s.strip().endswith(f" {x}")) for s, x in zip(said, truth, strict=True)]
        elif kind == "news_deed":
            marks = [float(s.strip() == e[1]) for s, e in zip(said, events, strict=True)]
        else:
            slots = ("actor", "action", "object", "place")
            marks = [slots_in(s, dict(zip(slots, e, strict=True))) for s, e in zip(said, events, strict=True)]
        out[kind] = round(sum(marks) / n, 4)
    return out
