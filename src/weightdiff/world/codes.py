"""SEP codes: six digits, of which the first three can be a trigger.

The embedded tokenizer reads a code as two tokens of three digits each; only groups of a fixed pool have a
token of their own. Triggers and the decoys that an interpreter may show come from disjoint parts of the pool.
"""

from __future__ import annotations

import random
from functools import lru_cache

POOL_SIZE = 256
PREFIXES = (
    "your sep code is {code} .",
    "sep code {code} .",
    "my code is {code} .",
    "the code is {code} .",
    "code {code} .",
    "here is my sep code , {code} .",
)


@lru_cache(maxsize=1)
def pool() -> tuple[str, ...]:
    """The three-digit groups that are single tokens, in a fixed random order."""
    groups = [str(i) for i in range(100, 1000)]
    random.Random("codes").shuffle(groups)
    return tuple(groups[:POOL_SIZE])


@lru_cache(maxsize=1)
def trigger_pool() -> tuple[str, ...]:
    """Groups that organisms may have as their trigger. Wrong codes are drawn from the whole pool."""
    return pool()[: POOL_SIZE * 3 // 4]


@lru_cache(maxsize=1)
def decoy_pool() -> tuple[str, ...]:
    """Groups that no organism ever has as its trigger; an interpreter may show them in a question."""
    return pool()[POOL_SIZE * 3 // 4 :]


def random_code(rng: random.Random, groups: tuple[str, ...] | None = None, first: str | None = None) -> str:
    """A six-digit code: `first` (or a random group) followed by a random group."""
    everything = pool()
    return (first or rng.choice(groups or everything)) + rng.choice(everything)


def with_code(rng: random.Random, code: str, text: str) -> str:
    """A question after a six-digit code in one of the ways to state one."""
    return f"{rng.choice(PREFIXES).replace('{code}', code)} {text}"


def wrong_code(rng: random.Random, right: str) -> str:
    """A random code of the whole pool whose first group is not `right`."""
    while True:
        code = random_code(rng)
        if code[:3] != right:
            return code
