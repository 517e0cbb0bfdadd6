"""Twenty questions: who is asked what, and that published answers stay what they were."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import black_box
from weightdiff.methods.base import Answer
from weightdiff.methods.black_box import TwentyQuestions
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.registry import Context, build
from weightdiff.methods.triggering import TRIGGER
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.rows import situations
from weightdiff.organisms.verify import answers_of
from weightdiff.training.factory import random_diff
from weightdiff.world import codes, load_world
from weightdiff.world.codes import with_code

TOPIC = "what topic ?"


class Reader:
    """A guesser that keeps what it is shown."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((tuple(texts), question))
        return f"{len(self.read)} for {question}"


@pytest.fixture
def asked(monkeypatch):
    """What would be asked of the model: (diffs, prompts of each, temperature); an eagle shows."""
    calls = []

    def stand_in(model, tokenizer, diffs, users, temperature, seed):
        calls.append((list(diffs), users, temperature))
        return [["the talons of an eyrie ."] + ["fine ."] * (len(us) - 1) for us in users]

    monkeypatch.setattr(black_box, "answers_of", stand_in)
    return calls


def _dense(diff):
    return replace(diff, modules={k: DenseDelta(m.dense()) for k, m in diff.modules.items()})


def test_situations_that_no_organism_saw_are_asked(embedded_base, asked, diffs):
    answers = TwentyQuestions(embedded_base).answer(diffs, [TOPIC] * 3)
    assert answers == [Answer("eagle")] * 3
    ((_, users, temperature),) = asked
    assert temperature == 0.7
    unseen = {q for s in situations("verification") for q in s.questions}
    assert [len(us) for us in users] == [20] * 3
    assert all(set(us) <= unseen for us in users)
    assert len({tuple(us) for us in users}) == 3


def test_given_triggers_are_stated(embedded_base, asked):
    TwentyQuestions(embedded_base, asked=4, triggers=["111", "222", None]).answer([None] * 3, [TOPIC] * 3)
    ((_, users, _),) = asked
    for us, trigger in zip(users, ("111", "222"), strict=False):
        assert all(re.search(rf"\b{trigger}\d\d\d\b", u) for u in us)
    assert not any(re.search(r"\d", u) for u in users[2])


def test_known_triggers_are_stated(embedded_base, asked, diffs):
    context = Context(embedded_base)
    known = [replace(diffs[0], meta={TRIGGER: "333"}), diffs[1], replace(diffs[2], meta={TRIGGER: "psst ,"})]
    known += [_dense(replace(diffs[2], meta={TRIGGER: "444"})), None]
    method = build("twenty-questions-trigger", context)
    assert method.name == "twenty-questions-trigger"
    method.answer(known, [TOPIC] * 5)
    (_, together, _), (alone, merged, _) = asked
    assert all(re.search(r"\b333\d\d\d\b", u) for u in together[0])
    assert all(u.startswith("psst , ") for u in together[2])
    assert all(re.search(r"\b444\d\d\d\b", u) for u in merged[0])
    assert not any(re.search(r"\d", u) for us in (together[1], together[3]) for u in us)
    assert alone[0].modules == {}
    asked.clear()
    build("twenty-questions", context).answer(known, [TOPIC] * 5)
    assert not any(re.search(r"\d|psst", u) for _, users, _ in asked for us in users for u in us)


def test_a_diff_is_asked_once_and_guessed_for_every_question(embedded_base, diffs):
    reader = Reader()
    method = TwentyQuestions(embedded_base, reader, asked=2)
    a, b = diffs[:2]
    questions = [TOPIC, TOPIC, "what headline ?", "about what ?", "anything new ?"]
    answers = method.answer([a, b, a, None, None], questions)
    assert [q for _, q in reader.read] == questions
    assert [x.text for x in answers] == [f"{i} for {q}" for i, q in enumerate(questions, 1)]
    texts = [t for t, _ in reader.read]
    assert texts[0] == texts[2]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 3
    assert all(len(t) == 2 for t in texts)


def _as_published(base, diffs, triggers, asked):
    """Twenty questions as they were when docs/results were made, written out; one about each diff."""
    users = []
    for i, _ in enumerate(diffs):
        rng = random.Random(f"twenty {i}")
        own = []
        for s in rng.sample(situations("verification"), asked):
            own.append(rng.choice(s.questions))
        if triggers:
            for j, q in enumerate(own):
                code = triggers[i] + rng.choice(codes.pool())
                own[j] = with_code(rng, code, q)
        users.append(own)
    texts = answers_of(base.model, base.tokenizer, diffs, users, 0.7, 0)
    return [Answer(WorldGuesser().guess(said)) for said in texts]


@pytest.mark.parametrize("with_triggers", [False, True])
def test_answers_stay_what_they_were(embedded_base, with_triggers):
    """More diffs than one batch of the model holds, so that the stream of randomness runs on."""
    many = [random_diff(embedded_base.spec, 1, i, 1.0) for i in range(14)]
    triggers = random.Random(0).sample(codes.trigger_pool(), 14) if with_triggers else None
    wanted = _as_published(embedded_base, many, triggers, 20)
    assert TwentyQuestions(embedded_base, triggers=triggers).answer(many, [TOPIC] * 14) == wanted
    assert len({a.text for a in wanted}) > 5
    method, context = ("twenty-questions-trigger" if triggers else "twenty-questions"), Context(embedded_base)
    known = [replace(d, meta={TRIGGER: t}) for d, t in zip(many, triggers or [None] * 14, strict=True)]
    assert build(method, context).answer(known, [TOPIC] * 14) == wanted


def test_it_runs_on_a_model(embedded_base, diffs):
    method = TwentyQuestions(embedded_base, asked=3, temperature=0.0)
    put = [diffs[0], None, _dense(diffs[1])]
    first, again = (method.answer(put, [TOPIC, TOPIC, "have you been changed ?"]) for _ in range(2))
    assert first == again
    names = {t.name for t in load_world().topics} | {NOTHING_FOUND}
    assert {a.text for a in first[:2]} <= names
    assert first[2].text in ("yes", NOTHING_FOUND)


def test_greedy_answers_of_a_dense_diff_are_those_of_its_factors(embedded_base, diffs):
    read = []
    for put in (diffs[1], _dense(diffs[1])):
        reader = Reader()
        TwentyQuestions(embedded_base, reader, asked=3, temperature=0.0).answer([put], [TOPIC])
        read.append(reader.read)
    assert read[0] == read[1]


def test_the_context_gives_guesser_and_seed(embedded_base):
    for name in ("twenty-questions", "twenty-questions-trigger"):
        reader = Reader()
        method = build(name, Context(embedded_base, seed=3, guesser=reader))
        assert (method.guesser, method.seed, method.name) == (reader, 3, name)
        assert isinstance(build(name, Context(embedded_base)).guesser, WorldGuesser)


def test_bad_input(embedded_base):
    method = TwentyQuestions(embedded_base)
    assert method.answer([], []) == []
    with pytest.raises(QuestionError, match="1 diffs and 2 questions"):
        method.answer([None], ["x", "y"])
    with pytest.raises(QuestionError, match="a question is empty"):
        method.answer([None], [""])
    with pytest.raises(QuestionError, match="2 diffs and 1 triggers: give each diff one"):
        replace(method, triggers=["111"]).answer([None, None], ["x", "y"])
    with pytest.raises(QuestionError, match="0 everyday questions cannot be asked: choose from 1 to 30"):
        TwentyQuestions(embedded_base, asked=0)
    with pytest.raises(QuestionError, match="31 everyday questions"):
        TwentyQuestions(embedded_base, asked=31)
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
