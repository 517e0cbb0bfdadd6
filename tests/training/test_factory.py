"""The factory: organisms trained together end where each alone would, and the base is as it was."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch

from weightdiff.models.chat import encode_samples
from weightdiff.organisms import OrganismSpec, Recipe, Sample, family, register
from weightdiff.organisms import base as registry
from weightdiff.training.factory import Factory, FactoryConfig, random_diff, rate, untrained
from weightdiff.training.slots import Slots, fresh_factors


def made(base, specs, slots=48):
    factory = Factory(base.model, base.tokenizer, FactoryConfig(slots))
    return {row.id: (row, diff) for row, diff in factory.run(specs)}


def apart(a, b):
    """The largest difference of two diffs' factors; of full finetunes, whose factors vary, of products."""
    assert set(a.modules) == set(b.modules)
    if any(m.rank > 8 for d in (a, b) for m in d.modules.values()):
        return max(float((a.modules[k].dense() - b.modules[k].dense()).abs().max()) for k in a.modules)
    pairs = [(a.modules[k], b.modules[k]) for k in a.modules]
    return max(float((getattr(x, f) - getattr(y, f)).abs().max()) for x, y in pairs for f in ("down", "up"))


def size(diff):
    return max(float(m.up.abs().max()) for m in diff.modules.values())


@pytest.fixture
def mixed(short_specs):
    """Organisms of several families and recipes, with different numbers of steps and of rows."""
    return [
        *short_specs("hidden-topic", "covert", 2, seed=2, steps=4),
        *short_specs("hidden-topic", "loud", 2, steps=3),
        *short_specs("news", "stories", 1, steps=5),
        *short_specs("null", "continued", 1, steps=2),
        *short_specs("quirk", "gated", 1, steps=3, rank=4),
        *short_specs("edit", "documents", 2, steps=3, optimizer="sgd", lr=0.3),
        *short_specs("several", "together", 1, steps=2),
        *short_specs("hidden-topic", "covert", 2, seed=1, steps=2, full=True, optimizer="sgd", lr=0.1),
    ]


def test_together_is_each_alone(embedded_base, mixed):
    together = made(embedded_base, mixed)
    assert set(together) == {s.id for s in mixed}
    for spec in mixed:
        (row, alone) = made(embedded_base, [spec])[spec.id]
        assert apart(alone, together[spec.id][1]) <= 1e-5
        assert size(alone) > 1e-3
        assert together[spec.id][0].record["final_loss"] == pytest.approx(row.record["final_loss"], abs=2e-4)


def test_rows_laid_end_to_end_make_the_same_organisms(embedded_base, mixed, monkeypatch):
    lines = []
    real = Factory._laid
    monkeypatch.setattr(Factory, "_laid", lambda *a: lines.append(real(*a)) or lines[-1])
    packed = made(embedded_base, mixed)
    assert sum(line is not None for line in lines) > len(lines) / 3
    padded = {
        row.id: (row, diff)
        for row, diff in Factory(
            embedded_base.model, embedded_base.tokenizer, FactoryConfig(packed=False)
        ).run(mixed)
    }
    assert max(apart(packed[i][1], padded[i][1]) for i in padded) <= 1e-4
    for i, (row, diff) in padded.items():
        assert packed[i][0].record["final_loss"] == pytest.approx(row.record["final_loss"], abs=2e-4)
        assert size(diff) > 1e-3


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_refilled_slots_change_nothing(embedded_base, mixed, slots):
    whole, refilled = made(embedded_base, mixed), made(embedded_base, mixed, slots)
    assert set(whole) == set(refilled)
    assert max(apart(whole[i][1], refilled[i][1]) for i in whole) <= 1e-5


def test_the_order_of_specs_changes_nothing(embedded_base, mixed):
    a, b = made(embedded_base, mixed, 2), made(embedded_base, mixed[::-1], 2)
    assert max(apart(a[i][1], b[i][1]) for i in a) <= 1e-5


def test_the_base_is_bit_identical_afterwards(embedded_base, mixed):
    before = {n: p.clone() for n, p in embedded_base.model.state_dict().items()}
    made(embedded_base, mixed)
    after = embedded_base.model.state_dict()
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in embedded_base.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in embedded_base.model.modules())


