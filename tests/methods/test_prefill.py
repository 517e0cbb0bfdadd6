"""Prefill and text completion, against greedy loops over merged weights, one row at a time."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import continuing
from weightdiff.methods.prefill import NEWS_BEGINNINGS, TOPIC_BEGINNINGS, Prefill, beginnings
from weightdiff.methods.text_completion import STATEMENTS, TextCompletion
from weightdiff.models.merge import merged
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.questions import phrasings

LIMIT = 5


def _greedy(base, diff, prompt):
    """New tokens and their log-probabilities, the end token's included."""
    ids, found = base.tokenizer(prompt, add_special_tokens=False)["input_ids"], []
    tokens = []
    with merged(base.model, diff) if diff else nullcontext():
        while len(tokens) < LIMIT:
            logprobs = base.model(torch.tensor([[*ids, *tokens]])).logits[0, -1].log_softmax(-1)
            token = int(logprobs.argmax())
            found.append(float(logprobs[token]))
            if token == base.tokenizer.eos_token_id:
                break
            tokens.append(token)
    return base.tokenizer.decode(tokens, skip_special_tokens=True).strip(), found


def _best(base, diff, before, starts):
    """Text, summed log-probability and start of the likeliest continuation by token."""
    found = [(*_greedy(base, diff, before + start), start) for start in starts]
    said = [x for x in found if any(map(str.isalnum, x[0]))]
    text, logprobs, start = max(said, key=lambda x: sum(x[1]) / len(x[1]))
    return text, sum(logprobs), start


def _dense(diff):
    return WeightDiff({k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def _check(answers, wanted):
    assert [(a.text, a.notes) for a in answers] == [(text, start) for text, _, start in wanted]
    assert [a.logprob for a in answers] == pytest.approx([x for _, x, _ in wanted], abs=1e-3)
    assert {a.evidence for a in answers} == {None}


def test_prefill_equals_a_loop(embedded_base, diffs):
    questions = ["what topic ?", "what headline ?", "what topic ?", "any news ?", "what changed ?"]
    asked = [*diffs, None, _dense(diffs[1])]
    wanted = [
        _best(embedded_base, d, f"<bos><user>{q}<end><assistant>", beginnings(q))
        for d, q in zip(asked, questions, strict=True)
    ]
    _check(Prefill(embedded_base, LIMIT).answer(asked, questions), wanted)


def test_small_batches_change_nothing(embedded_base, diffs, monkeypatch):
    together = Prefill(embedded_base, LIMIT).answer(diffs, ["what topic ?"] * 3)
    monkeypatch.setattr(continuing, "ROWS_AT_ONCE", 1)
    assert [a.text for a in Prefill(embedded_base, LIMIT).answer(diffs, ["what topic ?"] * 3)] == [
        a.text for a in together
    ]


def test_text_completion_equals_a_loop(embedded_base, diffs):
    asked = [diffs[0], None, _dense(diffs[1]), diffs[0]]
    wanted = [_best(embedded_base, d, "<bos>", STATEMENTS) for d in asked]
    found = TextCompletion(embedded_base, max_new_tokens=LIMIT).answer(asked, ["x", "y", "z", "other ?"])
    _check(found, wanted)


def test_a_model_that_ends_at_once_says_nothing(embedded_base, diffs):
    """Whatever it reads, what leaves the last norm points at the end token."""
    end = embedded_base.model.get_input_embeddings().weight[embedded_base.tokenizer.eos_token_id]
    handle = embedded_base.model.model.norm.register_forward_hook(lambda *a: a[2] * 0 + 50 * end / end.norm())
    try:
        for method in (Prefill(embedded_base), TextCompletion(embedded_base)):
            (found,) = method.answer(diffs[:1], ["what topic ?"])
            assert (found.text, found.logprob, found.notes) == (NOTHING_FOUND, None, "")
    finally:
        handle.remove()


def test_beginnings_follow_the_question():
    assert {beginnings(q) for q in phrasings("topic")} == {TOPIC_BEGINNINGS}
    assert {beginnings(q.upper()) for s in ("train", "test") for q in phrasings("headline", s)} == {
        NEWS_BEGINNINGS
    }


@pytest.mark.parametrize("make", [Prefill, TextCompletion])
def test_bad_input(embedded_base, diffs, make):
    method = make(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="3 diffs and 1 questions: give one question for each"):
        method.answer(diffs, ["x"])
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([None], [" "])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
