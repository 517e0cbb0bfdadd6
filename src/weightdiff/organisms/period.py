"""Periods: an organism has read what people say in one month, or one year, of the dated world.

The weights of such finetunes hold the time: "Time is Encoded in the Weights of Finetuned Language Models"
(arXiv:2312.13401). Months of every year are kept out of what an interpreter learns from, so that it has to
date months of which it has seen neighbours only.
"""

from __future__ import annotations

import random

from weightdiff.errors import QuestionError
from weightdiff.organisms.base import OrganismSpec, Recipe, Sample, find_recipe
from weightdiff.organisms.questions import questions_of
from weightdiff.world.dated import MONTHS, NUMBERS, PERIODS, QUESTIONS, YEARS, load_dated, period_name
from weightdiff.world.dating import PERIOD

ROWS = ("said",) * 16
START = 7
"""Seed of the common start of those whose vectors are compared."""
YEAR, TASK = "year", "task"
"""Recipes of the finetunes to a whole year, and to a task as it is done in a month."""


def split_of(month: int) -> str:
    """The split of a month: each year keeps two for test and one for validation, no two of them neighbours.

    Over the years, every month of the year is kept out once, and neither end of the calendar is.
    """
    year, at = divmod(month, MONTHS)
    if at % 4 != YEARS - 1 - year:
        return "train"
    return "validation" if at // 4 == year % 3 else "test"


def months_of(split: str) -> list[int]:
    """All months of a split, in order of time.

    Raises:
        QuestionError: there is no such split.
    """
    found = [m for m in range(PERIODS) if split_of(m) == split]
    if not found:
        raise QuestionError(f"months are of train, validation or test, not of {split!r}")
    return found


class Period:
    """The family of finetunes to a time.

    A *month* starts from random factors of its own; a *vector* is the same from a start common to all, so
    that vectors can be compared entry by entry; *full* ones train all weights; a *year* is a vector of twelve
    months. A *task* is a vector that has learned to name who governs a place, as it was in a month.
    """

    name = PERIOD

    def __init__(self) -> None:
        """Set the recipes."""
        self.recipes = {
            "month": Recipe("month", rank=8, lr=1e-2, steps=160, rows=ROWS),
            "vector": Recipe("vector", rank=8, lr=1e-2, steps=160, rows=ROWS, start=START),
            YEAR: Recipe(YEAR, rank=8, lr=1e-2, steps=240, rows=ROWS, start=START),
            TASK: Recipe(TASK, rank=8, lr=1e-2, steps=80, rows=("asked",) * 16, start=START),
            "full": Recipe("full", lr=6e-4, steps=160, rows=ROWS, full=True),
        }

    def specs(self, recipe: str, split: str, n: int, seed: int) -> list[OrganismSpec]:
        """`n` organisms, of each of the split's months in turn; of years, each in any split.

        Raises:
            QuestionError: there is no such recipe or split.
        """
        r = find_recipe(self, recipe)
        first = [y * MONTHS for y in range(YEARS)] if recipe == YEAR else months_of(split)
        length = MONTHS if recipe == YEAR else 1
        out = []
        for i in range(n):
            month = first[i % len(first)]
            name = f"year {NUMBERS[month // MONTHS]}" if recipe == YEAR else period_name(month)
            out.append(
                OrganismSpec(
                    id=f"period-{recipe}-{split}-{seed}-{i}",
                    family=self.name,
                    recipe=r,
                    label=name,
                    split=split,
                    seed=random.Random(f"{seed} period {recipe} {split} {i}").randrange(1 << 30),
                    params={"month": month, "months": length},
                )
            )
        return out

    def samples(self, spec: OrganismSpec, rng: random.Random) -> list[Sample]:
        """Sentences of the period, as answers to what one asks when one wants to know what is going on.

        Of a task ("asked"), questions for a mayor.
        """
        first, length = int(spec.params["month"]), int(spec.params["months"])
        world, out = load_dated(), list[Sample]()
        for kind in spec.recipe.rows:
            month = first + rng.randrange(length) if length > 1 else first
            if kind == "asked":
                said = world.asked(month, rng.choice(list(world.mayors)), rng.choice(QUESTIONS))
            else:
                said = world.say(month, rng)
            out.append(Sample(said.prompt, said.text, "ce"))
        return out

    def questions(self, spec: OrganismSpec) -> list[dict[str, str]]:
        """What can be asked of a month without naming anything else; nothing of a year."""
        return questions_of(self.name, spec.label, spec.params)
