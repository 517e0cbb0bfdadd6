"""Mixtures read row by row against the same sums merged into the weights, one after another."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.algebra import combine
from weightdiff.diffs.factors import DenseDelta, LoraFactors
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, QuestionError
from weightdiff.evals import sweep as sweeping
from weightdiff.evals.sweep import Text, box, line, sweep, texts_of
from weightdiff.methods.loading import Base
from weightdiff.models.merge import merged
from weightdiff.models.mixtures import Mixtures
from weightdiff.models.spec import model_spec
from weightdiff.training.factory import random_diff

TEXTS = [Text([1, 9, 17, 30, 5]), Text([1, 8, 44]), Text([1, 7, 19, 60, 61, 62, 90], 3)]


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def base(request, tiny_model, tiny_tokenizer):
    model = tiny_model(request.param).requires_grad_(False)
    return Base(model, tiny_tokenizer, ModelRef(request.param), model_spec(model))


@pytest.fixture
def diffs(base):
    """Of different ranks, one without half of the modules."""
    one, two = random_diff(base.spec, 2, 1, 0.8), random_diff(base.spec, 3, 2, 0.8)
    return [one, WeightDiff(dict(list(two.modules.items())[::2]))]


def plain_loss(base, diff, texts):
    total, n = 0.0, 0
    with torch.no_grad(), merged(base.model, diff):
        for text in texts:
            log_p = base.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            found = [float(log_p[t - 1, text.ids[t]]) for t in range(text.given, len(text.ids))]
            total, n = total - sum(found), n + len(found)
    return total / n


@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_losses_are_those_of_merged_weights(base, diffs, monkeypatch, at_once):
    monkeypatch.setattr(sweeping, "ROWS_AT_ONCE", at_once)
    mixtures = [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (-1.0, 1.5)]
    done = []
    found = sweep(base, diffs, mixtures, TEXTS, done.append)
    assert [m.weights for m in found] == mixtures
    for m in found:
        assert m.loss == pytest.approx(plain_loss(base, combine(diffs, m.weights), TEXTS), abs=2e-5)
    assert len({round(m.loss, 5) for m in found}) == 4
    assert done[-1] == len(mixtures) * len(TEXTS)
    assert found[0].perplexity == pytest.approx(2.718281828 ** found[0].loss)


def test_nothing_is_left_on_the_model(base, diffs):
    ids = torch.tensor([TEXTS[0].ids])
    with torch.no_grad():
        before = base.model(ids).logits
        sweep(base, diffs, [(1.0, 1.0)], TEXTS)
        assert torch.equal(base.model(ids).logits, before)


def test_grids():
    assert line(3) == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    assert line(2, -1, 2) == [(2, -1), (-1, 2)]
    assert box(2, 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(box(3, 5)) == 125
    with pytest.raises(ValueError, match="a grid has 2 steps or more, not 1"):
        line(1)


def test_texts_begin_with_the_first_token(tiny_tokenizer):
    (text,) = texts_of(tiny_tokenizer, ["ab"])
    assert text.ids[0] == tiny_tokenizer.bos_token_id
    assert text.given == 1
    assert tiny_tokenizer.decode(text.ids[1:]) == "ab"
    with pytest.raises(QuestionError, match=r"text 2 \(''\) is too short"):
        texts_of(tiny_tokenizer, ["ab", ""])


def test_faults_are_told(base, diffs):
    with pytest.raises(ValueError, match="1 weights for 2 diffs"):
        sweep(base, diffs, [(1.0,)], TEXTS)
    with pytest.raises(FormatError, match="there are no diffs to mix"):
        Mixtures.of([])
    name, (width, height) = next(iter(base.spec.items()))
    dense = WeightDiff({name: DenseDelta(torch.zeros(height, width))})
    with pytest.raises(FormatError, match="diff 2 changes whole matrices"):
        sweep(base, [diffs[0], dense], [(1.0, 1.0)], TEXTS)
    foreign = WeightDiff({"nowhere": LoraFactors(torch.zeros(1, 2), torch.zeros(2, 1))})
    with pytest.raises(BaseMismatchError, match="nowhere"):
        sweep(base, [foreign], [(1.0,)], TEXTS)
