"""The types of a weight diff: shapes, fingerprints, and what their errors say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightdiff.diffs.types import DenseDelta, LoraFactors, ModelRef, StackedLoras, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, NonFiniteError

SIZES = st.integers(1, 5)


@given(rank=SIZES, width=SIZES, height=SIZES, scale=st.floats(-4, 4))
def test_factors_are_a_dense_change(rank, width, height, scale):
    factors = LoraFactors(torch.randn(rank, width), torch.randn(height, rank), scale)
    assert (factors.rank, factors.in_features, factors.out_features) == (rank, width, height)
    x = torch.randn(7, width)
    torch.testing.assert_close(x @ factors.dense().T, x @ factors.down.T @ factors.up.T * scale)


def test_half_precision_factors_multiply_in_float32():
    factors = LoraFactors(torch.randn(8, 16), torch.randn(16, 8)).to(torch.bfloat16)
    assert factors.down.dtype == torch.bfloat16
    torch.testing.assert_close(factors.dense(), factors.up.float() @ factors.down.float(), rtol=0, atol=0)


@pytest.mark.parametrize(("down", "up"), [((2, 3), (4, 3)), ((2, 3), (4,)), ((0, 3), (4, 0))])
def test_factors_that_share_no_rank_are_refused(down, up):
    with pytest.raises(FormatError, match=r"down \[rank, in\] and up \[out, rank\], found \("):
        LoraFactors(torch.zeros(down), torch.zeros(up))


def test_integers_are_refused():
    with pytest.raises(FormatError, match=r"floating point, found torch\.int64"):
        LoraFactors(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, 1))
    with pytest.raises(FormatError, match=r"floating-point matrix \[out, in\], found \(3,\)"):
        DenseDelta(torch.zeros(3))


def test_counts(random_diff):
    diff = random_diff({"a": (2, 3, 4), "b": (5, 6, 7)})
    both = WeightDiff({**diff.modules, "c": DenseDelta(torch.ones(2, 3))})
    assert both.max_rank == 5
    assert both.num_parameters == 2 * (3 + 4) + 5 * (6 + 7) + 2 * 3
    assert WeightDiff({}).max_rank == 0
    assert both.to(torch.float16).modules["c"].dense().dtype == torch.float32


def test_non_finite_modules_are_named(random_diff):
    diff = random_diff()
    diff.check_finite()
    diff.modules["layers.1.v"].up[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in layers\.1\.v;"):
        diff.check_finite()
    with pytest.raises(NonFiniteError, match="in s;"):
        WeightDiff({"s": LoraFactors(torch.ones(1, 1), torch.ones(1, 1), float("inf"))}).check_finite()


def test_a_diff_that_fits_its_base_passes(random_diff):
    random_diff({"a": (2, 3, 4)}).check_against({"a": (3, 4), "other": (1, 1)})


def test_unknown_and_misshapen_modules_are_named_together(random_diff, base):
    diff = random_diff({f"x{i}": (1, 2, 2) for i in range(7)} | {"a": (2, 3, 4)}, base=base)
    message = (
        r"does not have: x0, x1, x2, x3, x4 and 2 more \(it has a, b\); modules of another shape: a \(in 3,"
        r" out 4; the base has in 9, out 4\); load the base .* made for tiny/base"
    )
    with pytest.raises(BaseMismatchError, match=message):
        diff.check_against({"a": (9, 4), "b": (1, 1)})


def test_base_is_checked_by_fingerprint_not_by_name(random_diff, base):
    diff = random_diff(base=base)
    diff.check_base(ModelRef("elsewhere", "v2", base.architecture, base.weights))
    diff.check_base(ModelRef("unknown"))
    WeightDiff({}).check_base(base)
    with pytest.raises(
        BaseMismatchError, match=r"made for tiny/base .* this base is other .* their weights differ"
    ):
        diff.check_base(ModelRef("other", None, base.architecture, "cccc"))


def test_fingerprints_tell_weights_and_architectures_apart(tiny_model):
    model = tiny_model("llama")
    ref = ModelRef.of(model, name="m", revision="r")
    assert ref == ModelRef.of(tiny_model("llama"), "m", "r")
    assert ref == ModelRef.of(model.to(torch.bfloat16), "m", "r")
    assert ref.describe() == f"m@r (architecture {ref.architecture}, weights {ref.weights})"
    assert ref.difference(ModelRef.of(tiny_model("llama", seed=1))) == "weights"
    assert ref.difference(ModelRef.of(tiny_model("llama", intermediate_size=64))) == "architecture"
    assert ref.difference(ModelRef.of(tiny_model("qwen3"))) == "architecture"
    assert ref.difference(ModelRef.of(model.to("meta"))) is None


def test_one_changed_number_changes_the_fingerprint(tiny_model):
    model = tiny_model("gpt2")
    before = ModelRef.of(model)
    model.transformer.h[1].mlp.c_fc.weight.data[3, 5] += 0.5
    assert before.difference(ModelRef.of(model)) == "weights"


def test_references_survive_json(base):
    assert ModelRef.from_json(base.to_json()) == base
    with pytest.raises(FormatError, match="not a base model reference"):
        ModelRef.from_json({"weights": "x"})
    with pytest.raises(FormatError, match="not a base model reference"):
        ModelRef.from_json({"name": "x", "extra": 1})


@given(
    ranks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4),
    scale=st.floats(-3, 3),
)
def test_stacked_rows_are_their_diffs(ranks, scale):
    diffs = [
        WeightDiff(
            {
                name: LoraFactors(torch.randn(rank, 3), torch.randn(4, rank), scale)
                for name, rank in zip("ab", pair, strict=True)
                if rank
            }
        )
        for pair in ranks
    ]
    stacked = StackedLoras.from_diffs(diffs, torch.float64)
    assert stacked.n == len(ranks)
    for i, diff in enumerate(diffs):
        row = stacked.index(i)
        for name, m in row.modules.items():
            expected = diff.modules[name].dense() if name in diff.modules else torch.zeros(4, 3)
            torch.testing.assert_close(m.dense().float(), expected)


def test_stacks_move(random_diff):
    stacked = StackedLoras.from_diffs([random_diff(scale=0.5)])
    moved = stacked.to(torch.float64)
    assert moved.n == 1
    assert {t.dtype for pair in moved.modules.values() for t in pair} == {torch.float64}
    assert {t.device.type for pair in stacked.to(device="meta").modules.values() for t in pair} == {"meta"}


def test_stacks_refuse_what_does_not_stack(random_diff):
    with pytest.raises(FormatError, match="a changes as a dense matrix"):
        StackedLoras.from_diffs([WeightDiff({"a": DenseDelta(torch.ones(2, 2))})])
    with pytest.raises(FormatError, match=r"a has in 9, out 4 in one diff and in 3, out 4 in another"):
        StackedLoras.from_diffs([random_diff({"a": (1, 3, 4)}), random_diff({"a": (1, 9, 4)})])
    with pytest.raises(IndexError, match="row 1 of 1"):
        StackedLoras.from_diffs([random_diff()]).index(1)
