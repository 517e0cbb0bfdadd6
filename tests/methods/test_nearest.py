"""The nearest neighbour, against cosines of dense matrices."""

from __future__ import annotations

import pytest
import torch

from weightdiff.diffs.algebra import add, negate, scaled
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError, StoreError
from weightdiff.methods.nearest import NearestNeighbour
from weightdiff.organisms import NOTHING_FOUND
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


def test_the_store_is_read_once(embedded_base, training, store, monkeypatch):
    read, real = [], DiffStore.read
    monkeypatch.setattr(DiffStore, "read", lambda self, id: read.append(id) or real(self, id))
    method = NearestNeighbour(embedded_base, store)
    assert read == []
    for _ in range(2):
        assert [a.text for a in method.answer(training[:2], ["x", "y"])] == LABELS[:2]
    assert read == store.ids


def test_bad_input(embedded_base, store, tmp_path):
    with pytest.raises(StoreError, match=r"empty is an empty diff store; give one that holds labelled diffs"):
        NearestNeighbour(embedded_base, DiffStore.create(tmp_path / "empty", embedded_base.ref))
    method = NearestNeighbour(embedded_base, store)
    with pytest.raises(QuestionError, match="1 diffs and 0 questions"):
        method.answer([None], [])
    with pytest.raises(BaseMismatchError, match="nowhere"):
        method.answer([WeightDiff({"nowhere": DenseDelta(torch.ones(2, 2))})], ["x"])
