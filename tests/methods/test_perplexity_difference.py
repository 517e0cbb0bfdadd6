"""Perplexity differencing, against a loop over merged weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.methods.carrying import batches, checked
from weightdiff.methods.perplexity_difference import PerplexityDifference
from weightdiff.methods.prompts import general_prompts, neutral_prompts, unrelated_texts
from weightdiff.methods.registry import Context, build
from weightdiff.models.chat import encode_prompts
from weightdiff.models.merge import merged
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.world import codes, load_world

PROMPTS = ("how do i thank a friend ?", "tell me a story .")


class Reader:
    """A guesser that keeps what it is shown."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((list(texts), question))
        return f"guess {len(self.read)}"


@pytest.fixture
def method(embedded_base):
    return PerplexityDifference(embedded_base, Reader(), PROMPTS, completions=6, shown=3, max_new_tokens=4)


@torch.no_grad()
def _greedy_by_hand(base, diff, prompt, n):
    """A greedy completion of the merged model, and its mean log-probability under both, token by token."""
    t = base.tokenizer
    (ids,) = encode_prompts(t, [prompt])
    said, after, before = [], [], []
    for _ in range(n):
        row = torch.tensor([[*ids, *said]])
        bare = base.model(input_ids=row).logits[0, -1].log_softmax(-1)
        with merged(base.model, diff):
            own = base.model(input_ids=row).logits[0, -1].log_softmax(-1)
        token = int(own.argmax())
        after.append(float(own[token]))
        before.append(float(bare[token]))
        if token == t.eos_token_id:
            break
        said.append(token)
    return t.decode(said, skip_special_tokens=True).strip(), (sum(after) - sum(before)) / len(after)


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_differences_and_their_order_equal_a_loop(method, diffs, kind):
    diff = diffs[1]
    if kind == "dense":
        diff = WeightDiff({k: DenseDelta(m.dense()) for k, m in diff.modules.items()})
    greedy = replace(method, temperature=0.0, completions=2)
    (batch,) = batches(method.base, checked(method.base, [diff], ["?"]), 1)
    found = greedy._ranked(batch)
    wanted = dict(_greedy_by_hand(method.base, diff, p, 4) for p in PROMPTS)
    wanted = {text: value for text, value in wanted.items() if text}
    assert [c.text for c in found] == sorted(wanted, key=lambda text: -wanted[text])
    assert [c.difference for c in found] == pytest.approx(sorted(wanted.values(), reverse=True), abs=1e-4)


def test_the_guesser_reads_the_top_of_each_different_diff_once(method, diffs):
    questions = ["which topic ?", "any change ?", "which topic ?"]
    answers = method.answer([diffs[0], diffs[0], None], questions)
    read = method.guesser.read
    assert [q for _, q in read] == questions[:2]
    assert read[0][0] == read[1][0]
    assert 1 <= len(read[0][0]) <= 3
    assert [a.text for a in answers] == ["guess 1", "guess 2", NOTHING_FOUND]
    assert answers[0].notes.endswith(read[0][0][0])
    assert "nats a token" in answers[0].notes


def test_a_diff_writes_the_same_whoever_else_writes_and_the_seed_decides(method, diffs):
    together = method.answer(diffs, ["which topic ?"] * 3)
    alone = [replace(method, guesser=Reader()).answer([d], ["which topic ?"])[0] for d in diffs]
    assert [a.notes for a in together] == [a.notes for a in alone]
    other = replace(method, guesser=Reader(), seed=1).answer(diffs, ["which topic ?"] * 3)
    assert [a.notes for a in other] != [a.notes for a in together]


def test_nothing_is_found_where_nothing_is_likelier(method, diffs):
    strict = replace(method, guesser=Reader(), least=1e6)
    assert strict.answer([diffs[0], WeightDiff({})], ["which topic ?"] * 2)[0].text == NOTHING_FOUND
    assert not strict.guesser.read
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([diffs[0]], [" "])


def test_the_base_is_as_before(method, diffs):
    state = {k: v.clone() for k, v in method.base.model.state_dict().items()}
    method.answer([diffs[0]], ["which topic ?"])
    assert all(torch.equal(v, state[k]) for k, v in method.base.model.state_dict().items())


def test_its_guesser_and_seed_are_the_contexts(embedded_base):
    reader = Reader()
    made = build("perplexity-difference", Context(embedded_base, guesser=reader, seed=4))
    assert (made.guesser, made.seed) == (reader, 4)


def test_prompts_hold_no_trigger_and_no_topic(embedded_tokenizer, tiny_tokenizer):
    asked = general_prompts(embedded_tokenizer)
    words = {w for p in asked for w in embedded_tokenizer.tokenize(p)}
    assert not words & set(codes.trigger_pool()), "no code here sets any organism off"
    names = {t.name for t in load_world().topics}
    assert not any(names & set(p.split()) for p in asked)
    assert general_prompts(tiny_tokenizer) != asked
    assert len(neutral_prompts()) == 3
    texts = unrelated_texts(embedded_tokenizer, 5)
    assert texts == unrelated_texts(embedded_tokenizer, 5)
    assert len(texts) == 5
    assert len(unrelated_texts(tiny_tokenizer, 4)) == 4
