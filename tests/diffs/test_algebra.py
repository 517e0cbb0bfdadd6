"""Arithmetic on diffs against dense matrices, and the properties that it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdiff.diffs import algebra
from weightdiff.diffs.algebra import (
    add,
    canonical,
    combine,
    cosine,
    distance,
    inner,
    interpolate,
    negate,
    norm,
    scaled,
    spectrum,
    squared_norm,
    truncate,
    truncated,
)
from weightdiff.diffs.types import DenseDelta, LoraFactors, ModelRef, WeightDiff
from weightdiff.errors import BaseMismatchError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def low_rank(draw, shape=None):
    """Factors of any small shape, rank (above the sides too), dtype and scale."""
    height, width = shape or (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rank, seed = draw(st.integers(1, 12)), draw(st.integers(0, 999))
    dtype = draw(st.sampled_from(DTYPES))
    stream = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=stream), torch.randn(height, rank, generator=stream)
    return LoraFactors(down.to(dtype), up.to(dtype), draw(st.sampled_from([1.0, -0.5, 2.0, 0.03125])))


@st.composite
def change(draw, shape=None):
    m = draw(low_rank(shape))
    return DenseDelta(m.dense()) if draw(st.booleans()) else m


@st.composite
def pair_of_diffs(draw):
    """Two diffs: module a in both, b and c in one each, a parameter in both and one in the second."""
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    bias = [torch.randn(3, generator=stream) for _ in range(3)]
    first = WeightDiff({"a": draw(change(shape)), "b": draw(change())}, parameters={"n.bias": bias[0]})
    second = WeightDiff(
        {"a": draw(change(shape)), "c": draw(change())}, parameters={"n.bias": bias[1], "m.bias": bias[2]}
    )
    return first, second


def flat(diff, names=("a", "b", "c", "n.bias", "m.bias"), like=()):
    """Everything a diff changes, as one float64 vector; what it does not touch is zero."""
    out = []
    for name in names:
        found = [
            d.modules[name].dense() if name in d.modules else d.parameters[name]
            for d in (diff, *like)
            if name in d.modules or name in d.parameters
        ]
        here = name in diff.modules or name in diff.parameters
        out.append(found[0].double().flatten() * here)
    return torch.cat(out)


@settings(max_examples=60, deadline=None)
@given(pair_of_diffs(), st.floats(-2, 2))
def test_sums_are_sums_of_dense_matrices(diffs, t):
    first, second = diffs
    a, b = flat(first, like=[second]), flat(second, like=[first])
    close = {"rtol": 1e-4, "atol": 2e-3}
    torch.testing.assert_close(flat(add(first, second)), a + b, **close)
    torch.testing.assert_close(flat(interpolate(first, second, t)), (1 - t) * a + t * b, **close)
    torch.testing.assert_close(
        flat(combine([first, second, first], [0.5, -2.0, 1.0])), 1.5 * a - 2 * b, **close
    )
    torch.testing.assert_close(flat(negate(first), like=[second]), -a, **close)
    torch.testing.assert_close(flat(scaled(first, t), like=[second]), a * t, **close)


@settings(max_examples=60, deadline=None)
@given(pair_of_diffs())
def test_products_and_norms_are_those_of_dense_matrices(diffs):
    first, second = diffs
    a, b = flat(first, like=[second]), flat(second, like=[first])
    size = float(a.norm() * b.norm()) + 1e-9
    assert inner(first, second) == pytest.approx(float(a @ b), rel=1e-3, abs=1e-3 * size)
    assert norm(first) == pytest.approx(float(a.norm()), rel=1e-4)
    assert distance(first, second) == pytest.approx(float((a - b).norm()), rel=1e-3, abs=1e-4)
    assert cosine(first, second) == pytest.approx(float(a @ b) / size, abs=2e-3)
    assert cosine(first, scaled(first, -3.0)) == pytest.approx(-1.0)


def test_ranks_are_concatenated_exactly(random_diff):
    """Low-rank sums stay low-rank, factor by factor, each scale in its own columns."""
    a, b = random_diff(scale=0.5), random_diff(scale=2.0, seed=1)
    total = combine([a, b], [1.0, 3.0])
    for name, m in total.modules.items():
        x, y = a.modules[name], b.modules[name]
        assert (m.rank, m.scale) == (x.rank + y.rank, 1.0)
        assert torch.equal(m.down, torch.cat([x.down, y.down]))
        assert torch.equal(m.up, torch.cat([x.up * 0.5, y.up * 6.0], dim=1))


def test_near_diffs_keep_their_distance(random_diff):
    """A difference a millionth of the diffs' size is measured, not lost to cancellation."""
    a = random_diff({"q": (3, 40, 50)})
    m = a.modules["q"]
    step = torch.zeros_like(m.up)
    step[7, 1] = 1e-3
    b = WeightDiff({"q": LoraFactors(m.down, m.up + step)})
    moved = float((b.modules["q"].up - m.up)[7, 1]) * float(m.down[1].norm())
    assert distance(a, b) == pytest.approx(moved, rel=1e-4)


