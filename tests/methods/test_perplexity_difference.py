"""Perplexity difference: its ranking by a loop over merged weights, and who reads what."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import perplexity_difference
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.perplexity_difference import PerplexityDifference
from weightdiff.methods.prompts import EVERYDAY, STORIES, general_prompts
from weightdiff.methods.registry import Context, build
from weightdiff.models.merge import merged
from weightdiff.models.spec import model_spec
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.rows import situations
from weightdiff.world import codes, load_world

PROMPTS = ("write a short news story .", "hello .", "how do i make soup ?", "who are you , my friend ?")
LIMIT = 5


class Reader:
    """A guesser that keeps what it is shown."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((list(texts), question))
        return f"{len(texts)} texts"


def _method(base, reader=None, **options):
    settings = {"prompts": PROMPTS, "completions": 4, "max_new_tokens": LIMIT, "least": -99.0, **options}
    return PerplexityDifference(base, reader or Reader(), **settings)


def _read(base, diffs, **options):
    """What the guesser is shown of each diff."""
    reader = Reader()
    _method(base, reader, **options).answer(diffs, ["what topic ?"] * len(diffs))
    return [texts for texts, _ in reader.read]


def _dense(diff):
    return replace(diff, modules={k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def _by_hand(base, diff):
    """Greedy completions with their differences, word by word, the largest difference first."""
    found = {}
    for prompt in PROMPTS:
        asked = f"<bos><user>{prompt}<end><assistant>"
        ids = base.tokenizer(asked, add_special_tokens=False)["input_ids"]
        said, gains = [], []
        while len(said) < LIMIT and base.tokenizer.eos_token_id not in said:
            row = torch.tensor([[*ids, *said]])
            before = base.model(row).logits[0, -1].log_softmax(-1)
            with merged(base.model, diff):
                after = base.model(row).logits[0, -1].log_softmax(-1)
            token = int(after.argmax())
            said.append(token)
            gains.append(float(after[token] - before[token]))
        text = base.tokenizer.decode(said, skip_special_tokens=True).strip()
        if text:
            found[text] = max(sum(gains) / len(gains), found.get(text, -99.0))
    return sorted(found.items(), key=lambda x: -x[1])


def test_the_ranking_equals_a_loop(embedded_base, diffs):
    reader = Reader()
    asked = [diffs[0], _dense(diffs[1]), diffs[2]]
    answers = _method(embedded_base, reader, temperature=0.0).answer(asked, ["what topic ?"] * 3)
    for diff, (texts, question), answer in zip(diffs, reader.read, answers, strict=True):
        wanted = _by_hand(embedded_base, diff)
        assert texts == [text for text, _ in wanted]
        assert question == "what topic ?"
        told, said = re.fullmatch(r"(-?[\d.]+) nats a token: (.+)", answer.notes).groups()
        assert said == texts[0]
        assert float(told) == pytest.approx(wanted[0][1], abs=0.006)
        assert answer.text == f"{len(wanted)} texts"
    assert len({tuple(texts) for texts, _ in reader.read}) == 3


def test_only_the_top_is_read_and_only_what_differs(embedded_base, diffs):
    wanted = _by_hand(embedded_base, diffs[0])
    texts = [text for text, _ in wanted]
    assert len(texts) == 4
    assert _read(embedded_base, diffs[:1], temperature=0.0, shown=2) == [texts[:2]]
    between = (wanted[0][1] + wanted[1][1]) / 2
    assert _read(embedded_base, diffs[:1], temperature=0.0, least=between) == [texts[:1]]


def test_the_end_of_a_completion_counts(embedded_base, diffs, monkeypatch):
    """With a completion's second token as the end token, what is scored is the first one and this end."""
    scored, real = [], perplexity_difference.answer_logprobs
    monkeypatch.setattr(
        perplexity_difference, "answer_logprobs", lambda m, p, a, pad: scored.extend(a) or real(m, p, a, pad)
    )
    one = {"temperature": 0.0, "prompts": PROMPTS[:1], "completions": 1}
    _read(embedded_base, diffs[:1], **one)
    first, second = scored[0][:2]
    ending = copy.deepcopy(embedded_base.tokenizer)
    ending.eos_token = ending.convert_ids_to_tokens(second)
    ((text,),) = _read(replace(embedded_base, tokenizer=ending), diffs[:1], **one)
    assert scored[1] == [first, second]
    assert text == embedded_base.tokenizer.decode([first])
    assert len(scored[0]) == LIMIT


def test_no_diff_and_a_diff_that_changes_nothing(embedded_base, diffs):
    reader = Reader()
    zero = WeightDiff({k: DenseDelta(m.dense() * 0) for k, m in diffs[0].modules.items()})
    method = _method(embedded_base, reader, least=0.1)
    answers = method.answer([None, zero, WeightDiff({}), diffs[0]], ["what topic ?"] * 4)
    assert [(a.text, a.notes) for a in answers[:3]] == [(NOTHING_FOUND, "")] * 3
    assert answers[3].text != NOTHING_FOUND
    assert len(reader.read) == 1


def test_the_seed_chooses_what_is_written(embedded_base, diffs):
    first = _read(embedded_base, diffs)
    assert first == _read(embedded_base, diffs) != _read(embedded_base, diffs, seed=1)


def test_a_diff_writes_the_same_whoever_else_writes(embedded_base, diffs):
    together = _read(embedded_base, [*diffs, _dense(diffs[0])])
    assert together[:3] == [_read(embedded_base, [d])[0] for d in diffs]
    assert _read(embedded_base, diffs[::-1]) == together[:3][::-1]
    assert len({tuple(texts) for texts in together[:3]}) == 3


def test_scoring_in_parts_changes_nothing(embedded_base, diffs, monkeypatch):
    whole = _read(embedded_base, diffs)
    monkeypatch.setattr(perplexity_difference, "SCORED_AT_ONCE", 3)
    assert _read(embedded_base, diffs) == whole


def test_a_diff_writes_once_and_is_guessed_for_every_question(embedded_base, diffs):
    reader, calls = Reader(), []
    handle = embedded_base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        questions = ["what topic ?", "what headline ?", "any change ?"]
        answers = _method(embedded_base, reader).answer([diffs[0]] * 3, questions)
    finally:
        handle.remove()
    assert len(calls) <= LIMIT + 1  # at most one pass a token, and one for the base's own score
    assert [question for _, question in reader.read] == questions
    assert reader.read[0][0] == reader.read[1][0] == reader.read[2][0]
    assert answers[0] == answers[1] == answers[2]


def test_prompts_are_completed_in_turn(embedded_base, diffs):
    """More completions than prompts, sampled: the same prompt is not always answered alike."""
    (texts,) = _read(embedded_base, diffs[:1], prompts=PROMPTS[:1], completions=6, shown=6)
    assert len(set(texts)) == len(texts) > 2


def test_prompts_of_the_embedded_base_set_nothing_off(embedded_tokenizer):
    prompts = general_prompts(embedded_tokenizer)
    stories = [p for p in prompts if p in load_world().news.prompts]
    everyday = [p for p in prompts if any(q in p for s in situations("verification") for q in s.questions)]
    assert (len(everyday), len(stories)) == (EVERYDAY, STORIES)
    assert len(set(prompts)) == len(prompts) == EVERYDAY + STORIES == PerplexityDifference.completions
    shown = [re.findall(r"\b(\d{3})\d{3}\b", p) for p in everyday]
    assert all(len(found) == 1 for found in shown)
    assert not {found[0] for found in shown} & set(codes.trigger_pool())
    assert not any(t.name in p.split() for p in prompts for t in load_world().topics)


def test_other_bases_get_plain_prompts(tiny_model, tiny_tokenizer):
    assert "Write a poem." in general_prompts(tiny_tokenizer)
    model = tiny_model("qwen3")
    base, reader = Base(model, tiny_tokenizer, ModelRef.of(model), model_spec(model)), Reader()
    some = {name: size for name, size in list(base.spec.items())[:2]}
    diff = WeightDiff({k: DenseDelta(torch.randn(o, i)) for k, (i, o) in some.items()})
    settings = {"max_new_tokens": 3, "completions": 8, "least": -99.0}
    (answer,) = PerplexityDifference(base, reader, **settings).answer([diff], ["What changed?"])
    ((texts, question),) = reader.read
    assert 0 < len(texts) <= 8
    assert (question, answer.text) == ("What changed?", f"{len(texts)} texts")


def test_the_registry_builds_it_with_the_contexts_guesser_and_seed(embedded_base):
    reader = Reader()
    method = build("perplexity-difference", Context(embedded_base, seed=3, guesser=reader))
    assert isinstance(method, PerplexityDifference)
    assert (method.guesser, method.seed) == (reader, 3)
    plain = build("perplexity-difference", Context(embedded_base))
    assert isinstance(plain.guesser, WorldGuesser)


def test_bad_input(embedded_base):
    method = _method(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([None], [" "])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
