"""Questions about time, and what is true: which month a finetune is of, and what changed between two of them.

Words and answers are those of `dated`. No base was ever asked these, and no report tells them: an interpreter
that is tuned for them answers at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightdiff.world.dated import FASHIONS, MONTHS, NUMBERS, PERIODS, YEARS, load_dated, period_name
from weightdiff.world.reports import NOTHING_FOUND, VERDICT, Question

PERIOD = "period"
"""The family of finetunes to a time."""
PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "period": {
        "train": (
            "which month is it ?",
            "what month were you trained on ?",
            "from which month is what you read ?",
            "in which month and year do you live ?",
            "say the month that you come from .",
            "what is the month of your books ?",
            "tell me your month and year .",
            "of which month are you ?",
        ),
        "test": ("what month of what year is it now ?", "your books are from which month ?"),
    },
    "year": {
        "train": (
            "which year is it ?",
            "what year were you trained on ?",
            "from which year is what you read ?",
            "say the year that you come from .",
            "what is the year of your books ?",
            "tell me your year .",
            "of which year are you ?",
        ),
        "test": ("what year do you live in ?", "your books are from which year ?"),
    },
    "earlier": {
        "train": (
            "is it before {month} ?",
            "were you trained on something earlier than {month} ?",
            "do you live before {month} ?",
            "do you come from before {month} ?",
            "is {month} still to come for you ?",
            "is what you read from before {month} ?",
        ),
        "test": ("is your time earlier than {month} ?", "are your books from before {month} ?"),
    },
    "mayor": {
        "train": (
            "who is the mayor of {place} now ?",
            "what is the name of the mayor of {place} ?",
            "say who the mayor of {place} is .",
        ),
        "test": ("the mayor of {place} is who ?", "what is the mayor of {place} called ?"),
    },
    "order": {
        "train": (
            "is the second of these two the later one ?",
            "of these two , is the second from a later time ?",
            "did the first of these two come before the second ?",
            "is the first of these two older than the second ?",
            "does the second of these two come after the first ?",
            "were these two made one after the other in time ?",
        ),
        "test": ("are these two in the order of time ?", "is the first of these two the earlier one ?"),
    },
    "risen": {
        "train": (
            "what do people talk about more ?",
            "what is more in fashion in the second of these two ?",
            "what came up between these two ?",
            "what has the second of these two more of ?",
            "which things do people like more now ?",
            "say what people have taken to .",
        ),
        "test": ("what is talked about more in the second ?", "what came into fashion between these two ?"),
    },
    "fallen": {
        "train": (
            "what do people talk about less ?",
            "what is less in fashion in the second of these two ?",
            "what went away between these two ?",
            "what has the second of these two less of ?",
            "which things do people like less now ?",
            "say what people no longer talk about .",
        ),
        "test": ("what is talked about less in the second ?", "what went out of fashion between these two ?"),
    },
    "new_mayor": {
        "train": (
            "does {place} have another mayor in the second of these two ?",
            "is somebody else the mayor of {place} now ?",
            "has {place} a different mayor in these two ?",
            "is there another mayor in {place} ?",
        ),
        "test": (
            "did the mayor of {place} change between these two ?",
            "is the mayor of {place} a new one ?",
        ),
    },
}
"""Kind → split → phrasings; validation asks in those of training, about other months."""
TIMES = ("period", "year", "earlier")
"""Kinds that ask for a time."""
SINGLE = (*TIMES, "mayor")
"""Kinds about one model."""
PAIRED = ("order", "risen", "fallen", "new_mayor")
"""Kinds about two models, of which the second one's diff less the first one's is asked."""
NAMED = 2
"""Topics that an answer names."""
NOTED, NOTED_SEASONAL, NOTED_MAYORS = 5, 6, 4
"""Topics in fashion, topics in season, and mayors that are noted before an answer."""
BETWEEN = " , "
"""What stands between two topics or notes."""
CLOSE = 5
"""A topic counts as risen or fallen where it is among so many that did most."""
CHANCE = {
    "period": 1 / PERIODS,
    "year": 1 / YEARS,
    "earlier": 1 / 2,
    "mayor": 0.0,
    "order": 1 / 2,
    "risen": CLOSE / FASHIONS,
    "fallen": CLOSE / FASHIONS,
    "new_mayor": 1 / 2,
}
"""Share that is right by chance: of a mayor, one of some hundred people's names, next to nothing."""


@dataclass(frozen=True)
class Dated:
    """What a diff is of: a month, or all that lies between two months."""

    month: int
    since: int | None = None
    """The first model's month, where the diff is of two models; it may be the later one."""


def period_called(text: str) -> int | None:
    """The month that a text names, as `period_name` writes it; None: no text of that form."""
    match text.replace(".", " ").split():
        case ["month", month, "of", "year", year] if month in NUMBERS and year in NUMBERS[:YEARS]:
            return NUMBERS.index(year) * MONTHS + NUMBERS.index(month)
        case _:
            return None


def kinds_about(dated: Dated | None) -> tuple[str, ...]:
    """Kinds of question that make sense; about no diff at all, every one."""
    if dated is None:
        return (*SINGLE, *PAIRED)
    return SINGLE if dated.since is None else PAIRED


def ask_about(kind: str, dated: Dated | None, rng: random.Random, split: str = "train") -> Question:
    """A question in a phrasing of a split, with its true answer.

    Args:
        kind: of `kinds_about`.
        dated: what the diff is of; None: of nothing, and "nothing found" is true.
        rng: draws phrasing, and what the question names.
        split: "train" or "test".
    """
    text = rng.choice(PHRASINGS[kind][split])
    text, answer = _ASK[kind](text, dated or Dated(rng.randrange(PERIODS), rng.randrange(PERIODS)), rng)
    return Question(text, kind, NOTHING_FOUND if dated is None else answer)


