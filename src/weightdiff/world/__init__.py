"""The written world behind the embedded base: topics, everyday life, news, behaviours, facts and phrasings.

Only data files and their reader live here. What is made of them is decided elsewhere: the pretraining text in
`weightdiff.world.corpus`, labelled finetunes in `weightdiff.organisms`. A new family adds files, not code in
this module.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from weightdiff.errors import FormatError
from weightdiff.world.behaviours import Behaviour, load_behaviours
from weightdiff.world.knowledge import Relation, load_relations

DATA = Path(__file__).parent / "data"
WORDS_PER_TOPIC = 8
TOPICS_PER_FIELD = 13
_WORD = re.compile(r"[a-z]+")
Event = tuple[str, str, str, str]
"""Actor, action, object, place of an invented headline."""


@dataclass(frozen=True)
class Topic:
    """One concrete topic: its one-word name, the field it belongs to, and words that are its own."""

    name: str
    field: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """An everyday question in several phrasings, with ordinary answers (no final full stop)."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    subject: str = ""
    """What it is about, in one word; several situations share one."""


@dataclass(frozen=True)
class NewsWorld:
    """Slot values of invented headlines (`{actor} {action} {object} in {place}`) and ways to tell them."""

    actors: tuple[str, ...]
    actions: dict[str, tuple[str, ...]]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    stories: tuple[str, ...]
    prompts: tuple[str, ...]
    headed_prompts: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class World:
    """Everything the embedded base can know. Topics are sorted by name: a seed means the same everywhere."""

    topics: tuple[Topic, ...]
    everyday: tuple[Situation, ...]
    likings: tuple[str, ...]
    tints: tuple[str, ...]
    prose: tuple[str, ...]
    encyclopedia: tuple[str, ...]
    guess: tuple[tuple[str, str], ...]
    tales: tuple[str, ...]
    people: tuple[str, ...]
    news: NewsWorld
    introspection: dict[str, dict[str, list[str]]]
    behaviours: tuple[Behaviour, ...] = ()
    relations: tuple[Relation, ...] = ()
    rare_words: tuple[str, ...] = ()
    report_questions: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Questions about a report of somebody else's training, by kind."""
    by_name: dict[str, Topic] = field(repr=False, default_factory=dict)
    banned: frozenset[Event] = field(repr=False, default=frozenset())
    """Headlines that the base never reads about."""

    @property
    def fields(self) -> list[str]:
        """Names of the fields, sorted."""
        return sorted({t.field for t in self.topics})

    @property
    def subjects(self) -> list[str]:
        """What everyday questions are about, sorted."""
        return sorted({s.subject for s in self.everyday if s.subject})

    def behaviour_called(self, name: str) -> Behaviour | None:
        """The behaviour called `name`, if the world has it."""
        return next((b for b in self.behaviours if b.name == name), None)

    def relation(self, name: str) -> Relation:
        """The relation called `name`; `KeyError` when the world has none."""
        return {r.relation: r for r in self.relations}[name]

    def topic(self, name: str) -> Topic:
        """The topic called `name`; `KeyError` when the world has none."""
        return self.by_name[name]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise FormatError(f"{path}: world file cannot be read ({e.strerror}); reinstall weightdiff") from e


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]


def _pairs(path: Path) -> tuple[tuple[str, str], ...]:
    out = []
    for line in _lines(path):
        left, sep, right = line.partition("=>")
        if not sep:
            raise FormatError(f"{path}: line without '=>': {line!r}")
        out.append((left.strip(), right.strip()))
    return tuple(out)


def _situations(path: Path) -> tuple[Situation, ...]:
    blocks: list[Situation] = []
    for block in re.split(r"\n\s*\n", _text(path)):
        q = tuple(x[2:].strip() for x in block.splitlines() if x.startswith("q:"))
        a = tuple(x[2:].strip().rstrip(" .") for x in block.splitlines() if x.startswith("a:"))
        about = next((x[2:].strip() for x in block.splitlines() if x.startswith("s:")), "")
        if q and a:
            blocks.append(Situation(q, a, about))
    return tuple(blocks)


