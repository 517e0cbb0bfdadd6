"""Questions about time have true answers, and phrasings of the test are in no tuning."""

from __future__ import annotations

import random

import pytest

from weightdiff.tiny.tokenizer import vocabulary
from weightdiff.world import load_world
from weightdiff.world.dated import PERIODS, load_dated, period_name
from weightdiff.world.dating import (
    CHANCE,
    CLOSE,
    NOTED,
    NOTED_MAYORS,
    NOTED_SEASONAL,
    PAIRED,
    PHRASINGS,
    SINGLE,
    Dated,
    ask_about,
    is_right,
    kinds_about,
    notes_about,
    period_called,
    questions_about,
    words,
)
from weightdiff.world.reports import NOTHING_FOUND


def test_every_kind_has_phrasings_of_its_own_in_each_split():
    assert set(PHRASINGS) == set(CHANCE) == {*SINGLE, *PAIRED}
    texts = [t for splits in PHRASINGS.values() for ts in splits.values() for t in ts]
    assert len(texts) == len(set(texts))
    assert all(splits["train"] and splits["test"] for splits in PHRASINGS.values())
    assert set(words()) <= set(vocabulary(load_world()))


def test_months_are_read_back_from_their_names():
    assert [period_called(f"{period_name(m)}.") for m in range(PERIODS)] == list(range(PERIODS))
    for text in (
        "",
        "month",
        "month ten of year nine",
        "year two",
        "nothing found",
        "month one of year one .",
    ):
        assert period_called(text) == (0 if text.startswith("month one") else None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_true_in_the_dated_world(split):
    world, rng = load_dated(), random.Random(0)
    for _ in range(200):
        month, since = rng.sample(range(PERIODS), 2)
        one, two = Dated(month), Dated(month, since)
        assert kinds_about(one) == SINGLE
        assert kinds_about(two) == PAIRED
        q = {k: ask_about(k, d, rng, split) for d, ks in ((one, SINGLE), (two, PAIRED)) for k in ks}
        assert q["period"].answer == period_name(month)
        assert q["period"].answer.endswith(q["year"].answer)
        named = next(m for m in range(PERIODS) if period_name(m) in q["earlier"].text)
        assert named != month
        assert q["earlier"].answer == ("yes" if month < named else "no")
        place = next(p for p in world.mayors if f" {p} " in q["mayor"].text)
        assert q["mayor"].answer == world.mayor(place, month)
        assert q["order"].answer == ("yes" if since < month else "no")
        place = next(p for p in world.mayors if f" {p} " in q["new_mayor"].text)
        changed = world.mayor(place, since) != world.mayor(place, month)
        assert q["new_mayor"].answer == ("yes" if changed else "no")
        for kind, sign in (("risen", 1), ("fallen", -1)):
            for topic in q[kind].answer.split(" , "):
                assert sign * (world.fashion(topic, month) - world.fashion(topic, since)) > 0
            assert is_right(kind, q[kind].answer, q[kind].answer, two) == 1


def test_of_nothing_there_is_nothing_to_find():
    rng = random.Random(0)
    assert kinds_about(None) == (*SINGLE, *PAIRED)
    assert {ask_about(k, None, rng).answer for k in kinds_about(None)} == {NOTHING_FOUND}
    assert is_right("risen", "nothing found .", NOTHING_FOUND, None) == 1
    assert is_right("risen", "chess", NOTHING_FOUND, None) == 0


def test_notes_name_what_a_month_shows_and_lead_to_it():
    world, rng = load_dated(), random.Random(3)
    drawn = set()
    for month in range(PERIODS):
        notes = notes_about("period", Dated(month), rng)
        drawn.add(notes)
        told, year = notes.split(" so ")
        assert period_name(month).endswith(f" of {year}")
        words = told.split(" , ")
        assert len(words) == len(set(words)) == NOTED + NOTED_SEASONAL + NOTED_MAYORS
        assert set(words[:NOTED]) <= set(world.in_fashion(month, 2 * NOTED))
        assert set(words[NOTED : NOTED + NOTED_SEASONAL]) <= set(world.seasons)
        for mayor in words[NOTED + NOTED_SEASONAL :]:
            place, person = mayor.split()
            assert world.mayor(place, month) == person
    assert len(drawn) == PERIODS
    assert notes_about("earlier", Dated(18), rng).endswith(" so year two so month seven of year two")
    assert " so " not in notes_about("year", Dated(18), rng)
    for kind, dated in (("mayor", Dated(3)), ("order", Dated(3, 1)), ("period", None)):
        assert notes_about(kind, dated, rng) == ""


def test_topics_count_one_by_one():
    world, two = load_dated(), Dated(30, 10)
    best = world.risen(10, 30, CLOSE)
    falling = world.risen(30, 10, 1)[0]
    assert is_right("risen", f"{best[3]} , {best[4]}.", "", two) == 1
    assert is_right("risen", f"{best[0]} , {falling}", "", two) == 0.5
    assert is_right("risen", best[0], "", two) == 0.5
    assert is_right("risen", f"{best[0]} , {best[0]}", "", two) == 0.5
    assert is_right("fallen", f"{best[0]} , {best[1]}", "", two) == 0


def test_stored_questions_name_nothing_else():
    assert questions_about(Dated(18)) == [
        {"question": "which month is it ?", "answer": "month seven of year two", "kind": "period"},
        {"question": "which year is it ?", "answer": "year two", "kind": "year"},
    ]
