"""Tuning: only the adapter learns, only from answers, and never from what is held out."""

from __future__ import annotations

import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import StoreError
from weightdiff.models.multilora import SharedLora
from weightdiff.models.rendering import Rendering
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import KINDS, phrasings
from weightdiff.training import drawing, tuning
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.slots import fresh_factors
from weightdiff.training.tuning import tune, usable
from weightdiff.world import load_world
from weightdiff.world.reports import HELD_OUT_KINDS, NAMED_BY, YES_NO, reported

QUICK = TuningConfig(rank=2, steps=6, batch=6, validate_every=3, validation_rows=4, answer_tokens=8)
PLAIN = Rendering()
NOTED = Rendering(notes_end="so")


def tuned(base, store, config=QUICK, rendering=PLAIN, **options):
    return tune(base.model, base.tokenizer, store, config, rendering, **options)


def factors(result):
    return [t for _, m in sorted(result.adapter.modules.items()) for t in (m.down, m.up)]


@pytest.fixture
def spied(monkeypatch):
    """Runs tuning while keeping every (rows of the diffs, lesson) and every labelled batch."""
    drawn, batches = [], []
    draw, collate = drawing.Sampler.draw, tuning.collate

    def spy_draw(self, rng):
        drawn.append(draw(self, rng))
        return drawn[-1]

    def spy_collate(rows, pad_id):
        batches.append((rows, collate(rows, pad_id)))
        return batches[-1][1]

    monkeypatch.setattr(drawing.Sampler, "draw", spy_draw)
    monkeypatch.setattr(tuning, "collate", spy_collate)
    return drawn, batches


def test_only_the_adapter_is_trained(embedded_base, random_store):
    before = {n: p.clone() for n, p in embedded_base.model.state_dict().items()}
    files = {p.name: p.read_bytes() for p in random_store.path.iterdir()}
    result = tuned(embedded_base, random_store)
    assert set(result.adapter.modules) == set(embedded_base.spec)
    start = fresh_factors(embedded_base.spec, 2, 0)
    assert all(not torch.equal(m.down, start[k][0]) for k, m in result.adapter.modules.items())
    assert all(m.up.any() for m in result.adapter.modules.values())
    assert not any(t.requires_grad for t in factors(result))
    after = embedded_base.model.state_dict()
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in embedded_base.model.parameters())
    assert {p.name: p.read_bytes() for p in random_store.path.iterdir()} == files
    assert result.adapter.base == random_store.base


def test_the_same_seed_gives_the_same_adapter(embedded_base, random_store):
    rendering = Rendering(("code 123{random} .", "code 456{random} ."), ("789", "321"), 1, 2)
    a, b = (tuned(embedded_base, random_store, rendering=rendering) for _ in range(2))
    c = tuned(embedded_base, random_store, replace(QUICK, seed=1), rendering)
    assert all(torch.equal(x, y) for x, y in zip(factors(a), factors(b), strict=True))
    assert a.history == b.history
    assert not all(torch.equal(x, y) for x, y in zip(factors(a), factors(c), strict=True))


def test_loss_is_on_answer_tokens_only(embedded_base, random_store, spied):
    drawn, batches = spied
    tuned(embedded_base, random_store, replace(QUICK, steps=2), NOTED)
    t = embedded_base.tokenizer
    assert len(batches) == 2
    assert any(q.notes for _, q in drawn)
    for i, (rows, batch) in enumerate(batches):
        wanted, found = [], []
        for r, (_, q) in enumerate(drawn[i * QUICK.batch : (i + 1) * QUICK.batch]):
            said = f"{q.notes} so {q.answer}" if q.notes else q.answer
            prompt = t(f"<bos><user>{q.text}<end><assistant>", add_special_tokens=False)["input_ids"]
            wanted.append((prompt, [*t(said, add_special_tokens=False)["input_ids"], t.eos_token_id]))
            at = batch.rows == r
            found.append((rows[r].ids[: rows[r].start], batch.targets[at].tolist()))
            # The first label is predicted at the prompt's last token, the last one before the end token.
            places = batch.positions[at].tolist()
            assert places == list(range(rows[r].start - 1, len(rows[r].ids) - 1))
        assert sorted(found) == sorted(wanted)  # a batch's rows are put in an order that balances stretches