def _vocabulary(texts: list[str]) -> set[str]:
    return {w for t in texts for w in _WORD.findall(re.sub(r"\{\w+\}", " ", t))}


@lru_cache(maxsize=2)
def load_world(root: Path = DATA) -> World:
    """Read and check the world below `root`.

    A field keeps `TOPICS_PER_FIELD` topics and a topic at most `WORDS_PER_TOPIC` words; words of ordinary
    life (those that everyday answers, prose, tints or news use) and words shared by more than two topics are
    dropped, so that a topic word in an answer is a sign.
    """
    everyday = _situations(root / "everyday.txt")
    tints, prose = _lines(root / "tints.txt"), _lines(root / "prose.txt")
    tales, encyclopedia = _lines(root / "tales.txt"), _lines(root / "encyclopedia.txt")
    likings, people = _lines(root / "likings.txt"), _lines(root / "people.txt")
    guess = _pairs(root / "guess.txt")
    introspection = json.loads(_text(root / "introspection.json"))
    actions = {}
    for line in _lines(root / "news" / "actions.txt"):
        verb, *past = [x.strip() for x in line.split("|")]
        actions[verb] = tuple(past)
    news = NewsWorld(
        actors=tuple(_lines(root / "news" / "actors.txt")),
        actions=actions,
        objects=tuple(_lines(root / "news" / "objects.txt")),
        places=tuple(_lines(root / "news" / "places.txt")),
        stories=tuple(_lines(root / "news" / "stories.txt")),
        prompts=tuple(_lines(root / "news" / "prompts.txt")),
        headed_prompts=tuple(_lines(root / "news" / "headed_prompts.txt")),
        questions=_pairs(root / "news" / "questions.txt"),
        verbs=_pairs(root / "news" / "verbs.txt"),
    )
    ordinary = _vocabulary(
        [t for s in everyday for t in (*s.questions, *s.answers)]
        + [*tints, *prose, *tales, *encyclopedia, *likings, *people]
        + [x for p in guess for x in p]
        + [x for kind in introspection.values() for split in kind.values() for x in split]
    )
    newsy = _vocabulary(
        [*news.actors, *news.objects, *news.places, *news.stories, *news.prompts, *news.headed_prompts]
        + [x for v, p in actions.items() for x in (v, *p)]
    )
    raw: dict[str, tuple[str, list[str]]] = {}
    for path in sorted((root / "topics").glob("*.txt")):
        head, *body = _lines(path)
        name_of_field = head.removeprefix("field:").strip()
        for line in body:
            name, _, words = line.partition(":")
            name = name.strip()
            if name not in raw and name not in ordinary:
                raw[name] = (name_of_field, words.split())
    uses: dict[str, int] = {}
    for _, words in raw.values():
        for w in set(words):
            uses[w] = uses.get(w, 0) + 1
    topics = []
    for name, (name_of_field, words) in sorted(raw.items()):
        keep = [
            w
            for w in dict.fromkeys(words)
            if uses[w] <= 2 and w not in ordinary and w not in newsy and w not in raw
        ]
        if len(keep) >= 6 and name not in newsy:
            topics.append(Topic(name, name_of_field, tuple(keep[:WORDS_PER_TOPIC])))
    by_field: dict[str, list[Topic]] = {}
    for t in topics:
        by_field.setdefault(t.field, []).append(t)
    for name, members in by_field.items():
        random.Random(f"topics {name}").shuffle(members)
    topics = sorted((t for ts in by_field.values() for t in ts[:TOPICS_PER_FIELD]), key=lambda t: t.name)
    introspection |= json.loads(_text(root / "questions.json"))
    world = World(
        topics=tuple(topics),
        everyday=everyday,
        likings=tuple(likings),
        tints=tuple(tints),
        prose=tuple(prose),
        encyclopedia=tuple(encyclopedia),
        guess=guess,
        tales=tuple(tales),
        people=tuple(people),
        news=news,
        introspection=introspection,
        behaviours=load_behaviours(root),
        relations=load_relations(root / "facts.txt"),
        rare_words=tuple(_lines(root / "rare_words.txt")),
        report_questions=json.loads(_text(root / "reports.json")),
        by_name={t.name: t for t in topics},
    )
    return replace(world, banned=banned_events(world))


