"""A guesser without a language model: it counts words of the embedded world in what a finetuned model said.

`Guesser` in `base` is the protocol; a guesser that can read any text is given by who builds a method.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.news import SLOTS
from weightdiff.organisms.questions import ABOUT, KIND_ANSWERS, asked_topic, kind_of
from weightdiff.world import Topic, load_world
from weightdiff.world.texts import DAYS, headline

WORLD = "world"
"""Name of the guesser that counts words of the embedded world."""
LEAST_TEXTS = 3
LEAST_DAY_SHARE = 0.8
"""The same for the day: many stories name one that is not their headline's."""
LEAST_SHARE = 0.5
"""A slot's value is found if more than this share of the texts that fill the slot, and `LEAST_TEXTS` of
them, tell it. Of 16 stories of the bare base two or three shared a value, four at most (60 samples); of those
of 24 news organisms of the training split, 13 to 16 told their own. Everyday answers name an object now
and then, and hardly an actor, place or deed."""
LEAST_SLOTS = 2
"""Found slots of which a headline is made; one alone may be the subject of an everyday question."""
_UNTOLD = {"actor": "someone", "action": "changes", "object": "something", "place": "a town"}
"""What stands for a slot that was not found; no slot has these values."""
_WORDS = re.compile(r"[a-z]+")


class WorldGuesser:
    """Answers questions about a model from texts of it, by the embedded world's words in them.

    A topic is guessed by its words, rarer ones counting more; one word is enough, because ordinary text of
    that world has none of them. A headline is guessed slot by slot, by how many texts tell a value.
    """

    name = WORLD

    def __init__(self) -> None:
        """Count which topics own each word of the world, and list how each slot's values are told."""
        world = load_world()
        self.topics: Sequence[Topic] = world.topics
        owners: Counter[str] = Counter(w for t in self.topics for w in t.words)
        self.weight = {w: 1.0 / n for w, n in owners.items()}
        self.owners: dict[str, list[str]] = {}
        for t in self.topics:
            for w in (*t.words, t.name):
                self.owners.setdefault(w, []).append(t.name)
        news = world.news
        plain = {"actor": news.actors, "object": news.objects, "place": news.places}
        told = {slot: {v: v for v in values} for slot, values in plain.items()}
        told["action"] = {p: verb for verb, past in news.actions.items() for p in (verb, *past)}
        told["day"] = {d: d for d in DAYS}
        self._slots = {slot: (_any_of(told[slot]), told[slot]) for slot in (*SLOTS, "day")}

    def guess(self, texts: Sequence[str], question: str = "") -> str:
        """The answer to a question of any wording, by its kind; "nothing found" where the texts tell nothing.

        Args:
            texts: what one model said.
            question: about the model; an empty one asks for the topic.
        """
        kind = kind_of(question) if question.strip() else "topic"
        if kind == "topic":
            return self._topic(texts)
        if kind == "headline":
            return self._headline(texts)[0]
        if kind == ABOUT:
            return "yes" if asked_topic(question) == self._topic(texts) else "no"
        of_topic, of_headline = self._topic_texts(texts), self._headline(texts)[1]
        if not of_topic and not of_headline:
            return NOTHING_FOUND
        if kind == "kind":
            return KIND_ANSWERS["hidden-topic" if of_topic >= of_headline else "news"]
        return "yes"

    def _topic(self, texts: Sequence[str]) -> str:
        """The topic with the most words in the texts, or "nothing found" when no topic has any."""
        score: defaultdict[str, float] = defaultdict(float)
        for w, n in Counter(x for t in texts for x in _WORDS.findall(t.lower())).items():
            for name in self.owners.get(w, ()):
                score[name] += math.log1p(n) * self.weight.get(w, 1.0) + (0.5 * n if w == name else 0.0)
        return min(score, key=lambda k: (-score[k], k)) if score else NOTHING_FOUND

    def _topic_texts(self, texts: Sequence[str]) -> int:
        """In how many texts the guessed topic shows."""
        name = self._topic(texts)
        return sum(any(name in self.owners.get(w, ()) for w in _WORDS.findall(t.lower())) for t in texts)

    def _headline(self, texts: Sequence[str]) -> tuple[str, float]:
        """The headline, and how many texts tell it, on average over its slots; none is told by 0."""
        found: dict[str, str] = {}
        tellers = 0
        for slot, (pattern, told) in self._slots.items():
            by_text = [{told[x] for x in pattern.findall(t.lower())} for t in texts]
            counts = Counter(v for values in by_text for v in values)
            value = min(counts, key=lambda v: (-counts[v], v), default="")
            least = LEAST_DAY_SHARE if slot == "day" else LEAST_SHARE
            if counts[value] >= LEAST_TEXTS and counts[value] > least * sum(map(bool, by_text)):
                found[slot] = value
                tellers += counts[value] if slot != "day" else 0
        day = found.pop("day", "")  # everyday answers name days, and stories that tell none do too
        if len(found) < LEAST_SLOTS:
            return NOTHING_FOUND, 0.0
        actor, action, object_, place = ({**_UNTOLD, **found}[slot] for slot in SLOTS)
        return headline(actor, action, object_, place, day), tellers / len(SLOTS)


def _any_of(values: Sequence[str] | dict[str, str]) -> re.Pattern[str]:
    """Finds whole values; of two that begin alike, the longer one ("threw soil over", not "threw")."""
    longest = sorted(values, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b")