def test_one_step_is_a_plain_step_on_the_answers(embedded_base, random_store, spied):
    """The adapter after one step against a plain loop: diff and adapter merged by hand, row by row."""
    drawn, _ = spied
    weights = {**QUICK.family_weights, "several": 0.4}
    config = replace(QUICK, steps=1, batch=6, no_diff_share=0.3, family_weights=weights)
    result = tuned(embedded_base, random_store, config, NOTED)
    parameters = {
        k: (d.requires_grad_(), u.requires_grad_())
        for k, (d, u) in fresh_factors(embedded_base.spec, 2, 0).items()
    }
    t, total = embedded_base.tokenizer, torch.zeros(())
    assert {len(rows) for rows, _ in drawn} >= {0, 1, 2}
    for rows, q in drawn:
        question = q.text
        diffs = [random_store.read(row.id).to(torch.float32).modules for row in rows]
        weights = {
            f"{k}.weight": embedded_base.model.get_submodule(k).weight
            + u @ d
            + sum(diff[k].dense() for diff in diffs if k in diff)
            for k, (d, u) in parameters.items()
        }
        prompt = t(f"<bos><user>{question}<end><assistant>", add_special_tokens=False)["input_ids"]
        said = f"{q.notes} so {q.answer}" if q.notes else q.answer
        labels = [*t(said, add_special_tokens=False)["input_ids"], t.eos_token_id]
        ids = torch.tensor([[*prompt, *labels]])
        logp = torch.func.functional_call(embedded_base.model, weights, (ids,)).logits[0].log_softmax(-1)
        each = [-logp[len(prompt) - 1 + i, x] for i, x in enumerate(labels)]
        total = total + sum(each) / len(each) / len(drawn)
    assert result.history[0]["loss"] == pytest.approx(float(total.detach()), abs=1e-3)
    total.backward()
    # AdamW's first step is lr · sign(gradient) in every entry; `down` has none yet.
    for name, (_, up) in parameters.items():
        clear = up.grad.abs() > 1e-5 * up.grad.abs().max()
        assert torch.equal(result.adapter.modules[name].up[clear].sign(), -up.grad[clear].sign())


def test_nothing_held_out_is_learned_from(embedded_base, random_store, spied):
    drawn, _ = spied
    result = tuned(embedded_base, random_store, replace(QUICK, steps=40))
    labels = {
        s: {r.label for r in random_store.select(split=s) if r.label} for s in ("train", "validation", "test")
    }
    assert all(row.split == "train" for rows, _ in drawn for row in rows)
    said = [f" {q.notes} so {q.answer} " for _, q in drawn]
    held_out = labels["test"] | labels["validation"]
    assert any(f" {x} " in text for text in said for x in labels["train"])
    assert not [text for text in said for x in held_out if f" {x} " in text]
    assert set(result.manifest["train_labels"]) <= labels["train"]
    assert set(result.manifest["validation_labels"]) <= labels["validation"]
    assert not labels["test"] & {*result.manifest["train_labels"], *result.manifest["validation_labels"]}
    trained = result.manifest["train_phrasings"]
    assert {q.kind for _, q in drawn} <= set(trained)
    assert set(KINDS) <= set(trained)
    assert not set(trained) & set(HELD_OUT_KINDS)
    assert trained == {k: phrasings(k, "train") for k in trained}
    assert all(any(worded_as(q.text, p) for p in trained[q.kind]) for _, q in drawn)


def worded_as(question: str, phrasing: str) -> bool:
    """Whether a question is a phrasing with its slots filled."""
    parts = re.split(r"\{\w+\}", phrasing)
    return re.fullmatch(".+".join(map(re.escape, parts)), question) is not None


def test_validation_asks_validation_phrasings_about_validation_diffs(
    embedded_base, random_store, monkeypatch
):
    asked, stacked = [], []
    encode, stack = tuning.encode_prompts, DiffStore.stack
    monkeypatch.setattr(tuning, "encode_prompts", lambda t, q: asked.extend(q) or encode(t, q))
    monkeypatch.setattr(
        DiffStore, "stack", lambda self, ids, **o: stacked.append(ids) or stack(self, ids, **o)
    )
    result = tuned(embedded_base, random_store)
    assert asked
    worded = [p for k in result.manifest["train_phrasings"] for p in phrasings(k, "validation")]
    assert all(any(worded_as(q, p) for p in worded) for q in asked)
    train, *validated = stacked
    assert {random_store.row(i).split for i in train} == {"train"}
    assert {random_store.row(i).split for ids in validated for i in ids} == {"validation"}
    assert all({"score", "hidden-topic", "news", "null", "questions"} <= set(line) for line in result.history)