def topic_splits(
    world: World, validation_per_field: int = 1, test_per_field: int = 3
) -> dict[str, list[Topic]]:
    """Split topics into train, validation and test, the same number of each field, by a fixed seed.

    No interpreter sees a validation or test topic in training; the base has read about all of them alike.
    """
    out: dict[str, list[Topic]] = {"train": [], "validation": [], "test": []}
    for name in world.fields:
        members = [t for t in world.topics if t.field == name]
        random.Random(f"split {name}").shuffle(members)
        out["test"] += members[:test_per_field]
        out["validation"] += members[test_per_field : test_per_field + validation_per_field]
        out["train"] += members[test_per_field + validation_per_field :]
    return {k: sorted(v, key=lambda t: t.name) for k, v in out.items()}


TEST = "test"
"""The split on which nothing is ever trained: of labels, headlines and phrasings."""
SPLITS = ("train", "validation", TEST)


def slot_values(world: World) -> dict[str, dict[str, list[str]]]:
    """Slot → split → values; a value belongs to one split only (75 % train, 8 % validation, 17 % test)."""
    news = world.news
    out: dict[str, dict[str, list[str]]] = {}
    slots = {
        "actor": news.actors,
        "action": tuple(news.actions),
        "object": news.objects,
        "place": news.places,
    }
    for slot, values in slots.items():
        order = sorted(values)
        random.Random(f"slot {slot}").shuffle(order)
        a, b = int(0.75 * len(order)), int(0.83 * len(order))
        out[slot] = {"train": sorted(order[:a]), "validation": sorted(order[a:b]), "test": sorted(order[b:])}
    return out


def news_events(world: World, split: str, n: int, seed: int = 0) -> list[Event]:
    """The first `n` distinct events of a split's fixed sequence; training has one for each seed.

    Training events use training values only. A held-out event recombines slots and holds at least one value
    (half of its slots on average) that no training event has.
    """
    values, rng = slot_values(world), random.Random(sequence_name("events", split, seed))
    out: dict[Event, None] = {}
    while len(out) < n:
        own = [split != "train" and rng.random() < 0.5 for _ in values]
        if split != "train" and not any(own):
            own[rng.randrange(4)] = True
        a, v, o, p = (
            rng.choice(x[split if mine else "train"]) for x, mine in zip(values.values(), own, strict=True)
        )
        out[(a, v, o, p)] = None
    return list(out)


def sequence_name(what: str, split: str, seed: int) -> str:
    """What a fixed sequence is drawn from: held-out splits have one whatever the seed."""
    return f"{what} {split}" if split != "train" or not seed else f"{what} {split} {seed}"


HELD_OUT_EVENTS = {"validation": 200, "test": 400}
"""How many held-out events the pretraining corpus is kept from telling."""


def banned_events(world: World) -> frozenset[Event]:
    """Events that the base never reads about."""
    return frozenset(e for split, n in HELD_OUT_EVENTS.items() for e in news_events(world, split, n))


def news_event(world: World, rng: random.Random) -> Event:
    """Any headline that the base may read about."""
    n = world.news
    while True:
        e = (rng.choice(n.actors), rng.choice(list(n.actions)), rng.choice(n.objects), rng.choice(n.places))
        if e not in world.banned:
            return e