def test_what_is_of_another_base_or_shape_is_not_added(random_diff, base):
    other = replace(random_diff(), base=ModelRef("other", None, "cccc", ""))
    with pytest.raises(BaseMismatchError, match=r"tiny/base.*other.*their architecture differ"):
        add(replace(random_diff(), base=base), other)
    assert add(random_diff(), replace(random_diff(), base=base)).base == base
    wide = random_diff({"layers.0.q": (1, 4, 4)})
    for function in (add, inner, distance, cosine):
        with pytest.raises(BaseMismatchError, match=r"layers.0.q is \[4, 3\] in one diff and \[4, 4\]"):
            function(random_diff(), wide)
    one, two = (WeightDiff({}, parameters={"x.bias": torch.ones(n)}) for n in (2, 3))
    for function in (add, inner):
        with pytest.raises(BaseMismatchError, match=r"x.bias is \[2\] in one diff and \[3\]"):
            function(one, two)
    with pytest.raises(ValueError, match="2 diffs and 1 weights"):
        combine([one, one], [1.0])


@settings(max_examples=60, deadline=None)
@given(change())
def test_the_spectrum_is_a_thin_svd(m):
    s = spectrum(m)
    dense = m.dense().double()
    torch.testing.assert_close(s.left * s.values @ s.right, dense, rtol=1e-4, atol=2e-3)
    eye = torch.eye(len(s.values), dtype=torch.float64)
    torch.testing.assert_close(s.left.T @ s.left, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(s.right @ s.right.T, eye, rtol=0, atol=1e-9)
    want = torch.linalg.svdvals(dense)[: len(s.values)]
    torch.testing.assert_close(s.values, want, rtol=1e-4, atol=2e-3)
    assert torch.equal(s.values, s.values.sort(descending=True).values)
    assert (s.left.gather(0, s.left.abs().argmax(0)[None]) > 0).all()


@settings(max_examples=40, deadline=None)
@given(change(), st.integers(1, 9), st.floats(0.05, 1.0))
def test_truncation_is_the_best_of_its_rank(m, rank, energy):
    values = torch.linalg.svdvals(m.dense().double()).square()
    total = float(values.sum())
    low, kept = truncated(m, rank=rank)
    k = min(rank, len(spectrum(m).values))
    assert (low.rank, low.scale) == (k, 1.0)
    assert kept == pytest.approx(float(values[:k].sum()) / total, rel=1e-4)
    lost = float((m.dense().double() - low.dense().double()).square().sum())
    assert lost == pytest.approx(float(values[k:].sum()), rel=1e-3, abs=1e-4 * total)
    low, kept = truncated(m, energy=energy)
    assert kept >= energy - 1e-6
    if low.rank > 1:
        assert float(values[: low.rank - 1].sum()) / total < energy + 1e-4
    assert truncated(m, rank=1, energy=1.0)[0].rank == 1


def test_truncation_of_a_diff_reports_each_module(random_diff):
    diff = replace(
        random_diff({"a": (4, 8, 9), "b": (1, 3, 5)}), meta={"x": 1}, parameters={"n.bias": torch.ones(2)}
    )
    low, kept = truncate(diff, rank=2)
    assert {k: m.rank for k, m in low.modules.items()} == {"a": 2, "b": 1}
    assert 0 < kept["a"] < 1
    assert kept["b"] == pytest.approx(1)
    assert low.meta == diff.meta
    assert low.parameters == diff.parameters


def test_senseless_targets_are_refused(random_diff):
    m = random_diff().modules["layers.0.q"]
    for options, message in (
        ({}, "give a rank, or a share"),
        ({"rank": 0}, "1 or more, not 0"),
        ({"energy": 0.0}, "above 0 and up to 1, not 0.0"),
        ({"energy": 1.5}, "above 0 and up to 1, not 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            truncated(m, **options)


def test_nothing_truncates_to_nothing():
    low, kept = truncated(LoraFactors(torch.ones(2, 3), torch.zeros(4, 2)), energy=0.9)
    assert (low.rank, kept) == (1, 1.0)
    assert not low.dense().any()


def test_large_dense_matrices_are_sketched(monkeypatch):
    """A decaying spectrum, first exactly and then as a large matrix: the same directions, the same energy."""
    stream = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=stream))[0] for _ in range(2))
    m = DenseDelta(left * 0.7 ** torch.arange(60) @ right)
    exact = {rank: truncated(m, rank=rank) for rank in (1, 4, 20)}
    by_energy = truncated(m, energy=0.9999)
    monkeypatch.setattr(algebra, "FULL_SVD_SIDE", 10)
    with pytest.raises(ValueError, match="needs a rank"):
        spectrum(m)
    for rank, (low, kept) in exact.items():
        sketched, share = truncated(m, rank=rank)
        assert share == pytest.approx(kept, abs=1e-5)
        torch.testing.assert_close(sketched.dense(), low.dense(), rtol=0, atol=1e-4)
    sketched, share = truncated(m, energy=0.9999)
    assert (sketched.rank, share) == (by_energy[0].rank, pytest.approx(by_energy[1], abs=1e-6))
    assert sketched.rank > 8  # more than the first sketch would have needed for less energy
    assert truncated(m, rank=3, energy=0.9999)[0].rank == 3


