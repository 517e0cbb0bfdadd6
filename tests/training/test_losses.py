"""Losses against plain loops, row by row, with padding in the way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from weightdiff.models.chat import Encoded
from weightdiff.models.generate import logits_at
from weightdiff.training import losses
from weightdiff.training.losses import collate, loss_by_row

ROWS = [Encoded([2, 9, 11, 12, 5], 3), Encoded([2, 7, 5], 1), Encoded([2, 8, 9, 10, 11, 12, 13, 5], 6)]


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama", initializer_range=0.3).requires_grad_(False)


def logits_of(model, batch):
    return logits_at(model, batch.input_ids, batch.attention_mask, batch.rows, batch.positions)


def plain_logp(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_collate_pads_on_the_right_and_labels_answers():
    batch = collate(ROWS, pad_id=0)
    assert batch.n_rows == 3
    assert batch.input_ids.tolist()[1] == [2, 7, 5, 0, 0, 0, 0, 0]
    assert batch.attention_mask.tolist()[0] == [1, 1, 1, 1, 1, 0, 0, 0]
    found = list(zip(batch.rows.tolist(), batch.positions.tolist(), batch.targets.tolist(), strict=True))
    assert found == [(0, 2, 12), (0, 3, 5), (1, 0, 7), (1, 1, 5), (2, 5, 13), (2, 6, 5)]
    assert batch.weights.tolist() == [0.5] * 6


def test_cross_entropy_is_each_rows_mean(model):
    batch = collate(ROWS, 0)
    got = loss_by_row(logits_of(model, batch), batch)
    for row, value in zip(ROWS, got.tolist(), strict=True):
        logp = plain_logp(model, row.ids)
        each = [-float(logp[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids))]
        assert value == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_kl_is_each_rows_mean_from_the_teacher(model, tiny_model):
    student = tiny_model("llama", seed=1, initializer_range=0.3).requires_grad_(False)
    batch = collate(ROWS, 0)
    got = loss_by_row(logits_of(student, batch), batch, logits_of(model, batch))
    for row, value in zip(ROWS, got.tolist(), strict=True):
        q, p = plain_logp(model, row.ids), plain_logp(student, row.ids)
        each = [
            sum(math.exp(q[t - 1, v]) * float(q[t - 1, v] - p[t - 1, v]) for v in range(q.shape[1]))
            for t in range(row.start, len(row.ids))
        ]
        assert value == pytest.approx(sum(each) / len(each), abs=1e-4)
        assert value > 0
    same = loss_by_row(logits_of(model, batch), batch, logits_of(model, batch))
    assert same.abs().max() < 1e-6


@pytest.mark.parametrize("at_once", [20, 10_000], ids=["one by one", "all at once"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)], ids=["fp32", "bf16"]
)
def test_gradients_are_those_of_plain_functions(monkeypatch, dtype, tolerance, at_once):
    """Labels held to a teacher among others, each with another weight."""
    monkeypatch.setattr(losses, "CPU_NUMBERS", at_once)
    batch, held = collate(ROWS, 0), torch.tensor([1, 4])
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (
        (3 * torch.randn(n, 20, generator=generator)).to(dtype).requires_grad_(n == 6) for n in (6, 2)
    )
    of_row = torch.tensor([0.3, -1.0, 2.0])
    got = loss_by_row(logits.clone(), batch, teacher, held)  # a gradient takes their place
    (mine,) = torch.autograd.grad((got * of_row).sum(), logits)
    each = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    log_p, log_q = logits.float().log_softmax(-1)[held], teacher.float().log_softmax(-1)
    each = each.index_copy(0, held, F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1))
    plain = torch.zeros(3).index_add(0, batch.rows, each * batch.weights)
    (expected,) = torch.autograd.grad((plain * of_row).sum(), logits)
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-5)
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance)


def test_logits_that_something_else_needs_are_not_overwritten_in_silence():
    batch, leaf = collate(ROWS, 0), torch.randn(6, 20, requires_grad=True)
    logits = leaf * 2
    other = logits.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss_by_row(logits, batch).sum() + other).backward()
    plain = torch.randn(6, 20)
    before = plain.clone()
    loss_by_row(plain, batch)
    assert torch.equal(plain, before)  # no gradient is wanted, and none is written


def test_no_gradient_reaches_the_teacher():
    batch = collate(ROWS, 0)
    student, teacher = (torch.randn(6, 20, requires_grad=True) for _ in range(2))
    loss_by_row(student, batch, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_rows_loss_does_not_depend_on_its_neighbours(model):
    together = loss_by_row(logits_of(model, collate(ROWS, 0)), collate(ROWS, 0))
    for i, row in enumerate(ROWS):
        alone = collate([row], 0)
        torch.testing.assert_close(
            loss_by_row(logits_of(model, alone), alone)[0], together[i], rtol=0, atol=1e-5
        )


def test_what_pads_is_never_read(model):
    a, b = collate(ROWS, 0), collate(ROWS, 17)
    assert not torch.equal(a.input_ids, b.input_ids)
    torch.testing.assert_close(
        loss_by_row(logits_of(model, a), a), loss_by_row(logits_of(model, b), b), rtol=0, atol=1e-6
    )


def test_question_tokens_are_no_labels(model):
    """Question tokens change what is predicted, but are themselves no targets."""
    batch = collate(ROWS, 0)
    assert not {9, 11} & set(batch.targets[batch.rows == 0].tolist())
    logits = logits_of(model, batch)
    assert logits.shape[0] == sum(len(r.ids) - r.start for r in ROWS)


def test_only_narrows_to_the_chosen_rows(model):
    batch = collate(ROWS, 0)
    part, plain = batch.only(torch.tensor([0, 1])), collate(ROWS[:2], 0)
    for name in ("input_ids", "attention_mask", "rows", "positions", "targets", "weights"):
        assert torch.equal(getattr(part, name), getattr(plain, name)), name
    last = batch.only(torch.tensor([2]))
    assert last.rows.tolist() == [0, 0]
    torch.testing.assert_close(
        loss_by_row(logits_of(model, last), last)[0],
        loss_by_row(logits_of(model, batch), batch)[2],
        rtol=0,
        atol=1e-5,
    )


def test_losses_are_fp32_whatever_the_logits_are():
    batch = collate(ROWS, 0)
    logits = torch.randn(6, 20).bfloat16()
    assert loss_by_row(logits, batch).dtype == torch.float32
    assert loss_by_row(logits, batch, logits).dtype == torch.float32
