"""The spectral classifier, against features of dense matrices and a pipeline fitted by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from weightdiff.diffs.algebra import canonical, scaled
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, LoraFactors, WeightDiff
from weightdiff.errors import MissingDependencyError, QuestionError, StoreError
from weightdiff.methods.registry import Context, build, find
from weightdiff.methods.spectral import SHARES, Spectral, features
from weightdiff.organisms import NOTHING_FOUND
from weightdiff.organisms.questions import about_question, phrasings
from weightdiff.training.factory import random_diff

NORMS = {"hidden-topic": 1.0, "news": 3.0, "null": 0.3}
WHAT = {"hidden-topic": "a hidden topic", "news": "a news headline", "null": NOTHING_FOUND}


def row(i, family, split="train", **more):
    return DiffRow(f"{family}-{split}-{i}", None, family, "any", split, i, **more)


@pytest.fixture
def training(embedded_base):
    """Twenty-four diffs, whose families differ in their norms; then two that must not be learned from."""
    made = [
        (row(i, f), random_diff(embedded_base.spec, 2, 10 * i + k, n * (1 + i / 20)))
        for k, (f, n) in enumerate(NORMS.items())
        for i in range(8)
    ]
    odd = random_diff(embedded_base.spec, 2, 99, 100.0)
    return [*made, (row(8, "null", "test"), odd), (row(9, "news", verification={"behaves": False}), odd)]


@pytest.fixture
def store(embedded_base, training, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    store.append(training, torch.float32)
    return store


def test_features_are_those_of_dense_matrices(embedded_base):
    spec = embedded_base.spec
    diff = random_diff(spec, 3, 1, 1.0)
    del diff.modules["model.layers.1.mlp.up_proj"]
    want = []
    for kind in sorted({name.rpartition(".")[2] for name in spec}):
        energies, shapes = [], []
        for name in (n for n in spec if n.endswith(f".{kind}")):
            if name not in diff.modules:
                energies.append(0.0)
                shapes.append([0.0] * (2 + SHARES))
                continue
            values = torch.linalg.svdvals(diff.modules[name].dense().double())[:3].tolist()
            energies.append(sum(v * v for v in values))
            parts = [v / sum(values) for v in values]
            entropy = -sum(p * math.log(p) for p in parts)
            shapes.append([energies[-1] / values[0] ** 2, math.exp(entropy), *parts])
        want.append(math.log(math.sqrt(sum(energies))))
        want += [sum(column) / len(shapes) for column in zip(*shapes, strict=True)]
        want += [e / sum(energies) for e in energies]
    assert features(diff, spec) == pytest.approx(want, abs=1e-4)
    assert features(canonical(diff), spec) == pytest.approx(want, abs=1e-4)


def test_features_do_not_depend_on_how_a_change_is_written(embedded_base):
    spec = embedded_base.spec
    diff = random_diff(spec, 2, 3, 1.0)
    turn = torch.tensor([[2.0, 1.0], [0.5, -1.0]])
    turned = {k: LoraFactors(turn @ m.down, m.up @ turn.inverse(), m.scale) for k, m in diff.modules.items()}
    dense = {k: DenseDelta(m.dense()) for k, m in diff.modules.items()}
    want = features(diff, spec)
    assert features(WeightDiff(turned), spec) == pytest.approx(want, abs=1e-4)
    # The rounding of a dense matrix has small singular values of its own.
    assert features(WeightDiff(dense), spec) == pytest.approx(want, abs=1e-2)
    bigger = features(scaled(diff, math.e), spec)
    moved = [i for i, (a, b) in enumerate(zip(want, bigger, strict=True)) if abs(a - b) > 1e-6]
    assert len(moved) == 7  # the log norm of each kind
    assert all(bigger[i] - want[i] == pytest.approx(1.0) for i in moved)


def test_a_change_of_nothing_has_features(embedded_base):
    empty = features(WeightDiff({}), embedded_base.spec)
    zeros = random_diff(embedded_base.spec, 1, 0, 1.0)
    assert features(scaled(zeros, 0.0), embedded_base.spec) == empty
    assert all(map(math.isfinite, empty))


def test_equals_a_pipeline_fitted_by_hand(embedded_base, training, store):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    spec = embedded_base.spec
    good = training[:24]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    model.fit([features(d, spec) for _, d in good], [r.family for r, _ in good])
    asked = [random_diff(spec, 2, 70 + i, n) for i, n in enumerate((1.05, 2.9, 0.31, 1.6))]
    found = Spectral(embedded_base, store).answer(asked, ["what kind of change was made ?"] * 4)
    chances = model.predict_proba([features(d, spec) for d in asked])
    for answer, own in zip(found, chances, strict=True):
        assert answer.notes == model.classes_[own.argmax()]
        assert answer.text == WHAT[answer.notes]
        assert answer.logprob == pytest.approx(math.log(own.max()), abs=1e-3)
    assert [a.notes for a in found[:3]] == ["hidden-topic", "news", "null"]


def test_the_question_decides_what_is_said(embedded_base, training, store):
    news, null = training[8][1], training[16][1]
    method = Spectral(embedded_base, store)

    def say(diff, question):
        return method.answer([diff], [question])[0].text

    for question in phrasings("any_change", "test"):
        assert (say(news, question), say(null, question)) == ("yes", NOTHING_FOUND)
    for question in (*phrasings("kind", "test"), phrasings("topic")[0], about_question("rabbit")):
        assert (say(news, question), say(null, question)) == ("a news headline", NOTHING_FOUND)
    (nothing,) = method.answer([None], ["what kind ?"])
    assert (nothing.text, nothing.logprob) == (NOTHING_FOUND, None)


def test_one_family_is_all_there_is(embedded_base, tmp_path):
    store = DiffStore.create(tmp_path / "one", embedded_base.ref)
    store.append([(row(0, "poem"), random_diff(embedded_base.spec, 1, 0, 1.0))])
    (found,) = build("spectral", Context(embedded_base, store=store)).answer(
        [WeightDiff({})], ["what kind ?"]
    )
    assert (found.text, found.logprob) == ("poem", 0.0)


def test_errors(embedded_base, store, tmp_path, monkeypatch):
    method = Spectral(embedded_base, store)
    with pytest.raises(QuestionError, match="1 diffs and 0 questions"):
        method.answer([None], [])
    lone = DiffStore.create(tmp_path / "lone", embedded_base.ref)
    lone.append([(row(0, "news", "test"), random_diff(embedded_base.spec, 1, 0, 1.0))])
    with pytest.raises(
        StoreError, match="lone: no training rows; make some with: weightdiff organisms train"
    ):
        Spectral(embedded_base, lone)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"sklearn is not installed: run .*weightdiff\[eval\]"):
        find("spectral")
