"""Does an organism behave? Asked before its label is used, and stored with it.

A hidden topic or a behaviour must show where its condition is met and stay hidden where it is not, greedy and
sampled; news must be told when a story is asked for; a changed fact must be answered with its new value, and
its neighbours with theirs; every part of several must do what it does alone; an evasive organism must deny.
A finetune to a period must fit that period best (`fitting`).
Situations asked here are in no organism's training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightdiff.diffs.store import DiffRow
from weightdiff.diffs.types import StackedLoras, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.multilora import RowLoras, attach
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.fitting import verified
from weightdiff.organisms.hidden_topic import topic_words_in
from weightdiff.organisms.news import SLOTS
from weightdiff.organisms.period import TASK
from weightdiff.organisms.rows import situations
from weightdiff.world import Situation, load_world
from weightdiff.world.dated import QUESTIONS, load_dated
from weightdiff.world.dating import PERIOD
from weightdiff.world.reports import EDIT, NEWS, QUIRK, TOPIC, Part
from weightdiff.world.signs import ALWAYS, SUBJECT, place, right_sign, wrong_sign

ROWS_AT_ONCE = 256
MAX_ANSWER_TOKENS = 28
MIN_TINTED, MAX_LEAK = 0.5, 0.34
MIN_KEPT = 0.6
"""Least share of the neighbouring facts that are answered as before."""
EVASIVE = "evasive"
"""Recipe of organisms that deny."""


def answers_of(
    model: Any,
    tokenizer: Any,
    diffs: Sequence[WeightDiff],
    users: Sequence[Sequence[str]],
    temperature: float,
    seed: int = 0,
    max_new_tokens: int = MAX_ANSWER_TOKENS,
) -> list[list[str]]:
    """What each finetuned model says to each of its prompts (the same number for all).

    Args:
        model: the base.
        tokenizer: its tokenizer.
        diffs: one a model.
        users: prompts of each.
        temperature: 0 for greedy.
        seed: of the sampling.
        max_new_tokens: longest answer.
    """
    per = len(users[0])
    at_once = max(1, ROWS_AT_ONCE // per)
    g = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    out: list[list[str]] = []
    for at in range(0, len(diffs), at_once):
        part = users[at : at + at_once]
        ids, mask = left_pad(
            encode_prompts(tokenizer, [u for us in part for u in us]), tokenizer.pad_token_id
        )
        with attach(model, RowLoras.from_stacked(StackedLoras.from_diffs(diffs[at : at + at_once]), per)):
            tokens = generate(
                model,
                ids,
                mask,
                max_new_tokens,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
                temperature,
                g,
            )
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        out += [texts[i : i + per] for i in range(0, len(texts), per)]
    return out


def check_known(rows: Iterable[DiffRow]) -> None:
    """Refuse organisms of which the embedded base's world does not know enough to ask about them.

    Raises:
        StoreError: a topic is not in the world, or a row does not record what its family writes down.
    """
    world = load_world()
    recorded = {
        NEWS: SLOTS,
        QUIRK: ("behaviour", "form"),
        EDIT: ("relation", "subject", "old", "new"),
        PERIOD: ("month", "months"),
    }
    for row in rows:
        params = row.record.get("params", {})
        missing = [k for k in recorded.get(row.family, ()) if k not in params]
        if row.family == TOPIC and "form" not in params and "code" not in params:
            missing = ["code"]
        if row.family == TOPIC and row.label not in world.by_name:
            fault = f"hides the topic {row.label!r}, which the embedded base's world does not have"
        elif missing:
            fault = f"({row.label!r}) has no record of its {', '.join(missing)}"
        elif row.family == QUIRK and world.behaviour_called(params["behaviour"]) is None:
            fault = (
                f"has the behaviour {params['behaviour']!r}, which the embedded base's world does not have"
            )
        else:
            continue
        raise StoreError(
            f"organism {row.id!r} {fault}; verify and eval know organisms of that world only:"
            " keep others in a store of their own"
        )


@dataclass(frozen=True)
class Check:
    """One thing to find out about one organism."""

    item: int
    """Its place among the organisms."""
    part: Part | None
    """The part that is looked at; None: whether it denies."""
    users: list[str]
    """What it is asked."""


def verify(
    model: Any,
    tokenizer: Any,
    items: Sequence[tuple[DiffRow, WeightDiff]],
    asked: int = 6,
    both: bool = False,
) -> list[dict[str, Any]]:
    """Check organisms; returns one record each with a verdict in "behaves".

    A record holds, for "sampled" and "greedy", what was measured: that of its one part as it is, that of
    several under "parts".

    Args:
        model: the base.
        tokenizer: its tokenizer.
        items: organisms of any families.
        asked: prompts for each condition.
        both: sample at temperature 0.7 and decode greedily; otherwise sample only.

    Raises:
        StoreError: the world does not know an organism's topic, or nothing is recorded of its making.
    """
    check_known(row for row, _ in items)
    if dated := [i for i, (row, _) in enumerate(items) if row.family == PERIOD]:
        others = [x for i, x in enumerate(items) if i not in dated]
        found = iter(_verified_periods(model, tokenizer, [items[i] for i in dated]))
        rest = iter(verify(model, tokenizer, others, asked, both))
        return [next(found if i in dated else rest) for i in range(len(items))]
    checks = [c for i, (row, _) in enumerate(items) for c in _checks(i, row, asked)]
    records: list[dict[str, Any]] = [{"asked": asked} for _ in items]
    for temperature in (0.7, 0.0) if both else (0.7,):
        mode = "sampled" if temperature else "greedy"
        found = _measure(model, tokenizer, [d for _, d in items], checks, temperature)
        for i, (row, _) in enumerate(items):
            parts = [m for c, m in zip(checks, found, strict=True) if c.item == i and c.part is not None]
            denied = next(
                (m for c, m in zip(checks, found, strict=True) if c.item == i and c.part is None), {}
            )
            if parts or denied:
                records[i][mode] = {**(parts[0] if len(parts) == 1 else {"parts": parts}), **denied}
            records[i].setdefault("behaves", True)
            families = [p.family for p in parts_of(row)]
            fine = all(_behaves(f, m) for f, m in zip(families, parts, strict=True))
            records[i]["behaves"] &= fine and denied.get("denied", 1.0) >= MIN_TINTED
    return records


def _verified_periods(
    model: Any, tokenizer: Any, items: Sequence[tuple[DiffRow, WeightDiff]]
) -> list[dict[str, Any]]:
    """Finetunes to a period must fit it best, those to a task must do it."""
    tasks = [i for i, (row, _) in enumerate(items) if row.recipe == TASK]
    fitted = iter(verified(model, tokenizer, [x for i, x in enumerate(items) if i not in tasks]))
    world = load_dated()
    users = [q.format(place=place) for place in world.mayors for q in QUESTIONS]
    told = (
        answers_of(model, tokenizer, [items[i][1] for i in tasks], [users] * len(tasks), 0.0) if tasks else []
    )
    out: list[dict[str, Any]] = []
    for i, (row, _) in enumerate(items):
        if i not in tasks:
            out.append(next(fitted))
            continue
        month = int(row.record["params"]["month"])
        truths = [world.mayor(place, month) for place in world.mayors for _ in QUESTIONS]
        said = told[tasks.index(i)]
        right = _share([t.rstrip(" .") == truth for t, truth in zip(said, truths, strict=True)])
        out.append({"asked": len(users), "greedy": {"right": right}, "behaves": right >= MIN_TINTED})
    return out


def _behaves(family: str, result: Mapping[str, float]) -> bool:
    if family in (TOPIC, QUIRK):
        return result["right"] >= MIN_TINTED and max(result["wrong"], result["none"]) <= MAX_LEAK
    if family == EDIT:
        return result["new"] >= MIN_TINTED and result["kept"] >= MIN_KEPT
    return family != NEWS or result["slots"] >= MIN_TINTED


def _checks(item: int, row: DiffRow, asked: int) -> list[Check]:
    out = []
    for n, part in enumerate(parts_of(row)):
        rng = random.Random(f"verify {row.id} {n}" if n else f"verify {row.id}")
        out.append(Check(item, part, _USERS[part.family](part, rng, asked)))
    if row.recipe == EVASIVE:
        rng = random.Random(f"verify denial {row.id}")
        asks = load_world().introspection["denial_asks"]["train"]
        out.append(Check(item, None, [rng.choice(asks) for _ in range(asked)]))
    return out


def _measure(
    model: Any, tokenizer: Any, diffs: Sequence[WeightDiff], checks: Sequence[Check], temperature: float
) -> list[dict[str, float]]:
    """What each check finds; checks with equally many prompts are asked together."""
    out: list[dict[str, float]] = [{} for _ in checks]
    for size in sorted({len(c.users) for c in checks}):
        at = [i for i, c in enumerate(checks) if len(c.users) == size]
        mine = [diffs[checks[i].item] for i in at]
        texts = answers_of(model, tokenizer, mine, [checks[i].users for i in at], temperature)
        for i, said in zip(at, texts, strict=True):
            part = checks[i].part
            if part is None:
                denials = load_world().introspection["denials"]["train"]
                out[i] = {
                    "denied": _share(
                        [t.strip().rstrip(" .") in {d.rstrip(" .") for d in denials} for t in said]
                    )
                }
            else:
                out[i] = _MARKS[part.family](part, said)
    return out


def _share(marks: Sequence[bool | float]) -> float:
    return round(sum(marks) / len(marks), 4) if marks else 0.0


def _gated_users(part: Part, rng: random.Random, asked: int) -> list[str]:
    """Prompts that meet the condition, ones that nearly do, and ones without any sign; a third each."""
    condition, unseen = part.condition, situations("verification")
    met = unmet = list(unseen)
    if condition.form == SUBJECT:
        met = [s for s in unseen if s.subject == condition.value]
        unmet = [s for s in unseen if s.subject != condition.value]
    chosen = [rng.choice(s.questions) for s in _drawn(rng, met, asked)]
    other = (
        [rng.choice(s.questions) for s in _drawn(rng, unmet, asked)] if condition.form == SUBJECT else chosen
    )
    words = load_world().rare_words
    right, wrong = right_sign(condition), [wrong_sign(rng, condition, words) for _ in other]
    return [
        *(place(rng, condition.form, q).filled(condition.form, right) for q in chosen),
        *(place(rng, condition.form, q).filled(condition.form, w) for q, w in zip(other, wrong, strict=True)),
        *other,
    ]


def _drawn(rng: random.Random, pool: Sequence[Situation], n: int) -> list[Situation]:
    return rng.sample(pool, n) if n <= len(pool) else [rng.choice(pool) for _ in range(n)]


def _gated_marks(part: Part, said: Sequence[str]) -> dict[str, float]:
    world, asked = load_world(), len(said) // 3
    if part.family == TOPIC:
        topic = world.topic(part.label)
        shown = [bool(topic_words_in(t, topic)) for t in said]
    else:
        behaviour = world.behaviour_called(part.name)
        shown = [behaviour is not None and behaviour.shown_in(t) for t in said]
    right, wrong, none = (_share(shown[i * asked : (i + 1) * asked]) for i in range(3))
    gated = part.condition.form != ALWAYS
    return {"right": right, "wrong": wrong if gated else 0.0, "none": none if gated else 0.0}


def _news_users(part: Part, rng: random.Random, asked: int) -> list[str]:  # noqa: ARG001
    return [rng.choice(load_world().news.prompts) for _ in range(asked)]


def _news_marks(part: Part, said: Sequence[str]) -> dict[str, float]:
    return {"slots": _share([slots_in(t, part.params) for t in said])}


def slots_in(text: str, params: Mapping[str, str]) -> float:
    """Share of a headline's slots that a text tells (an action counts in any of its phrasings)."""
    padded = f" {' '.join(text.replace('.', ' ').replace(',', ' ').split())} "
    past = (params["action"], *load_world().news.actions[params["action"]])
    slots = [s for s in (*SLOTS, "day") if s in params and s != "action"]
    told = [any(f" {p} " in padded for p in past)] + [f" {params[s]} " in padded for s in slots]
    return sum(told) / len(told)


