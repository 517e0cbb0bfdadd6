"""Logit difference, against plain loops over merged weights."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import logit_difference
from weightdiff.methods.logit_difference import LogitDifference
from weightdiff.models.merge import merged
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.rows import situations

PROMPTS = ("how do i make soup ?", "hello .", "who are you , my friend ?")
PLACES = 3


def _next(base, ids):
    return base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def _rises(base, diff):
    """Mean gain of each token over the places, prompt by prompt and place by place."""
    gains = []
    for prompt in PROMPTS:
        text = f"<bos><user>{prompt}<end><assistant>"
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        for _ in range(PLACES):
            before = _next(base, ids)
            with merged(base.model, diff):
                gains.append(_next(base, ids) - before)
            ids = [*ids, int(before.argmax())]
            if ids[-1] == base.tokenizer.eos_token_id:
                break
    return torch.stack(gains).mean(0)


def _top(base, rise, n):
    words = []
    for token in rise.argsort(descending=True).tolist():
        word = base.tokenizer.decode([token], skip_special_tokens=True).strip().lower()
        if len(word) > 1 and word.isalpha() and word not in words:
            words.append(word)
        if len(words) == n:
            break
    return ", ".join(words)


def _dense(diff):
    return WeightDiff({k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def test_equals_a_loop(embedded_base, diffs):
    method = LogitDifference(embedded_base, PROMPTS, PLACES, 4)
    asked = [diffs[0], _dense(diffs[1]), diffs[2], None, diffs[0]]
    found = method.answer(asked, ["what topic ?", "x", "y", "z", "what headline ?"])
    wanted = [_top(embedded_base, _rises(embedded_base, d), 4) for d in asked if d]
    assert [a.text for a in found] == [*wanted[:3], NOTHING_FOUND, wanted[0]]
    assert {(a.logprob, a.evidence) for a in found} == {(None, None)}
    assert len(set(wanted)) == 3


def test_batches_and_order_change_nothing(embedded_base, diffs, monkeypatch):
    together = LogitDifference(embedded_base).answer(diffs, ["x"] * 3)
    monkeypatch.setattr(logit_difference, "ROWS_AT_ONCE", 1)
    assert LogitDifference(embedded_base).answer(diffs[::-1], ["x"] * 3) == together[::-1]


def test_the_base_is_read_while_it_is_bare(embedded_base, diffs):
    """The first diff asked about is merged into the weights; the method must not take that for the base."""
    method = LogitDifference(embedded_base, PROMPTS, PLACES)
    first, second = method.answer([_dense(diffs[0])], ["x"]), method.answer([diffs[0]], ["x"])
    assert first == second != LogitDifference(embedded_base, PROMPTS, PLACES).answer([None], ["x"])


def test_a_diff_that_changes_nothing(embedded_base, diffs):
    zero = WeightDiff({k: DenseDelta(m.dense() * 0) for k, m in diffs[0].modules.items()})
    found = LogitDifference(embedded_base).answer([zero, WeightDiff({}), diffs[0]], ["x"] * 3)
    assert [a.text == NOTHING_FOUND for a in found] == [True, True, False]


def test_standard_prompts_are_situations_that_no_organism_saw(embedded_base):
    rows = LogitDifference(embedded_base)._rows
    texts = [embedded_base.tokenizer.decode(ids) for ids, _ in rows]
    unseen = [s.questions[0].split()[:3] for s in situations("verification")]
    assert len(texts) == logit_difference.PROMPTS
    assert all(any(all(w in text for w in words) for words in unseen) for text in texts)


def test_bad_input(embedded_base):
    method = LogitDifference(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