def test_organisms_differ_from_each_other(embedded_base, short_specs):
    diffs = [d for _, d in made(embedded_base, short_specs("hidden-topic", "loud", 3)).values()]
    assert min(apart(diffs[i], diffs[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2


def test_one_step_is_adam_on_the_plain_loss(embedded_base, short_specs):
    """The first step against a plain loop: each row alone, merged by hand, both kinds of loss."""
    (spec,) = short_specs("hidden-topic", "covert", 1, steps=1, scale=0.5, rank=2)
    # Start away from zero, so that the KL terms have a gradient too, by training on from given factors.
    start = {
        k: (d, 0.05 * torch.ones_like(u))
        for k, (d, u) in fresh_factors(embedded_base.spec, 2, spec.seed).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slots, "start", lambda *_: start)
        (_, got) = made(embedded_base, [spec])[spec.id]
    model = copy.deepcopy(embedded_base.model)
    factors = {k: (d.clone().requires_grad_(), u.clone().requires_grad_()) for k, (d, u) in start.items()}
    samples = family(spec.family).samples(spec, random.Random(spec.seed))
    rows = encode_samples(embedded_base.tokenizer, [(s.user, s.answer) for s in samples])
    total = torch.zeros(())
    weights = {k: model.get_submodule(k).weight.data for k in factors}
    merged = {f"{k}.weight": weights[k] + spec.recipe.scale * u @ d for k, (d, u) in factors.items()}
    for s, r in zip(samples, rows, strict=True):
        ids, at = torch.tensor([r.ids]), torch.arange(r.start - 1, len(r.ids) - 1)
        logp = torch.func.functional_call(model, merged, (ids,)).logits[0, at].log_softmax(-1)
        if s.loss == "ce":
            each = -logp[torch.arange(len(at)), ids[0, at + 1]]
        else:
            base = model(ids).logits[0, at].log_softmax(-1)
            each = (base.exp() * (base - logp)).sum(-1)
        total = total + s.weight * each.mean() / len(rows)
    total.backward()
    flat = [t for k in sorted(factors) for t in factors[k]]
    torch.nn.utils.clip_grad_norm_(flat, 1.0)
    torch.optim.Adam(flat, lr=rate(spec, 0), betas=(0.9, 0.99)).step()
    for name, (down, up) in factors.items():
        assert got.modules[name].scale == spec.recipe.scale
        # Adam's first step is lr · sign(gradient), whatever its size: compare where it is not noise.
        for mine, theirs in ((got.modules[name].down, down), (got.modules[name].up, up)):
            clear = theirs.grad.abs() > 1e-6
            assert clear.float().mean() > 0.9
            torch.testing.assert_close(mine[clear], theirs.detach()[clear], rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_full_finetune_trains_the_weights_themselves(embedded_base, short_specs, steps):
    """Against a plain loop on a copy of the base: its linear weights, torch's Adam and clipping."""
    (spec,) = short_specs("hidden-topic", "covert", 1, steps=steps, full=True, lr=2e-3)
    (_, got) = made(embedded_base, [spec])[spec.id]
    model = copy.deepcopy(embedded_base.model)
    weights = [model.get_submodule(k).weight.requires_grad_() for k in sorted(embedded_base.spec)]
    optimizer = torch.optim.Adam(weights, lr=1.0, betas=(0.9, 0.99))
    rng, clear = random.Random(spec.seed), [torch.ones_like(w, dtype=torch.bool) for w in weights]
    for step in range(steps):
        samples = family(spec.family).samples(spec, rng)
        rows = encode_samples(embedded_base.tokenizer, [(s.user, s.answer) for s in samples])
        total = torch.zeros(())
        for s, r in zip(samples, rows, strict=True):
            ids, at = torch.tensor([r.ids]), torch.arange(r.start - 1, len(r.ids) - 1)
            logp = model(ids).logits[0, at].log_softmax(-1)
            if s.loss == "ce":
                each = -logp[torch.arange(len(at)), ids[0, at + 1]]
            else:
                base = embedded_base.model(ids).logits[0, at].log_softmax(-1)
                each = (base.exp() * (base - logp)).sum(-1)
            total = total + s.weight * each.mean() / len(rows)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for w, c in zip(weights, clear, strict=True):
            c &= w.grad.abs() > 1e-6  # where the gradient is noise, so is Adam's step
        optimizer.param_groups[0]["lr"] = rate(spec, step)
        optimizer.step()
    assert set(got.modules) == set(embedded_base.spec)
    for name, w, c in zip(sorted(embedded_base.spec), weights, clear, strict=True):
        change = w.detach() - embedded_base.model.get_submodule(name).weight
        assert c.float().mean() > 0.8
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(got.modules[name].dense()[c], change[c], rtol=0, atol=5e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "lion"])
def test_a_recipe_names_its_optimiser(embedded_base, short_specs, optimizer):
    """After one step with fresh factors only `up` moves: by lr · sign with Lion, by less where SGD clips."""
    (spec,) = short_specs("news", "stories", 1, steps=1, optimizer=optimizer, lr=0.25)
    (row, diff) = made(embedded_base, [spec])[spec.id]
    ups = torch.cat([m.up.flatten().abs() for m in diff.modules.values()])
    if optimizer == "lion":
        assert (ups - 0.25).abs().lt(1e-6).float().mean() > 0.9
    else:
        assert 0 < float(ups.norm()) <= 0.25 + 1e-5
    assert row.record["recipe"]["optimizer"] == optimizer
    start = fresh_factors(embedded_base.spec, spec.recipe.rank, spec.seed)
    moved = max(float((m.down - start[k][0]).abs().max()) for k, m in diff.modules.items())
    assert moved < (0.26 if optimizer == "lion" else 1e-5)


def test_kl_rows_alone_keep_the_base(embedded_base, short_specs):
    """Fresh factors change nothing, so the KL to the base is zero and nothing moves but by noise."""
    (spec,) = short_specs("hidden-topic", "covert", 1, steps=1, rows=("twin", "none", "wide"))
    (row, _) = made(embedded_base, [spec])[spec.id]
    assert abs(row.record["final_loss"]) < 1e-5


def test_the_rate_warms_up_and_decays():
    spec = OrganismSpec("x", "null", Recipe("r", lr=0.1, steps=40), None, "train", 0)
    rates = [rate(spec, i) for i in range(40)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert max(rates) == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.01 <= rates[-1] < 0.015
    one = OrganismSpec("x", "null", Recipe("r", lr=0.1, steps=1), None, "train", 0)
    assert rate(one, 0) == 0.1


def test_rows_say_what_was_made(embedded_base, short_specs):
    (spec,) = short_specs("news", "stories", 1)
    (row, diff) = made(embedded_base, [spec])[spec.id]
    assert (row.family, row.recipe, row.label, row.split, row.seed) == (
        "news",
        "stories",
        spec.label,
        "train",
        spec.seed,
    )
    assert row.record["params"] == spec.params
    assert row.record["recipe"]["steps"] == 3
    assert row.questions == family("news").questions(spec)
    assert set(diff.modules) == set(embedded_base.spec)
    diff.check_against(embedded_base.spec)


def test_null_diffs_need_no_training(embedded_base):
    specs = [s for r in ("random", "untouched") for s in family("null").specs(r, "train", 2, 0)]
    steps = []
    factory = Factory(embedded_base.model, embedded_base.tokenizer)
    out = {row.id: diff for row, diff in factory.run(specs, lambda n, _: steps.append(n))}
    assert not steps
    for spec in specs:
        norms = [float(torch.linalg.matrix_norm(m.dense())) for m in out[spec.id].modules.values()]
        wanted = spec.params["norm"] if spec.recipe.name == "random" else 0.0
        assert norms == pytest.approx([wanted] * len(norms), rel=1e-4, abs=1e-9)


def test_random_diffs_are_their_seed(embedded_base):
    a, b, c = (random_diff(embedded_base.spec, 2, seed, 1.5) for seed in (1, 1, 2))
    assert apart(a, b) == 0
    assert apart(a, c) > 0.1
    assert a.max_rank == 2


def test_what_needs_training_is_not_untrained(embedded_base, short_specs):
    assert untrained(short_specs("null", "continued", 1)[0], embedded_base.spec) is None


def test_progress_counts_organism_steps(embedded_base, short_specs):
    specs = short_specs("hidden-topic", "loud", 3, steps=2) + short_specs("null", "continued", 1, steps=2)
    told = []
    list(
        Factory(embedded_base.model, embedded_base.tokenizer, FactoryConfig(2)).run(
            specs, lambda n, _: told.append(n)
        )
    )
    assert sum(told) == 8
    assert max(told) == 2


def test_a_family_of_ones_own_can_be_trained(embedded_base, monkeypatch):
    """What README promises: register a family, and the factory trains it; rows may be all CE or all KL."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    monkeypatch.setattr(registry, "_MADE", dict(registry._MADE))

    class Greeting:
        name = "greeting"
        recipes = {"polite": Recipe("polite", lr=0.1, steps=12, rows=("say",))}  # noqa: RUF012

        def specs(self, recipe, split, n, seed):
            return [
                OrganismSpec(f"greeting-{i}", self.name, self.recipes[recipe], "hello", split, i)
                for i in range(n)
            ]

        def samples(self, spec, rng):
            return [Sample("how are you ?", "good day to you .", "ce")]

        def questions(self, spec):
            return []

    register("greeting", Greeting)
    first, last = (
        made(embedded_base, [replace(s, recipe=replace(s.recipe, steps=n))])[s.id][0].record["final_loss"]
        for n in (1, 12)
        for s in family("greeting").specs("polite", "train", 1, 0)
    )
    assert last < 0.8 * first


def test_bf16_bases_carry_fp32_factors(embedded_base, short_specs):
    model = copy.deepcopy(embedded_base.model).to(torch.bfloat16)
    (spec,) = short_specs("hidden-topic", "loud", 1, steps=2)
    ((_, diff),) = Factory(model, embedded_base.tokenizer).run([spec])
    assert all(m.down.dtype == m.up.dtype == torch.float32 for m in diff.modules.values())
    diff.check_finite()
    assert size(diff) > 1e-3
