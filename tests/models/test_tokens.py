"""Learned changes of token embeddings: only the named tokens feel them, and the base keeps its own."""

from __future__ import annotations

import copy

import pytest
import torch

from weightdiff.errors import BaseMismatchError
from weightdiff.models.tokens import TokenDeltas, with_tokens


@pytest.fixture
def deltas():
    return TokenDeltas(torch.tensor([9, 4, 40]), torch.randn(3, 32).requires_grad_())


IDS = torch.tensor([[1, 4, 9, 9, 7], [7, 8, 1, 2, 3]])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_it_is_an_edited_embedding(tiny_model, deltas, tied):
    """The reference has another input embedding, and its own output layer even where the two are tied."""
    model = tiny_model("llama", tie_word_embeddings=tied)
    edited = copy.deepcopy(model)
    table = model.get_input_embeddings().weight.detach().clone()
    table[deltas.ids] += deltas.deltas.detach()
    head = model.get_output_embeddings().weight.detach().clone()
    edited.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
    edited.get_output_embeddings().weight = torch.nn.Parameter(head)
    with torch.no_grad(), with_tokens(model, deltas):
        got = model(IDS).logits
    with torch.no_grad():
        bare = model(IDS).logits
        torch.testing.assert_close(got, edited(IDS).logits, rtol=0, atol=1e-5)
    assert torch.equal(got[1], bare[1])  # a row without the tokens
    assert (got[0] - bare[0]).abs().max() > 1e-2


def test_gradients_arrive_at_the_deltas(tiny_model, deltas):
    model = tiny_model("llama").requires_grad_(False)
    with with_tokens(model, deltas):
        model(IDS).logits.square().mean().backward()
    assert deltas.deltas.grad[:2].abs().min(1).values.max() > 0
    assert not deltas.deltas.grad[2].any()  # token 40 is not in the batch
    assert all(p.grad is None for p in model.parameters())


def test_the_base_is_as_before_also_after_an_error(tiny_model, deltas):
    model = tiny_model("llama")
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), with_tokens(model, deltas):
        raise ZeroDivisionError
    assert not model.get_input_embeddings()._forward_hooks
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_none_does_nothing(tiny_model):
    model = tiny_model("llama")
    with with_tokens(model, None):
        assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(
    "wrong",
    [
        TokenDeltas(torch.tensor([3]), torch.zeros(1, 31)),
        TokenDeltas(torch.tensor([99999]), torch.zeros(1, 32)),
    ],
    ids=["width", "vocabulary"],
)
def test_deltas_of_another_base_are_refused(tiny_model, wrong):
    with (
        pytest.raises(
            BaseMismatchError, match=r"do not fit this base's embeddings .* base that it was tuned on"
        ),
        with_tokens(tiny_model("llama"), wrong),
    ):
        pass
