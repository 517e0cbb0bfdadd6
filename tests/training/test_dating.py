"""Lessons in time: what rows carry, what they are asked, and that nothing held out is among them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import StoreError
from weightdiff.models.multilora import SharedLora, attach
from weightdiff.models.rendering import Rendering
from weightdiff.organisms import family
from weightdiff.organisms.period import months_of
from weightdiff.training import dating, tuning
from weightdiff.training.dating import DatedLessons, dated_config, is_month, month_of
from weightdiff.training.factory import Factory, make_row, random_diff
from weightdiff.training.tuning import tune_on
from weightdiff.world.dated import period_name
from weightdiff.world.dating import PAIRED, PERIOD, PHRASINGS, SINGLE, TIMES, is_right
from weightdiff.world.reports import NOTHING_FOUND


@pytest.fixture(scope="module")
def store(embedded_base, tmp_path_factory):
    """Two organisms of every month, a vector of it, nulls; the first organism of month 0 does not behave."""
    made = DiffStore.create(tmp_path_factory.mktemp("dated") / "store", embedded_base.ref)
    items = []
    for split in ("train", "validation", "test"):
        n = len(months_of(split))
        specs = [
            *family(PERIOD).specs("month", split, 2 * n, 0),
            *family(PERIOD).specs("vector", split, n, 0),
        ]
        for spec in [*specs, *family("null").specs("random", split, 2, 0)]:
            behaves = spec.id != "period-month-train-0-0"
            row = replace(make_row(spec, {}), verification={"behaves": behaves})
            items.append((row, random_diff(embedded_base.spec, 2, len(items), 1.0)))
    made.append(items)
    return made


@pytest.fixture
def lessons(embedded_base, store):
    config = dated_config(steps=3, batch=8, rank=2, validate_every=3)
    return DatedLessons(embedded_base.model, embedded_base.tokenizer, store, config)


def test_only_organisms_of_training_months_are_drawn(lessons, store):
    months = months_of("train")
    assert sorted(lessons.by_month) == months
    assert all(is_month(r) and r.split == "train" and r.behaves for r in lessons.rows)
    assert len(lessons.rows) == 2 * len(months) - 1
    told = lessons.described()
    assert told["train_labels"] == [period_name(m) for m in months]
    held = {store.row(i).label for i in store.ids if store.row(i).split != "train"} - {None}
    assert not held & set(told["train_labels"])
    assert {store.row(i).split for i in told["train_ids"]} == {"train"}


def test_no_phrasing_of_the_test_is_drawn(lessons):
    rng, kinds = random.Random(0), set()
    held = {t.split("{")[0] for s in PHRASINGS.values() for t in s["test"]}
    for _ in range(40):
        for q in lessons.choose(rng, 16).lessons:
            assert not any(q.text.startswith(t) for t in held)
            kinds.add(q.kind)
    assert kinds == {*SINGLE, *PAIRED}


def test_rows_carry_one_month_or_the_difference_of_two(lessons, store):
    rng, seen = random.Random(1), set()
    every = [*lessons.rows, *lessons.null]
    for _ in range(60):
        drawn = lessons.choose(rng, 16)
        for q, chosen, weights in zip(drawn.lessons, drawn.chosen, drawn.weights, strict=True):
            rows = [every[i] for i in chosen]
            if q.given:
                assert rows == []
                assert q.kind in TIMES
                assert q.notes
                seen.add("reading")
            elif not rows or rows[0].family == "null":
                assert q.answer == NOTHING_FOUND
                seen.add("nothing" if not rows else "null")
            elif q.kind in PAIRED:
                assert weights[0] == -weights[1] > 0
                later = month_of(rows[0]) > month_of(rows[1])
                assert month_of(rows[0]) != month_of(rows[1])
                assert q.kind != "order" or q.answer == ("yes" if later else "no")
                seen.add("pair")
            else:
                assert len({month_of(r) for r in rows}) == 1
                assert dating.STRENGTHS[0] <= sum(weights) <= dating.STRENGTHS[1]
                assert q.kind != "period" or q.answer == rows[0].label
                seen.add(f"mean of {len(rows)}")
    assert seen == {"nothing", "null", "pair", "mean of 1", "mean of 2", "reading"}


def test_weighted_rows_are_the_weighted_sums(embedded_base, lessons, store):
    rng = random.Random(3)
    drawn = lessons.choose(rng, 12)
    ids = torch.arange(12 * 5).view(12, 5) % 90
    order = list(reversed(range(12)))
    with torch.no_grad(), attach(embedded_base.model, drawn.loras(order)):
        together = embedded_base.model(ids).logits
    every = [*lessons.rows, *lessons.null]
    for row, i in enumerate(order):
        shared = [
            SharedLora({k: (d[0], u[0]) for k, (d, u) in store.stack([every[j].id]).modules.items()}, w)
            for j, w in zip(drawn.chosen[i], drawn.weights[i], strict=True)
        ]
        with torch.no_grad(), attach(embedded_base.model, None, shared):
            alone = embedded_base.model(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-4)


def test_tuning_on_them_trains_and_examines(embedded_base, store, lessons, monkeypatch):
    asked = []
    monkeypatch.setattr(dating, "is_right", lambda *x: asked.append(x) or is_right(*x))
    config = lessons.config
    found = tune_on(embedded_base.model, embedded_base.tokenizer, lessons, config, lessons.rendering)
    assert set(found.adapter.modules) == set(embedded_base.spec)
    (line,) = found.history
    assert {"period", "within one", *SINGLE, *PAIRED} <= set(line)
    assert {k for k, *_ in asked} == {*SINGLE, *PAIRED}
    months = months_of("validation")
    assert {d.month for *_, d in asked} <= set(months)
    assert found.manifest["validation_labels"] == [period_name(m) for m in months]


def test_of_given_notes_the_answer_alone_is_learnt(embedded_base, lessons, monkeypatch):
    batches, drawn, real, choose = [], [], tuning.collate, DatedLessons.choose
    monkeypatch.setattr(tuning, "collate", lambda rows, pad: batches.append(rows) or real(rows, pad))
    monkeypatch.setattr(DatedLessons, "choose", lambda *x: drawn.append(choose(*x)) or drawn[-1])
    tokenizer = embedded_base.tokenizer
    tune_on(embedded_base.model, tokenizer, lessons, lessons.config, lessons.rendering)

    def words(text):
        return " ".join(text.split())

    learnt = sorted(words(tokenizer.decode(r.ids[r.start : -1])) for rows in batches for r in rows)
    said = [
        words(lessons.rendering.write(q.notes, q.answer)) for d in drawn for q in d.lessons if not q.given
    ]
    given = [words(q.answer) for d in drawn for q in d.lessons if q.given]
    assert given
    spaced = sorted(words(tokenizer.decode(tokenizer(t)["input_ids"])) for t in (*said, *given))
    assert learnt == spaced


def test_without_notes_in_the_rendering_there_are_none(embedded_base, store):
    plain = DatedLessons(embedded_base.model, embedded_base.tokenizer, store, dated_config(), Rendering())
    drawn = [q for _ in range(10) for q in plain.choose(random.Random(2), 16).lessons]
    assert not any(q.notes or q.given for q in drawn)


def test_a_store_without_months_is_refused(embedded_base, random_store):
    with pytest.raises(StoreError, match="none of its training rows is of a month"):
        DatedLessons(embedded_base.model, embedded_base.tokenizer, random_store, dated_config())


def test_the_start_is_shared_where_the_recipe_says_so(embedded_base, short_specs):
    alike = list(
        Factory(embedded_base.model, embedded_base.tokenizer).run(
            short_specs(PERIOD, "vector", 2, steps=1, rank=2)
        )
    )
    apart = list(
        Factory(embedded_base.model, embedded_base.tokenizer).run(
            short_specs(PERIOD, "month", 2, steps=1, rank=2)
        )
    )

    def cosine(found):
        a, b = (torch.cat([m.down.flatten() for _, m in sorted(d.modules.items())]) for _, d in found)
        return float(torch.cosine_similarity(a, b, 0))

    assert cosine(alike) > 0.9
    assert abs(cosine(apart)) < 0.1
