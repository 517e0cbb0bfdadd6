"""Batches that memory does not hold are computed in parts, and nothing is lost by it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from weightdiff.errors import MemoryShortError
from weightdiff.methods.dit import Interpreter
from weightdiff.models.halving import Halving, out_of_memory
from weightdiff.models.rendering import Rendering
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.factory import Factory, FactoryConfig, random_diff
from weightdiff.training.tuning import tune


@contextmanager
def short_of_memory(model, tokens):
    """The model has no memory for batches of more tokens; how large the refused and the other ones were."""
    refused, taken = [], []

    def check(_module, _args, kwargs):
        size = kwargs["input_ids"].numel()
        (refused if size > tokens else taken).append(size)
        if size > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused, taken
    finally:
        handle.remove()


def test_what_counts_as_out_of_memory():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(KeyError("out of memory"))


def test_parts_are_halved_until_they_fit_and_stay_so():
    halving, tried, undone = Halving("things"), [], []

    def compute(part):
        tried.append(part)
        if part.stop - part.start > 3:
            raise MemoryError
        return range(part.start, part.stop)

    assert halving.run(10, compute, lambda: undone.append(len(tried))) == list(range(10))
    assert [(p.start, p.stop) for p in tried] == [(0, 10), (0, 5), (0, 3), (3, 6), (6, 9), (9, 10)]
    assert undone == [1, 2]
    tried.clear()
    assert halving.run(10, compute) == list(range(10))
    assert len(tried) == 4
    assert halving.run(0, compute) == []


def test_what_does_not_fit_at_all_and_other_errors_are_passed_on():
    def compute(_part):
        raise MemoryError

    with pytest.raises(MemoryShortError, match="not memory enough for one of 5 things: free some, or take"):
        Halving("things").run(5, compute)

    def broken(_part):
        raise RuntimeError("another matter")

    with pytest.raises(RuntimeError, match="another matter"):
        Halving("things").run(5, broken)


@pytest.mark.parametrize("packed", [True, False])
def test_organisms_are_the_same_where_memory_is_short(embedded_base, short_specs, packed):
    specs = short_specs("hidden-topic", "covert", 5, steps=3)

    def made():
        factory = Factory(embedded_base.model, embedded_base.tokenizer, FactoryConfig(packed=packed))
        return dict((row.id, diff) for row, diff in factory.run(specs))

    whole = made()
    with short_of_memory(embedded_base.model, 400) as (refused, taken):
        parts = made()
    assert 1 <= len(refused) <= 4
    assert taken
    for id, diff in whole.items():
        for name, m in diff.modules.items():
            torch.testing.assert_close(parts[id].modules[name].down, m.down, atol=1e-4, rtol=0)
            torch.testing.assert_close(parts[id].modules[name].up, m.up, atol=1e-4, rtol=0)
    assert max(float(m.up.abs().max()) for m in whole[specs[0].id].modules.values()) > 1e-3


def test_tuning_goes_on_where_memory_is_short(embedded_base, random_store):
    config = TuningConfig(rank=2, steps=3, batch=8, validate_every=99, validation_rows=1, answer_tokens=2)

    def tuned():
        return tune(embedded_base.model, embedded_base.tokenizer, random_store, config, Rendering())

    whole = tuned()
    with short_of_memory(embedded_base.model, 100) as (refused, _):
        parts = tuned()
    assert refused
    for name, m in whole.adapter.modules.items():
        torch.testing.assert_close(parts.adapter.modules[name].down, m.down, atol=1e-4, rtol=0)
        torch.testing.assert_close(parts.adapter.modules[name].up, m.up, atol=1e-4, rtol=0)


def test_answers_are_the_same_where_memory_is_short(embedded_base):
    diffs = [random_diff(embedded_base.spec, 2, seed, 3.0) for seed in range(7)]
    adapter = random_diff(embedded_base.spec, 2, 99, 1.0)
    questions = [f"what is {n} ?" for n in ("one", "two", "three", "four", "five", "six", "seven")]
    interpreter = Interpreter(embedded_base, adapter, max_new_tokens=4)
    whole = interpreter.answer(diffs, questions, evidence=True)
    with short_of_memory(embedded_base.model, 40) as (refused, taken):
        parts = interpreter.answer(diffs, questions, evidence=True)
    assert refused
    assert taken
    assert [a.text for a in parts] == [a.text for a in whole]
    assert [a.evidence for a in parts] == pytest.approx([a.evidence for a in whole], abs=1e-3)
    with (
        short_of_memory(embedded_base.model, 2),
        pytest.raises(MemoryShortError, match="memory enough for one of 7 questions"),
    ):
        interpreter.answer(diffs, questions)
