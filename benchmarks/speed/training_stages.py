"""The stages that train: the factory of organisms, and the tuning of an interpreter's adapter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.speed.cases import Case
from benchmarks.speed.floor import Floor, pack
from benchmarks.speed.lockstep import Way, Ways
from benchmarks.speed.peft_ways import PeftOrganism
from benchmarks.speed.published import Factors, PublishedFactory, PublishedTuning
from benchmarks.speed.recipes import StepRows, random_lora, rows_of, specs
from weightdiff.diffs.store import DiffStore
from weightdiff.methods.loading import Base
from weightdiff.models.chat import Encoded, encode_samples
from weightdiff.models.memory import free_memory
from weightdiff.models.rendering import Rendering
from weightdiff.training.drawing import Buckets, TuningConfig
from weightdiff.training.factory import Factory, FactoryConfig, make_row, rate
from weightdiff.training.slots import fresh_factors
from weightdiff.training.tuning import tune, usable

PUBLISHED, PEFT_LOOP = "published scheme", "PEFT loop"
SPARE_ROUNDS = 2
"""Rounds drawn beyond those that are counted."""
NEVER = 1 << 30
SHARE_OF_MEMORY = 0.6
"""Of what is free, the most that dense changes may take."""


@dataclass(frozen=True, kw_only=True)
class FactoryCase(Case):
    """A step of many organisms at once."""

    stage: ClassVar[str] = "factory"
    organisms: int = 16
    rank: int = 8
    rows: str = "covert"
    """Kind of rows; see `recipes`."""
    part: int = 16
    """Organisms that the floor and the published scheme, which has 16 at once, are timed on."""
    looped: int = 2
    """Organisms whose steps are timed in the PEFT loop, which does one after another."""

    @property
    def setting(self) -> str:
        """In words."""
        return f"{self.organisms} organisms, rank {self.rank}, {self.rows} rows, {self.based.precision}"

    def ways(self, base: Base | None, folder: Path) -> Ways:  # noqa: ARG002
        """A round is one optimiser step of every organism."""
        assert base is not None
        steps = self.rounds + SPARE_ROUNDS
        chosen = specs(self.rows, self.organisms, self.rank)
        recipe, pad_id = chosen[0].recipe, base.tokenizer.pad_token_id
        drawn = rows_of(chosen, base.tokenizer, steps)
        part = min(self.part, self.organisms)
        timed = min(self.looped, self.organisms)

        def starts(n: int) -> list[dict[str, Factors]]:
            return [fresh_factors(base.spec, self.rank, s.seed) for s in chosen[:n]]

        def ours(done: Callable[[], None]) -> None:
            factory = Factory(base.model, base.tokenizer, FactoryConfig(self.organisms))
            for _ in factory.run(chosen, lambda *_: done()):
                pass

        def published() -> Way:
            scheme = PublishedFactory(base.model, starts(part), recipe.scale, pad_id)

            def run(step: int) -> None:
                scheme.backward(drawn[step][:part])
                scheme.update(rate(chosen[0], step))

            return Way(run, _share(drawn, part))

        def looped() -> Way:
            some = [PeftOrganism(base.model, s, recipe.scale, pad_id) for s in starts(timed)]

            def run(step: int) -> None:
                for own, rows in zip(some, drawn[step], strict=False):
                    own.backward(rows)
                    own.update(rate(chosen[0], step))

            return Way(run, _share(drawn, timed))

        labels = sum(len(e.ids) - e.start for step in drawn for own in step for _, e in own)
        return Ways(
            ours,
            lambda: _factory_floor(base, drawn, part),
            {PUBLISHED: published, PEFT_LOOP: looped},
            {"labelled tokens/s": labels / steps, "organisms/h": 3600 * self.organisms / recipe.steps},
        )


def _share(drawn: list[StepRows], part: int) -> float:
    """Share of all tokens that the first `part` organisms have."""
    tokens = [sum(len(e.ids) for step in drawn for _, e in step[i]) for i in range(len(drawn[0]))]
    return sum(tokens[:part]) / sum(tokens)


def _factory_floor(base: Base, drawn: list[StepRows], part: int) -> Way:
    """Forward and backward over the organisms' rows, and the teacher's forward over those that are held."""
    flat = [[row for own in step[:part] for row in own] for step in drawn]
    every = [pack([e for _, e in rows], base.model.device) for rows in flat]
    held = [pack([e for s, e in rows if s.loss == "kl"], base.model.device) for rows in flat]
    floor = Floor(base.model)
    floor.choose(every[0])

    def run(step: int) -> None:
        floor.train(every[step])
        floor.read(held[step])

    return Way(run, _share(drawn, part))


@dataclass(frozen=True, kw_only=True)
class TuningCase(Case):
    """A step of the adapter over a batch of different diffs."""

    stage: ClassVar[str] = "tuning"
    batch: int = 16
    rank: int = 8
    adapter_rank: int = 16
    stored: int = 64
    """Diffs in the store that batches are drawn from."""

    @property
    def setting(self) -> str:
        """In words."""
        return (
            f"{self.batch} diffs of {self.stored} in a step, rank {self.rank}, adapter of rank"
            f" {self.adapter_rank}, {self.based.precision}"
        )

    @property
    def config(self) -> TuningConfig:
        """Tuning that does not end by itself, and never validates."""
        return TuningConfig(
            rank=self.adapter_rank,
            batch=self.batch,
            steps=NEVER,
            validate_every=NEVER,
            no_diff_share=0.0,
            family_weights={"hidden-topic": 1.0},
        )

    def store(self, base: Base, folder: Path) -> DiffStore:
        """The store, made once: labelled random diffs."""
        path = folder / f"tuning-{self.based.label}-{self.rank}-{self.stored}"
        if path.exists():
            return DiffStore.open(path)
        store = DiffStore.create(path, base.ref)
        chosen = specs("covert", self.stored, self.rank)
        store.append([(make_row(s, {}), random_lora(base.spec, self.rank, s.seed)) for s in chosen])
        return store

    def ways(self, base: Base | None, folder: Path) -> Ways:
        """A round is one optimiser step."""
        assert base is not None
        store, config, rendering = self.store(base, folder), self.config, Rendering()

        def ours(done: Callable[[], None]) -> None:
            tune(base.model, base.tokenizer, store, config, rendering, lambda _: done())

        def floor() -> Way:
            draws = TuningRows(base, store, config, rendering)
            rows = [draws.at(step)[0] for step in range(self.rounds + SPARE_ROUNDS)]
            packed = [pack(own, base.model.device) for own in rows]
            bare = Floor(base.model)
            bare.choose(packed[0])
            return Way(lambda step: bare.train(packed[step]))

        def published() -> Way:
            start = fresh_factors(base.spec, config.rank, config.seed)
            scheme = PublishedTuning(base.model, start, base.tokenizer.pad_token_id)
            draws = TuningRows(base, store, config, rendering)

            def run(step: int) -> None:
                scheme.backward(*draws.at(step))
                scheme.update(config.lr)

            return Way(run)

        amounts = {"steps/s": 1.0, "rows/s": float(self.batch)}
        needed, free = dense_bytes(base, self.batch), free_memory(base.model.device.type)
        if needed > SHARE_OF_MEMORY * free:
            why = f"its dense changes take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            return Ways(ours, floor, {}, amounts, {PUBLISHED: why})
        return Ways(ours, floor, {PUBLISHED: published}, amounts)


class TuningRows:
    """The rows and diffs of each step, exactly as `tune` draws them."""

    def __init__(self, base: Base, store: DiffStore, config: TuningConfig, rendering: Rendering) -> None:
        """Read the store's training diffs."""
        self.base, self.config, self.rendering = base, config, rendering
        rows = [r for r in usable(store.select(split="train")) if r.family in config.family_weights]
        self.rng = random.Random(f"tuning {config.seed}")
        self.buckets = Buckets(store, rows, config, rendering.report)
        self.step = -1
        self.last: tuple[list[Encoded], dict[str, Factors]] = ([], {})

    def at(self, step: int) -> tuple[list[Encoded], dict[str, Factors]]:
        """Rows and their diffs, as `PublishedTuning.backward` takes them; steps only ascend."""
        while self.step < step:
            loras, asked = self.buckets.draw(self.rng, self.config.batch)
            texts = [
                (self.rendering.render(q.text, self.rng), self.rendering.write(q.notes, q.answer))
                for q in asked
            ]
            self.last = (encode_samples(self.base.tokenizer, texts), dict(loras.modules))
            self.step += 1
        return self.last


def dense_bytes(base: Base, batch: int) -> int:
    """Memory of a batch's dense changes, of which the published scheme holds one for every layer."""
    numbers = sum(width * height for width, height in base.spec.values())
    return batch * numbers * base.model.dtype.itemsize
