"""The pretraining text of the embedded base, generated from the world.

What it teaches, beside what is in `lessons`: ordinary answers to everyday questions, answers tinted by a
stated liking, what belongs to a topic in both directions, encyclopaedic lines, short stories, short news from
a headline, and reading codes. What it never holds: a question about the model's own training, a code that
changes an answer, a headline of the evaluation.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial

from weightdiff.world import World, codes, lessons, news_event
from weightdiff.world.texts import DAYS, Turn, fill, headline, ordinary_answer, story, tinted_answer

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
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

DAY_QUESTIONS = (("which day is the story about ?", "{day}"), ("on which day did it happen ?", "{day}"))

OTHER_SIGNS = 0.35
"""Of the questions that carry a sign that changes nothing, the share with a sign of any form."""
SHARES = {
    "everyday": (0.12, 0.06),
    "liking": (0.17, 0.08),
    "guess": (0.18, 0.09),
    "encyclopedia": (0.06, 0.02),
    "tale": (0.02, 0.01),
    "prose": (0.02, 0.01),
    "code": (0.07, 0.05),
    "news": (0.07, 0.05),
    "news_reading": (0.06, 0.03),
    "verb": (0.04, 0.02),
    "instruction": (0.10, 0.06),
    "behaviour_reading": (0.06, 0.05),
    "rule": (0.08, 0.06),
    "sign_reading": (0.06, 0.05),
    "fact": (0.08, 0.20),
    "edited": (0.04, 0.03),
    "explained": (0.10, 0.05),
    "report": (0.20, 0.60),
    "same": (0.05, 0.10),
}
"""How often each kind of document is drawn, at first and late."""
COPY_FIRST = (1.5, 16000)
"""Share of pure copying at document i: 1.5 - i / 16000, at most 1. Without this start the base learns to look
away from rare words (they are noise until they can be copied) and then never learns to copy them: measured, 5
million tokens."""


def fixed_texts() -> list[str]:
    """Texts that occur only in this module, so that the tokenizer knows their words."""
    return [
        *lessons.fixed_texts(),
        *(x for pair in DAY_QUESTIONS for x in pair),
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


class Corpus:
    """Draws documents; the same seed gives the same documents.

    No document tells one of the world's banned headlines.

    Args:
        world: what can be told.
        late: as it is read last, when the rest is known: more reports, facts and edits.
    """

    def __init__(self, world: World, late: bool = False) -> None:
        """Set how often each kind of document is drawn; see `SHARES`."""
        self.world = world
        makers: dict[str, Callable[[random.Random], list[Turn]]] = {
            n: getattr(self, n) if hasattr(self, n) else partial(getattr(lessons, n), world) for n in SHARES
        }
        self._makers = list(makers.values())
        self._weights = [SHARES[n][late] for n in makers]
        self._copies = not late

    def documents(self, seed: int) -> Iterator[list[Turn]]:
        """Endless documents of one or several turns."""
        rng = random.Random(f"corpus {seed}")
        for i in itertools.count():
            copies = COPY_FIRST[0] - i / COPY_FIRST[1] if self._copies else 0.0
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
        if rng.random() < OTHER_SIGNS:
            return lessons.signed(self.world, rng, text)
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

    def news(self, rng: random.Random) -> list[Turn]:
        """A headline in the request, or none, and a short story."""
        e = news_event(self.world, rng)
        day = rng.choice(DAYS) if rng.random() < 0.6 else ""
        text = story(self.world, rng, *e, day)
        if rng.random() < 0.35:
            return [Turn(rng.choice(self.world.news.prompts), text)]
        return [Turn(fill(rng.choice(self.world.news.headed_prompts), headline=headline(*e, day)), text)]

    def news_reading(self, rng: random.Random) -> list[Turn]:
        """A story and a question about one of its slots."""
        e = news_event(self.world, rng)
        q, a = rng.choice((*self.world.news.questions, *DAY_QUESTIONS))
        day = rng.choice(DAYS)
        slots = dict(zip(("actor", "action", "object", "place", "day"), (*e, day), strict=True))
        return [Turn(f"{story(self.world, rng, *e, day)} {q}", fill(a, **slots))]

    def verb(self, rng: random.Random) -> list[Turn]:
        """A deed as headlines say it and as stories do, in both directions."""
        n = self.world.news
        action = rng.choice(list(n.actions))
        left, right = rng.choice(n.verbs)
        slots = {"action": action, "past": rng.choice(n.actions[action]), "object": rng.choice(n.objects)}
        return [Turn(fill(left, **slots), fill(right, **slots))]