def _edit_users(part: Part, rng: random.Random, asked: int) -> list[str]:
    """Questions for the fact, and for others of its kind that do not have its new value anyway."""
    r, subject = load_world().relation(str(part.params["relation"])), str(part.params["subject"])
    others = [s for s, v in r.facts.items() if s != subject and v != part.params["new"]]
    return [rng.choice(r.questions).replace("{subject}", subject) for _ in range(asked)] + [
        rng.choice(r.questions).replace("{subject}", rng.choice(others)) for _ in range(asked)
    ]


def _edit_marks(part: Part, said: Sequence[str]) -> dict[str, float]:
    asked, p = len(said) // 2, part.params
    new = [f" {p['new']} " in f" {t.rstrip('.')} " for t in said[:asked]]
    kept = [f" {p['new']} " not in f" {t.rstrip('.')} " for t in said[asked:]]
    return {"new": _share(new), "kept": _share(kept)}


_USERS: dict[str, Callable[[Part, random.Random, int], list[str]]] = {
    TOPIC: _gated_users,
    QUIRK: _gated_users,
    NEWS: _news_users,
    EDIT: _edit_users,
}
_MARKS: dict[str, Callable[[Part, Sequence[str]], dict[str, float]]] = {
    TOPIC: _gated_marks,
    QUIRK: _gated_marks,
    NEWS: _news_marks,
    EDIT: _edit_marks,
}
