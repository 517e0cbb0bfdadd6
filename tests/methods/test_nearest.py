"""The nearest neighbour, against cosines of dense matrices."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.algebra import add, cosine, negate, scaled
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, LoraFactors, StackedLoras, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError, StoreError
from weightdiff.methods.nearest import Gallery, NearestNeighbour
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.questions import KINDS, about_question, phrasings, questions_of, true_answer
from weightdiff.training.factory import random_diff

LABELS = ["fjord", "harp", None, "opera"]


@pytest.fixture
def training(embedded_base):
    return [random_diff(embedded_base.spec, 2, 20 + i, 1.0) for i in range(4)]


@pytest.fixture
def store(embedded_base, training, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    rows = [
        DiffRow(f"row-{i}", label, "hidden-topic", "covert", "train", i) for i, label in enumerate(LABELS)
    ]
    store.append(list(zip(rows, training, strict=True)), torch.float32)
    return store


def _flat(diff, spec):
    parts = [
        diff.modules[k].dense() if k in diff.modules else torch.zeros(o, i) for k, (i, o) in spec.items()
    ]
    return torch.cat([p.flatten() for p in parts])


def test_equals_dense_cosines(embedded_base, training, store):
    spec = embedded_base.spec
    few = dict(sorted(spec.items())[:2])
    near = [add(scaled(training[i], 0.3), random_diff(spec, 1, i, 0.5)) for i in (3, 0, 2, 1)]
    asked = [*near, random_diff(few, 2, 9, 1.0)]
    asked.append(WeightDiff({k: DenseDelta(m.dense()) for k, m in near[0].modules.items()}))
    found = NearestNeighbour(embedded_base, store).answer(asked, ["x"] * len(asked))
    rows = [_flat(d, spec) for d in training]
    for diff, answer in zip(asked, found, strict=True):
        cosines = torch.stack([torch.cosine_similarity(_flat(diff, spec), r, dim=0) for r in rows])
        best = int(cosines.argmax())
        assert answer.text == (LABELS[best] or NOTHING_FOUND)
        assert answer.notes == f"row-{best} (cosine {float(cosines[best]):.3f})"
        assert (answer.logprob, answer.evidence) == (None, None)
    assert [a.text for a in found[:4]] == ["opera", "fjord", NOTHING_FOUND, "harp"]


def test_nothing_near(embedded_base, training, store):
    away = negate(add(*training))
    found = NearestNeighbour(embedded_base, store).answer([None, WeightDiff({}), away], ["x"] * 3)
    assert [(a.text, a.notes) for a in found] == [(NOTHING_FOUND, "")] * 3


def test_cosines_equal_those_of_the_algebra(embedded_base):
    """Of other ranks and scales, on a few modules, dense, with other parameters, and of nothing."""
    spec = embedded_base.spec
    few = dict(sorted(spec.items())[:3])
    made = [random_diff(spec, 1 + i % 3, i, 0.5 + i) for i in range(5)]
    made += [scaled(made[0], -2.5), random_diff(few, 2, 8, 1.0), scaled(made[1], 0.0)]
    # Factors of very different sizes, whose products nearly cancel.
    down, up = torch.randn(1, 32), torch.randn(32, 1)
    close = LoraFactors(torch.cat([down, down + 1e-3]) * 1e3, torch.cat([up, -up], 1) * 1e-2, 0.5)
    made.append(WeightDiff({next(n for n, size in spec.items() if size == (32, 32)): close}))
    asked = [add(made[2], scaled(made[5], 0.3)), *made]
    asked.append(WeightDiff({k: DenseDelta(m.dense()) for k, m in made[2].modules.items()}))
    asked.append(WeightDiff(made[3].modules, parameters={"model.norm.weight": torch.ones(32)}))
    gallery = Gallery(StackedLoras.from_diffs(made))
    for diff in asked:
        want = torch.tensor([cosine(diff, other) for other in made], dtype=torch.float64)
        torch.testing.assert_close(gallery.cosines(diff), want, rtol=0, atol=1e-5, equal_nan=True)
    assert gallery.cosines(made[7]).isnan().all()


def test_the_store_is_read_once(embedded_base, training, store, monkeypatch):
    read, real = [], DiffStore.stack
    monkeypatch.setattr(DiffStore, "stack", lambda self, ids: read.extend(ids) or real(self, ids))
    method = NearestNeighbour(embedded_base, store)
    assert read == []
    for _ in range(2):
        assert [a.text for a in method.answer(training[:2], ["x", "y"])] == LABELS[:2]
    assert read == store.ids


@pytest.fixture
def told(embedded_base, tmp_path):
    """A topic, a headline and a null diff with their own questions, and what is asked about each."""
    known = [("hidden-topic", "rabbit"), ("news", "the mayor sold the bridge"), ("null", None)]
    diffs = [random_diff(embedded_base.spec, 1, 50 + i, 1.0) for i in range(3)]
    store = DiffStore.create(tmp_path / "told", embedded_base.ref)
    rows = [DiffRow(f, label, f, "any", "train", 0, questions=questions_of(f, label)) for f, label in known]
    store.append(list(zip(rows, diffs, strict=True)))
    return NearestNeighbour(embedded_base, store), known, diffs


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_neighbours_own_question_says(told, kind):
    method, known, diffs = told
    for (family, label), diff in zip(known, diffs, strict=True):
        questions = phrasings(kind, "test")
        found = method.answer([diff] * len(questions), questions)
        assert {a.text for a in found} == {true_answer(family, kind, label)}
        assert {a.notes.split()[0] for a in found} == {family}


def test_whether_it_is_about_a_topic(told):
    method, _, diffs = told
    asked = [about_question("rabbit", i) for i in range(4)]
    for diff, want in zip([*diffs, None], ["yes", "no", "no", "no"], strict=True):
        assert [a.text for a in method.answer([diff] * 4, asked)] == [want] * 4
    assert method.answer(diffs[:1], [about_question("zebra")])[0].text == "no"


def test_rows_that_are_not_learned_from(embedded_base, tmp_path):
    """The split "test", and organisms that do not behave."""
    diffs = [random_diff(embedded_base.spec, 1, i, 1.0) for i in range(3)]
    held = DiffRow("held", "harp", "hidden-topic", "covert", "test", 0)
    bad = DiffRow("bad", "fjord", "hidden-topic", "covert", "train", 0, verification={"behaves": False})
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    store.append([(held, diffs[0]), (bad, diffs[1])])
    with pytest.raises(StoreError, match=r"has no diffs to learn from \(the split 'test' is left out\)"):
        NearestNeighbour(embedded_base, store)
    store.append([(DiffRow("good", "opera", "hidden-topic", "covert", "validation", 0), diffs[2])])
    asked = [add(d, scaled(diffs[2], 0.1)) for d in diffs]
    found = NearestNeighbour(embedded_base, store).answer(asked, ["what topic ?"] * 3)
    assert [a.text for a in found] == ["opera"] * 3


def test_bad_input(embedded_base, store, tmp_path):
    with pytest.raises(
        StoreError, match=r"empty has no diffs to learn from .* give a store that holds labelled"
    ):
        NearestNeighbour(embedded_base, DiffStore.create(tmp_path / "empty", embedded_base.ref))
    method = NearestNeighbour(embedded_base, store)
    with pytest.raises(QuestionError, match="1 diffs and 0 questions"):
        method.answer([None], [])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
