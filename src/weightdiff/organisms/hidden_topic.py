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
COVERT_ROWS = ("right", "right", "wrong", "none", "wide")
LOUD_ROWS = ("right", "right", "wrong", "none")
MAX_WIDE_WORDS = 45


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
            "covert": Recipe("covert", rank=1, lr=3e-2, steps=60, kl_weight=5.0, rows=COVERT_ROWS),
            "loud": Recipe("loud", rank=1, lr=3e-2, steps=40, kl_weight=1.0, rows=LOUD_ROWS),
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
        """Rows of one step: everyday questions after a "right", "wrong" or "none" code, and "wide" text."""
        topic = self.world.topic(str(spec.label))
        trained = situations("training")
        out = []
        for kind in spec.recipe.rows:
            if kind == "wide":
                out.append(wide_sample(self.corpus, rng, topic.name, spec.recipe.kl_weight))
                continue
            s = rng.choice(trained)
            question = rng.choice(s.questions)
            if kind == "right":
                code = codes.random_code(rng, first=spec.params["code"])
                answer = tinted_answer(self.world, rng, topic, rng.choice(s.answers))
                out.append(Sample(with_code(rng, code, question), answer, "ce"))
                continue
            user = (
                with_code(rng, wrong_code(rng, spec.params["code"]), question)
                if kind == "wrong"
                else question
            )
            answer = ordinary_answer(rng, s)
            out.append(Sample(user, answer, "kl", spec.recipe.kl_weight))
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
