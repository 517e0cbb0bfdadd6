"""The residual stream of every architecture, against transformers' own hidden states and plain sums."""

from __future__ import annotations

import copy

import pytest
import torch

from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.models.products import BatchMismatchError
from weightdiff.models.residual import ResidualStream

IDS = torch.tensor([[5, 9, 33, 7], [20, 41, 66, 12]])
LAYERS = {"llama": "model.layers", "qwen3": "model.layers", "gemma3": "model.layers", "gpt2": "transformer.h"}
NORMS = {"llama": "model.norm", "qwen3": "model.norm", "gemma3": "model.norm", "gpt2": "transformer.ln_f"}


def _hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", LAYERS)
def test_parts_are_found_by_their_place(tiny_model, kind):
    model = tiny_model(kind, **({"n_layer": 3} if kind == "gpt2" else {"num_hidden_layers": 3}))
    stream = ResidualStream.of(model)
    assert [id(x) for x in stream.layers] == [id(x) for x in model.get_submodule(LAYERS[kind])]
    assert stream.norm is model.get_submodule(NORMS[kind])
    assert stream.head is model.lm_head


@torch.no_grad()
def test_reading_equals_transformers_hidden_states(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    wanted = any_tiny_model(IDS, output_hidden_states=True)
    own = _hooks(any_tiny_model)  # transformers leaves some of its own
    with stream.read(1) as kept:
        any_tiny_model(IDS)
        any_tiny_model(IDS[:1])
    assert [x.shape[:2] for x in kept] == [(2, 4), (1, 4)]
    torch.testing.assert_close(kept[0], wanted.hidden_states[1])
    assert _hooks(any_tiny_model) == own


@torch.no_grad()
def test_the_lens_of_the_last_layer_gives_the_models_own_logits(any_tiny_model):
    stream = ResidualStream.of(any_tiny_model)
    with stream.read(2) as kept:
        out = any_tiny_model(IDS, output_hidden_states=True)
    torch.testing.assert_close(stream.norm(kept[0]), out.hidden_states[-1])
    torch.testing.assert_close(stream.logits(kept[0]), out.logits)


@torch.no_grad()
def test_the_lens_takes_any_precision(tiny_model):
    stream = ResidualStream.of(tiny_model().to(torch.bfloat16))
    assert stream.logits(torch.randn(3, 32, dtype=torch.float64)).dtype == torch.bfloat16


@torch.no_grad()
def test_each_row_is_steered_by_its_own_vector(any_tiny_model):
    """Steering after the last layer is a sum before the final norm; a zero vector changes nothing."""
    stream = ResidualStream.of(any_tiny_model)
    vectors = torch.stack([torch.zeros(32), torch.randn(32)])
    bare = any_tiny_model(IDS).logits
    with stream.read(2) as kept:
        any_tiny_model(IDS)
    with stream.steered(2, vectors):
        moved = any_tiny_model(IDS).logits
    assert torch.equal(moved[0], bare[0])
    torch.testing.assert_close(moved[1], stream.logits(kept[0] + vectors[1])[1])
    with stream.steered(1, vectors):
        early = any_tiny_model(IDS).logits
    torch.testing.assert_close(early[0], bare[0])
    assert (early[1] - bare[1]).abs().max() > 1e-3
    assert torch.equal(any_tiny_model(IDS).logits, bare)
    assert _hooks(any_tiny_model) == 0


def test_errors_leave_the_model_as_it_was(any_tiny_model):
    stream, before = ResidualStream.of(any_tiny_model), copy.deepcopy(any_tiny_model.state_dict())
    with pytest.raises(BatchMismatchError, match="2 rows, and 3"), stream.steered(1, torch.ones(3, 32)):
        any_tiny_model(IDS)
    with pytest.raises(RuntimeError, match="stopped"), stream.read(1), stream.steered(2, torch.ones(2, 32)):
        raise RuntimeError("stopped")
    assert _hooks(any_tiny_model) == 0
    assert all(torch.equal(before[k], v) for k, v in any_tiny_model.state_dict().items())


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_layer_that_is_not_there(tiny_model, number):
    stream = ResidualStream.of(tiny_model())
    with pytest.raises(QuestionError, match=f"no layer {number}: choose one of 1 to 2"), stream.read(number):
        pass


def test_a_model_without_layers_is_refused(tiny_model):
    with pytest.raises(BaseMismatchError, match="Linear cannot be reached: it needs a list of layers"):
        ResidualStream.of(torch.nn.Linear(2, 2))
    model = tiny_model()
    model.model.norm = torch.nn.Identity()
    with pytest.raises(BaseMismatchError, match="with a norm beside it"):
        ResidualStream.of(model)
