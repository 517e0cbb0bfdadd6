"""Slots stacked in one tensor are trained as torch's own optimisers train each alone."""

from __future__ import annotations

import pytest
import torch

from weightdiff.training.slots import OPTIMIZERS, Slots, fresh_factors

SHAPES = {"b.q_proj": (5, 7), "a.v_proj": (6, 3)}


class Lion(torch.optim.Optimizer):
    """Lion as its paper has it (arXiv 2302.06675, algorithm 2), without weight decay."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = 0.9 * m + (1 - 0.9) * p.grad
                p -= group["lr"] * torch.sign(c)
                m.copy_(0.99 * m + (1 - 0.99) * p.grad)


OPTIMISERS = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=1.0, betas=(0.9, 0.99), eps=1e-8),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1.0, momentum=0.9),
    "lion": lambda ps: Lion(ps, lr=1.0),
}


class Alone:
    """One organism with an optimiser of its own and torch's gradient clipping."""

    def __init__(self, factors, clip=1.0, optimizer="adam", full=False):
        self.factors = {
            k: (d.clone().requires_grad_(not full), u.clone().requires_grad_())
            for k, (d, u) in factors.items()
        }
        self.flat = [t for k in sorted(self.factors) for t in self.factors[k] if t.requires_grad]
        self.optimizer = OPTIMISERS[optimizer](self.flat)
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


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("size", [1e-4, 0.1, 10.0], ids=["tiny", "middling", "clipped"])
def test_every_slot_has_an_optimiser_of_its_own(size, full, optimizer):
    """Slots start at different times, have their own rates, and are clipped by their own norm."""
    slots = Slots(SHAPES, 3, rank=2, optimizer=optimizer, full=full)
    alone = {}
    for step in range(12):
        for slot, start in enumerate((0, 0, 5)):
            if step == start:
                alone[slot] = Alone(slots.start(slot), 1.0, optimizer, full)
                slots.load(slot, slots.start(slot))
        lr = torch.tensor([1e-2, 3e-2 / (step + 1), 2e-2 if step >= 5 else 0.0])
        grads = gradients(slots, size)
        grads = [g * torch.tensor([1.0, 30.0, 0.1])[:, None, None] for g in grads]
        give(slots, grads)
        slots.step(lr)
        for slot, one in alone.items():
            one.step([g[slot] for g in grads], float(lr[slot]))
            same(slots, slot, one)
    assert slots.steps.tolist() == [12, 12, 7]


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_narrowed_slots_keep_their_state(optimizer):
    """What two of three slots become does not depend on when the third is closed, or on their order."""
    slots = Slots(SHAPES, 3, rank=2, optimizer=optimizer)
    alone = {slot: Alone(slots.start(slot), optimizer=optimizer) for slot in range(3)}
    for slot in alone:
        slots.load(slot, slots.start(slot))
    for step in range(8):
        if step == 4:
            slots = slots.narrowed([2, 0])
            alone = {0: alone[2], 1: alone[0]}
            assert (slots.n, slots.optimizer, slots.steps.tolist()) == (2, optimizer, [4, 4])
        grads = gradients(slots, 0.3)
        give(slots, grads)
        slots.step(torch.full((slots.n,), 1e-2))
        for slot, one in alone.items():
            one.step([g[slot] for g in grads], 1e-2)
            same(slots, slot, one)


def test_narrowed_full_slots_stay_full():
    slots = Slots(SHAPES, 2, rank=1, optimizer="sgd", full=True)
    for slot in (0, 1):
        slots.load(slot, slots.start(slot))
    give(slots, gradients(slots, 1.0))
    slots.step(torch.tensor([0.1, 0.1]))
    one = slots.narrowed([1])
    assert (one.full, one.n) == (True, 1)
    for name, (down, up) in one.modules.items():
        assert not down.requires_grad
        assert torch.equal(down[0], torch.eye(SHAPES[name][0]))
        assert torch.equal(up[0], slots.modules[name][1][1])
        assert up.any()


def test_a_full_finetune_is_the_change_of_the_weight():
    """Its diff is the shortest product that has it: of full rank here, of rank 1 for a change of rank 1."""
    slots = Slots(SHAPES, 2, rank=1, full=True)
    for slot in (0, 1):
        slots.load(slot, slots.start(slot))
    changes = {}
    for name, (_, up) in slots.modules.items():
        width, height = SHAPES[name]
        thin = torch.randn(height, 1) @ torch.randn(1, width)
        up.data[0], up.data[1] = torch.randn(height, width), thin
        changes[name] = up.detach().clone()
    for slot, ranks in ((0, {k: min(s) for k, s in SHAPES.items()}), (1, dict.fromkeys(SHAPES, 1))):
        taken = slots.take(slot, 0.5)
        assert {k: m.rank for k, m in taken.modules.items()} == ranks
        for name, m in taken.modules.items():
            torch.testing.assert_close(m.dense(), 0.5 * changes[name][slot], rtol=1e-4, atol=1e-4)


def test_a_full_finetune_starts_at_the_base_whatever_the_seed():
    slots = Slots(SHAPES, 1, rank=3, full=True)
    for seed in (0, 1):
        for name, (down, up) in slots.start(seed).items():
            assert torch.equal(down, torch.eye(SHAPES[name][0]))
            assert up.shape == (SHAPES[name][1], SHAPES[name][0])
            assert not up.any()


def test_an_unknown_optimiser_lists_those_there_are():
    with pytest.raises(ValueError, match="no optimiser 'adagrad'; choose one of adam, sgd, lion"):
        Slots(SHAPES, 1, 1, optimizer="adagrad")
    assert set(OPTIMISERS) == set(OPTIMIZERS)


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
