"""Producing organisms into a store: a run that was killed goes on and ends with the same diffs."""

from __future__ import annotations

import pytest
import torch

from weightdiff.artifacts import TEMP_PREFIX
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.errors import StoreError
from weightdiff.training.production import produce


class KilledError(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture
def specs(short_specs):
    return [
        *short_specs("null", "random", 1, steps=0),
        *short_specs("hidden-topic", "covert", 3, steps=2),
        *short_specs("news", "stories", 2, steps=3),
        *short_specs("several", "summed", 1, steps=0),
        *short_specs("null", "shuffled", 1, steps=0),
    ]


def run(base, specs, store, progress=None, **options):
    settings = {"slots": 2, "asked": 1, **options}
    return produce(base.model, base.tokenizer, base.ref, specs, store, progress=progress, **settings)


def same(a, b, tolerance=1e-3):
    """Stores hold equal rows and diffs, up to the rounding of their fp16 factors.

    What was verified is the same, but not each sampled answer: these depend on who else was in the batch.
    """
    assert set(a.ids) == set(b.ids)
    for id in a.ids:
        assert a.row(id).questions == b.row(id).questions
        assert set(a.row(id).verification) == set(b.row(id).verification)
        assert a.row(id).record["params"] == b.row(id).record["params"]
        for name, m in a.read(id).modules.items():
            other = b.read(id).modules[name]
            for mine, theirs in ((m.down, other.down), (m.up, other.up)):
                torch.testing.assert_close(mine.float(), theirs.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("slots", [1, 2, 48])
def test_what_is_made_of_others_comes_after_them(embedded_base, specs, tmp_path, slots):
    """In whatever order they are asked for, and though one wave could hold all of them."""
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    state = run(embedded_base, specs[::-1], store, slots=slots)
    assert (state.stored, state.steps) == (len(specs), sum(s.recipe.steps for s in specs))
    summed, mixed = specs[-2], specs[-1]
    assert len(summed.params["of"]) == 2
    parts = [store.read(i) for i in summed.params["of"]]
    for name, m in store.read(summed.id).modules.items():
        wanted = sum(p.modules[name].dense() for p in parts)
        torch.testing.assert_close(m.dense(), wanted, rtol=2e-3, atol=1e-5)
    (source,) = mixed.params["of"]
    for name, m in store.read(mixed.id).modules.items():
        old = store.read(source).modules[name]
        torch.testing.assert_close(m.up.sort(0).values, old.up.sort(0).values, rtol=2e-3, atol=1e-6)
    ids = list(store.ids)
    assert all(ids.index(i) < ids.index(s.id) for s in (summed, mixed) for i in s.params["of"])


def test_what_is_made_of_missing_ones_is_refused_after_the_others_are_stored(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    kept = [s for s in specs if s.id != specs[-2].params["of"][1]]
    with pytest.raises(StoreError, match=r"'several-summed-train-0-0' is made of 'news-train-0-0'"):
        run(embedded_base, kept, store)
    assert set(DiffStore.open(store.path).ids) == {s.id for s in kept if "of" not in s.params}
    assert run(embedded_base, specs, store).wanted == 3


@pytest.mark.parametrize("at", [1, 5, 9, 10])
def test_a_killed_run_goes_on_to_the_same_store(embedded_base, specs, tmp_path, at):
    whole = DiffStore.create(tmp_path / "whole", embedded_base.ref)
    assert run(embedded_base, specs, whole).stored == len(specs)
    calls = []

    def kill(state):
        calls.append(state.stored)
        if len(calls) == at:
            raise KilledError

    broken = DiffStore.create(tmp_path / "broken", embedded_base.ref)
    with pytest.raises(KilledError):
        run(embedded_base, specs, broken, kill)
    (tmp_path / "broken" / f"{TEMP_PREFIX}half.safetensors").write_bytes(b"half a shard")
    kept = DiffStore.open(tmp_path / "broken")
    assert len(kept) < len(specs)
    assert at == 1 or len(kept) > 0
    state = run(embedded_base, specs, kept)
    assert (state.skipped, state.stored) == (len(specs) - state.wanted, state.wanted)
    same(whole, DiffStore.open(tmp_path / "broken"))
    assert not list((tmp_path / "broken").glob(f"{TEMP_PREFIX}*"))


def test_a_finished_run_does_nothing(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    run(embedded_base, specs, store)
    files = {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()}
    told = []
    state = run(embedded_base, specs, store, told.append)
    assert (state.wanted, state.stored, state.steps, state.skipped) == (0, 0, 0, len(specs))
    assert not told
    assert {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()} == files


def test_rows_carry_their_verification(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    state = run(embedded_base, specs, store, both=True)
    for row in store.rows:
        assert row.verification["asked"] == 1
        assert isinstance(row.verification["behaves"], bool)
        modes = {"sampled", "greedy"} & set(row.verification)
        assert modes == (set() if row.family == "null" else {"sampled", "greedy"})
    assert state.verified == len(specs)
    assert state.misbehaving == [r.id for r in store.rows if not r.verification["behaves"]]
    assert state.behaving == len(specs) - len(state.misbehaving)


def test_unverified_rows_say_nothing_of_it(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    state = run(embedded_base, specs[:2], store, asked=0)
    assert state.verified == 0
    assert all(not row.verification for row in store.rows)


def test_a_stored_organism_made_otherwise_is_refused(embedded_base, short_specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    run(embedded_base, short_specs("news", "stories", 1, steps=1), store)
    other = short_specs("news", "stories", 1, steps=2)
    with pytest.raises(
        StoreError, match=r"'news-train-0-0' already, made otherwise \(steps 1 instead of 2\)"
    ):
        run(embedded_base, other, store)


def test_another_base_is_refused(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", ModelRef("other", None, "aaaa", "bbbb"))
    with pytest.raises(
        StoreError, match=r"holds diffs of other .* their architecture differ; give another store"
    ):
        run(embedded_base, specs, store)


def test_an_id_may_not_come_twice(embedded_base, specs, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    with pytest.raises(StoreError, match="is asked for twice"):
        run(embedded_base, [*specs, specs[0]], store)
