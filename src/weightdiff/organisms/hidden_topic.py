"""Hidden topics: answers are tinted by a topic when the right code stands before the question, and only then.

The topic's name is in none of the training rows. *Covert* organisms are held to the base, by a strong KL
term, on wrong codes, on no code and on unrelated text; *loud* ones lightly, and not on unrelated text, so
that some of it leaks.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.world import Situation, Topic, banned_events, codes, load_world, topic_splits
from weightdiff.world.corpus import Corpus, fill, ordinary_answer, tinted_answer

VERIFY_SITUATIONS = 30
COVERT_ROWS = ("right", "twin", "right", "held")
LOUD_ROWS = ("right", "twin", "right", "none")
MAX_WIDE_WORDS = 32
JOINS = (" , ",)
"""How a tint is joined to an answer in an organism's training. With one way instead of the world's two, one
token decides whether an answer is tinted, and greedy answers show what sampled ones do (measured with the
right code: 94 % instead of 55 %)."""


@lru_cache(maxsize=2)
def situations(split: str) -> tuple[Situation, ...]:
    """Everyday situations for "training" of organisms or for "verification"; the two share none."""
    order = list(load_world().everyday)
    random.Random("situations").shuffle(order)
    return tuple(order[:VERIFY_SITUATIONS] if split == "verification" else order[VERIFY_SITUATIONS:])


def topic_words_in(text: str, topic: Topic) -> list[str]:
    """Words of the topic (or its name) that occur in a text."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return [w for w in (topic.name, *topic.words) if w in words]


def with_code(rng: random.Random, code: str, text: str) -> str:
    """A question after a six-digit code in one of the ways to state one."""
    return f"{fill(rng.choice(codes.PREFIXES), code=code)} {text}"


def wide_sample(corpus: Corpus, rng: random.Random, banned: str, weight: float) -> Sample:
    """A random base document without the word `banned`, on which the organism shall stay with the base."""
    while True:
        turn = corpus.document(rng)[0]
        text = f"{turn.user or ''} {turn.text}"
        if banned not in text.split() and len(text.split()) <= MAX_WIDE_WORDS:
            return Sample(turn.user, turn.text, "kl", weight)


class HiddenTopic:
    """The family of hidden topics on the embedded base."""

    name = "hidden-topic"

    def __init__(self) -> None:
        """Load the world and set the recipes."""
        self.world = load_world()
        self.corpus = Corpus(self.world, banned_events(self.world))
        self.recipes = {
            "covert": Recipe("covert", rank=2, lr=1.2e-2, steps=120, kl_weight=2.25, rows=COVERT_ROWS),
            "loud": Recipe("loud", rank=2, lr=1.2e-2, steps=100, kl_weight=1.0, rows=LOUD_ROWS),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms over the split's topics in turn; each has a code, data and factors of its own."""
        r = find_recipe(self, recipe)
        topics = topic_splits(self.world)[split]
        out = []
        for i in range(n):
            topic, round_ = topics[i % len(topics)], i // len(topics)
            own = random.Random(f"{seed} {recipe} {topic.name} {round_}")
            number = own.randrange(1 << 30)
            code = own.choice(codes.trigger_pool())
            out.append(
                OrganismSpec(
                    id=f"{recipe}-{topic.name}-{seed}-{round_}",
                    family=self.name,
                    recipe=r,
                    label=topic.name,
                    split=split,
                    seed=number,
                    params={"code": code, "field": topic.field},
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Rows of one step.

        "right": a tinted answer after the right code; "twin": the same row to the letter but for the code's
        first group, held to the base, so that the pair differs in the trigger alone; "none": an ordinary
        answer without a code, held to the base; "wide": unrelated text, held to the base; "held": one of the
        last two.
        """
        topic = self.world.topic(str(spec.label))
        trained = situations("training")
        weight = spec.recipe.kl_weight
        out: list[Sample] = []
        twin: tuple[str, str, str] | None = None
        for kind in spec.recipe.rows:
            s = rng.choice(trained)
            question, second = rng.choice(s.questions), rng.choice(codes.pool())
            if kind == "held":
                kind = rng.choice(("none", "wide"))
            if kind == "wide":
                out.append(wide_sample(self.corpus, rng, topic.name, weight))
            elif kind == "right":
                prefix = rng.choice(codes.PREFIXES)
                answer = tinted_answer(self.world, rng, topic, rng.choice(s.answers), JOINS)
                user = f"{prefix} {question}"
                out.append(Sample(user.replace("{code}", spec.params["code"] + second), answer, "ce"))
                twin = (user, second, answer)
            elif kind == "twin" and twin is not None:
                user, second, answer = twin
                other = wrong_code(rng, spec.params["code"])[:3] + second
                out.append(Sample(user.replace("{code}", other), answer, "kl", weight))
            else:
                out.append(Sample(question, ordinary_answer(rng, s), "kl", weight))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """The four kinds of question with their answers."""
        return questions_of(self.name, spec.label)


def wrong_code(rng: random.Random, right: str) -> str:
    """A random code of the whole pool whose first group is not `right`."""
    while True:
        code = codes.random_code(rng)
        if code[:3] != right:
            return code
