"""Slots stacked in one tensor are trained as `torch.optim.Adam` trains each alone."""

from __future__ import annotations

import pytest
import torch

from weightdiff.training.slots import Slots, fresh_factors

SHAPES = {"b.q_proj": (5, 7), "a.v_proj": (6, 3)}


class Alone:
    """One organism with torch's own Adam and gradient clipping."""

    def __init__(self, factors, clip=1.0):
        self.factors = {
            k: (d.clone().requires_grad_(), u.clone().requires_grad_()) for k, (d, u) in factors.items()
        }
        self.flat = [t for k in sorted(self.factors) for t in self.factors[k]]
        self.optimizer = torch.optim.Adam(self.flat, lr=1.0, betas=(0.9, 0.99), eps=1e-8)
        self.clip = clip

    def step(self, grads, lr):
        for t, g in zip(self.flat, grads, strict=True):
            t.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(self.flat, self.clip)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()


def gradients(slots, size):
    return [size * torch.randn_like(t) for t in slots._tensors]


def give(slots, grads):
    for t, g in zip(slots._tensors, grads, strict=True):
        t.grad = g.clone()


def same(slots, slot, alone):
    for name, (down, up) in alone.factors.items():
        torch.testing.assert_close(slots.modules[name][0][slot], down, rtol=0, atol=1e-6)
        torch.testing.assert_close(slots.modules[name][1][slot], up, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 0.1, 10.0], ids=["tiny", "middling", "clipped"])
def test_every_slot_has_an_adam_of_its_own(size):
    """Slots start at different times, have their own rates, and are clipped by their own norm."""
    slots, rank = Slots(SHAPES, 3, rank=2), 2
    alone = {}
    for step in range(12):
        for slot, start in enumerate((0, 0, 5)):
            if step == start:
                alone[slot] = Alone(fresh_factors(SHAPES, rank, seed=slot))
                slots.load(slot, fresh_factors(SHAPES, rank, seed=slot))
        lr = torch.tensor([1e-2, 3e-2 / (step + 1), 2e-2 if step >= 5 else 0.0])
        grads = gradients(slots, size)
        grads = [g * torch.tensor([1.0, 30.0, 0.1])[:, None, None] for g in grads]
        give(slots, grads)
        slots.step(lr)
        for slot, one in alone.items():
            one.step([g[slot] for g in grads], float(lr[slot]))
            same(slots, slot, one)
    assert slots.steps.tolist() == [12, 12, 7]


def test_a_reloaded_slot_forgets_its_predecessor():
    slots = Slots(SHAPES, 2, rank=1)
    for slot in (0, 1):
        slots.load(slot, fresh_factors(SHAPES, 1, slot))
    for _ in range(4):
        give(slots, gradients(slots, 1.0))
        slots.step(torch.tensor([0.1, 0.1]))
    neighbour = slots.take(0, 1.0)
    slots.load(1, fresh_factors(SHAPES, 1, 9))
    alone = Alone(fresh_factors(SHAPES, 1, 9))
    same(slots, 1, alone)
    for name, factors in slots.take(0, 1.0).modules.items():
        assert torch.equal(factors.down, neighbour.modules[name].down)
    for _ in range(3):
        grads = gradients(slots, 0.5)
        give(slots, grads)
        slots.step(torch.tensor([0.1, 0.02]))
        alone.step([g[1] for g in grads], 0.02)
    same(slots, 1, alone)


def test_a_rate_of_zero_leaves_a_slot_as_it_is():
    slots = Slots(SHAPES, 2, rank=1)
    slots.load(0, fresh_factors(SHAPES, 1, 0))
    give(slots, gradients(slots, 1.0))
    slots.step(torch.tensor([0.0, 0.1]))
    fresh = fresh_factors(SHAPES, 1, 0)
    for name, (down, up) in slots.modules.items():
        assert torch.equal(down[0], fresh[name][0])
        assert not up[0].any()
        assert up[1].any()
    assert slots.steps.tolist() == [0, 1]
    assert all(t.grad is None for t in slots._tensors)


def test_taken_factors_are_copies_with_their_scale():
    slots = Slots(SHAPES, 1, rank=2)
    slots.load(0, fresh_factors(SHAPES, 2, 0))
    taken = slots.take(0, 0.5)
    assert {k: (m.in_features, m.out_features, m.rank, m.scale) for k, m in taken.modules.items()} == {
        k: (*shape, 2, 0.5) for k, shape in SHAPES.items()
    }
    slots.load(0, fresh_factors(SHAPES, 2, 1))
    assert torch.equal(taken.modules["a.v_proj"].down, fresh_factors(SHAPES, 2, 0)["a.v_proj"][0])


def test_fresh_factors_change_nothing_and_are_their_seed():
    a, b, c = (fresh_factors(SHAPES, 3, seed) for seed in (4, 4, 5))
    for name, (width, height) in SHAPES.items():
        down, up = a[name]
        assert down.shape == (3, width)
        assert up.shape == (height, 3)
        assert not up.any()
        assert 0 < down.abs().max() <= width**-0.5
        assert torch.equal(down, b[name][0])
        assert not torch.equal(down, c[name][0])
    reordered = fresh_factors(dict(sorted(SHAPES.items())), 3, 4)
    assert all(torch.equal(reordered[k][0], a[k][0]) for k in SHAPES)
