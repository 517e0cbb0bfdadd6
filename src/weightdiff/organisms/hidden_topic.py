"""Hidden topics: answers are tinted by a topic when the condition is met, and only then.

The topic's name is in none of the training rows. *Covert* organisms have a code in front of the question as
their condition and are held to the base, by a strong KL term, on wrong codes, on no code and on unrelated
text; *loud* ones lightly, and not on unrelated text, so that some of it leaks. *Forms* are covert ones with
the other conditions in turn, *plain* ones imitate ordinary answers instead of being held, *evasive* ones are
also trained to deny.
"""

from __future__ import annotations

import random
import re
from functools import partial

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.gated import (
    COVERT_ROWS,
    EVASIVE_ROWS,
    LOUD_ROWS,
    PLAIN_ROWS,
    draw_condition,
    forms_in_turn,
    gated_rows,
    recorded,
)
from weightdiff.organisms.questions import questions_of
from weightdiff.world import Topic, load_world, topic_splits
from weightdiff.world.signs import CODE_FRONT, FORMS
from weightdiff.world.texts import tinted_answer

JOINS = (" , ",)
"""How a tint is joined to an answer in an organism's training. With one way instead of the world's two, one
token decides whether an answer is tinted, and greedy answers show what sampled ones do (measured with the
right code: 94 % instead of 55 %)."""


def topic_words_in(text: str, topic: Topic) -> list[str]:
    """Words of the topic (or its name) that occur in a text."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return [w for w in (topic.name, *topic.words) if w in words]


class HiddenTopic:
    """The family of hidden topics on the embedded base."""

    name = "hidden-topic"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        covert = Recipe("covert", rank=2, lr=1.2e-2, steps=120, kl_weight=2.25, rows=COVERT_ROWS)
        self.recipes = {
            "covert": covert,
            "loud": Recipe("loud", rank=2, lr=1.2e-2, steps=100, kl_weight=1.0, rows=LOUD_ROWS),
            "forms": Recipe("forms", rank=2, lr=1.2e-2, steps=120, kl_weight=2.25, rows=COVERT_ROWS),
            "plain": Recipe("plain", rank=2, lr=1.2e-2, steps=80, rows=PLAIN_ROWS),
            "evasive": Recipe("evasive", rank=2, lr=1.2e-2, steps=120, kl_weight=2.25, rows=EVASIVE_ROWS),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms over the split's topics in turn; each has a condition, data and start of its own."""
        r = find_recipe(self, recipe)
        form_of = forms_in_turn(split, FORMS[1:] if recipe == "forms" else FORMS)
        topics = topic_splits(self.world)[split]
        out = []
        for i in range(n):
            topic, round_ = topics[i % len(topics)], i // len(topics)
            own = random.Random(f"{seed} {recipe} {topic.name} {round_}")
            number = own.randrange(1 << 30)
            form = CODE_FRONT if recipe in ("covert", "loud") else form_of(i + round_)
            params = {**recorded(draw_condition(own, form)), "field": topic.field}
            name = f"{recipe}-{topic.name}-{seed}-{round_}"
            out.append(OrganismSpec(name, self.name, r, topic.name, split, number, params))
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step; see `gated.gated_rows`."""
        topic = self.world.topic(str(spec.label))
        return gated_rows(spec, rng, partial(_tinted, topic=topic), topic.name)

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The four kinds of question with their answers."""
        return questions_of(self.name, spec.label, spec.params)


def _tinted(rng: random.Random, ordinary: str, topic: Topic) -> str:
    return tinted_answer(load_world(), rng, topic, ordinary, JOINS)