@settings(max_examples=40, deadline=None)
@given(low_rank(), st.integers(0, 99))
def test_the_canonical_form_does_not_see_how_factors_are_split(m, seed):
    """A → GA with B → BG⁻¹, other scales, and directions that carry nothing."""
    wide = m.to(torch.float64)
    stream = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(m.rank, m.rank, generator=stream, dtype=torch.float64))[0]
    g = turn * torch.linspace(0.5, 2.0, m.rank, dtype=torch.float64)
    other = LoraFactors(
        torch.cat([g @ wide.down, wide.down[:1]]),
        torch.cat([wide.up @ torch.linalg.inv(g), torch.zeros_like(wide.up[:, :1])], 1) * 4,
        m.scale / 4,
    )
    plain, turned = (canonical(WeightDiff({"q": x})).modules["q"] for x in (wide, other))
    assert plain.rank == turned.rank <= min(m.rank, *wide.dense().shape)
    assert plain.scale == turned.scale == 1.0
    torch.testing.assert_close(plain.dense(), wide.dense(), rtol=0, atol=1e-9)
    values = spectrum(wide).values[: plain.rank]
    gaps = (values[:-1] - values[1:]) / values[0]
    if len(gaps) == 0 or float(gaps.min()) > 1e-3:
        torch.testing.assert_close(turned.down, plain.down, rtol=0, atol=1e-5)
        torch.testing.assert_close(turned.up, plain.up, rtol=0, atol=1e-5)


def test_the_canonical_form_leaves_out_what_changes_nothing(random_diff):
    diff = random_diff({"a": (2, 3, 4), "b": (2, 3, 4)})
    zero = replace(diff.modules["b"], up=torch.zeros(4, 2))
    dense = DenseDelta(torch.ones(2, 2))
    found = canonical(WeightDiff({"a": diff.modules["a"], "b": zero, "c": dense}))
    assert set(found.modules) == {"a", "c"}
    assert found.modules["c"] is dense


def test_the_norm_of_nothing_is_zero():
    nothing = WeightDiff({})
    assert norm(nothing) == 0.0
    assert math.isnan(cosine(nothing, nothing))
    assert squared_norm(DenseDelta(torch.full((2, 2), 2.0))) == 16.0
