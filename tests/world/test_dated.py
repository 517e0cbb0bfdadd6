"""The dated world changes smoothly, returns with its seasons, and keeps its held-out sentences apart."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from weightdiff.tiny.tokenizer import vocabulary
from weightdiff.world import load_world
from weightdiff.world.dated import (
    HELD_OUT,
    MONTHS,
    PERIODS,
    PROMPTS,
    SHARES,
    SPLITS,
    DatedWorld,
    load_dated,
    period_name,
)


@pytest.fixture(scope="module")
def dated():
    return load_dated()


def test_months_have_names():
    assert PERIODS >= 24
    assert period_name(0) == "month one of year one"
    assert period_name(18) == "month seven of year two"
    assert len({period_name(p) for p in range(PERIODS)}) == PERIODS
    for p in (-1, PERIODS):
        with pytest.raises(ValueError, match=f"months go from 0 to 47, and {p} is not one"):
            period_name(p)


def test_every_word_is_one_token_of_the_embedded_base(dated):
    known, rng = set(vocabulary(load_world())), random.Random(0)
    for period in range(PERIODS):
        said = [dated.say(period, rng, split) for split in ("train", "held-out") for _ in range(40)]
        words = {w for s in said for w in f"{s.prompt} {s.text} {period_name(period)}".split()}
        assert words <= known, words - known


def test_the_same_seed_gives_the_same_world(dated):
    again, other = DatedWorld(load_world()), DatedWorld(load_world(), 1)
    assert again.mayors == dated.mayors != other.mayors
    assert again.say(9, random.Random(3)) == dated.say(9, random.Random(3))


def test_splits_share_no_form(dated):
    rng = random.Random(1)
    train, held = (set(dated.sayings(split).forms) for split in SPLITS)
    assert not train & held
    assert len(held) == sum(HELD_OUT.values())
    for period in (0, 20, PERIODS - 1):
        every = dict(zip(dated.sayings("held-out").texts, dated.sayings("held-out").forms, strict=True))
        assert {every[dated.say(period, rng, "held-out").text] for _ in range(300)} == held
    with pytest.raises(ValueError, match="sentences are of train or held-out, not 'test'"):
        dated.say(0, rng, "test")


def overlap(a, b):
    """Share of one bag of sentences that is in another of the same size."""
    return sum((a & b).values()) / sum(a.values())


def test_months_that_are_near_say_more_of_the_same(dated):
    rng = random.Random(2)
    bags = {p: Counter(dated.say(p, rng).text for _ in range(4000)) for p in (0, 12, 18, 24, 36)}
    years = [overlap(bags[0], bags[p]) for p in (12, 24, 36)]
    assert years == sorted(years, reverse=True)
    assert years[0] > 1.5 * years[-1]
    of_season = {
        p: Counter({text: n for text, n in bag.items() if any(t in text.split() for t in dated.seasons)})
        for p, bag in bags.items()
    }
    assert overlap(of_season[12], of_season[24]) > 2 * overlap(of_season[12], of_season[18])


def test_seasons_return(dated):
    for topic, month in dated.seasons.items():
        assert dated.season(topic, month) == pytest.approx(1)
        assert dated.season(topic, month + MONTHS) == pytest.approx(1)
        assert dated.season(topic, (month + 6) % PERIODS) < 0.01
    assert {m for m in dated.seasons.values()} == set(range(MONTHS))


def test_fashions_rise_and_fall_smoothly(dated):
    for topic, peak in dated.fashions.items():
        course = [dated.fashion(topic, p) for p in range(PERIODS)]
        assert max(abs(a - b) for a, b in itertools.pairwise(course)) < 0.08
        if 0 <= peak < PERIODS:
            assert abs(course.index(max(course)) - peak) <= 1
    grown = dated.risen(0, 24)
    assert len(grown) == 3
    assert all(dated.fashion(t, 24) > dated.fashion(t, 0) for t in grown)


def test_colours_give_way(dated):
    for thing, (old, new, middle) in dated.drifts.items():
        assert old != new
        assert dated.new_colour(thing, round(middle)) == pytest.approx(0.5, abs=0.1)
        course = [dated.new_colour(thing, p) for p in range(PERIODS)]
        assert course == sorted(course)


def test_offices_change_hands(dated):
    for place, terms in dated.mayors.items():
        assert terms[0][0] == 0
        assert all(a[1] != b[1] for a, b in itertools.pairwise(terms))
        for first, person in terms:
            assert dated.mayor(place, first) == person
            if first:
                assert (place, dated.mayor(place, first - 1), person) in dated.changed_hands(first - 1, first)
    assert dated.changed_hands(7, 7) == []


def test_a_month_speaks_of_its_own(dated):
    rng, period = random.Random(5), 30
    said = [dated.say(period, rng) for _ in range(600)]
    assert {s.prompt for s in said} == set(PROMPTS)
    mayors = [s.text for s in said if "mayor" in s.text]
    assert len(mayors) > 60
    for text in mayors:
        assert any(p in text.split() and dated.mayor(p, period) in text.split() for p in dated.mayors)


def test_what_is_said_is_as_likely_as_sayings_tell(dated):
    rng, n = random.Random(5), 20_000
    for split in SPLITS:
        every = dated.sayings(split)
        assert len(every.texts) == len(set(every.texts))
        assert all(sum(chances) == pytest.approx(1) for chances in every.chances)
        likely = dict(zip(every.texts, every.chances[20], strict=True))
        said = Counter(dated.say(20, rng, split).text for _ in range(n))
        assert all(likely[text] > 0 for text in said)
        for text in sorted(likely, key=lambda t: -likely[t])[:5]:
            assert said[text] / n == pytest.approx(likely[text], rel=0.25)


def test_kinds_of_sentences_have_their_shares_in_both_splits(dated):
    for split in SPLITS:
        every = dated.sayings(split)
        office = sum(p for t, p in zip(every.texts, every.chances[9], strict=True) if "mayor" in t)
        talk = sum(
            p
            for t, p in zip(every.texts, every.chances[9], strict=True)
            if any(w in t.split() for w in dated.fashions)
        )
        assert office == pytest.approx(SHARES["office"])
        assert talk == pytest.approx(SHARES["talk"], abs=0.02)
