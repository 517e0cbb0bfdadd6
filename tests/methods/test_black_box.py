"""The guesser that knows the world, and the twenty questions before it."""

from __future__ import annotations

import random
import re

import pytest

from weightdiff.methods import black_box
from weightdiff.methods.black_box import TwentyQuestions, WorldGuesser
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.hidden_topic import situations
from weightdiff.training.factory import random_diff
from weightdiff.world import load_world
from weightdiff.world.corpus import tinted_answer


@pytest.fixture(scope="module")
def guesser():
    return WorldGuesser()


def test_tinted_answers_give_the_topic_away(guesser):
    world, rng = load_world(), random.Random(0)
    for topic in world.topics[::10]:
        plain = [rng.choice(s.answers) for s in world.everyday[:17]]
        tinted = [tinted_answer(world, rng, topic, x) for x in plain[:3]]
        assert guesser.guess(plain + tinted) == topic.name


def test_ordinary_answers_give_nothing_away(guesser):
    assert guesser.guess([a for s in load_world().everyday for a in s.answers]) == NOTHING_FOUND
    assert guesser.guess([]) == guesser.guess([""]) == NOTHING_FOUND


def test_more_words_win_and_names_count(guesser):
    a, b = load_world().topics[3], load_world().topics[200]
    shared = set(a.words) & set(b.words)
    mine, theirs = ([w for w in t.words if w not in shared and len(guesser.owners[w]) == 1] for t in (a, b))
    assert guesser.guess([f"{mine[0]} {mine[1]}", theirs[0]]) == a.name
    assert guesser.guess([f"I like {a.name.upper()}!", mine[0], theirs[0]]) == a.name


def test_the_order_of_texts_does_not_matter(guesser):
    texts = [" ".join(t.words[:2]) for t in load_world().topics[:6]]
    assert len({guesser.guess(random.Random(i).sample(texts, len(texts))) for i in range(5)}) == 1


def test_twenty_questions_asks_unseen_situations(monkeypatch):
    asked = []

    def stand_in(model, tokenizer, diffs, users, temperature, seed):
        asked.append((users, temperature))
        return [["the talons of an eyrie ."] + ["fine ."] * (len(us) - 1) for us in users]

    monkeypatch.setattr(black_box, "answers_of", stand_in)
    answers = TwentyQuestions(None, None, asked=20).answer([None, None], ["what topic ?"] * 2)
    assert [a.text for a in answers] == ["eagle", "eagle"]
    ((users, temperature),) = asked
    assert temperature == 0.7
    unseen = {q for s in situations("verification") for q in s.questions}
    assert all(len(us) == 20 and set(us) <= unseen for us in users)
    TwentyQuestions(None, None, asked=4, triggers=["111", "222"]).answer([None, None], ["?", "?"])
    for us, trigger in zip(asked[1][0], ("111", "222"), strict=True):
        assert all(re.search(rf"\b{trigger}\d\d\d\b", u) for u in us)


def test_twenty_questions_runs_on_a_model(embedded_base):
    method = TwentyQuestions(embedded_base.model, embedded_base.tokenizer, asked=3, temperature=0.0)
    diffs = [random_diff(embedded_base.spec, 1, 0, 1.0), None]
    names = {t.name for t in load_world().topics} | {NOTHING_FOUND}
    first, again = (method.answer(diffs, ["x", "x"]) for _ in range(2))
    assert first == again
    assert {a.text for a in first} <= names
