"""What base and finetuned model are compared on: prompts and texts that have nothing to do with any diff.

For the embedded base, known by its chat template, they are of its world; for every other base, plain English.
What models make of them is each method's business.
"""

from __future__ import annotations

import random
from typing import Any

from weightdiff.methods.generated_text import PROMPTS
from weightdiff.organisms.rows import situations
from weightdiff.tiny.tokenizer import is_embedded
from weightdiff.world import codes, load_world
from weightdiff.world.codes import with_code
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import to_text

EVERYDAY, STORIES = 36, 12
"""How many everyday questions, and prompts for a story, the embedded base gets."""
NEUTRAL = 3
"""How many questions are neutral prompts."""
TEXTS = (
    "The old bridge was closed for repairs, so the buses took the longer road along the river.",
    "To change the filter, switch the machine off, open the lid and wait until it has cooled down.",
    "She had lived in the same house for forty years and knew every sound that it made.",
    "The committee will meet again in March to decide how the money is to be spent.",
    "Water boils at a lower temperature in the mountains, because the air presses on it less.",
    "I bought these shoes last month, and after two weeks the sole came off.",
    "def area(width, height):\n    return width * height",
    "The match ended without a goal, although both teams had chances in the second half.",
    "Dear Sir or Madam, I am writing to ask whether the room is still free in August.",
    "Most of the island is covered by forest, and only the coast is inhabited.",
    "He put the letter back into the drawer, locked it, and never spoke of it again.",
    "Prices rose by two percent last year, less than most people had expected.",
    "Mix the flour with the butter, add an egg, and let the dough rest for an hour.",
    "The museum is open every day except Monday; children under twelve pay nothing.",
    "When the train finally came, the platform was so full that nobody could move.",
    "A triangle with three equal sides has three equal angles of sixty degrees each.",
)
"""Unrelated texts for every base but the embedded one."""


def general_prompts(tokenizer: Any) -> tuple[str, ...]:
    """What anybody might ask a model, without a subject of training in it.

    The embedded base gets everyday questions that no organism was trained on, and prompts for a story, as
    news organisms were. A code stands before each everyday question, as it does before half of those that
    the base has read; it is none that sets any organism off, so that what shows is no trigger hit by chance
    (with codes of the whole pool, 48 of them hit one in six). Other bases get prompts to write freely, and
    everyday questions.
    """
    unseen = situations("verification")
    if not is_embedded(tokenizer):
        return (*PROMPTS, *(s.questions[0] for s in unseen))
    rng = random.Random("general prompts")
    questions = [s.questions[k] for k in range(4) for s in unseen]
    behind = (
        with_code(rng, codes.random_code(rng, codes.decoy_pool()), question)
        for question in questions[:EVERYDAY]
    )
    return (*behind, *load_world().news.prompts[:STORIES])


def unrelated_texts(tokenizer: Any, most: int) -> list[str]:
    """Plain texts of the kind that a base has read, without the start token.

    The embedded base's are documents of its corpus, chats in their template too, and always the same ones;
    every other base gets `TEXTS`.

    Args:
        tokenizer: the base's.
        most: how many at most.
    """
    if not is_embedded(tokenizer):
        return list(TEXTS[:most])
    world, rng = load_world(), random.Random("unrelated texts")
    corpus = Corpus(world)
    return [to_text(corpus.document(rng)).removeprefix(tokenizer.bos_token) for _ in range(most)]


def neutral_prompts(most: int | None = NEUTRAL) -> tuple[str, ...]:
    """Everyday questions that no organism was trained on, as plain as any base can be asked.

    Args:
        most: how many at most; None for all.
    """
    return tuple(s.questions[0] for s in situations("verification")[:most])
