"""The residual stream: read, steered and seen through the logit lens, on every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.models.products import BatchMismatchError
from weightdiff.models.residual import ResidualStream

IDS = torch.tensor([[5, 9, 13, 40], [7, 8, 30, 31]])


@torch.no_grad()
def test_the_stream_is_what_transformers_calls_hidden_states(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    wanted = any_tiny_model(input_ids=IDS, output_hidden_states=True)
    with stream.read(1) as kept:
        any_tiny_model(input_ids=IDS)
    torch.testing.assert_close(kept[0], wanted.hidden_states[1])
    assert len(stream.layers) == 2


@torch.no_grad()
def test_the_lens_after_the_last_layer_is_the_model(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    with stream.read(2) as kept:
        out = any_tiny_model(input_ids=IDS)
    found = stream.logits(kept[0])
    assert torch.equal(found.argmax(-1), out.logits.argmax(-1))


@torch.no_grad()
def test_steering_adds_a_vector_to_each_row(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    width = stream.head.weight.shape[1]
    vectors = torch.randn(2, width)
    with stream.read(1) as before:
        any_tiny_model(input_ids=IDS)
    with stream.steered(1, vectors), stream.read(1) as after:
        any_tiny_model(input_ids=IDS)
    torch.testing.assert_close(after[0], before[0] + vectors[:, None])


def test_hooks_come_off_whatever_happens(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    before = any_tiny_model(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="stop"), stream.steered(1, torch.ones(2, 32)), stream.read(2):
        raise RuntimeError("stop")
    with (
        pytest.raises(BatchMismatchError, match="has 2 rows, and 3 of them"),
        stream.steered(1, torch.ones(3, 32)),
    ):
        any_tiny_model(input_ids=IDS)
    assert not any(m._forward_hooks for m in any_tiny_model.modules())
    assert torch.equal(any_tiny_model(input_ids=IDS).logits, before)


def test_what_cannot_be_reached_is_said(tiny_model):
    stream = ResidualStream.of(tiny_model("llama"))
    for number in (0, 3):
        with pytest.raises(QuestionError, match=f"there is no layer {number}: choose one of 1 to 2"):
            stream.layer(number)
    with pytest.raises(BaseMismatchError, match="residual stream of Linear cannot be reached"):
        ResidualStream.of(nn.Linear(2, 2))
