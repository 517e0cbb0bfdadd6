"""What a benchmark case is: one setting of one stage on one base, and the ways of doing its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.speed.bases import BaseChoice
from benchmarks.speed.lockstep import Ways
from weightdiff.methods.loading import Base


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting that is measured."""

    stage: ClassVar[str] = ""
    base: BaseChoice | None = None
    """None where no base is needed."""
    rounds: int = 5
    """Pairs of runs wanted; fewer are taken where time is short."""
    weight: float = 1.0
    """About how long it takes beside other cases; the time is shared out by it."""
    memory: bool = False
    """Whether peak memory is measured, each way in a process of its own."""

    @property
    def setting(self) -> str:
        """What is particular about it, in words."""
        raise NotImplementedError

    @property
    def based(self) -> BaseChoice:
        """The base's choice.

        Raises:
            ValueError: the case has none.
        """
        if self.base is None:
            raise ValueError(f"{self.stage} needs a base")
        return self.base

    def build(self) -> Base | None:
        """The base, if it needs one."""
        return None if self.base is None else self.base.build()

    def ways(self, base: Base | None, folder: Path) -> Ways:
        """The ways of doing its work.

        Args:
            base: what `build` gave.
            folder: for files that last as long as the run.
        """
        raise NotImplementedError
