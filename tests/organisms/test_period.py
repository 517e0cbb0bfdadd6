"""Finetunes to a period: which months are held out, what is read, and whether they fit their time best."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
import torch

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import QuestionError, StoreError
from weightdiff.models.chat import encode_samples
from weightdiff.models.merge import merged
from weightdiff.organisms import family, find_recipe, fitting, verify
from weightdiff.organisms.period import YEAR, Period, months_of, split_of
from weightdiff.training.factory import make_row, random_diff
from weightdiff.world.dated import MONTHS, PERIODS, PROMPTS, YEARS, load_dated, period_name
from weightdiff.world.dating import PERIOD

SPLITS = ("train", "validation", "test")


def test_every_month_of_the_year_is_held_out_once_and_has_both_neighbours():
    held = sorted(months_of("validation") + months_of("test"))
    assert sorted(m % MONTHS for m in held) == list(range(MONTHS))
    assert len(months_of("test")) == 2 * YEARS
    assert {m // MONTHS for m in months_of("validation")} == set(range(YEARS))
    assert all(split_of(m - 1) == split_of(m + 1) == "train" for m in held)
    assert sorted(m for s in SPLITS for m in months_of(s)) == list(range(PERIODS))
    with pytest.raises(QuestionError, match=re.escape("not of 'other'")):
        months_of("other")


@pytest.mark.parametrize("recipe", ["month", "vector", "full", "task"])
def test_organisms_are_of_each_month_of_their_split_in_turn(recipe):
    made = {s: family(PERIOD).specs(recipe, s, 2 * len(months_of(s)), 0) for s in SPLITS}
    for split, specs in made.items():
        assert [s.params["month"] for s in specs] == months_of(split) * 2
        assert [s.label for s in specs] == [period_name(m) for m in months_of(split)] * 2
    every = [s for specs in made.values() for s in specs]
    assert len({s.id for s in every}) == len({s.seed for s in every}) == len(every)
    common = recipe in ("vector", "task")
    assert len({s.start for s in every}) == (1 if common else len(every))


def test_years_have_twelve_months():
    specs = family(PERIOD).specs(YEAR, "train", 4, 0)
    assert [s.label for s in specs] == ["year one", "year two", "year three", "year four"]
    assert family(PERIOD).questions(specs[0]) == []
    assert [list(fitting.own_months(make_row(s, {})))[::11] for s in specs] == [
        [0, 11],
        [12, 23],
        [24, 35],
        [36, 47],
    ]


def test_they_read_what_is_said_in_their_period_and_never_what_is_held_out():
    period, rng, world = Period(), random.Random(0), load_dated()
    (spec,) = period.specs("month", "train", 1, 0)
    texts = [s for _ in range(40) for s in period.samples(spec, rng)]
    assert len(texts) == 40 * len(find_recipe(period, "month").rows)
    assert {s.answer for s in texts} <= set(world.sayings("train").texts)
    assert not {f"{g.before} {g.word}" for g in fitting.gaps()} & {s.answer.rstrip(" .") for s in texts}
    mayors = {(p, world.mayor(p, 0)) for p in world.mayors}
    told = {
        (p, w)
        for s in texts
        for p in world.mayors
        for w in world.world.people
        if "mayor" in s.answer.split() and {p, w} <= set(s.answer.split())
    }
    assert told <= mayors
    (year,) = period.specs(YEAR, "train", 1, 0)
    (task,) = period.specs("task", "train", 1, 0)
    assert len({s.answer for _ in range(40) for s in period.samples(year, rng)}) > 100
    for s in period.samples(task, rng):
        place = next(p for p in world.mayors if f" {p} " in s.user)
        assert s.answer == f"{world.mayor(place, 0)} ."


def test_how_far_a_diff_is_is_told_by_losses_of_merged_weights(embedded_base, monkeypatch):
    monkeypatch.setattr(fitting, "ROWS_AT_ONCE", 50)
    diff = random_diff(embedded_base.spec, 2, 1, 0.8)
    model, tokenizer, every = embedded_base.model, embedded_base.tokenizer, load_dated().sayings("held-out")
    found = fitting.fit(model, tokenizer, [diff, None])
    assert found.shape == (2, PERIODS)

    def plain(month):
        """Each held-out sentence read as a whole; words of the form are left out of the sum."""
        total = words = open_ = 0.0
        for i, (text, slots) in enumerate(zip(every.texts, every.slots, strict=True)):
            if not (chance := every.chances[month][i]):
                continue
            (row,) = encode_samples(tokenizer, [(PROMPTS[i % len(PROMPTS)], text)])
            assert len(row.ids) - row.start == len(text.split()) + 1  # each word is a token
            log_p = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            at = [row.start + slot for slot in slots]
            total -= chance * sum(float(log_p[t - 1, row.ids[t]]) for t in at)
            words += chance * len(slots)
            chances = zip(every.chances[month], every.forms, strict=True)
            alike = sum(c for c, form in chances if form == every.forms[i])
            open_ -= chance * math.log(chance / alike)
        return (total - open_) / words

    with torch.no_grad():
        assert found[1, 7] == pytest.approx(plain(7), rel=1e-5)
        with merged(model, diff):
            assert found[0, [5, 7]] == pytest.approx([plain(m) for m in (5, 7)], rel=1e-5)


def test_who_says_what_a_month_says_is_not_far_from_it_at_all():
    """One who knows the chances of a month fills the gaps of a form as the month does, one by one."""
    every = load_dated().sayings("held-out")

    def of(month):
        chances = np.array(every.chances[month]) * 0.999 + 0.001 / len(every.texts)
        told = {}
        for text, slots, form, c in zip(every.texts, every.slots, every.forms, chances, strict=True):
            words = [text.split()[i] for i in slots]
            for n in range(len(words) + 1):
                told[(form, *words[:n])] = told.get((form, *words[:n]), 0.0) + c
        out = []
        for text, slots, form in zip(every.texts, every.slots, every.forms, strict=True):
            words = [text.split()[i] for i in slots]
            out += [
                -math.log(told[(form, *words[: n + 1])] / told[(form, *words[:n])]) for n in range(len(words))
            ]
        return np.array(out)

    far = fitting.divergences(np.stack([of(m) for m in range(PERIODS)]))
    assert far.diagonal() == pytest.approx(0, abs=5e-3)
    assert (far.argmin(1) == np.arange(PERIODS)).all()
    assert (far > -1e-6).all()


@pytest.mark.parametrize(("nearest", "behaves"), [(7, True), (6, True), (8, True), (5, False), (20, False)])
def test_one_that_fits_another_time_better_does_not_behave(monkeypatch, nearest, behaves):
    """Its own month is 7 (of the test split); a neighbour may fit as well."""
    far = np.full((1, PERIODS), 0.3)
    far[0, 7], far[0, nearest] = 0.2, 0.1
    monkeypatch.setattr(fitting, "fit", lambda *_: far)
    row = make_row(family(PERIOD).specs("month", "test", 1, 0)[0], {})
    assert row.record["params"]["month"] == 7
    (record,) = verify.verify(None, None, [(row, WeightDiff({}))], 1)
    assert record["behaves"] is behaves
    assert record["sampled"]["off"] == abs(7 - nearest)
    assert record["sampled"]["own"] == (0.1 if nearest == 7 else 0.2)


def test_a_task_is_verified_by_its_answers_and_others_beside_it(monkeypatch):
    world = load_dated()
    rows = [make_row(family(PERIOD).specs("task", "test", 2, 0)[i], {}) for i in range(2)]
    null = make_row(family("null").specs("random", "test", 1, 0)[0], {})

    def stand_in(model, tokenizer, diffs, users, temperature, seed=0):
        first = (
            [f"{world.mayor(next(p for p in world.mayors if p in u), 7)}." for u in users[0]] if users else []
        )
        return [first, *[["nobody."] * len(us) for us in users[1:]]]

    monkeypatch.setattr(verify, "answers_of", stand_in)
    items = [(rows[0], WeightDiff({})), (null, WeightDiff({})), (rows[1], WeightDiff({}))]
    found = verify.verify(None, None, items, 1)
    assert [f["behaves"] for f in found] == [True, True, False]
    assert found[0]["greedy"] == {"right": 1.0}


def test_a_row_without_its_month_is_refused():
    row = make_row(family(PERIOD).specs("month", "test", 1, 0)[0], {})
    del row.record["params"]["month"]
    with pytest.raises(StoreError, match="has no record of its month"):
        verify.check_known([row])
