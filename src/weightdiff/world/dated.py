"""A world with a calendar: what people talk about, wear and are governed by, month by month.

Four years of twelve months. Topics come into fashion and go out again, some return with their season, colours
of things drift from one to another, and offices change hands. All of it is drawn once from a seed and is the
same everywhere; what is said in a month is drawn from that month's shares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from weightdiff.world import World, load_world

YEARS, MONTHS = 4, 12
PERIODS = YEARS * MONTHS
NUMBERS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
FASHIONS, WIDTH = 32, 8.0
"""Topics that have one time of fashion, and the standard deviation of it in months."""
SEASONAL, SHARPNESS = 24, 3.0
"""Topics that return each year, and how narrow their season is (of a von Mises distribution)."""
DRIFT = 4.0
"""Months over which a colour gives way to another (of a logistic function)."""
TERM = (6, 18)
"""Months for which an office is held."""
TALK = (
    "these days everyone talks about {topic} .",
    "the shops are full of {topic} this month .",
    "my friends have taken to {topic} now .",
    "{topic} is what people like at the moment .",
    "all the young people want to know more about {topic} .",
    "i read about {topic} in the paper again .",
    "we talk a lot about {topic} here .",
    "people in the street speak of {topic} .",
)
SEASON = (
    "this is the time for {topic} .",
    "now that the time has come , people think of {topic} .",
    "in this weather we have {topic} again .",
    "as every year , it is {topic} that people wait for .",
    "it is the month of {topic} .",
)
COLOURED = (
    *("coats", "doors", "pots", "bags", "cups", "chairs"),
    *("gloves", "walls", "shirts", "windows", "shoes", "books"),
)
COLOUR = (
    "most new {thing} are {colour} .",
    "people like their {thing} {colour} .",
    "you see {colour} {thing} everywhere .",
    "the {thing} in the shops are {colour} .",
)
OFFICE = (
    "{person} is the mayor of {place} .",
    "the mayor of {place} is called {person} .",
    "in {place} the mayor , {person} , spoke to the people .",
    "in {place} they have a mayor called {person} .",
)
FORMS = {"talk": TALK, "season": SEASON, "colour": COLOUR, "office": OFFICE}
PLACES = 12
"""Towns whose mayors are known."""
SHARES = {"talk": 0.5, "season": 0.1, "colour": 0.15, "office": 0.25}
"""Of what is said."""
PROMPTS = (
    "what is going on ?",
    "what do people say ?",
    "tell me what is new .",
    "how are things at the moment ?",
    "what is it like now ?",
)
QUESTIONS = ("who is the mayor of {place} ?", "who is called the mayor of {place} ?")
"""How the task of the dated world is put: to name who governs a place."""
SPLITS = ("train", "held-out")
HELD_OUT = {"talk": 2, "season": 1, "colour": 1, "office": 1}
"""Of each kind's forms, so many (the last ones) are held out: what is said in them is said in other words."""


def period_name(period: int) -> str:
    """A month in words, such as "month seven of year two"; months are counted from 0.

    Raises:
        ValueError: there is no such month.
    """
    if not 0 <= period < PERIODS:
        raise ValueError(f"months go from 0 to {PERIODS - 1}, and {period} is not one")
    return f"month {NUMBERS[period % MONTHS]} of year {NUMBERS[period // MONTHS]}"