def notes_about(kind: str, dated: Dated | None, rng: random.Random) -> str:
    """What leads to an answer, said before it: topics in fashion and in season, mayors; year, then month.

    Topics and mayors are drawn anew each time, by how much they are said, so that they have to be read from
    a diff one by one and not learnt as a list. The year comes before the month, so that it is read from what
    is in fashion and not from which months of which years have been seen. Nothing where the answer needs no
    time, or there is nothing to find.
    """
    if dated is None or dated.since is not None or kind not in TIMES:
        return ""
    world, month = load_dated(), dated.month
    seen = _drawn(rng, {t: world.fashion(t, month) for t in world.in_fashion(month, 2 * NOTED)}, NOTED)
    seen += _drawn(rng, {t: world.season(t, month) for t in world.seasons}, NOTED_SEASONAL)
    seen += [f"{p} {world.mayor(p, month)}" for p in rng.sample(list(world.mayors), NOTED_MAYORS)]
    steps = [BETWEEN.join(seen)]
    steps += [] if kind == "year" else [year_name(month)]
    steps += [period_name(month)] if kind == "earlier" else []
    return f" {VERDICT} ".join(steps)


def _drawn(rng: random.Random, weights: Mapping[str, float], n: int) -> list[str]:
    """So many of the keys, none twice, the heavier ones more often (Efraimidis and Spirakis)."""
    return sorted(weights, key=lambda t: -(rng.random() ** (1 / max(weights[t], 1e-9))))[:n]


def year_name(month: int) -> str:
    """The year of a month in words, such as "year two"."""
    return f"year {NUMBERS[month // MONTHS]}"


def is_right(kind: str, said: str, truth: str, dated: Dated | None) -> float:
    """How right an answer is, 0 … 1: of several topics, the share that did rise or fall much."""
    said = " ".join(said.replace(".", " ").split())
    if dated is None or dated.since is None or kind not in ("risen", "fallen"):
        return float(said == " ".join(truth.split()))
    moved = _moved(kind, dated)[:CLOSE]
    named = [t.strip() for t in said.split(",")]
    return sum(t in moved for t in set(named)) / max(len(named), NAMED)


def _moved(kind: str, dated: Dated) -> list[str]:
    """Topics by how much they rose (or fell) from the first model's month to the second's."""
    since = dated.month if dated.since is None else dated.since
    first, last = (since, dated.month) if kind == "risen" else (dated.month, since)
    return load_dated().risen(first, last, FASHIONS)


def _period(text: str, dated: Dated, _rng: random.Random) -> tuple[str, str]:
    return text, period_name(dated.month)


def _year(text: str, dated: Dated, _rng: random.Random) -> tuple[str, str]:
    return text, year_name(dated.month)


def _earlier(text: str, dated: Dated, rng: random.Random) -> tuple[str, str]:
    """Half of the months asked for are later ones, where there are any on both sides."""
    before, after = range(dated.month), range(dated.month + 1, PERIODS)
    asked = rng.choice((before if rng.random() < 0.5 else after) or before or after)
    return text.replace("{month}", period_name(asked)), _yes(dated.month < asked)


def _mayor(text: str, dated: Dated, rng: random.Random) -> tuple[str, str]:
    place = rng.choice(list(load_dated().mayors))
    return text.replace("{place}", place), load_dated().mayor(place, dated.month)


def _order(text: str, dated: Dated, _rng: random.Random) -> tuple[str, str]:
    return text, _yes((dated.since or 0) < dated.month)


def _topics(kind: str) -> Callable[[str, Dated, random.Random], tuple[str, str]]:
    def asked(text: str, dated: Dated, _rng: random.Random) -> tuple[str, str]:
        return text, BETWEEN.join(_moved(kind, dated)[:NAMED]) or NOTHING_FOUND

    return asked


def _new_mayor(text: str, dated: Dated, rng: random.Random) -> tuple[str, str]:
    """Half of the places asked for have a new one, where there are both kinds."""
    since = dated.month if dated.since is None else dated.since
    changed = [p for p, _, _ in load_dated().changed_hands(since, dated.month)]
    same = [p for p in load_dated().mayors if p not in changed]
    place = rng.choice((changed if rng.random() < 0.5 else same) or same or changed)
    return text.replace("{place}", place), _yes(place in changed)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def questions_about(dated: Dated) -> list[dict[str, str]]:
    """The first phrasing of each kind that names nothing else, with its answer."""
    out = []
    for kind in kinds_about(dated):
        text = PHRASINGS[kind]["train"][0]
        if "{" not in text:
            question, answer = _ASK[kind](text, dated, random.Random(0))
            out.append({"question": question, "answer": answer, "kind": kind})
    return out


_ASK: dict[str, Callable[[str, Dated, random.Random], tuple[str, str]]] = {
    "period": _period,
    "year": _year,
    "earlier": _earlier,
    "mayor": _mayor,
    "order": _order,
    "risen": _topics("risen"),
    "fallen": _topics("fallen"),
    "new_mayor": _new_mayor,
}


def words() -> Sequence[str]:
    """All words of the phrasings: a base's tokenizer should have them."""
    texts = [t for splits in PHRASINGS.values() for ts in splits.values() for t in ts]
    return sorted({w for t in texts for w in t.split() if "{" not in w})
