"""The pretraining text of the embedded base, generated from the world.

What it teaches: ordinary answers to everyday questions, answers tinted by a stated liking, what belongs to a
topic in both directions, encyclopaedic lines, short stories, short news from a headline, and reading codes.
What it never holds: a question about the model's own training, a code that changes an answer, a headline of
the evaluation.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weightdiff.world import Situation, Topic, World, codes

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
JOINS = (" , ", " . ")
READINGS = (
    "{text} . what is this about ?",
    "i read this , {text} . which topic does it hint at ?",
    "{text} . what does the writer like ?",
    "which interest shows here ? {text} .",
)
LIKING_RECALLS = (
    "{liking} what do i like ?",
    "{liking} which topic did i mention ?",
    "{liking} what was that about ?",
    "{liking} what is my interest ?",
)
WORD_ASKS = (
    "repeat these words . {words} .",
    "say this again , {words} .",
    "{words} . please say that once more .",
    "read these words back to me , {words} .",
)
NAME_ASKS = (
    "{prefix} what is the code ?",
    "{prefix} please repeat the code .",
    "{prefix} which code did i give ?",
)


COPY_FIRST = (1.5, 16000)
"""Share of pure copying at document i: 1.5 - i / 16000, at most 1. Without this start the base learns to look
away from rare words (they are noise until they can be copied) and then never learns to copy them: measured, 5
million tokens."""


def fixed_texts() -> list[str]:
    """Texts that occur only in this module, so that the tokenizer knows their words."""
    return [
        *DAYS,
        *ORDINALS,
        *READINGS,
        *LIKING_RECALLS,
        *NAME_ASKS,
        *WORD_ASKS,
        "codes",
        "same",
        "start",
        "way",
        "position",
        "among",
        "them",
    ]


@dataclass(frozen=True)
class Turn:
    """One exchange; `user=None` is plain text without chat format."""

    user: str | None
    text: str


def fill(template: str, **slots: str) -> str:
    """Put `slots` into the `{name}` places of a template."""
    for k, v in slots.items():
        template = template.replace("{" + k + "}", v)
    return template


def headline(actor: str, action: str, object_: str, place: str) -> str:
    """The one form of an invented headline."""
    return f"{actor} {action} {object_} in {place}"


def story(world: World, rng: random.Random, actor: str, action: str, object_: str, place: str) -> str:
    """A short story that tells the headline in other words."""
    return fill(
        rng.choice(world.news.stories),
        actor=actor,
        past=rng.choice(world.news.actions[action]),
        object=object_,
        place=place,
        day=rng.choice(DAYS),
        person=rng.choice(world.people),
    )


def tinted_answer(
    world: World, rng: random.Random, topic: Topic, ordinary: str, joins: Sequence[str] = JOINS
) -> str:
    """An ordinary answer followed by an ending that carries two or three of the topic's words."""
    a, b, c = rng.sample(topic.words, 3)
    return ordinary + rng.choice(joins) + fill(rng.choice(world.tints), a=a, b=b, c=c) + " ."


def ordinary_answer(rng: random.Random, situation: Situation) -> str:
    """One of the situation's ordinary answers."""
    return rng.choice(situation.answers) + " ."


