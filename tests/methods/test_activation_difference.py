"""Activation difference, against transformers' own hidden states of merged models and plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import activation_difference
from weightdiff.methods.activation_difference import ActivationDifference
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.prompts import NEUTRAL, TEXTS, neutral_prompts, unrelated_texts
from weightdiff.methods.registry import Context, build
from weightdiff.models.merge import merged
from weightdiff.models.spec import model_spec
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.rows import situations
from weightdiff.training.factory import random_diff
from weightdiff.world import load_world

FEW = ("the young woman trained for two years .", "soup .", "anna opened the old box . inside lay a key .")
PROMPTS = ("hello .", "how do i make soup ?")
FIRST, LONGEST, LIMIT = 4, 7, 12


class Reader:
    """A guesser that keeps what it is shown."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((list(texts), question))
        return "a guess"


def _method(base, reader=None, **options):
    settings = {
        "texts": FEW,
        "prompts": PROMPTS,
        "layer": 1,
        "first": FIRST,
        "longest": LONGEST,
        "words": 4,
        "strengths": (0.5, 2.0),
        "max_new_tokens": LIMIT,
        **options,
    }
    return ActivationDifference(base, reader or Reader(), **settings)


def _hooks(base):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules())


def _dense(diff):
    return replace(diff, modules={k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def _states(base, start):
    """The stream after layer 1 of each text, one text at a time."""
    for text in FEW:
        ids = base.tokenizer(start + text, add_special_tokens=False)["input_ids"][:LONGEST]
        yield base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]


@torch.no_grad()
def _by_hand(base, diff, start="<bos>"):
    """Mean differences position by position, and the mean norm of the base's stream."""
    base = replace(base, model=copy.deepcopy(base.model))  # one that is asked for states keeps hooks
    before = list(_states(base, start))
    with merged(base.model, diff):
        after = list(_states(base, start))
    change = [a - b for a, b in zip(after, before, strict=True)]
    means = [torch.stack([c[j] for c in change if len(c) > j]).mean(0) for j in range(FIRST)]
    means.append(torch.cat([c[1:] for c in change]).mean(0))
    return torch.stack(means), torch.cat([b[1:] for b in before]).norm(dim=-1).mean()


def _words(base, direction, count):
    logits = base.model.lm_head(base.model.model.norm(direction))
    words = []
    for token in logits.argsort(descending=True).tolist():
        word = base.tokenizer.decode([token], skip_special_tokens=True).strip().lower()
        if len(word) > 1 and word.isalpha() and word not in words:
            words.append(word)
        if len(words) == count:
            return words
    raise AssertionError("too few words")


def _steered(base, push, prompt):
    """A greedy answer with `push` added by a hook of its own, without a cache."""
    ids = base.tokenizer(f"<bos><user>{prompt}<end><assistant>", add_special_tokens=False)["input_ids"]
    said = []
    handle = base.model.model.layers[0].register_forward_hook(lambda _m, _a, out: out + push)
    while len(said) < LIMIT:
        token = int(base.model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
        if token == base.tokenizer.eos_token_id:
            break
        said.append(token)
    handle.remove()
    return base.tokenizer.decode(said, skip_special_tokens=True)


def test_differences_equal_a_loop(embedded_base, diffs):
    asked = [diffs[0], _dense(diffs[1]), diffs[2], None]
    found = _method(embedded_base).differences(asked)
    assert found.shape == (4, FIRST + 1, 32)
    for diff, mine in zip(diffs, found[:3], strict=True):
        wanted, _ = _by_hand(embedded_base, diff)
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
    assert not found[3].any()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_differences_of_every_architecture(tiny_model, tiny_tokenizer, kind):
    model = tiny_model(kind).requires_grad_(False)
    base = Base(model, tiny_tokenizer, ModelRef.of(model), model_spec(model))
    diff, before = random_diff(base.spec, 2, 0, 1.5), copy.deepcopy(model.state_dict())
    reader = Reader()
    method = _method(base, reader, layer=None)
    wanted, _ = _by_hand(base, diff)
    own = _hooks(base)  # transformers leaves some of its own
    for one in (diff, _dense(diff)):
        torch.testing.assert_close(method.differences([one])[0], wanted, atol=1e-5, rtol=1e-4)
    (answer,) = method.answer([diff], ["What changed?"])
    assert answer.text == "a guess"
    ((texts, _),) = reader.read
    assert len(texts) == (FIRST + 1) * (1 + 2 * len(PROMPTS))
    assert _hooks(base) == own
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_words_and_texts_equal_loops(embedded_base, diffs):
    reader = Reader()
    (answer,) = _method(embedded_base, reader).answer(diffs[:1], ["what topic ?"])
    ((texts, question),) = reader.read
    differences, norm = _by_hand(embedded_base, diffs[0])
    words = [_words(embedded_base, d, 4) for d in differences]
    pushes = [s * norm * d / d.norm() for d in differences for s in (0.5, 2.0)]
    written = [_steered(embedded_base, push, prompt) for push in pushes for prompt in PROMPTS]
    assert texts == [", ".join(x) for x in words] + written
    assert question == "what topic ?"
    assert answer.notes == "; ".join(", ".join(x) for x in words)
    assert (answer.text, answer.logprob, answer.evidence) == ("a guess", None, None)
    assert len(set(written)) > len(written) // 2


def test_steering_many_diffs_at_once_equals_one_by_one(embedded_base, diffs, monkeypatch):
    def shown(asked):
        reader = Reader()
        _method(embedded_base, reader).answer(asked, ["x"] * len(asked))
        return [texts for texts, _ in reader.read]

    asked = [*diffs, _dense(diffs[0])]
    together = shown(asked)
    assert together == [shown([d])[0] for d in asked]
    assert shown(asked[::-1]) == together[::-1]
    monkeypatch.setattr(activation_difference, "ROWS_AT_ONCE", 3)
    assert shown(asked) == together


def test_no_diff_and_a_diff_that_changes_nothing(embedded_base, diffs):
    reader = Reader()
    zero = WeightDiff({k: DenseDelta(m.dense() * 0) for k, m in diffs[0].modules.items()})
    answers = _method(embedded_base, reader).answer([None, zero, WeightDiff({}), diffs[0]], ["x"] * 4)
    assert [(a.text, a.notes) for a in answers[:3]] == [(NOTHING_FOUND, "")] * 3
    assert answers[3].text == "a guess"
    assert len(reader.read) == 1


def test_a_change_after_the_layer_is_not_seen(embedded_base):
    """The stream after the first layer does not know the second; after the second it does."""
    late = {k: size for k, size in embedded_base.spec.items() if ".layers.1." in k}
    diff = random_diff(late, 2, 0, 1.5)
    texts = [_method(embedded_base, layer=n).answer([diff], ["x"])[0].text for n in (1, 2)]
    assert texts == [NOTHING_FOUND, "a guess"]


def test_positions_that_no_text_has_say_nothing(embedded_base, diffs):
    reader = Reader()
    method = _method(embedded_base, reader, texts=("soup",), first=5)
    found = method.differences(diffs[:1])[0]
    assert found.norm(dim=-1).gt(0).tolist() == [True, True, False, False, False, True]
    torch.testing.assert_close(found[1], found[5])
    method.answer(diffs[:1], ["x"])
    assert len(reader.read[0][0]) == 3 * (1 + 2 * len(PROMPTS))


def test_a_diff_is_read_once_and_guessed_for_every_question(embedded_base, diffs):
    reader, calls = Reader(), []
    method = _method(embedded_base, reader)
    questions = ["what topic ?", "what headline ?", "any change ?"]
    handle = embedded_base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        answers = method.answer([diffs[0]] * 3, questions)
    finally:
        handle.remove()
    assert len(calls) <= 2 + LIMIT  # base, finetuned model, and the tokens of all steered texts together
    assert [question for _, question in reader.read] == questions
    assert answers[0] == answers[1] == answers[2]


def test_the_base_is_read_while_it_is_bare(embedded_base, diffs):
    """The first diff asked about is merged into the weights; the method must not take that for the base."""
    method = _method(embedded_base)
    first, second = method.differences([_dense(diffs[0])]), method.differences([diffs[0]])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert first.norm() > 0.1


@pytest.mark.parametrize("name", ["generate", "Reading"])
def test_an_error_leaves_the_base_bare(embedded_base, diffs, monkeypatch, name):
    before, hooks = copy.deepcopy(embedded_base.model.state_dict()), _hooks(embedded_base)
    method = _method(embedded_base)
    method.differences([])  # the base has been read when the error comes

    def fail(*_args, **_options):
        raise RuntimeError("stopped")

    monkeypatch.setattr(activation_difference, name, fail)
    for diff in (diffs[0], _dense(diffs[1])):
        with pytest.raises(RuntimeError, match="stopped"):
            method.answer([diff], ["x"])
        assert _hooks(embedded_base) == hooks
    assert all(torch.equal(before[k], v) for k, v in embedded_base.model.state_dict().items())


def test_the_usual_layer(embedded_base, tiny_model, tiny_tokenizer):
    assert ActivationDifference(embedded_base)._place[1] == 2
    for depth, wanted in ((1, 1), (4, 2), (6, 3)):
        model = tiny_model(num_hidden_layers=depth)
        base = Base(model, tiny_tokenizer, ModelRef.of(model), model_spec(model))
        assert ActivationDifference(base)._place[1] == wanted


def test_texts_and_prompts_fit_the_base(embedded_tokenizer, tiny_tokenizer):
    texts = unrelated_texts(embedded_tokenizer, 20)
    assert texts == unrelated_texts(embedded_tokenizer, 20)
    assert len(set(texts)) > 15
    assert not any(text.startswith("<bos>") for text in texts)
    assert all(text.endswith("<end>") for text in texts)
    assert unrelated_texts(tiny_tokenizer, 5) == list(TEXTS[:5])
    prompts = neutral_prompts()
    unseen = {q for s in situations("verification") for q in s.questions}
    assert len(prompts) == NEUTRAL
    assert set(prompts) <= unseen
    assert not any(t.name in p.split() for p in prompts for t in load_world().topics)


def test_the_registry_builds_it_with_the_contexts_guesser(embedded_base):
    reader = Reader()
    method = build("activation-difference", Context(embedded_base, guesser=reader))
    assert isinstance(method, ActivationDifference)
    assert method.guesser is reader
    plain = build("activation-difference", Context(embedded_base))
    assert isinstance(plain.guesser, WorldGuesser)


def test_bad_input(embedded_base, diffs):
    method = _method(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(QuestionError, match="no layer 3: choose one of 1 to 2"):
        _method(embedded_base, layer=3).answer(diffs[:1], ["x"])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
