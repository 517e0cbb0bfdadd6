"""Merged diffs against PEFT's own merges, and against sums of dense matrices."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs import algebra
from weightdiff.diffs.factors import DenseDelta, LoraFactors
from weightdiff.diffs.merging import RULES, merge
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError

SHAPES = {"a": (7, 5), "b": (6, 9)}


def lora(seed, rank=2, names=tuple(SHAPES), scale=0.5):
    g = torch.Generator().manual_seed(seed)
    return WeightDiff(
        {
            k: LoraFactors(
                torch.randn(rank, SHAPES[k][0], generator=g),
                torch.randn(SHAPES[k][1], rank, generator=g),
                scale,
            )
            for k in names
        }
    )


def test_a_linear_merge_is_the_sum_of_the_matrices_and_stays_low_rank():
    one, two = lora(1), lora(2, 3)
    merged = merge([one, two], [2.0, -1.0])
    assert merged.kept == 1
    assert merged.diff.is_low_rank
    assert merged.diff.max_rank == 5
    for k in SHAPES:
        want = 2 * one.modules[k].dense() - two.modules[k].dense()
        torch.testing.assert_close(merged.diff.modules[k].dense(), want)


def test_truncation_tells_what_it_kept():
    one, two = lora(1), lora(2)
    merged = merge([one, two], [1.0, 1.0], rank=2)
    whole = algebra.add(one, two)
    assert merged.diff.max_rank == 2
    lost = algebra.distance(whole, merged.diff) ** 2 / algebra.norm(whole) ** 2
    assert merged.kept == pytest.approx(1 - lost, abs=1e-6)
    assert 0.3 < merged.kept < 1
    most = merge([one, two], [1.0, 1.0], energy=0.9)
    assert most.kept >= 0.9


@pytest.mark.parametrize("rule", ["ties", "dare", "dare-ties"])
def test_rules_are_pefts(rule):
    from peft.utils import merge_utils

    theirs = {"ties": merge_utils.ties, "dare": merge_utils.dare_linear, "dare-ties": merge_utils.dare_ties}
    diffs, weights = [lora(1), lora(2), lora(3)], [0.5, 1.0, -2.0]
    merged = merge(diffs, weights, rule, density=0.4, rank=9, seed=3)
    assert merged.diff.is_low_rank
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for k in sorted(SHAPES):
            want = theirs[rule]([d.modules[k].dense() for d in diffs], torch.tensor(weights), density=0.4)
            torch.testing.assert_close(merged.diff.modules[k].dense(), want, atol=1e-5, rtol=1e-4)
    again = merge(diffs, weights, rule, density=0.4, rank=9, seed=3)
    for k, m in again.diff.modules.items():
        assert torch.equal(merged.diff.modules[k].dense(), m.dense())


def test_a_settled_merge_has_the_rank_of_its_sources_unless_told():
    merged = merge([lora(1), lora(2)], [1.0, 1.0], "ties", density=0.5)
    assert merged.diff.max_rank == 4
    assert merged.kept < 1


def test_dare_with_all_entries_is_the_sum():
    merged = merge([lora(1), lora(2)], [1.0, 3.0], "dare", density=1.0)
    want = algebra.combine([lora(1), lora(2)], [1.0, 3.0])
    assert algebra.distance(merged.diff, want) < 1e-4 * algebra.norm(want)


@pytest.mark.parametrize("rule", ["dare", "ties"])
def test_a_diff_without_a_module_changes_nothing_there(rule):
    merged = merge([lora(1), lora(2, names=("a",))], [1.0, 1.0], rule, density=1.0)
    want = lora(1).modules["b"].dense()
    torch.testing.assert_close(merged.diff.modules["b"].dense(), want, atol=1e-5, rtol=1e-4)


def test_dense_changes_stay_dense_unless_a_rank_is_given():
    dense = WeightDiff({"a": DenseDelta(torch.randn(5, 7))}, parameters={"norm": torch.ones(3)})
    merged = merge([lora(1), dense], [1.0, 2.0], "ties", density=0.5)
    assert isinstance(merged.diff.modules["a"], DenseDelta)
    assert merged.diff.parameters["norm"].shape == (3,)
    assert merge([lora(1), dense], [1.0, 2.0], "ties", rank=2).diff.modules["a"].rank == 2


def test_randomness_outside_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    merge([lora(1), lora(2)], [1.0, 1.0], "dare", seed=9)
    assert torch.equal(torch.rand(3), want)


def test_faults_are_told():
    with pytest.raises(ValueError, match="no rule 'mean'; choose one of linear, ties, dare, dare-ties"):
        merge([lora(1)], [1.0], "mean")
    with pytest.raises(ValueError, match="a density lies above 0 and up to 1, not 0"):
        merge([lora(1)], [1.0], "ties", density=0)
    with pytest.raises(ValueError, match="1 diffs and 2 weights"):
        merge([lora(1)], [1.0, 2.0])
    with pytest.raises(ValueError, match="a rank must be 1 or more"):
        merge([lora(1)], [1.0], rank=0)
    other = WeightDiff(lora(2).modules, ModelRef("other", weights="b" * 16))
    mine = WeightDiff(lora(1).modules, ModelRef("mine", weights="a" * 16))
    for rule in RULES:
        with pytest.raises(BaseMismatchError, match="cannot be added"):
            merge([mine, other], [1.0, 1.0], rule)
