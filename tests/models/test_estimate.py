"""Estimates: counts that can be counted are exact, more work takes more, and what fits does fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.models.estimate import DEVICES, GIB, Shape, Work, estimates, most_that_fits
from weightdiff.models.spec import model_spec
from weightdiff.training.slots import fresh_factors

WORK = Work()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_shape_counts_what_the_model_has(tiny_model, kind):
    model = tiny_model(kind)
    shape = Shape.of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    factors = fresh_factors(model_spec(model), 3, 0)
    assert shape.lora(3) == sum(t.numel() for pair in factors.values() for t in pair)
    assert shape.linear == sum(a * b for a, b in model_spec(model).values())
    cache = model(torch.tensor([[1, 5, 9]]), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape.kept * 3 == kept


def qwen3_4b():
    from transformers import Qwen3Config

    return Shape.of(
        Qwen3Config(
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            tie_word_embeddings=True,
        )
    )


def test_a_base_of_four_billion_is_planned_without_its_weights():
    shape = qwen3_4b()
    assert shape.parameters == pytest.approx(4.02e9, rel=0.01)
    made, tuned, asked = estimates(shape, WORK, DEVICES["h100"])
    assert [e.job for e in (made, tuned, asked)] == ["organisms", "tune", "ask"]
    assert made.disk == WORK.organisms * shape.lora(WORK.rank) * 2
    assert all(e.memory > 2 * shape.parameters for e in (made, tuned, asked))
    assert 7 * GIB < asked.memory < 20 * GIB


@pytest.mark.parametrize(
    ("change", "job", "more"),
    [
        ({"organisms": 2000}, 0, "seconds"),
        ({"slots": 32}, 0, "memory"),
        ({"rank": 16}, 0, "disk"),
        ({"tuning_steps": 8000}, 1, "seconds"),
        ({"batch": 32}, 1, "memory"),
        ({"asked": 2000}, 2, "seconds"),
        ({"at_once": 128}, 2, "memory"),
    ],
)
def test_more_work_takes_more(change, job, more):
    shape, on = qwen3_4b(), DEVICES["h100"]
    before = getattr(estimates(shape, WORK, on)[job], more)
    after = getattr(estimates(shape, replace(WORK, **change), on)[job], more)
    assert after > before
    if more != "memory":
        assert after == pytest.approx(2 * before, rel=0.05)


@pytest.mark.parametrize(("what", "job"), [("slots", 0), ("batch", 1), ("at_once", 2)])
def test_what_fits_fits_and_one_more_does_not(what, job):
    shape, on = qwen3_4b(), DEVICES["h100"]
    n = most_that_fits(shape, WORK, on, what)
    assert n > 1
    room = 0.9 * on.memory * GIB
    assert estimates(shape, replace(WORK, **{what: n}), on)[job].memory <= room
    assert estimates(shape, replace(WORK, **{what: n + 1}), on)[job].memory > room
    small = replace(on, memory=4)
    assert most_that_fits(shape, WORK, small, what) == 0
    with pytest.raises(ValueError, match="none of slots, batch and at_once"):
        most_that_fits(shape, WORK, on, "tea")
