"""Runs cases one after another within a time, and gives their rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.speed.bases import BaseChoice
from benchmarks.speed.cases import Case
from benchmarks.speed.lockstep import OURS, Timings, lockstep
from benchmarks.speed.memory import peak_of
from benchmarks.speed.rows import Row, rows_from
from weightdiff.methods.loading import Base


class Budget:
    """Time that is shared out by weight; what a case leaves or overdraws is shared by those after it."""

    def __init__(
        self, seconds: float, weights: Sequence[float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin now."""
        self.now, self.end, self.weights = now, now() + seconds, sum(weights)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - self.now()

    def take(self, weight: float) -> float:
        """Seconds for the next case."""
        share = weight / self.weights if self.weights > 0 else 1.0
        self.weights -= weight
        return max(0.0, self.left * min(1.0, share))


@dataclass
class Report:
    """What came of a run, apart from its rows."""

    failed: list[str] = field(default_factory=list[str])
    """Cases that ended with an error, each with it."""
    skipped: list[str] = field(default_factory=list[str])
    """Cases for which there was no time."""


def run(
    chosen: Sequence[Case], seconds: float, folder: Path, report: Report, tell: Callable[[str], None]
) -> Iterator[Row]:
    """Measure cases and yield their rows; a case that fails is told of, and the next one runs.

    Args:
        chosen: what to measure, cases of one base side by side.
        seconds: time for all of them. Each case is run once at least, until the time is up.
        folder: for files that last as long as the run.
        report: told what failed and what was skipped.
        tell: called with a line for people before each case.
    """
    budget = Budget(seconds, [c.weight for c in chosen])
    loaded: tuple[BaseChoice | None, Base | None] = (None, None)
    for number, case in enumerate(chosen, 1):
        name = f"{case.stage}, {case.base.label if case.base else 'no base'}: {case.setting}"
        if budget.left <= 0:
            report.skipped.append(name)
            continue
        tell(f"[{number}/{len(chosen)}, {max(0, budget.left) / 60:.1f} min left] {name}")
        try:
            if case.base != loaded[0]:
                loaded = (None, None)
                _collect()
                loaded = (case.base, case.build())
            yield from measure(case, loaded[1], budget.take(case.weight), folder, tell)
        except Exception as error:
            report.failed.append(f"{name}: {type(error).__name__}: {error}")
            tell(f"  failed: {report.failed[-1]}")
        _collect()


def measure(
    case: Case, base: Base | None, seconds: float, folder: Path, tell: Callable[[str], None]
) -> list[Row]:
    """One case's rows, with about this much time."""
    ways = case.ways(base, folder)
    for way, why in ways.left_out.items():
        tell(f"  {way} is left out: {why}")
    timings: Timings = lockstep(ways, case.rounds, seconds)
    others = [*ways.others, *ways.left_out]
    peaks = {w: peak_of(case, w, folder) for w in (OURS, *ways.others)} if case.memory else {}
    label = case.base.label if case.base else ""
    return rows_from(case.stage, label, case.setting, timings, others, peaks, ways.amounts)


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
