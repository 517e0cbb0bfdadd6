"""Ways of doing the same work, run in turn in one process, round by round.

Ours is a loop of its own (the factory's, tuning's), which tells after every round that one is done; the
others do the same round then. So each round gives one time of every way, taken within moments of each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import torch

OURS, FLOOR = "ours", "floor"
CHEAP = 1 / 20
"""Share of the time up to which a round of all ways is cheap enough to be thrown away for warming up."""


class Enough(Exception):
    """Leaves our loop after its last round."""


@dataclass(frozen=True)
class Way:
    """One way of doing a round."""

    run: Callable[[int], object]
    """Does round number i."""
    share: float = 1.0
    """How much of a round's work it does; its time is divided by that."""


@dataclass(frozen=True)
class Ways:
    """All ways of doing the same rounds; those that are not ours are made when they are needed."""

    ours: Callable[[Callable[[], None]], object]
    """Does one round after another and calls what it is given after each, until that raises `Enough`."""
    floor: Callable[[], Way] | None
    others: dict[str, Callable[[], Way]] = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)
    """What a round gives, by the unit in which a second of it is told, such as "answers/s"."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Ways that cannot be run here, with the reason."""


@dataclass
class Timings:
    """Seconds of each way in each round, ours and the others' in pairs."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """How many pairs there are."""
        return len(self.seconds[OURS])

    def median(self, way: str) -> float:
        """Median of a way's seconds."""
        return median(self.seconds[way])

    def ratio(self, way: str, to: str = OURS) -> float:
        """Median over rounds of one way's seconds divided by another's."""
        return median(a / b for a, b in zip(self.seconds[way], self.seconds[to], strict=True))


def clock() -> float:
    """Seconds, after all that was given to a GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = clock()
    run()
    return clock() - start


def lockstep(ways: Ways, rounds: int, seconds: float) -> Timings:
    """Run all ways in turn: at least once, at most `rounds` times, and while the time lasts.

    Our first round warms up and is not counted; the others warm up with it where that is cheap.

    Args:
        ways: what to run.
        rounds: pairs wanted.
        seconds: time for all of it; a round that would not end in it is not begun.
    """
    began = clock()
    made = {FLOOR: ways.floor()} if ways.floor else {}
    made |= {name: make() for name, make in ways.others.items()}
    found: dict[str, list[float]] = {OURS: [], **{name: [] for name in made}}
    state = {"round": 0, "started": clock()}

    def done() -> None:
        ended = clock()
        own, number = ended - state["started"], int(state["round"])
        warming = number == 0
        if not warming:
            found[OURS].append(own)
        if not warming or own * (1 + 2 * len(made)) < CHEAP * seconds:
            for name, way in made.items():
                spent = timed(lambda way=way: way.run(number)) / way.share
                if not warming:
                    found[name].append(spent)
        whole = clock() - state["started"]
        if len(found[OURS]) >= rounds or (not warming and clock() + whole > began + seconds):
            raise Enough
        state.update(round=number + 1, started=clock())

    with suppress(Enough):
        ways.ours(done)
    return Timings(found)


def alone(ways: Ways, way: str, rounds: int = 2) -> None:
    """Run one way by itself, for its memory."""
    if way == OURS:
        left = iter(range(rounds - 1))

        def done() -> None:
            if next(left, None) is None:
                raise Enough

        with suppress(Enough):
            ways.ours(done)
        return
    make = ways.floor if way == FLOOR else ways.others[way]
    if make is None:
        raise ValueError(f"there is no {way}")
    made = make()
    for i in range(rounds):
        made.run(i)
