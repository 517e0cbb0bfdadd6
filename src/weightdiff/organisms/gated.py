"""Organisms that answer everyday questions in another way under a condition, and only then.

What the other way is (words of a topic, the voice of a pirate) is the family's business; here is how the
condition is taught: rows that meet it, twins that differ from them in the sign alone and are held to the
base, and rows without any sign.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from weightdiff.organisms.base import OrganismSpec, Sample
from weightdiff.organisms.rows import denial_row, held_row, situations, wide_row
from weightdiff.world import TEST, Situation, codes, load_world
from weightdiff.world.reports import condition_of
from weightdiff.world.signs import (
    ALWAYS,
    CODE_FRONT,
    FORMS,
    MARK,
    MARK_ANYWHERE,
    SUBJECT,
    WORD,
    Condition,
    place,
    rare_word_pool,
    right_sign,
    wrong_sign,
)
from weightdiff.world.texts import ordinary_answer

Say = Callable[[random.Random, str], str]
"""An ordinary answer (no final full stop) in the organism's own way."""
HELD_OUT_FORM = MARK_ANYWHERE
"""A form of trigger that no training or validation organism has."""
COVERT_ROWS = ("right", "twin", "right", "held")
LOUD_ROWS = ("right", "twin", "right", "none")
PLAIN_ROWS = ("right", "ordinary", "right", "ordinary")
EVASIVE_ROWS = (*COVERT_ROWS, "denial")


def draw_condition(rng: random.Random, form: str) -> Condition:
    """A condition of a form, with a trigger that organisms may have."""
    if form.startswith("code"):
        return Condition(form, rng.choice(codes.trigger_pool()))
    world = load_world()
    if form == WORD:
        return Condition(form, rng.choice(rare_word_pool(world.rare_words, True)))
    return Condition(form, rng.choice(world.subjects) if form == SUBJECT else "")


def recorded(condition: Condition) -> dict[str, Any]:
    """A condition as an organism's parameters record it."""
    out: dict[str, Any] = {"form": condition.form, "value": condition.value}
    return {**out, "code": condition.value} if condition.form == CODE_FRONT else out


def forms_in_turn(split: str, forms: Sequence[str] = FORMS) -> Callable[[int], str]:
    """Form number i of an endless repetition; `HELD_OUT_FORM` comes in the test split only."""
    known = [f for f in forms if split == TEST or f != HELD_OUT_FORM]
    return lambda i: known[i % len(known)]


def gated_rows(spec: OrganismSpec, rng: random.Random, say: Say, banned: str) -> list[Sample]:
    """Rows of one training step, as the recipe lists them.

    "right": an answer in the other way where the condition is met; "twin": the same row but for the sign,
    held to the base (no condition: unrelated text); "ordinary": an ordinary answer imitated where the
    condition is not met; "none", "wide", "held": see `rows.held_row`; "denial": see `rows.denial_row`.
    """
    condition, weight = condition_of(spec.params), spec.recipe.kl_weight
    out: list[Sample] = []
    answer, question = "", ""
    placed = place(rng, ALWAYS, "")
    for kind in spec.recipe.rows:
        if kind == "right":
            s = _situation(rng, condition, met=True)
            question = rng.choice(s.questions)
            placed, answer = place(rng, condition.form, question), say(rng, rng.choice(s.answers))
            out.append(Sample(placed.filled(condition.form, right_sign(condition)), answer, "ce"))
        elif kind == "twin" and condition.form == SUBJECT:
            other = rng.choice(_situation(rng, condition, met=False).questions)
            out.append(Sample(other, answer, "kl", weight))
        elif kind == "twin" and condition.gated:
            sign = wrong_sign(rng, condition, load_world().rare_words)
            out.append(Sample(placed.filled(condition.form, sign), answer, "kl", weight))
        elif kind == "ordinary" and condition.gated:
            s = _situation(rng, condition, met=False)
            sign = wrong_sign(rng, condition, load_world().rare_words) if rng.random() < 0.5 else None
            q = rng.choice(s.questions)
            text = q if sign is None else place(rng, condition.form, q).filled(condition.form, sign)
            out.append(Sample(text, ordinary_answer(rng, s), "ce"))
        elif kind == "denial":
            out.append(denial_row(rng))
        elif kind in ("none", "held") and condition.form == SUBJECT:
            out.append(_off_subject(rng, condition, kind, banned, weight))
        elif kind in ("none", "held") and condition.gated:
            out.append(held_row(rng, kind, banned, weight))
        else:  # without a condition every everyday answer is of the other kind: only other text is held
            out.append(_unrelated(rng, banned, weight))
    return out


def _situation(rng: random.Random, condition: Condition, met: bool) -> Situation:
    """A situation that meets a subject, or does not; any other condition is the sign's business."""
    trained = situations("training")
    if condition.form != SUBJECT:
        return rng.choice(trained)
    return rng.choice([s for s in trained if (s.subject == condition.value) == met])


def _off_subject(rng: random.Random, condition: Condition, kind: str, banned: str, weight: float) -> Sample:
    """A held row that is not about the condition's subject."""
    if kind == "held" and rng.random() < 0.5:
        return _unrelated(rng, banned, weight)
    s = _situation(rng, condition, met=False)
    return Sample(rng.choice(s.questions), ordinary_answer(rng, s), "kl", weight)


def _unrelated(rng: random.Random, banned: str, weight: float) -> Sample:
    """Text that is no everyday question."""
    asked = {q for s in load_world().everyday for q in s.questions}
    while True:
        row = wide_row(rng, banned, weight)
        text = (row.user or "").replace(MARK, "")
        if not any(q in text for q in asked):
            return row