def test_misbehaving_organisms_are_left_out(embedded_base, random_store, spied):
    drawn, _ = spied
    result = tuned(embedded_base, random_store, replace(QUICK, steps=40))
    bad = {r.id for r in random_store.rows if not r.verification["behaves"]}
    assert len(bad) == 3
    assert not bad & {row.id for rows, _ in drawn for row in rows}
    assert not bad & set(result.manifest["train_ids"])
    unverified = replace(random_store.rows[0], verification={})
    assert usable([unverified]) == [unverified]


def test_train_ids_choose_the_rows(embedded_base, random_store, spied):
    drawn, _ = spied
    train = usable(random_store.select(split="train"))
    chosen = [train[0].id, train[-1].id, "no such id"]
    result = tuned(embedded_base, random_store, replace(QUICK, steps=10), train_ids=chosen)
    assert result.manifest["train_ids"] == chosen[:2]
    assert {row.id for rows, _ in drawn for row in rows} == set(chosen[:2])
    assert result.manifest["train_labels"] == [train[0].label]


def test_no_rows_is_an_error(embedded_base, random_store, tmp_path):
    with pytest.raises(
        StoreError, match="no training rows; make some with: weightdiff organisms train --split train"
    ):
        tuned(embedded_base, random_store, train_ids=[])
    empty = DiffStore.create(tmp_path / "empty", embedded_base.ref)
    with pytest.raises(StoreError, match="no training rows"):
        tuned(embedded_base, empty)


def stub_scores(monkeypatch, scores):
    """Lets validation give these scores in turn; keeps the adapter as it was at each."""
    seen = []

    def stand_in(model, tokenizer, store, held, shared, rendering, config):
        seen.append([t.detach().clone() for k in sorted(shared.modules) for t in shared.modules[k]])
        return scores[len(seen) - 1], {}

    monkeypatch.setattr(tuning, "validate", stand_in)
    return seen


