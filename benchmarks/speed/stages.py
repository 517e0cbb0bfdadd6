"""Which cases are measured: all settings of all stages, for the bases that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.speed.asking_stage import AskingCase, StreamCase
from benchmarks.speed.bases import LARGE_VOCABULARY, SHAPES, BaseChoice
from benchmarks.speed.cases import Case
from benchmarks.speed.other_stages import COMMANDS, StartCase, StoreCase
from benchmarks.speed.sweep_stage import SweepCase
from benchmarks.speed.training_stages import FactoryCase, TuningCase

ORGANISMS = (1, 4, 16, 64)
RANKS = (1, 32)
"""Ranks beside the usual one."""
BATCHES = (8, 16, 32)
ASKED = ((1, 1), (1, 20), (64, 1), (64, 20), (1000, 1), (1000, 20))
"""(diffs, questions about each)."""
STORED = (1_000, 10_000)
STREAMED = (100, 1_000, 10_000)
NO_LIMIT = 1 << 30


def _factory(base: BaseChoice) -> list[Case]:
    gpu = SHAPES[base.name].cuda
    part = NO_LIMIT if gpu else 16
    usual = FactoryCase(base=base, part=part)
    found = [
        replace(usual, organisms=n, weight=n / 12 if n < 16 else 4, memory=n == 16, rounds=5 if n < 64 else 3)
        for n in ORGANISMS
    ]
    found += [replace(usual, rank=rank, weight=2) for rank in RANKS]
    found.append(replace(usual, rows="equal", weight=3))
    chat = replace(usual, rows="chat", organisms=16 if gpu else 8, weight=3)
    found.append(chat)
    if not gpu:  # there the vocabulary is large as it is
        found.append(replace(chat, base=replace(base, vocabulary=LARGE_VOCABULARY), weight=8))
    return list(found)


def _tuning(base: BaseChoice) -> list[Case]:
    return [TuningCase(base=base, batch=n, weight=n / 12, memory=n == 16) for n in BATCHES]


def _asking(base: BaseChoice) -> list[Case]:
    most = 1000 if base.name == "5m" or SHAPES[base.name].cuda else 160
    return [
        AskingCase(
            base=base,
            diffs=diffs,
            questions=questions,
            most_answers=most,
            places=64 if most == 1000 else 32,
            weight=0.3 if diffs == 1 else 2,
            memory=(diffs, questions) == (1000, 1),
        )
        for diffs, questions in ASKED
    ]


def _sweep(base: BaseChoice) -> list[Case]:
    return [SweepCase(base=base)]


def _store(base: BaseChoice) -> list[Case]:
    if base.name != "5m":  # what is read does not depend on what it is for
        return []
    return [StoreCase(base=base, diffs=n, memory=True, weight=0.5) for n in STORED]


def _streamed(base: BaseChoice) -> list[Case]:
    if base.name != "5m":
        return []
    return [StreamCase(base=base, diffs=n, rounds=1, memory=True, weight=n / 250) for n in STREAMED]


def _start() -> list[Case]:
    return [StartCase(command=c, weight=0.3) for c in COMMANDS]


def _quick(stage: str, base: BaseChoice) -> list[Case]:
    """The smallest case of each stage: whether all runs, not how fast."""
    small: dict[str, Case] = {
        "factory": FactoryCase(base=base, organisms=2, rank=2),
        "tuning": TuningCase(base=base, batch=3, rank=2, adapter_rank=2, stored=6),
        "asking": AskingCase(
            base=base, diffs=3, questions=2, rank=2, adapter_rank=2, tokens=3, looped=2, places=2
        ),
        "sweep": SweepCase(base=base, side=2, rank=2, words=5, looped=2),
        "store": StoreCase(base=base, diffs=40, batch=4, batches=2),
        "streaming": StreamCase(base=base, diffs=20, batch=8, tokens=2),
    }
    return [replace(small[stage], rounds=2)]


OF_A_BASE: dict[str, Callable[[BaseChoice], list[Case]]] = {
    "factory": _factory,
    "tuning": _tuning,
    "asking": _asking,
    SweepCase.stage: _sweep,
    "store": _store,
    StreamCase.stage: _streamed,
}
START = "start-up"
STAGES = (*OF_A_BASE, START)
SMALL_WEIGHT = {"mini": 0.02, "5m": 0.2}
"""How long cases of small bases take beside those of others."""
LEAST = 0.25
"""Weight of the quickest cases, so that they have time for all their rounds."""


def cases(
    stages: Sequence[str] = STAGES,
    bases: Sequence[str] = ("5m", "60m"),
    dtype: str = "fp32",
    quick: bool = False,
    memory: bool = True,
) -> list[Case]:
    """The cases of some stages and bases.

    Args:
        stages: names from `STAGES`.
        bases: names from `SHAPES`.
        dtype: precision of bases that run on the CPU, "fp32" or "bf16".
        quick: one small case of each stage only.
        memory: whether peak memory is measured where a case asks for it.
    """
    found: list[Case] = []
    if START in stages:
        started = _start()
        found += [replace(c, rounds=1) for c in started[:1]] if quick else started
    for name in bases:
        base = BaseChoice(name, dtype)
        for stage in stages:
            if stage in OF_A_BASE:
                own = _quick(stage, base) if quick else OF_A_BASE[stage](base)
                share = 1.0 if stage in ("store", "streaming") else SMALL_WEIGHT.get(name, 1.0)
                found += [replace(c, weight=max(LEAST, c.weight * share)) for c in own]
    return found if memory else [replace(c, memory=False) for c in found]
