"""Soft prompts, against inputs embedded by hand."""

from __future__ import annotations

import pytest
import torch

from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.models.generate import generate, left_pad, logits_at
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.soft_prompt import SoftPrompt, soft_prompt, word_vectors
from weightdiff.models.spec import model_spec

PAD = 0


@pytest.fixture
def model(any_tiny_model):
    return any_tiny_model.requires_grad_(False)


@pytest.fixture
def soft(model):
    return SoftPrompt.of(model, torch.randn(3, 32))


@pytest.fixture
def prompts(soft):
    """Soft tokens last, in the middle and out of order, and none at all."""
    a, b, c = soft.ids
    return [[1, 40, 41, a, b, c], [1, 50, c, 51, a, 52, 53, a], [7, 8]]


def embedded(model, row, vectors):
    """A row's embeddings [1, tokens, hidden], token by token."""
    table = model.get_input_embeddings()
    size = table.weight.shape[0]
    parts = [vectors[t - size] if t >= size else table(torch.tensor([[t]]))[0, 0] for t in row]
    return torch.stack(parts)[None]


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_equals_inputs_embedded_by_hand(model, soft, prompts):
    ids, mask = left_pad(prompts, PAD)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with soft_prompt(model, soft.vectors):
            found = model(input_ids=ids, attention_mask=mask, position_ids=position).logits
        for row, logits in zip(prompts, found, strict=True):
            want = model(inputs_embeds=embedded(model, row, soft.vectors)).logits[0]
            torch.testing.assert_close(logits[-len(row) :], want, rtol=0, atol=2e-5)


def test_gradients_equal_those_through_inputs(model, soft, prompts):
    mine, other = (soft.vectors.clone().requires_grad_() for _ in range(2))
    ids, mask = left_pad(prompts, PAD)
    rows, at = torch.arange(len(prompts)), torch.full((len(prompts),), ids.shape[1] - 1)
    with soft_prompt(model, mine):
        logits_at(model, ids, mask, rows, at).log_softmax(-1)[:, 9].sum().backward()
    for row in prompts[:2]:  # the third has no soft token
        logits = model(inputs_embeds=embedded(model, row, other)).logits[0, -1]
        logits.log_softmax(-1)[9].backward()
    assert float(other.grad.abs().min()) > 0
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_generation_with_loras_equals_a_plain_loop(model, soft, prompts, random_lora, stack_slots):
    spec = model_spec(model)
    loras = [random_lora(spec, 2, i, size=0.3) for i in range(3)]
    shared = SharedLora(random_lora(spec, 1, 9, size=0.2))
    ids, mask = left_pad(prompts, PAD)
    with attach(model, RowLoras(stack_slots(loras), 1), [shared]), soft_prompt(model, soft.vectors):
        found = generate(model, ids, mask, 6, None, PAD)
    with torch.no_grad():
        for row, lora, said in zip(prompts, loras, found, strict=True):
            with attach(model, None, [SharedLora(lora), shared]):
                want = []
                for _ in range(6):
                    logits = model(inputs_embeds=embedded(model, [*row, *want], soft.vectors)).logits
                    want.append(int(logits[0, -1].argmax()))
            assert said == want
    with soft_prompt(model, torch.zeros(3, 32)):
        assert generate(model, ids, mask, 6, None, PAD) != found


def test_nothing_is_left_on_the_model(model, soft):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with soft_prompt(model, soft.vectors):
        assert hooks_on(model) == 2
        model(input_ids=torch.tensor([soft.ids]))
    with pytest.raises(KeyError, match="x"), soft_prompt(model, soft.vectors):
        raise KeyError("x")
    assert hooks_on(model) == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([soft.ids]))


def test_inputs_without_soft_tokens_are_untouched(model, soft):
    ids = torch.tensor([[1, 40, 41]])
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        with soft_prompt(model, soft.vectors):
            assert torch.equal(model(input_ids=ids).logits, bare)


def test_another_precision(tiny_model):
    model = tiny_model("gemma3").to(torch.bfloat16)
    soft = SoftPrompt.of(model, torch.randn(2, 32, requires_grad=True))
    with soft_prompt(model, soft.vectors):
        logits = model(input_ids=torch.tensor([[1, *soft.ids]])).logits
    logits[0, -1, 5].backward()
    assert logits.dtype == torch.bfloat16
    assert soft.vectors.grad.dtype == torch.float32
    assert soft.vectors.grad.abs().min() > 0


def test_word_vectors_come_out_of_the_embedding_module(tiny_model):
    """Gemma scales within that module."""
    model = tiny_model("gemma3")
    found = word_vectors(model, [5, 9])
    torch.testing.assert_close(found, model.get_input_embeddings().weight[[5, 9]].detach() * 32**0.5)
    with torch.no_grad(), soft_prompt(model, found):
        size = model.get_input_embeddings().weight.shape[0]
        soft = model(input_ids=torch.tensor([[1, size, size + 1]])).logits
        torch.testing.assert_close(soft, model(input_ids=torch.tensor([[1, 5, 9]])).logits)


def test_bad_vectors_and_ids(model, soft):
    message = r"shape \[3, 16\] does not fit .*, whose embeddings are 32 wide: use the base"
    with pytest.raises(BaseMismatchError, match=message):
        SoftPrompt.of(model, torch.zeros(3, 16))
    with (
        pytest.raises(BaseMismatchError, match=r"a soft prompt of shape \[32\]"),
        soft_prompt(model, torch.zeros(32)),
    ):
        pass
    wrong = soft.ids[-1] + 1
    with (
        pytest.raises(QuestionError, match=f"token {wrong} stands for no soft token: there are 3, from"),
        soft_prompt(model, soft.vectors),
    ):
        model(input_ids=torch.tensor([[wrong]]))