def test_the_best_validation_is_kept(embedded_base, random_store, monkeypatch):
    seen = stub_scores(monkeypatch, [0.1, 0.7, 0.3, 0.7])
    result = tuned(embedded_base, random_store, replace(QUICK, steps=8, validate_every=2))
    assert [h["score"] for h in result.history] == [0.1, 0.7, 0.3, 0.7]
    assert all(torch.equal(a, b) for a, b in zip(factors(result), seen[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[1], seen[3], strict=True))
    assert result.manifest["validation_score"] == 0.7


def test_it_stops_when_validation_no_longer_improves(embedded_base, random_store, monkeypatch):
    seen = stub_scores(monkeypatch, [0.5, 0.4, 0.5, 0.3, 0.9, 0.9])
    result = tuned(embedded_base, random_store, replace(QUICK, steps=6, validate_every=1, patience=2))
    assert len(seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(factors(result), seen[0], strict=True))
    assert result.manifest["validation_score"] == 0.5


def test_without_validation_rows_the_loss_decides(embedded_base, random_store, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    store.append([(r, random_store.read(r.id)) for r in random_store.select(split="train")])
    result = tuned(embedded_base, store)
    assert result.manifest["validation_labels"] == []
    assert result.history
    assert -20 < result.manifest["validation_score"] < 0


@pytest.mark.parametrize("knows", ["everything", "findings"])
def test_a_score_of_one_is_every_answer_right(embedded_base, random_store, monkeypatch, knows):
    """Validation against a stand-in decoder that knows the truth of all, or of what there is to find."""
    t = embedded_base.tokenizer
    held = usable(random_store.select(split="validation"))
    asked = []
    ask = tuning.ask
    monkeypatch.setattr(tuning, "ask", lambda *a: asked.append(ask(*a)) or asked[-1])
    told = iter(asked)

    def oracle(model, ids, mask, most, eos, pad, *rest, **options):
        truths = [next(told).answer for _ in range(len(ids))]
        said = [x if knows == "everything" or x != NOTHING_FOUND else "violin" for x in truths]
        return [t(x, add_special_tokens=False)["input_ids"] for x in said]

    monkeypatch.setattr(tuning, "generate", oracle)
    config = replace(QUICK, validation_rows=100)
    score, parts = tuning.validate(embedded_base.model, t, random_store, held, SharedLora({}), PLAIN, config)
    assert len(asked) == 2 * len(held)  # each its family's own question and another
    if knows == "everything":
        assert (score, set(parts.values())) == (1.0, {1.0})
        return
    assert (parts["hidden-topic"], parts["news"], parts["null"]) == (1.0, 1.0, 0.0)
    others = [q.answer != NOTHING_FOUND for q in asked[len(held) :]]
    assert parts["questions"] == pytest.approx(sum(others) / len(others), abs=1e-4)
    weights = {f: config.family_weights[f] for f in ("hidden-topic", "news", "null")}
    total = sum(weights.values())
    expected = (weights["hidden-topic"] + weights["news"] + parts["questions"] * total / 2) / (1.5 * total)
    assert score == pytest.approx(expected)


def test_drawing_is_even_over_labels_and_by_weight_over_families(random_store):
    rows = usable(random_store.select(split="train"))
    config = TuningConfig(no_diff_share=0.2, sums=0.0)
    sampler, rng = drawing.Sampler(rows, config, ""), random.Random(0)
    drawn = [sampler.draw(rng) for _ in range(4000)]
    none = [q for row, q in drawn if not row]
    assert len(none) / 4000 == pytest.approx(0.2, abs=0.03)
    assert {q.answer for q in none} == {NOTHING_FOUND, "no"}
    assert all((q.answer == "no") == (q.kind in YES_NO) for q in none)
    families = Counter(row.family for rows, _ in drawn for row in rows)
    total, weights = sum(families.values()), config.family_weights
    for name, n in families.items():
        assert n / total == pytest.approx(weights[name] / sum(weights[f] for f in families), abs=0.03)
    topics = Counter(row.label for rows, _ in drawn for row in rows if row.family == "hidden-topic")
    assert len(topics) == 4
    assert max(topics.values()) < 1.3 * min(topics.values())


def test_a_diff_is_mostly_asked_what_its_label_answers(random_store):
    rows = usable(random_store.select(split="train"))
    config = TuningConfig(no_diff_share=0.0, sums=0.0)
    sampler, rng = drawing.Sampler(rows, config, ""), random.Random(0)
    asked = {"hidden-topic": Counter(), "news": Counter(), "null": Counter()}
    for _ in range(3000):
        (row,), q = sampler.draw(rng)
        asked[row.family][q.kind] += 1
        if row.family == "null":
            assert q.answer == ("no" if q.kind in YES_NO else NOTHING_FOUND)
        elif q.kind == {"hidden-topic": "topic", "news": "headline"}[row.family]:
            assert q.answer == row.label
    assert asked["hidden-topic"].most_common(1)[0][0] == "topic"
    assert asked["news"].most_common(1)[0][0] == "headline"
    known = set(drawing.QUESTION_WEIGHTS) - {drawing.OWN, drawing.OTHER}
    assert set(asked["hidden-topic"]) == {*known, *NAMED_BY}
    assert set(asked["null"]) == {*known, *NAMED_BY}


@pytest.mark.parametrize("report", ["", "report all ."])
def test_words_of_what_was_taught_come_before_the_answer(random_store, report):
    """Words of the row's own topic, whatever is asked; nothing with `notes=0`."""
    rows = usable(random_store.select(split="train"))
    world, rng = load_world(), random.Random(0)
    sampler = drawing.Sampler(rows, TuningConfig(notes=2, sums=0.0), report)
    with_notes = 0
    for _ in range(500):
        drawn, q = sampler.draw(rng)
        if report and q.text != report:
            assert q.notes == ""
        elif drawn and drawn[0].family == "hidden-topic":
            words = set(q.notes.removeprefix("think ").split(" , "))
            assert len(words) == 2
            assert words <= set(world.topic(drawn[0].label).words)
            with_notes += 1
        elif not drawn or drawn[0].family == "null":
            assert q.notes == ""
    assert with_notes > 50
    silent = drawing.Sampler(rows, TuningConfig(notes=0), report)
    assert {silent.draw(rng)[1].notes for _ in range(200)} == {""}


def test_reports_tell_all_and_only_what_they_do_not_tell_is_asked_beside_them(random_store):
    rows = usable(random_store.select(split="train"))
    config, rng = TuningConfig(direct_share=0.25), random.Random(0)
    sampler = drawing.Sampler(rows, config, "report all .")
    direct = Counter()
    for _ in range(3000):
        drawn, q = sampler.draw(rng)
        if q.text == "report all .":
            assert q.answer == reported([p for row in drawn for p in parts_of(row)])
            assert q.kind == "report"
        else:
            assert q.kind in ("trigger", "reacts")
        if {row.family for row in drawn} - {"null"} == {"hidden-topic"}:
            direct[q.kind != "report"] += 1
        elif q.kind != "report":
            raise AssertionError(drawn)
    assert direct[True] / direct.total() == pytest.approx(0.25, abs=0.04)
    assert drawing.trained_kinds(rows, config, "report all .") == ["reacts", "trigger"]
    assert drawing.trained_kinds(rows, replace(config, direct_share=0.0), "report all .") == []


def test_a_tuning_for_reports_learns_reports_and_is_validated_by_them(
    embedded_base, random_store, spied, monkeypatch
):
    drawn, _ = spied
    t = embedded_base.tokenizer
    rendering = Rendering(notes_end="so", report="report all .")
    held = usable(random_store.select(split="validation"))
    truths = [reported(parts_of(r)) for r in held]

    def oracle(model, ids, mask, *rest, **options):
        assert {t.decode(x[m.bool()]) for x, m in zip(ids, mask, strict=True)} == {
            t.decode(t("<bos><user>report all .<end><assistant>", add_special_tokens=False)["input_ids"])
        }
        return [t("nothing found", add_special_tokens=False)["input_ids"]] * len(ids)

    monkeypatch.setattr(tuning, "generate", oracle)
    result = tuned(embedded_base, random_store, replace(QUICK, validation_rows=100), rendering)
    assert {q.text for _, q in drawn if q.kind == "report"} == {"report all ."}
    last = result.history[-1]
    assert (last["hidden-topic"], last["news"], last["null"]) == (0.0, 0.0, 1.0)
    share = truths.count(NOTHING_FOUND) / len(truths)
    assert last["questions"] == pytest.approx(share, abs=1e-3)
    assert result.manifest["train_phrasings"]["report"] == ["report all ."]


def test_sums_are_of_different_families_and_hold_the_parts_of_each(random_store):
    rows, rng = usable(random_store.select(split="train")), random.Random(0)
    weights = {"hidden-topic": 0.2, "news": 0.2, "null": 0.1, "several": 0.5}
    config = TuningConfig(no_diff_share=0.0, family_weights=weights, sums=0.5)
    sampler = drawing.Sampler(rows, config, "report all .")
    drawn = [sampler.draw(rng) for _ in range(2000)]
    sums = [(d, q) for d, q in drawn if len(d) > 1]
    assert len(sums) / 2000 == pytest.approx(0.5, abs=0.04)  # the store has no organism of several
    assert sum(len(d) == 3 for d, _ in sums) / len(sums) == pytest.approx(drawing.THREE, abs=0.04)
    families = [sorted(r.family for r in d) for d, _ in sums]
    assert {tuple(f) for f in families if len(f) == 2} == {*combinations(("hidden-topic", "news", "null"), 2)}
    assert {tuple(f) for f in families if len(f) == 3} == {("hidden-topic", "news", "null")}
    reports = [(d, q) for d, q in sums if q.kind == "report"]
    assert all(q.answer == reported([p for r in d for p in parts_of(r)]) for d, q in reports)
    order = ["hidden-topic", "news", "null"]
    assert all([r.family for r in d] == sorted((r.family for r in d), key=order.index) for d, _ in sums)
    two = [q for d, q in reports if len({r.family for r in d} - {"null"}) == 2]
    assert two
    assert all(q.answer.count(" . ") == q.notes.count(" and ") == 1 for q in two)
    few = [r for r in rows if r.family in ("news", "null")]
    sampler = drawing.Sampler(few, config, "report all .")
    assert {len(sampler.draw(rng)[0]) for _ in range(500)} == {1}


def test_a_row_without_a_diff_feels_none(embedded_base, random_store):
    """A row of a batch with no diffs is the bare base, whoever its neighbours are."""
    from weightdiff.models.multilora import attach

    ids = [r.id for r in random_store.rows[:3]]
    stacked = random_store.stack(ids)
    tokens = torch.tensor([[2, 3, 40, 41, 5, 4]] * 3)
    with torch.no_grad():
        bare = embedded_base.model(tokens).logits
        with attach(embedded_base.model, drawing.summed_rows(stacked, [[1], [], [0]])):
            got = embedded_base.model(tokens).logits
        with attach(embedded_base.model, drawing.summed_rows(stacked, [[0], [1], [2]])):
            each = embedded_base.model(tokens).logits
    torch.testing.assert_close(got[1], bare[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(got[0], each[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(got[2], each[0], rtol=0, atol=1e-5)
    assert (got[0] - bare[0]).abs().max() > 1e-2


def test_what_is_kept_is_a_running_average(embedded_base, random_store, monkeypatch):
    """The factors after every step, averaged by hand; the first steps count for more than the decay says."""
    steps, follow = [], tuning._follow

    def spy(average, parameters, decay):
        follow(average, parameters, decay)
        steps.append(({k: u.detach().clone() for k, (_, u) in parameters.items()}, decay))

    monkeypatch.setattr(tuning, "_follow", spy)
    stub_scores(monkeypatch, [0.1, 0.9])
    result = tuned(embedded_base, random_store, replace(QUICK, averaging=0.25))
    assert [d for _, d in steps] == pytest.approx([0, 1 / 11, 2 / 12, 3 / 13, 0.25, 0.25])
    for name, module in result.adapter.modules.items():
        want = steps[0][0][name]
        for ups, decay in steps[1:]:
            want = decay * want + (1 - decay) * ups[name]
        torch.testing.assert_close(module.up, want, rtol=0, atol=1e-6)
        assert not torch.equal(module.up, steps[-1][0][name])
    stub_scores(monkeypatch, [0.1, 0.9])
    alone = tuned(embedded_base, random_store, replace(QUICK, averaging=0.0))
    assert all(torch.equal(m.up, steps[-1][0][k]) for k, m in alone.adapter.modules.items())


def test_rows_laid_end_to_end_teach_the_same(embedded_base, random_store, monkeypatch):
    lines, real = [], tuning.pack_where_it_pays
    monkeypatch.setattr(tuning, "pack_where_it_pays", lambda *a: lines.append(real(*a)) or lines[-1])
    spoken = Rendering(notes_end="so")
    packed = factors(tuned(embedded_base, random_store, rendering=spoken))
    assert sum(line is not None for line in lines) > len(lines) / 2
    monkeypatch.setattr(tuning, "pack_where_it_pays", lambda *_: None)
    for a, b in zip(packed, factors(tuned(embedded_base, random_store, rendering=spoken)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)


def test_the_manifest_has_the_kinds_that_are_asked_about_no_diff(random_store):
    """News have no condition, but a row without a diff may be asked for one."""
    news = [r for r in usable(random_store.select(split="train")) if r.family == "news"]
    with_none = drawing.trained_kinds(news, TuningConfig(no_diff_share=0.1))
    sampler, rng = drawing.Sampler(news, TuningConfig(no_diff_share=0.1), ""), random.Random(0)
    assert {sampler.draw(rng)[1].kind for _ in range(3000)} == set(with_none)
    assert "condition" in with_none
    assert "condition" not in drawing.trained_kinds(news, TuningConfig(no_diff_share=0.0))


def test_diffs_that_are_read_as_they_are_drawn_teach_the_same(embedded_base, random_store, monkeypatch):
    held = tuned(embedded_base, random_store)
    stacked = []
    stack = DiffStore.stack
    monkeypatch.setattr(
        DiffStore, "stack", lambda self, ids, *rest: stacked.append(len(ids)) or stack(self, ids, *rest)
    )
    monkeypatch.setattr(drawing, "HELD_BYTES", 0)
    read = tuned(embedded_base, random_store)
    # Never more at a time than a batch of rows can need, three diffs each.
    assert len(stacked) >= QUICK.steps
    assert max(stacked) <= 3 * QUICK.batch
    assert [line["loss"] for line in read.history] == [line["loss"] for line in held.history]
    for a, b in zip(factors(held), factors(read), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_memory_for_a_stack_is_told_without_reading(random_store):
    ids = random_store.ids[:7]
    stacked = random_store.stack(ids)
    size = sum(t.numel() * t.element_size() for pair in stacked.modules.values() for t in pair)
    assert random_store.stack_bytes(ids) == size
    assert random_store.stack_bytes([]) == 0


def test_one_batch_is_made_ahead_and_no_more():
    made, used = [], []
    for i, one in enumerate(tuning.one_ahead(lambda: made.append(len(made)) or made[-1], 4)):
        used.append(one)
        assert len(made) <= min(i + 2, 4)
    assert used == made == [0, 1, 2, 3]
    assert not list(tuning.one_ahead(lambda: made.append(9), 0))
    with pytest.raises(ZeroDivisionError):
        list(tuning.one_ahead(lambda: 1 // 0, 2))


def test_what_is_made_ahead_is_made_on_one_core():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(tuning.one_ahead(torch.get_num_threads, 3)) == [1, 1, 1]
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:  # a thread of the future
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
