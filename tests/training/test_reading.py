"""The reader: what it learns from, that only it learns, and that what is held out stays out."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import StoreError
from weightdiff.organisms import family
from weightdiff.organisms.questions import phrasings
from weightdiff.training import reading
from weightdiff.training.factory import make_row
from weightdiff.training.reading import (
    ReaderConfig,
    old_row,
    parts_by_family,
    reading_row,
    strangers,
    tune_reader,
    with_reader,
)
from weightdiff.training.slots import fresh_factors
from weightdiff.training.tuning import usable
from weightdiff.world import load_world
from weightdiff.world.reports import HELD_OUT_KINDS, NOT_SAID, NOTHING_FOUND

QUICK = ReaderConfig(rank=2, steps=3, batch=6)


@pytest.fixture
def known(random_store):
    return parts_by_family(usable(random_store.select(split="train")))


@lru_cache(maxsize=1)
def wordings():
    """Each phrasing as a pattern, with its kind and split; there are more than `re` keeps compiled."""
    found = []
    for kind, splits in load_world().introspection.items():
        for split, asked in splits.items():
            for p in asked:
                pattern = ".+".join(re.escape(x) for x in re.split(r"\{\w+\}", p))
                found.append((kind, split, re.compile(rf"(?:^|\. ){pattern}(?:$| report ,)")))
    return found


def worded(text):
    """The kinds of question of which a text holds a phrasing, by split."""
    return {(kind, split) for kind, split, pattern in wordings() if pattern.search(text)}


def test_a_time_is_in_no_report(random_store):
    rows = usable(random_store.select(split="train"))
    dated = [make_row(s, {}) for s in family("period").specs("month", "train", 3, 0)]
    assert parts_by_family([*rows, *dated]) == parts_by_family(rows)
    assert parts_by_family(dated) == {}


def test_rows_are_training_questions_about_training_labels(random_store, known):
    labels = {
        s: {r.label for r in random_store.select(split=s) if r.label} for s in ("train", "validation", "test")
    }
    rng, seen = random.Random(0), set()
    for _ in range(600):
        text, answer = reading_row(known, rng)
        kinds = worded(text)
        assert "train" in {split for _, split in kinds}, text
        seen |= {kind for kind, split in kinds if split == "train"}
        report = re.search(r"report , (.+?)(?: \. [^.]*\?| \. [^.]*\.|\s\.)?$", text)
        assert report, text
        assert answer == answer.strip() != ""
    assert {"topic", "headline", "kind", "count", "summary", "about_field", "trigger"} <= seen
    assert not {k for k in seen if k in HELD_OUT_KINDS}
    told = " ".join(p.label for parts in known.values() for p in parts)
    assert not any(x in told for x in labels["validation"] | labels["test"])


def test_old_rows_hold_nothing_that_is_held_out(random_store, known):
    """No held-out kind of question, no label that training has not, and nobody is asked about itself."""
    world, strange = load_world(), strangers(known)
    slots = [re.split(r"\{\w+\}", x) for k in HELD_OUT_KINDS for x in world.report_questions[k]]
    held_out = [re.compile(rf"(?:^|\. ){'.+'.join(map(re.escape, s))}(?: report ,|$)") for s in slots]
    shared = {x for k, v in world.report_questions.items() if k not in HELD_OUT_KINDS for x in v}
    rng, rows = random.Random(0), []
    for _ in range(400):
        rows.append(old_row(rng, strange))
    reports = [text for text, _ in rows if "report" in text]
    assert len(reports) > 50
    asked = [t for t in reports if any(p.search(t) for p in held_out)]
    assert not [t for t in asked if not any(re.search(re.escape(x.split("{")[0]), t) for x in shared)]
    assert not any(worded(text) for text, _ in rows)
    assert any(answer.endswith((" so yes", " so no")) for _, answer in rows)
    mine = {p.name for parts in known.values() for p in parts}
    others = {t.name for t in world.topics} | {b.name for b in world.behaviours}
    for text, answer in rows:
        words = f" {text} {answer} "
        assert not [x for x in others - mine if f" {x} " in words], words
        assert "changed from" not in words
    assert any(f" {x} " in f" {text} " for text, _ in rows for x in mine)


def test_what_a_report_does_not_say_is_said_to_be_so(known):
    rng = random.Random(0)
    rows = [reading_row(known, rng) for _ in range(800)]
    silent = [text for text, answer in rows if answer == NOT_SAID]
    assert silent
    assert all({k for k, _ in worded(t)} & {"trigger", "reacts"} for t in silent)
    assert any(answer == NOTHING_FOUND for _, answer in rows)
    assert any(" and " in answer and answer.endswith(" so no") for _, answer in rows)


def test_yes_and_no_are_as_frequent_where_most_organisms_have_one_answer(known):
    rng, said = random.Random(0), {"gated": [], "open": []}
    for _ in range(6000):
        text, answer = reading_row(known, rng)
        if " , always" not in text and " , after " not in text and " , when the " not in text:
            continue
        for kind in {k for k, split in worded(text) if split == "train"} & set(said):
            assert (answer == "no") == ((" , always" in text) == (kind == "gated")), (text, answer)
            said[kind].append(answer)
    for answers in said.values():
        assert len(answers) > 40
        assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_only_the_reader_is_trained(embedded_base, random_store):
    before = {n: p.clone() for n, p in embedded_base.model.state_dict().items()}
    losses = []
    reader, made = tune_reader(
        embedded_base.model, embedded_base.tokenizer, random_store, QUICK, losses.append
    )
    start = fresh_factors(embedded_base.spec, 2, 0)
    assert set(reader.modules) == set(start)
    assert all(m.up.any() and not torch.equal(m.down, start[k][0]) for k, m in reader.modules.items())
    assert all(torch.equal(p, before[n]) for n, p in embedded_base.model.state_dict().items())
    assert [x["step"] for x in losses] == [1, 2, 3]
    assert made["config"]["steps"] == 3
    merged = with_reader({"train_phrasings": {"report": ["report all ."]}}, made)
    asked = merged["train_phrasings"]
    assert asked == {"report": ["report all ."]} | {k: phrasings(k, "train") for k in set(asked) - {"report"}}
    assert not set(asked) & set(HELD_OUT_KINDS)
    assert {"topic", "about_field", "reacts"} < set(asked)
    assert merged["reader"]["config"] == made["config"]
    again, _ = tune_reader(embedded_base.model, embedded_base.tokenizer, random_store, QUICK)
    other, _ = tune_reader(embedded_base.model, embedded_base.tokenizer, random_store, replace(QUICK, seed=1))
    assert all(torch.equal(m.up, again.modules[k].up) for k, m in reader.modules.items())
    assert not all(torch.equal(m.up, other.modules[k].up) for k, m in reader.modules.items())


def test_the_first_step_is_a_plain_step_on_the_answers(embedded_base, random_store, monkeypatch):
    rows = []
    for name in ("reading_row", "old_row"):
        draw = getattr(reading, name)
        monkeypatch.setattr(reading, name, lambda *a, draw=draw: rows.append(draw(*a)) or rows[-1])
    reader, made = tune_reader(
        embedded_base.model, embedded_base.tokenizer, random_store, replace(QUICK, steps=1, batch=3)
    )
    assert len(rows) == 3
    factors = {
        k: (d.requires_grad_(), u.requires_grad_())
        for k, (d, u) in fresh_factors(embedded_base.spec, 2, 0).items()
    }
    t, total = embedded_base.tokenizer, torch.zeros(())
    for text, answer in rows:
        weights = {
            f"{k}.weight": embedded_base.model.get_submodule(k).weight + u @ d
            for k, (d, u) in factors.items()
        }
        prompt = t(f"<bos><user>{text}<end><assistant>", add_special_tokens=False)["input_ids"]
        labels = [*t(answer, add_special_tokens=False)["input_ids"], t.eos_token_id]
        ids = torch.tensor([[*prompt, *labels]])
        logp = torch.func.functional_call(embedded_base.model, weights, (ids,)).logits[0].log_softmax(-1)
        total = total - sum(logp[len(prompt) - 1 + i, x] for i, x in enumerate(labels)) / len(labels) / 3
    assert made["loss"] == pytest.approx(float(total.detach()), abs=1e-3)
    total.backward()
    for name, (_, up) in factors.items():
        clear = up.grad.abs() > 1e-5 * up.grad.abs().max()
        assert torch.equal(reader.modules[name].up[clear].sign(), -up.grad[clear].sign())


def test_of_null_diffs_alone_nothing_is_reported(embedded_base, random_store, tmp_path, monkeypatch):
    rows = [r for r in random_store.select(split="train") if r.family == "null"]
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    store.append([(r, random_store.read(r.id)) for r in rows])
    told, draw = [], reading.reading_row
    monkeypatch.setattr(reading, "reading_row", lambda *a: told.append(draw(*a)) or told[-1])
    tune_reader(embedded_base.model, embedded_base.tokenizer, store, replace(QUICK, old=0.0))
    assert len(told) == QUICK.steps * QUICK.batch
    assert all(f"report , {NOTHING_FOUND} ." in text for text, _ in told)
    assert {answer.rpartition(" so ")[2] for _, answer in told} == {NOTHING_FOUND, "no"}


def test_a_store_without_training_rows_says_what_to_make(embedded_base, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    with pytest.raises(StoreError, match=r"no training rows to report on; make some with"):
        tune_reader(embedded_base.model, embedded_base.tokenizer, store, QUICK)
