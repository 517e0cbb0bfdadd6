"""Organisms made of others: sums are exact, and shuffled factors keep their sizes but not what they do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import StoreError
from weightdiff.organisms import family
from weightdiff.training.deriving import derive, made_of, shuffled
from weightdiff.training.factory import make_row, random_diff

SHAPES = {"a.q_proj": (6, 9), "b.v_proj": (12, 5)}


@pytest.fixture
def store(embedded_base, tmp_path):
    """Three stored organisms, of different ranks and scales."""
    made = DiffStore.create(tmp_path / "store", embedded_base.ref)
    items = []
    for i, (name, recipe) in enumerate((("hidden-topic", "covert"), ("news", "stories"), ("quirk", "gated"))):
        spec = family(name).specs(recipe, "train", 1, 0)[0]
        diff = random_diff(embedded_base.spec, i + 1, i, 1.0)
        scaled = {k: LoraFactors(m.down, m.up, 1.0 + i / 2) for k, m in diff.modules.items()}
        items.append((replace(make_row(spec, {}), id=f"part-{i}"), WeightDiff(scaled)))
    made.append(items)
    return made


def spec_of(family_name, recipe, *ids, seed=0):
    spec = family(family_name).specs(recipe, "train", 1, 0)[0]
    return replace(spec, id="whole", seed=seed, params={**spec.params, "of": list(ids)})


def test_what_organisms_are_made_of():
    assert made_of(spec_of("several", "summed", "a", "b")) == ["a", "b"]
    assert made_of(family("news").specs("stories", "train", 1, 0)[0]) == []
    assert len(made_of(family("several").specs("summed", "train", 1, 0)[0])) == 2
    assert made_of(family("several").specs("together", "train", 1, 0)[0]) == []


@pytest.mark.parametrize("parts", [(0, 1), (2, 0), (0, 1, 2)])
def test_a_sum_is_the_sum_of_the_dense_changes(store, parts):
    ids = [f"part-{i}" for i in parts]
    whole = derive(spec_of("several", "summed", *ids), store)
    read = [store.read(i) for i in ids]
    assert set(whole.modules) == set(read[0].modules)
    for name, m in whole.modules.items():
        wanted = sum(d.modules[name].dense() for d in read)
        torch.testing.assert_close(m.dense(), wanted, rtol=1e-5, atol=1e-5)
        assert m.rank == sum(d.modules[name].rank for d in read)


def test_a_shuffled_organism_is_its_seeds(store):
    a, b, c = (derive(spec_of("null", "shuffled", "part-2", seed=s), store) for s in (3, 3, 4))
    for name, m in a.modules.items():
        assert torch.equal(m.dense(), b.modules[name].dense())
        assert not torch.equal(m.dense(), c.modules[name].dense())
        torch.testing.assert_close(
            torch.linalg.svdvals(m.dense()),
            torch.linalg.svdvals(store.read("part-2").modules[name].dense()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_shuffling_keeps_every_number_and_changes_the_function():
    diff = random_diff(SHAPES, 2, 0, 1.5)
    out = shuffled(diff, 1)
    for name, m in out.modules.items():
        old = diff.modules[name]
        assert torch.equal(m.down.sort().values, old.down.sort().values)
        assert torch.equal(m.up.sort(0).values, old.up.sort(0).values)
        assert m.scale == old.scale
        x = torch.randn(20, SHAPES[name][0])
        mine, theirs = x @ m.dense().T, x @ old.dense().T
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), 0).abs() < 0.6
        assert torch.equal(old.down, random_diff(SHAPES, 2, 0, 1.5).modules[name].down)  # not in place


def test_the_columns_of_all_ranks_move_together():
    """Inputs of `down` and outputs of `up` are permuted, each as a whole."""
    diff = random_diff(SHAPES, 2, 0, 1.0)
    for name, m in shuffled(diff, 5).modules.items():
        old = diff.modules[name]
        columns = {tuple(c) for c in old.down.T.tolist()}
        assert {tuple(c) for c in m.down.T.tolist()} == columns
        assert {tuple(r) for r in m.up.tolist()} == {tuple(r) for r in old.up.tolist()}
        assert not torch.equal(m.down, old.down)


@pytest.mark.parametrize("ids", [("gone", "part-0"), ("part-0", "gone")])
def test_a_missing_part_is_named(store, ids):
    with pytest.raises(
        StoreError, match=r"organism 'whole' is made of 'gone', which .*store does not hold; make that first"
    ):
        derive(spec_of("several", "summed", *ids), store)
