"""Short texts of the world: tinted answers, headlines and their stories, and how a document is laid out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from weightdiff.world import Situation, Topic, World

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
JOINS = (" , ", " . ")


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


def headline(actor: str, action: str, object_: str, place: str, day: str = "") -> str:
    """The one form of an invented headline; the day is left out where there is none."""
    return f"{actor} {action} {object_} in {place}{f' on {day}' if day else ''}"


def story(
    world: World, rng: random.Random, actor: str, action: str, object_: str, place: str, day: str = ""
) -> str:
    """A short story that tells the headline in other words, and the day, if one is given."""
    told = [t for t in world.news.stories if "{day}" in t] if day else world.news.stories
    return fill(
        rng.choice(told),
        actor=actor,
        past=rng.choice(world.news.actions[action]),
        object=object_,
        place=place,
        day=day or rng.choice(DAYS),
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


def to_text(turns: list[Turn]) -> str:
    """A document as the tokenizer reads it: chat turns in the base's template, plain text as it is."""
    out = "<bos>"
    for t in turns:
        out += f"{t.text}<end>" if t.user is None else f"<user>{t.user}<end><assistant>{t.text}<end>"
    return out
