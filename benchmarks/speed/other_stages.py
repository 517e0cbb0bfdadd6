"""The stages without a model: reading a store in random batches, and starting the command."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file

from benchmarks.speed.cases import Case
from benchmarks.speed.lockstep import Way, Ways
from benchmarks.speed.recipes import random_lora
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.loading import Base
from weightdiff.models.spec import model_spec

A_FILE_EACH, IMPORTING = "a file for each diff", "python -c 'import torch, transformers, peft'"
SHARD = 1000
FILES = 256
"""Diffs that are also written to files of their own."""


@dataclass(frozen=True, kw_only=True)
class StoreCase(Case):
    """Diffs read from a store in random batches, as factors in fp32 stacked for the model."""

    stage: ClassVar[str] = "store"
    diffs: int = 10_000
    rank: int = 1
    batch: int = 32
    batches: int = 16
    """Batches of a round."""

    @property
    def setting(self) -> str:
        """In words."""
        return f"{self.diffs} diffs of rank {self.rank} in fp16, random batches of {self.batch}"

    def build(self) -> None:
        """No base: its shapes are enough."""
        return

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Sizes of the base's linear layers."""
        return model_spec(self.based.config())

    def store(self, folder: Path) -> Path:
        """The store's folder, made once; its diffs are a thousand different ones, over and over."""
        path = folder / f"store-{self.based.name}-{self.rank}-{self.diffs}"
        if path.exists():
            return path
        store = DiffStore.create(path, ModelRef(f"random-{self.based.name}"))
        made = [random_lora(self.shapes, self.rank, i) for i in range(min(SHARD, self.diffs))]
        for at in range(0, self.diffs, SHARD):
            numbers = range(at, min(at + SHARD, self.diffs))
            store.append([(_row(i), made[i - at]) for i in numbers])
        return path

    def ways(self, base: Base | None, folder: Path) -> Ways:  # noqa: ARG002
        """A round reads `batches` batches."""
        path = self.store(folder)
        each = 2 * self.rank * sum(a + b for a, b in self.shapes.values())

        def ours(done: Callable[[], None]) -> None:
            store, rng = DiffStore.open(path), random.Random(0)
            while True:
                for _ in range(self.batches):
                    store.stack(rng.sample(store.ids, self.batch))
                done()

        def floor() -> Way:
            read = _raw_reads(path, each, self.batch)
            return Way(lambda _: [next(read) for _ in range(self.batches)])

        def files() -> Way:
            place = folder / f"files-{self.based.name}-{self.rank}"
            paths = _files(place, self.shapes, self.rank, min(FILES, self.diffs))
            rng = random.Random(0)

            def run(_: int) -> None:
                for _ in range(self.batches):
                    _stacked([load_file(rng.choice(paths)) for _ in range(self.batch)])

            return Way(run)

        return Ways(ours, floor, {A_FILE_EACH: files}, {"diffs/s": float(self.batch * self.batches)})


def _row(i: int) -> DiffRow:
    return DiffRow(
        id=f"diff-{i}",
        label=f"label {i}",
        family="speed",
        recipe="random",
        split="train",
        seed=i,
        record={},
        verification={},
        questions=[],
    )


def _raw_reads(path: Path, size: int, n: int) -> Iterator[torch.Tensor]:
    """Batches of `n` pieces of `size` bytes from random places of the shards, as fp32, made anew for ever."""
    shards = [(os.open(p, os.O_RDONLY), p.stat().st_size) for p in sorted(path.glob("shard-*"))]
    rng = random.Random(0)
    while True:
        pieces = []
        for _ in range(n):
            handle, total = rng.choice(shards)
            pieces.append(os.pread(handle, size, rng.randrange(max(1, total - size))))
        numbers = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.float16)
        yield numbers.float()


def _files(folder: Path, shapes: dict[str, tuple[int, int]], rank: int, n: int) -> list[Path]:
    """`n` files with one diff each, written once."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.safetensors" for i in range(n)]
    for i, path in enumerate(paths):
        if not path.exists():
            save_file(_halves(random_lora(shapes, rank, i)), path)
    return paths


def _halves(diff: WeightDiff) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{side}": getattr(m, side).half()
        for name, m in diff.modules.items()
        for side in ("down", "up")
    }


def _stacked(diffs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([d[name] for d in diffs]).float() for name in diffs[0]}


COMMANDS = {
    "import weightdiff": "import weightdiff",
    "weightdiff --help": "from weightdiff.cli.main import run; run()",
    "import all that asking needs": "import weightdiff.methods.dit, weightdiff.tiny.bundle; "
    "from weightdiff.methods.loading import load_base; import transformers",
}


@dataclass(frozen=True, kw_only=True)
class StartCase(Case):
    """A Python that imports or starts something and ends."""

    stage: ClassVar[str] = "start-up"
    command: str = "weightdiff --help"

    @property
    def setting(self) -> str:
        """In words."""
        return self.command

    def ways(self, base: Base | None, folder: Path) -> Ways:  # noqa: ARG002
        """A round starts one Python; the floor is one that does nothing."""
        code = COMMANDS[self.command]
        more = ["--help"] if "--help" in self.command else []

        def ours(done: Callable[[], None]) -> None:
            while True:
                _python(code, *more)
                done()

        def importing() -> Way:
            return Way(lambda _: _python("import torch, transformers, peft"))

        return Ways(ours, lambda: Way(lambda _: _python("pass")), {IMPORTING: importing}, {"starts/s": 1.0})


def _python(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
