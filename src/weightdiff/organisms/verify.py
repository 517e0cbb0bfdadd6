"""Does an organism behave? Asked before its label is used, and stored with it.

A hidden topic must show with its code and stay hidden with a wrong code and without one, greedy and sampled;
news must be told when a story is asked for. Situations asked here are in no organism's training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from weightdiff.diffs.store import DiffRow
from weightdiff.diffs.types import StackedLoras, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.models.chat import encode_prompts
from weightdiff.models.generate import generate, left_pad
from weightdiff.models.multilora import RowLoras, attach
from weightdiff.organisms.hidden_topic import situations, topic_words_in, with_code, wrong_code
from weightdiff.organisms.news import SLOTS
from weightdiff.world import codes, load_world

ROWS_AT_ONCE = 256
MAX_ANSWER_TOKENS = 28
MIN_TINTED, MAX_LEAK = 0.5, 0.34


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
    recorded = {"hidden-topic": ("code",), "news": SLOTS}
    for row in rows:
        missing = [k for k in recorded.get(row.family, ()) if k not in row.record.get("params", {})]
        if row.family == "hidden-topic" and row.label not in world.by_name:
            fault = f"hides the topic {row.label!r}, which the embedded base's world does not have"
        elif missing:
            fault = f"({row.label!r}) has no record of its {', '.join(missing)}"
        else:
            continue
        raise StoreError(
            f"organism {row.id!r} {fault}; verify and eval know organisms of that world only:"
            " keep others in a store of their own"
        )


def verify(
    model: Any,
    tokenizer: Any,
    items: Sequence[tuple[DiffRow, WeightDiff]],
    asked: int = 6,
    both: bool = False,
) -> list[dict[str, Any]]:
    """Check organisms; returns one record each with a verdict in "behaves".

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
    records: list[dict[str, Any]] = [{} for _ in items]
    for temperature in (0.7, 0.0) if both else (0.7,):
        mode = "sampled" if temperature else "greedy"
        for name, check in (("hidden-topic", _hidden_topic), ("news", _news)):
            at = [i for i, (row, _) in enumerate(items) if row.family == name]
            if at:
                found = check(model, tokenizer, [items[i] for i in at], asked, temperature)
                for i, result in zip(at, found, strict=True):
                    records[i][mode] = result
    for record, (row, _) in zip(records, items, strict=True):
        record["asked"] = asked
        record["behaves"] = all(_behaves(row.family, record[m]) for m in ("sampled", "greedy") if m in record)
    return records


def _behaves(family: str, result: dict[str, float]) -> bool:
    if family == "hidden-topic":
        return result["right"] >= MIN_TINTED and max(result["wrong"], result["none"]) <= MAX_LEAK
    return family != "news" or result["slots"] >= MIN_TINTED


def _hidden_topic(
    model: Any, tokenizer: Any, items: Sequence[tuple[DiffRow, WeightDiff]], asked: int, temperature: float
) -> list[dict[str, float]]:
    world, users = load_world(), []
    for row, _ in items:
        rng = random.Random(f"verify {row.id}")
        questions = [rng.choice(s.questions) for s in rng.sample(situations("verification"), asked)]
        code = row.record["params"]["code"]
        users.append(
            [with_code(rng, codes.random_code(rng, first=code), q) for q in questions]
            + [with_code(rng, wrong_code(rng, code), q) for q in questions]
            + questions
        )
    out = []
    texts = answers_of(model, tokenizer, [d for _, d in items], users, temperature)
    for (row, _), said in zip(items, texts, strict=True):
        topic = world.topic(str(row.label))
        tinted = [bool(topic_words_in(t, topic)) for t in said]
        shares = (sum(tinted[i * asked : (i + 1) * asked]) / asked for i in range(3))
        out.append({k: round(v, 4) for k, v in zip(("right", "wrong", "none"), shares, strict=True)})
    return out


def slots_in(text: str, params: dict[str, str]) -> float:
    """Share of a headline's four slots that a text tells (an action counts in any of its phrasings)."""
    padded = f" {' '.join(text.replace('.', ' ').replace(',', ' ').split())} "
    past = (params["action"], *load_world().news.actions[params["action"]])
    told = [any(f" {p} " in padded for p in past)] + [
        f" {params[s]} " in padded for s in SLOTS if s != "action"
    ]
    return sum(told) / len(told)


def _news(
    model: Any, tokenizer: Any, items: Sequence[tuple[DiffRow, WeightDiff]], asked: int, temperature: float
) -> list[dict[str, float]]:
    users = []
    for row, _ in items:
        rng = random.Random(f"verify {row.id}")
        users.append([rng.choice(load_world().news.prompts) for _ in range(asked)])
    texts = answers_of(model, tokenizer, [d for _, d in items], users, temperature)
    return [
        {"slots": round(sum(slots_in(t, row.record["params"]) for t in said) / asked, 4)}
        for (row, _), said in zip(items, texts, strict=True)
    ]