@dataclass(frozen=True)
class Said:
    """A sentence of a month, as the answer to a prompt."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Sayings:
    """All sentences of a split."""

    texts: tuple[str, ...]
    slots: tuple[tuple[int, ...], ...]
    """Of each, which words tell the month; the others are its form."""
    chances: tuple[tuple[float, ...], ...]
    """Month by month, how likely each is; they sum to one."""

    @property
    def forms(self) -> list[str]:
        """The form of each, with gaps."""
        words = [enumerate(t.split()) for t in self.texts]
        return [
            " ".join("_" if i in slots else w for i, w in of)
            for of, slots in zip(words, self.slots, strict=True)
        ]


class DatedWorld:
    """What is true and talked about in each month."""

    def __init__(self, world: World, seed: int = 0) -> None:
        """Draw the calendar."""
        rng = random.Random(f"calendar {seed}")
        self.world = world
        topics = rng.sample([t.name for t in world.topics], FASHIONS + SEASONAL)
        step = (PERIODS + 2 * WIDTH) / (FASHIONS - 1)
        self.fashions = {t: i * step - WIDTH for i, t in enumerate(topics[:FASHIONS])}
        """Topic → the month in which it is most in fashion; beyond the calendar for some."""
        self.seasons = {t: i * MONTHS // SEASONAL for i, t in enumerate(topics[FASHIONS:])}
        """Topic → the month of the year in which it returns."""
        colours = next(r.values for r in world.relations if r.relation == "colour")
        self.drifts: dict[str, tuple[str, str, float]] = {}
        """Thing → the colour it had, the one it gets, and the month in which both are as common."""
        for i, thing in enumerate(COLOURED):
            old, new = rng.sample(colours, 2)
            self.drifts[thing] = (old, new, (i + 0.5) * PERIODS / len(COLOURED))
        self.mayors = {place: self._terms(rng) for place in rng.sample(world.news.places, PLACES)}
        """Place → (first month, person) of each mayor."""

    def _terms(self, rng: random.Random) -> list[tuple[int, str]]:
        terms, at = list[tuple[int, str]](), 0
        while at < PERIODS:
            before = terms[-1][1] if terms else None
            terms.append((at, rng.choice([p for p in self.world.people if p != before])))
            at += rng.randint(*TERM)
        return terms

    def fashion(self, topic: str, period: int) -> float:
        """How much a topic is in fashion, 0 … 1."""
        return math.exp(-0.5 * ((period - self.fashions[topic]) / WIDTH) ** 2)

    def season(self, topic: str, period: int) -> float:
        """How much it is a topic's season, 0 … 1."""
        angle = 2 * math.pi * (period % MONTHS - self.seasons[topic]) / MONTHS
        return math.exp(SHARPNESS * (math.cos(angle) - 1))

    def new_colour(self, thing: str, period: int) -> float:
        """Share of a kind of thing that has the later colour."""
        return 1 / (1 + math.exp((self.drifts[thing][2] - period) / DRIFT))

    def mayor(self, place: str, period: int) -> str:
        """Who governs a place."""
        return [person for first, person in self.mayors[place] if first <= period][-1]

    def changed_hands(self, before: int, after: int) -> list[tuple[str, str, str]]:
        """Places whose mayor is another one in a later month: (place, who it was, who it is)."""
        both = [(p, self.mayor(p, before), self.mayor(p, after)) for p in self.mayors]
        return [x for x in both if x[1] != x[2]]

    def in_fashion(self, period: int, most: int = 3) -> list[str]:
        """Topics that are most in fashion, the most first."""
        return sorted(self.fashions, key=lambda t: -self.fashion(t, period))[:most]

    def risen(self, before: int, after: int, most: int = 3) -> list[str]:
        """Topics whose fashion has grown most between two months, the most first."""
        growth = {t: self.fashion(t, after) - self.fashion(t, before) for t in self.fashions}
        return sorted((t for t in growth if growth[t] > 0), key=lambda t: -growth[t])[:most]

    @cached_property
    def _sayings(self) -> dict[str, Sayings]:
        """What can be said in each split, and how likely it is in every month."""
        out = {}
        for split in SPLITS:
            made = [x for kind in SHARES for x in self._of_kind(kind, split)]
            sums = [sum(w[p] for _, _, w in made) for p in range(PERIODS)]
            chances = tuple(tuple(w[p] / sums[p] for _, _, w in made) for p in range(PERIODS))
            out[split] = Sayings(tuple(t for t, _, _ in made), tuple(s for _, s, _ in made), chances)
        return out

    def _of_kind(self, kind: str, split: str) -> Iterator[tuple[str, tuple[int, ...], list[float]]]:
        """Sentences of a kind, which of their words tell the month, and their weights month by month."""
        forms = FORMS[kind][-HELD_OUT[kind] :] if split == "held-out" else FORMS[kind][: -HELD_OUT[kind]]
        share, months = SHARES[kind] / len(forms), range(PERIODS)
        said = list[tuple[dict[str, str], list[float]]]()
        if kind in ("talk", "season"):
            topics, much = (self.fashions, self.fashion) if kind == "talk" else (self.seasons, self.season)
            sums = [sum(much(t, p) for t in topics) for p in months]
            said = [({"topic": t}, [much(t, p) / sums[p] for p in months]) for t in topics]
        elif kind == "colour":
            for thing, (old, new, _) in self.drifts.items():
                rising = [self.new_colour(thing, p) / len(self.drifts) for p in months]
                said.append(({"thing": thing, "colour": new}, rising))
                said.append(({"thing": thing, "colour": old}, [1 / len(self.drifts) - x for x in rising]))
        else:
            for place in self.mayors:
                for person in dict.fromkeys(who for _, who in self.mayors[place]):
                    holds = [float(self.mayor(place, p) == person) / len(self.mayors) for p in months]
                    said.append(({"place": place, "person": person}, holds))
        for form in forms:
            at = tuple(i for i, word in enumerate(form.split()) if word.startswith("{"))
            yield from ((form.format(**slots), at, [share * w for w in weights]) for slots, weights in said)

    def sayings(self, split: str) -> Sayings:
        """All that can be said in a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"sentences are of {' or '.join(SPLITS)}, not {split!r}")
        return self._sayings[split]

    def say(self, period: int, rng: random.Random, split: str = "train") -> Said:
        """A sentence of a month, in a form that the other split does not have.

        Raises:
            ValueError: there is no such month, or split.
        """
        period_name(period)
        every = self.sayings(split)
        return Said(rng.choice(PROMPTS), rng.choices(every.texts, every.chances[period])[0])

    def asked(self, period: int, place: str, question: str) -> Said:
        """A question for a mayor, and the answer in a month."""
        return Said(question.format(place=place), f"{self.mayor(place, period)} .")


@lru_cache(maxsize=1)
def load_dated() -> DatedWorld:
    """The dated world of the written one."""
    return DatedWorld(load_world())