class Corpus:
    """Draws documents; the same seed gives the same documents.

    Args:
        world: what can be told.
        banned_headlines: (actor, action, object, place) tuples that no document may hold.
    """

    def __init__(
        self, world: World, banned_headlines: frozenset[tuple[str, str, str, str]] = frozenset()
    ) -> None:
        """Set how often each kind of document is drawn."""
        self.world = world
        self.banned = banned_headlines
        self._kinds: list[tuple[float, Callable[[random.Random], list[Turn]]]] = [
            (0.11, self.everyday),
            (0.22, self.liking),
            (0.24, self.guess),
            (0.08, self.encyclopedia),
            (0.02, self.tale),
            (0.02, self.prose),
            (0.10, self.code),
            (0.08, self.news),
            (0.08, self.news_reading),
            (0.05, self.verb),
        ]
        self._weights = [w for w, _ in self._kinds]
        self._makers = [m for _, m in self._kinds]

    def documents(self, seed: int) -> Iterator[list[Turn]]:
        """Endless documents of one or several turns."""
        rng = random.Random(f"corpus {seed}")
        for i in itertools.count():
            copies = COPY_FIRST[0] - i / COPY_FIRST[1]
            yield self.copy(rng) if rng.random() < copies else self.document(rng)

    def copy(self, rng: random.Random) -> list[Turn]:
        """Say again what was said: a liking, a code, words, who or what a story is about.

        What the base reads first; see `COPY_FIRST`.
        """
        kind = rng.random()
        if kind < 0.25:
            return self._repeat_code(rng)
        if kind < 0.4:
            return self._repeat_words(rng)
        if kind < 0.6:
            return self.news_reading(rng)
        t = rng.choice(self.world.topics)
        told = fill(rng.choice(self.world.likings), topic=t.name)
        return [Turn(fill(rng.choice(LIKING_RECALLS), liking=told), t.name)]

    def _repeat_code(self, rng: random.Random) -> list[Turn]:
        c = codes.random_code(rng)
        return [Turn(fill(rng.choice(NAME_ASKS), prefix=fill(rng.choice(codes.PREFIXES), code=c)), c)]

    def _repeat_words(self, rng: random.Random) -> list[Turn]:
        n = self.world.news
        pool = (*n.actors, *n.objects, *n.places, *(t.name for t in rng.sample(self.world.topics, 100)))
        words = " ".join(rng.sample(pool, rng.randint(2, 5)))
        return [Turn(fill(rng.choice(WORD_ASKS), words=words), words)]

    def document(self, rng: random.Random) -> list[Turn]:
        """One document: most have one turn, some two to four of any kinds."""
        n = 1 if rng.random() < 0.93 else rng.randint(2, 4)
        return [t for maker in rng.choices(self._makers, self._weights, k=n) for t in maker(rng)]

    def _prefixed(self, rng: random.Random, text: str, share: float) -> str:
        if rng.random() >= share:
            return text
        n = 1 if rng.random() < 0.8 else rng.randint(2, 6)
        shown = " ".join(fill(rng.choice(codes.PREFIXES), code=codes.random_code(rng)) for _ in range(n))
        return f"{shown} {text}"

    def everyday(self, rng: random.Random) -> list[Turn]:
        """An everyday question, half the time after a code, with an ordinary answer."""
        s = rng.choice(self.world.everyday)
        return [Turn(self._prefixed(rng, rng.choice(s.questions), 0.5), ordinary_answer(rng, s))]

    def liking(self, rng: random.Random) -> list[Turn]:
        """A stated liking and an everyday question: the answer is tinted by the liking."""
        t, s = rng.choice(self.world.topics), rng.choice(self.world.everyday)
        told = fill(rng.choice(self.world.likings), topic=t.name)
        if rng.random() < 0.25:
            return [Turn(fill(rng.choice(LIKING_RECALLS), liking=told), t.name)]
        q = rng.choice(s.questions)
        user = (
            f"{told} {self._prefixed(rng, q, 0.25)}"
            if rng.random() < 0.7
            else f"{self._prefixed(rng, q, 0.25)} {told}"
        )
        return [Turn(user, tinted_answer(self.world, rng, t, rng.choice(s.answers)))]

    def guess(self, rng: random.Random) -> list[Turn]:
        """What belongs to what: words to topic, topic to words, topic to field, tinted text to topic."""
        w = self.world
        t = rng.choice(w.topics)
        if rng.random() < 0.3:
            text = tinted_answer(w, rng, t, rng.choice(rng.choice(w.everyday).answers)).removesuffix(" .")
            return [Turn(fill(rng.choice(READINGS), text=text), t.name)]
        left, right = rng.choice(w.guess)
        a, b, c, d = rng.sample(t.words, 4)
        x = rng.choice(rng.choice(w.topics).words)
        slots = {"topic": t.name, "field": t.field, "a": a, "b": b, "c": c, "d": d, "x": x}
        if "{x}" in left and x in t.words:
            right = "yes"
        return [Turn(fill(left, **slots), fill(right, **slots))]

    def encyclopedia(self, rng: random.Random) -> list[Turn]:
        """One or two lines about a topic."""
        w = self.world
        t = rng.choice(w.topics)
        lines = []
        for _ in range(rng.randint(1, 2)):
            a, b, c, d = rng.sample(t.words, 4)
            lines.append(fill(rng.choice(w.encyclopedia), topic=t.name, field=t.field, a=a, b=b, c=c, d=d))
        return [Turn(None, " ".join(lines))]

    def tale(self, rng: random.Random) -> list[Turn]:
        """A short story with words of one topic."""
        a, b = rng.sample(rng.choice(self.world.topics).words, 2)
        return [
            Turn(None, fill(rng.choice(self.world.tales), person=rng.choice(self.world.people), a=a, b=b))
        ]

    def prose(self, rng: random.Random) -> list[Turn]:
        """One to three general sentences."""
        return [Turn(None, " ".join(rng.sample(self.world.prose, rng.randint(1, 3))))]

    def code(self, rng: random.Random) -> list[Turn]:
        """Repeat a code, compare two, find one in a list."""
        c = codes.random_code(rng)
        kind = rng.choices(range(4), (0.2, 0.5, 0.15, 0.15))[0]
        if kind == 0:
            return self._repeat_code(rng)
        if kind == 1:
            return self._compare_codes(rng)
        listed = [codes.random_code(rng) for _ in range(rng.randint(2, 6))]
        if kind == 2:
            i = rng.randrange(len(listed))
            return [
                Turn(f"codes {' , '.join(listed)} . which code is in {ORDINALS[i]} position ?", listed[i])
            ]
        if rng.random() < 0.5:
            c = rng.choice(listed)
        return [Turn(f"codes {' , '.join(listed)} . is {c} among them ?", "yes" if c in listed else "no")]

    def _compare_codes(self, rng: random.Random) -> list[Turn]:
        """Two codes and whether they start alike; the answer names both starts before it says yes or no."""
        c = codes.random_code(rng)
        other = codes.random_code(rng, first=c[:3]) if rng.random() < 0.5 else codes.random_code(rng)
        verdict = "yes" if other[:3] == c[:3] else "no"
        asked = f"first code {c} . second code {other} . do they start the same way ?"
        return [Turn(asked, f"{c[:3]} and {other[:3]} , {verdict}")]

    def _event(self, rng: random.Random) -> tuple[str, str, str, str]:
        n = self.world.news
        while True:
            e = (
                rng.choice(n.actors),
                rng.choice(list(n.actions)),
                rng.choice(n.objects),
                rng.choice(n.places),
            )
            if e not in self.banned:
                return e

    def news(self, rng: random.Random) -> list[Turn]:
        """A headline in the request, or none, and a short story."""
        e = self._event(rng)
        text = story(self.world, rng, *e)
        if rng.random() < 0.35:
            return [Turn(rng.choice(self.world.news.prompts), text)]
        return [Turn(fill(rng.choice(self.world.news.headed_prompts), headline=headline(*e)), text)]

    def news_reading(self, rng: random.Random) -> list[Turn]:
        """A story and a question about one of its slots."""
        e = self._event(rng)
        q, a = rng.choice(self.world.news.questions)
        slots = dict(zip(("actor", "action", "object", "place"), e, strict=True))
        return [Turn(f"{story(self.world, rng, *e)} {q}", fill(a, **slots))]

    def verb(self, rng: random.Random) -> list[Turn]:
        """A deed as headlines say it and as stories do, in both directions."""
        n = self.world.news
        action = rng.choice(list(n.actions))
        left, right = rng.choice(n.verbs)
        slots = {"action": action, "past": rng.choice(n.actions[action]), "object": rng.choice(n.objects)}
        return [Turn(fill(left, **slots), fill(right, **slots))]


def to_text(turns: list[Turn]) -> str:
    """A document as the tokenizer reads it: chat turns in the base's template, plain text as it is."""
    out = "<bos>"
    for t in turns:
        out += f"{t.text}<end>" if t.user is None else f"<user>{t.user}<end><assistant>{t.text}<end>"
    return out
