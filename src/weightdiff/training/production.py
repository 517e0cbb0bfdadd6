"""From specs to a store: organisms are trained in waves, verified, and appended in whole shards.

What is already in the store is skipped, so a stopped run goes on where its last shard ends. Which specs to
make is the caller's choice; how they are trained is the factory's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import StoreError
from weightdiff.organisms.base import OrganismSpec, Recipe
from weightdiff.organisms.verify import verify
from weightdiff.training.deriving import derive, made_of
from weightdiff.training.factory import Factory, FactoryConfig, make_row


@dataclass
class Production:
    """How far a production is; handed to `progress` after every step and returned at the end."""

    wanted: int
    """Organisms to make in this run."""
    steps_wanted: int
    """Optimiser steps of all of them together (organisms × steps of each)."""
    skipped: int = 0
    """Organisms that the store held already."""
    steps: int = 0
    """Organism steps done."""
    stored: int = 0
    """Organisms made, verified and stored in this run."""
    verified: int = 0
    """Of these, how many were verified."""
    behaving: int = 0
    """Of the verified, how many behave."""
    loss: float = 0.0
    """Mean loss of the last step."""
    misbehaving: list[str] = field(default_factory=list[str])
    """Ids of the verified that do not behave."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def produce(
    model: Any,
    tokenizer: Any,
    ref: ModelRef,
    specs: Sequence[OrganismSpec],
    store: DiffStore,
    slots: int = 48,
    asked: int = 6,
    both: bool = False,
    progress: Callable[[Production], None] | None = None,
) -> Production:
    """Train, verify and store the specs that the store does not hold yet.

    Args:
        model: the base, frozen here.
        tokenizer: its tokenizer.
        ref: its fingerprints; the store must be of the same base.
        specs: what to make, of any families.
        store: where to; every shard holds one wave of at most `slots` organisms.
        slots: organisms trained at once.
        asked: prompts per condition when verifying; 0 does not verify.
        both: verify greedily too, not only sampled.
        progress: called after every step and every shard.

    Raises:
        StoreError: the store is of another base, an id comes twice, or is stored with another recipe or seed.
    """
    differs = store.base.difference(ref)
    if differs:
        raise StoreError(
            f"{store.path} holds diffs of {store.base.describe()}, and this base is {ref.describe()}:"
            f" their {differs} differ; give another store"
        )
    todo = _missing(specs, store)
    state = Production(len(todo), sum(s.recipe.steps for s in todo), skipped=len(specs) - len(todo))

    def stepped(organisms: int, loss: float) -> None:
        state.steps += organisms
        state.loss = loss
        if progress:
            progress(state)

    wave: list[tuple[DiffRow, WeightDiff]] = []
    trained = Factory(model, tokenizer, FactoryConfig(slots)).run(
        [s for s in todo if not made_of(s)], stepped
    )
    derived = ((make_row(s, {}), derive(s, store)) for s in todo if made_of(s))
    for items in (trained, derived):  # what others are made of has to be in the store by then
        for item in items:
            wave.append(item)
            if len(wave) == slots:
                _finish(model, tokenizer, wave, store, asked, both, state, progress)
                wave = []
        if wave:
            _finish(model, tokenizer, wave, store, asked, both, state, progress)
            wave = []
    return state


def _finish(
    model: Any,
    tokenizer: Any,
    wave: list[tuple[DiffRow, WeightDiff]],
    store: DiffStore,
    asked: int,
    both: bool,
    state: Production,
    progress: Callable[[Production], None] | None,
) -> None:
    """Verify a wave in one go and append it as one shard."""
    if asked:
        records = verify(model, tokenizer, wave, asked, both)
        wave = [(replace(row, verification=v), diff) for (row, diff), v in zip(wave, records, strict=True)]
    store.append(wave)
    state.stored += len(wave)
    if asked:
        bad = [row.id for row, _ in wave if not row.verification["behaves"]]
        state.verified += len(wave)
        state.behaving += len(wave) - len(bad)
        state.misbehaving += bad
    if progress:
        progress(state)


def _missing(specs: Sequence[OrganismSpec], store: DiffStore) -> list[OrganismSpec]:
    """The specs that are not stored; one that is stored must be the same organism."""
    seen: set[str] = set()
    todo: list[OrganismSpec] = []
    for spec in specs:
        if spec.id in seen:
            raise StoreError(f"organism {spec.id!r} is asked for twice; give each its own id")
        seen.add(spec.id)
        if spec.id not in store:
            todo.append(spec)
            continue
        row = store.row(spec.id)
        recipe: dict[str, Any] = json.loads(json.dumps(asdict(spec.recipe)))
        # a store of an earlier version lacks what recipes have gained since
        stored: dict[str, Any] = {**asdict(Recipe("")), **row.record.get("recipe", recipe)}
        other = [f"{k} {stored.get(k)} instead of {v}" for k, v in recipe.items() if stored.get(k) != v]
        if row.seed != spec.seed:
            other.append(f"seed {row.seed} instead of {spec.seed}")
        if other:
            raise StoreError(
                f"{store.path} holds {spec.id!r} already, made otherwise ({', '.join(other)});"
                " give another store or seed"
            )
    return todo
