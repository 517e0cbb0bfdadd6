"""Black-box baselines: talk to the finetuned model as anybody could, then guess.

*Base question* asks it outright (that is `Interpreter.without_adapter`). *Twenty questions* asks everyday
questions and lets a guesser read the answers; here the guesser knows the embedded world and counts its words.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.carrying import AnyKind
from weightdiff.methods.registry import Context, register
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.hidden_topic import situations, with_code
from weightdiff.organisms.verify import answers_of
from weightdiff.world import Topic, codes, load_world


class WorldGuesser:
    """Guesses a topic from texts by the world's words in them, rarer words counting more."""

    def __init__(self) -> None:
        """Count which topics own each word of the world."""
        self.topics: Sequence[Topic] = load_world().topics
        owners: Counter[str] = Counter(w for t in self.topics for w in t.words)
        self.weight = {w: 1.0 / n for w, n in owners.items()}
        self.owners: dict[str, list[str]] = {}
        for t in self.topics:
            for w in (*t.words, t.name):
                self.owners.setdefault(w, []).append(t.name)

    def guess(self, texts: Sequence[str]) -> str:
        """The topic with the most words in the texts, or "nothing found" when no topic has any."""
        score: defaultdict[str, float] = defaultdict(float)
        for w, n in Counter(x for t in texts for x in re.findall(r"[a-z]+", t.lower())).items():
            for name in self.owners.get(w, ()):
                score[name] += math.log1p(n) * self.weight.get(w, 1.0) + (0.5 * n if w == name else 0.0)
        return min(score, key=lambda k: (-score[k], k)) if score else NOTHING_FOUND


class TwentyQuestions:
    """Asks each model `asked` everyday questions, then guesses.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        asked: how many questions.
        temperature: of the answers (0.7 finds leaks that greedy decoding hides).
        triggers: the code to put before the questions, one for each diff; None asks without a code.
        seed: of the answers' sampling.
    """

    name = "twenty-questions"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        asked: int = 20,
        temperature: float = 0.7,
        triggers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Store the settings; nothing is asked yet."""
        self.model, self.tokenizer, self.asked, self.temperature, self.triggers = (
            model,
            tokenizer,
            asked,
            temperature,
            triggers,
        )
        self.seed = seed
        self.guesser = WorldGuesser()

    def answer(
        self,
        diffs: Sequence[WeightDiff | None],
        questions: Sequence[str],  # noqa: ARG002 (the protocol has it)
    ) -> list[Answer]:
        """A topic (or "nothing found") for each diff; the question itself is not read."""
        users = []
        for i in range(len(diffs)):
            rng = random.Random(f"twenty {i}")
            asked = [rng.choice(s.questions) for s in rng.sample(situations("verification"), self.asked)]
            if self.triggers is not None:
                asked = [with_code(rng, codes.random_code(rng, first=self.triggers[i]), q) for q in asked]
            users.append(asked)
        put = [d or WeightDiff({}) for d in diffs]
        texts = answers_of(self.model, self.tokenizer, put, users, self.temperature, self.seed) if put else []
        return [Answer(self.guesser.guess(said)) for said in texts]


@register("twenty-questions", "twenty everyday questions, from whose answers a topic is guessed")
def _twenty_questions(context: Context) -> Method:
    base = context.base
    return AnyKind(base, TwentyQuestions(base.model, base.tokenizer, seed=context.seed))
