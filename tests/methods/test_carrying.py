"""How diffs are shared out over batches, as memory allows, and that answers do not depend on it."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.methods import carrying, speaking
from weightdiff.methods.carrying import STACKED_BYTES, batches
from weightdiff.models import memory
from weightdiff.models.memory import row_bytes, rows_that_fit


def lora(base, rank=2):
    name, (width, height) = next(iter(base.spec.items()))
    return WeightDiff({name: LoraFactors(torch.ones(rank, width), torch.ones(height, rank))})


@pytest.fixture
def room(monkeypatch):
    """Makes a batch's diffs have so many bytes."""

    def make(n: int) -> None:
        monkeypatch.setattr(carrying, "free_memory", lambda _device: int(n / carrying.SHARE))

    return make


def size(diff):
    return STACKED_BYTES * sum(m.down.numel() + m.up.numel() for m in diff.modules.values())


def test_a_batch_has_as_many_diffs_as_memory(embedded_base, room):
    diffs = [lora(embedded_base) for _ in range(7)]
    room(3 * size(diffs[0]))
    assert [b.positions for b in batches(embedded_base, diffs, 100)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [b.positions for b in batches(embedded_base, diffs, 2)] == [[0, 1], [2, 3], [4, 5], [6]]
    room(1)
    assert [len(b.positions) for b in batches(embedded_base, diffs, 100)] == [1] * 7


def test_a_diff_that_comes_again_and_no_diff_take_no_room(embedded_base, room):
    one, other = lora(embedded_base), lora(embedded_base, 4)
    room(size(one))
    asked = [one, None, one, one, other, None]
    assert [b.positions for b in batches(embedded_base, asked, 100)] == [[0, 1, 2, 3], [4, 5]]


def test_rows_are_as_many_as_memory_allows(embedded_base, monkeypatch):
    model = embedded_base.model
    each = row_bytes(model, 40)
    config = model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 40
    assert each > cache * next(model.parameters()).element_size() + 4 * config.vocab_size
    assert row_bytes(model, 80) > 1.5 * each
    monkeypatch.setattr(memory, "free_memory", lambda _device: int(10.5 * each / memory.SHARE))
    assert rows_that_fit(model, 40, 1000) == 10
    assert rows_that_fit(model, 40, 4) == 4
    monkeypatch.setattr(memory, "free_memory", lambda _device: 0)
    assert rows_that_fit(model, 40, 1000) == 1


def test_answers_are_the_same_with_little_memory(interpreter, diffs, monkeypatch):
    asked = [d for d in diffs for _ in range(2)]
    questions = [f"what {'topic' if i % 2 else 'headline'} ?" for i in range(len(asked))]
    plenty = interpreter.spoken(asked, questions)
    batch, sizes = speaking.Speaker.say, []
    monkeypatch.setattr(speaking.Speaker, "say", lambda self, d, p: sizes.append(len(d)) or batch(self, d, p))
    monkeypatch.setattr(memory, "free_memory", lambda _device: 0)
    assert [s.text for s in interpreter.spoken(asked, questions)] == [s.text for s in plenty]
    assert set(sizes) == {1}
