"""Generated text: what is written, by which prompts, and who reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods.generated_text import PROMPTS, GeneratedText, prompts_for
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context, build
from weightdiff.models.merge import merged
from weightdiff.models.spec import model_spec
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.rows import situations
from weightdiff.world import load_world

HEADLINE = "what headline ?"
FEW = ("write a short news story .", "hello .")


class Reader:
    """A guesser that keeps what it is shown and answers with the first text."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((list(texts), question))
        return texts[0]


def _written(base, diffs, **options):
    """What the guesser is shown of each diff."""
    reader = Reader()
    GeneratedText(base, reader, **{"prompts": FEW, "max_new_tokens": 6, **options}).answer(
        diffs, [HEADLINE] * len(diffs)
    )
    return [texts for texts, _ in reader.read]


def _dense(diff):
    return replace(diff, modules={k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def _greedy(base, diff, prompt, limit):
    """One text by a plain loop over merged weights."""
    ids = base.tokenizer(f"<bos><user>{prompt}<end><assistant>", add_special_tokens=False)["input_ids"]
    said = []
    with merged(base.model, diff):
        while len(said) < limit:
            token = int(base.model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
            if token == base.tokenizer.eos_token_id:
                break
            said.append(token)
    return base.tokenizer.decode(said, skip_special_tokens=True)


def test_greedy_texts_equal_a_loop(embedded_base, diffs):
    wanted = [[_greedy(embedded_base, d, p, 6) for p in FEW] for d in diffs]
    assert _written(embedded_base, [diffs[0], _dense(diffs[1]), diffs[2]], temperature=0.0) == wanted
    bare = [_greedy(embedded_base, WeightDiff({}), p, 6) for p in FEW]
    assert _written(embedded_base, [None], temperature=0.0) == [bare]


def test_a_diff_writes_the_same_whoever_else_writes(embedded_base, diffs):
    together = _written(embedded_base, [*diffs, None, _dense(diffs[0])])
    assert together[:4] == [_written(embedded_base, [d])[0] for d in (*diffs, None)]
    assert _written(embedded_base, diffs[::-1]) == together[:3][::-1]
    assert len({tuple(t) for t in together[:4]}) > 1


def test_the_seed_chooses_what_is_written(embedded_base, diffs):
    first = _written(embedded_base, diffs)
    assert first == _written(embedded_base, diffs) != _written(embedded_base, diffs, seed=1)


def test_a_diff_writes_once_and_is_guessed_for_every_question(embedded_base, diffs):
    reader, calls = Reader(), []
    handle = embedded_base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    questions = ["what topic ?", HEADLINE, "any change ?", HEADLINE]
    put = [diffs[0], diffs[0], None, diffs[0]]
    method = GeneratedText(embedded_base, reader, FEW, 3)
    answers = method.answer(put, questions)
    once = len(calls)
    assert once <= 2 * 3
    assert [q for _, q in reader.read] == questions
    texts = [t for t, _ in reader.read]
    assert texts[0] == texts[1] == texts[3] != texts[2]
    assert [a.text for a in answers] == [t[0] for t in texts]
    method.answer(put[:1] + put[2:3], questions[:2])
    assert len(calls) == 2 * once
    handle.remove()


def test_prompts_for_the_embedded_base_are_of_its_world(embedded_tokenizer):
    prompts = prompts_for(embedded_tokenizer)
    news = [p for p in prompts if p in load_world().news.prompts]
    everyday = [p for p in prompts if any(p in s.questions for s in situations("verification"))]
    assert (len(news), len(everyday)) == (10, 6)
    assert len(set(prompts)) == len(prompts) == 16
    assert not any(t.name in p.split() for p in prompts for t in load_world().topics)


def test_prompts_for_other_bases_are_plain(tiny_model, tiny_tokenizer):
    assert prompts_for(tiny_tokenizer) == PROMPTS
    assert len(set(PROMPTS)) == len(PROMPTS) >= 8
    model = tiny_model("qwen3")
    base, reader = Base(model, tiny_tokenizer, ModelRef.of(model), model_spec(model)), Reader()
    replace(GeneratedText(base, reader), max_new_tokens=3).answer([None], ["What changed?"])
    ((texts, question),) = reader.read
    assert len(texts) == len(PROMPTS)
    assert question == "What changed?"


def test_how_long_texts_may_be(embedded_base, monkeypatch):
    lengths = []

    def stand_in(*args, max_new_tokens):
        lengths.append(max_new_tokens)
        return [["fine ."] * len(args[3][0])]

    monkeypatch.setattr("weightdiff.methods.generated_text.answers_of", stand_in)
    other = replace(embedded_base, tokenizer=object())
    for base, limit in ((embedded_base, None), (other, None), (other, 7)):
        answers = GeneratedText(base, max_new_tokens=limit).answer([None], [HEADLINE])
        assert answers[0].text == NOTHING_FOUND
    assert lengths == [40, 160, 7]


def test_the_context_gives_guesser_and_seed(embedded_base):
    reader = Reader()
    method = build("generated-text", Context(embedded_base, seed=3, guesser=reader))
    assert (method.guesser, method.seed, method.name) == (reader, 3, "generated-text")
    assert isinstance(build("generated-text", Context(embedded_base)).guesser, WorldGuesser)


def test_bad_input(embedded_base):
    method = GeneratedText(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([None], [""])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
