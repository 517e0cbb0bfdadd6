"""Rows laid end to end give the logits and gradients of rows that are padded, and of each row alone."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from weightdiff.errors import WeightDiffError
from weightdiff.models import packing
from weightdiff.models.generate import logits_at
from weightdiff.models.multilora import BatchMismatchError, RowLoras, SharedLora, attach, switched_off
from weightdiff.models.packing import pack, pack_where_it_pays, packs
from weightdiff.models.spec import model_spec

LENGTHS = ((3, 9), (1, 4), (6, 6))
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def rows():
    """Two rows of each of three slots, of different lengths."""
    rng = random.Random(3)
    return [[rng.randrange(3, 97) for _ in range(n)] for own in LENGTHS for n in own]


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tiny_model):
    return tiny_model(request.param).requires_grad_(False)


def places(rows):
    """Every place of every row."""
    pairs = [(i, t) for i, row in enumerate(rows) for t in range(len(row))]
    return tuple(torch.tensor(x) for x in zip(*pairs, strict=True))


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def factors(model, slots, rank=2):
    g = torch.Generator().manual_seed(1)
    return {
        name: tuple(
            (0.3 * torch.randn(*shape, generator=g)).requires_grad_()
            for shape in ((slots, rank, width), (slots, height, rank))
        )
        for name, (width, height) in model_spec(model).items()
    }


def test_every_token_is_at_its_place(rows):
    packed = pack(rows, 3, 0)
    width = max(map(sum, LENGTHS))
    assert packed.ids.shape == packed.positions.shape == (1, 3 * width)
    assert packed.places.shape == (6, 9)
    for i, row in enumerate(rows):
        where = packed.places[i, : len(row)]
        assert where.tolist() == list(range(int(where[0]), int(where[0]) + len(row)))
        assert int(where[0]) // width == int(where[-1]) // width == i // 2
        assert packed.ids[0, where].tolist() == row
        assert packed.positions[0, where].tolist() == list(range(len(row)))
        assert packed.places.flatten()[packed.back[where]].tolist() == where.tolist()
        assert packed.inside[i].tolist() == [t < len(row) for t in range(9)]
        assert packed.row_of.flatten()[where].tolist() == [i % 2] * len(row)
    assert torch.equal(packed.row_of.flatten() >= 0, packed.used)
    assert int(packed.used.sum()) == sum(map(len, rows))
    assert not packed.ids[0][~packed.used].any()


def test_logits_are_those_of_each_row_alone(model, rows):
    at = places(rows)
    with torch.no_grad():
        got = pack(rows, 1, 0).logits(model, *at)
        want = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_logits_and_gradients_are_those_of_padded_rows(model, rows):
    at, (ids, mask) = places(rows), padded(rows)
    weight = torch.randn(len(at[0]), model.config.vocab_size, generator=torch.Generator().manual_seed(2))
    found = []
    for one_line in (False, True):
        own = factors(model, 3)
        with attach(model, RowLoras(own, 2, one_line=one_line)):
            logits = pack(rows, 3, 0).logits(model, *at) if one_line else logits_at(model, ids, mask, *at)
            (logits * weight).sum().backward()
            with torch.no_grad(), switched_off(model):
                bare = pack(rows, 1, 0).logits(model, *at) if one_line else logits_at(model, ids, mask, *at)
        found.append((logits.detach(), bare, {k: [t.grad for t in pair] for k, pair in own.items()}))
    (plain, plain_bare, plain_grads), (line, line_bare, line_grads) = found
    assert (plain - plain_bare).abs().max() > 0.01
    torch.testing.assert_close(line, plain, **TOLERANCE)
    torch.testing.assert_close(line_bare, plain_bare, **TOLERANCE)
    for name, grads in plain_grads.items():
        for a, b in zip(line_grads[name], grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)
    assert min(float(g.abs().max()) for grads in plain_grads.values() for g in grads) > 0


@pytest.mark.parametrize(("stretches", "multiple"), [(1, 1), (1, 16), (2, 1), (3, 16), (6, 1)])
def test_a_line_whose_rows_have_slots_of_their_own_gives_the_same(model, rows, stretches, multiple):
    at, (ids, mask) = places(rows), padded(rows)
    weight = torch.randn(len(at[0]), model.config.vocab_size, generator=torch.Generator().manual_seed(2))
    found = []
    for line in (None, pack(rows, stretches, 0, multiple=multiple)):
        own = factors(model, len(rows))
        shared = {k: tuple(t[0].detach().clone().requires_grad_() for t in pair) for k, pair in own.items()}
        with attach(model, RowLoras(own, 1, line=line), [SharedLora(shared, scale=0.5)]):
            logits = line.logits(model, *at) if line else logits_at(model, ids, mask, *at)
            (logits * weight).sum().backward()
        grads = {
            (part, k): [t.grad for t in pair]
            for part, of in ((0, own), (1, shared))
            for k, pair in of.items()
        }
        found.append((logits.detach(), grads))
    (plain, plain_grads), (packed, packed_grads) = found
    torch.testing.assert_close(packed, plain, **TOLERANCE)
    for name, grads in plain_grads.items():
        for a, b in zip(packed_grads[name], grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)
    assert min(float(g.abs().max()) for grads in plain_grads.values() for g in grads) > 0


def test_a_line_is_felt_where_precisions_differ(model, rows):
    """Under autocast, factors and layers are of two precisions."""
    at, own = places(rows), factors(model, len(rows))
    line = pack(rows, 1, 0)
    with torch.no_grad(), attach(model, RowLoras(own, 1, line=line)):
        want = line.logits(model, *at)
        with torch.autocast("cpu", torch.bfloat16):
            got = line.logits(model, *at)
    with torch.no_grad():
        bare = line.logits(model, *at)
    assert (got.float() - want).abs().max() < 0.2 * (want - bare).abs().max()


def test_a_line_needs_a_slot_for_each_of_its_rows(model, rows):
    with pytest.raises(BatchMismatchError, match="a line of 6 rows needs as many slots, one for each, not 3"):
        RowLoras(factors(model, 3), 1, line=pack(rows, 1, 0))


def test_stretches_are_multiples_where_they_are_asked_to_be(model, rows):
    line = pack(rows, 3, 0, multiple=8)
    assert line.ids.shape == (1, 3 * 16)
    at, own = places(rows), factors(model, 3)
    with torch.no_grad(), attach(model, RowLoras(own, 2, one_line=True)):
        torch.testing.assert_close(line.logits(model, *at), pack(rows, 3, 0).logits(model, *at), **TOLERANCE)
    short = [[5] * 40, [5] * 10, [5] * 12, [5] * 11]
    assert pack_where_it_pays(model, short, 1, 0).ids.shape == (1, 73)
    half = model.to(torch.bfloat16)
    assert pack_where_it_pays(half, short, 1, 0).ids.shape == (1, 128)
    assert pack_where_it_pays(half, short, 2, 0).ids.shape == (1, 2 * 64)


def test_stretches_are_balanced():
    rng = random.Random(4)
    for _ in range(20):
        lengths = [rng.choice((9, 10, 14, 30)) + rng.randrange(5) for _ in range(8)]
        order = packing.balanced(lengths, 2)
        assert sorted(order) == list(range(8))
        longest = max(sum(lengths[i] for i in part) for part in (order[:4], order[4:]))
        halves = (sum(lengths[i] for i in half) for half in itertools.combinations(range(8), 4))
        best = min(max(one, sum(lengths) - one) for one in halves)
        assert longest <= 1.1 * best
    assert packing.balanced([5, 5, 5], 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("n", "rank", "together"),
    [
        (16, 8, 4),
        (16, 16, 4),
        (16, 32, 2),
        (16, 33, 1),
        (6, 2, 3),
        (7, 2, 7),
        (11, 2, 1),
        (1, 2, 1),
        (8, 0, 4),
    ],
)
def test_rows_stand_together_where_they_divide_evenly_and_ranks_stay_low(n, rank, together):
    assert packing.rows_together(n, rank) == together


def test_it_pays_where_rows_differ(model):
    assert pack_where_it_pays(model, [[5] * 9, [5] * 3, [5] * 3], 1, 0) is not None
    assert pack_where_it_pays(model, [[5] * 9, [5] * 9, [5] * 8], 1, 0) is None


def test_the_model_is_as_it_was(model, rows):
    before = model.config._attn_implementation
    pack(rows, 1, 0).logits(model, *places(rows))
    assert model.config._attn_implementation == before != packing.NAME
    with pytest.raises(IndexError):
        pack(rows, 1, 0).logits(model, torch.tensor([99]), torch.tensor([0]))
    assert model.config._attn_implementation == before
    ids = torch.tensor([rows[1]])
    torch.testing.assert_close(model(ids).logits[0], pack([rows[1]], 1, 0).logits(model, *places([rows[1]])))


def test_models_with_other_attention_are_left_alone(tiny_model, rows):
    assert packs(tiny_model("llama"))
    assert packs(tiny_model("qwen3"))
    assert not packs(tiny_model("qwen3", use_sliding_window=True, sliding_window=4))
    assert not packs(tiny_model("gpt2"))
    gemma = tiny_model("gemma3")
    assert not packs(gemma)
    with pytest.raises(WeightDiffError, match="cannot be laid end to end under sliding"):
        pack(rows, 1, 0).logits(gemma, *places(rows))
