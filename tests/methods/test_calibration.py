"""Probabilities of being right: the logistic model, thresholds for false positives, files, and the fit."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from weightdiff.errors import InterpreterError, QuestionError, StoreError
from weightdiff.methods import calibrating
from weightdiff.methods.calibration import (
    FEATURES,
    FINDING,
    GROUPS,
    NOTHING,
    YES_NO,
    Calibration,
    Signals,
    group_of,
    is_finding,
)
from weightdiff.methods.dit import SETTINGS, Interpreter
from weightdiff.organisms import NOTHING_FOUND

WEIGHTS = {FINDING: [1.0, 0.5, 2.0, 0.25], YES_NO: [0.0, 1.0, 0.0, 0.0], NOTHING: [3.0, 1.0, 0.0, 0.0]}


def test_a_probability_is_the_logistic_of_weighted_signals():
    calibration = Calibration(WEIGHTS)
    signals = Signals(-0.2, -0.5, -2.0)
    z = 1.0 + 0.5 * -0.2 + 2.0 * -0.5 + 0.25 * -2.0
    assert calibration.probability("chess", signals) == pytest.approx(1 / (1 + math.exp(-z)))
    assert calibration.probability("yes", signals) == pytest.approx(1 / (1 + math.exp(0.2)))
    assert calibration.probability(NOTHING_FOUND, signals) == pytest.approx(1 / (1 + math.exp(-2.8)))
    assert calibration.probability("chess", Signals(-math.inf, -1e9, -math.inf)) > 0  # floored, not NaN


@pytest.mark.parametrize(
    ("text", "group", "finding"),
    [("chess", FINDING, True), ("yes", YES_NO, True), ("no", YES_NO, False), (NOTHING_FOUND, NOTHING, False)],
)
def test_answers_fall_into_groups(text, group, finding):
    assert (group_of(text), is_finding(text)) == (group, finding)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_a_threshold_keeps_false_positives_within_the_rate_and_no_more_than_needed(rate):
    rng = random.Random(0)
    false = tuple(sorted((round(rng.random(), 3) for _ in range(60)), reverse=True))
    calibration = Calibration(WEIGHTS, false, 200)
    threshold = calibration.threshold(rate)
    assert sum(p >= threshold for p in false) <= rate * 200
    if threshold > 0:  # a hair lower would let one too many through
        lower = math.nextafter(threshold, 0)
        assert sum(p >= lower for p in false) > rate * 200


def test_a_calibration_without_false_findings_withholds_nothing():
    assert Calibration(WEIGHTS, (), 50).threshold(0.02) == 0.0
    assert Calibration(WEIGHTS, (), 50).threshold(0.0) == 0.0


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_a_rate_is_a_share(rate):
    with pytest.raises(QuestionError, match="is a share from 0 to 1"):
        Calibration(WEIGHTS, (0.5,), 100).threshold(rate)


def test_too_few_null_questions_promise_nothing():
    with pytest.raises(QuestionError, match=r"calibrated on 50 questions .* too few to promise .* 0\.01"):
        Calibration(WEIGHTS, (0.5, 0.1), 50).threshold(0.01)
    with pytest.raises(QuestionError, match="calibrated on 0 questions"):
        Calibration(WEIGHTS).threshold(0.5)


def test_a_calibration_survives_its_file(interpreter, tmp_path):
    made = Calibration(WEIGHTS, (0.75, 0.25), 40, {"questions": 3})
    replace(interpreter, calibration=made).save(tmp_path / "it")
    assert Interpreter.load(tmp_path / "it", interpreter.base).calibration == made
    interpreter.save(tmp_path / "plain")
    assert Interpreter.load(tmp_path / "plain", interpreter.base).calibration is None


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["one"]},
        {"weights": {"finding": [1.0]}},
        {"weights": {}},
        {"weights": {"finding": [1.0, 2.0, 3.0, "much"]}},
        {"false_findings": [float("nan")]},
        {"null_questions": None},
    ],
)
def test_a_damaged_calibration_is_refused(interpreter, tmp_path, change):
    replace(interpreter, calibration=Calibration(WEIGHTS, (0.5,), 40)).save(tmp_path / "it")
    file = tmp_path / "it" / SETTINGS
    settings = json.loads(file.read_text())
    settings["calibration"] |= change
    file.write_text(json.dumps(settings))
    with pytest.raises(InterpreterError, match=r"interpreter\.json: cannot be read"):
        Interpreter.load(tmp_path / "it", interpreter.base)


def test_answers_carry_their_probability_and_unlikely_findings_are_withheld(interpreter, diffs):
    questions = ["what topic ?", "what changed ?", "is there a trigger ?"]
    spoken = interpreter.spoken(diffs, questions)
    plain = interpreter.answer(diffs, questions)
    assert [a.text for a in plain] == [s.text for s in spoken]
    assert all(a.probability is None and 0 < a.agreement <= 1 for a in plain)
    calibration = Calibration(WEIGHTS, (0.5,), 100)
    told = replace(interpreter, calibration=calibration).answer(diffs, questions)
    for a, s in zip(told, spoken, strict=True):
        assert a.probability == pytest.approx(calibration.probability(s.text, s.signals), abs=1e-4)
        assert a.text == s.text
    silent = replace(interpreter, calibration=calibration, threshold=1.1).answer(diffs, questions)
    for a, s in zip(silent, spoken, strict=True):
        if is_finding(s.text):
            assert (a.text, a.withheld, a.probability) == (NOTHING_FOUND, s.text, None)
        else:
            assert (a.text, a.withheld) == (s.text, "")


def test_a_rate_needs_a_calibration(interpreter):
    with pytest.raises(InterpreterError, match="has no calibration"):
        interpreter.within(0.01)
    calibrated = replace(interpreter, calibration=Calibration(WEIGHTS, (0.9, 0.5), 100))
    assert calibrated.within(0.01).threshold == math.nextafter(0.5, 1)
    assert calibrated.within(0.02).threshold == 0.0


def test_the_fit_finds_the_weights_that_made_the_data():
    rng = random.Random(2)
    true = [2.0, 0.5, 1.5, 0.3]
    known = []
    for _ in range(4000):
        s = Signals(-rng.expovariate(1), -rng.expovariate(1), -rng.expovariate(0.3))
        z = sum(a * b for a, b in zip(true, s.features(), strict=True))
        known.append((s, rng.random() < 1 / (1 + math.exp(-z))))
    found = calibrating._fit(known)
    assert len(found) == len(FEATURES)
    assert found == pytest.approx(true, abs=0.25)


def test_calibrating_asks_validation_rows_in_validation_phrasings(embedded_base, random_store, monkeypatch):
    it = Interpreter(embedded_base, None, max_new_tokens=3)
    asked = []
    spoken = Interpreter.spoken

    def spy(self, given, questions):
        asked.extend(zip(given, questions, strict=True))
        return spoken(self, given, questions)

    monkeypatch.setattr(Interpreter, "spoken", spy)
    found = calibrating.calibrate(it, random_store)
    rows = [r for r in random_store.select(split="validation") if r.behaves]
    expected = calibrating.questions_about(rows, 0)
    assert [q for _, q in asked] == [q.text for _, q in expected]
    assert found.calibration is not None
    assert set(found.calibration.weights) <= set(GROUPS)
    nulls = sum(r.family == "null" for r, _ in expected)
    assert found.calibration.null_questions == nulls > 0
    assert found.calibration.meta["questions"] == len(expected)
    diffs = [random_store.read(r.id) for r, _ in expected]
    said = spoken(it, diffs, [q.text for _, q in expected])
    misses = [
        (found.calibration.probability(x.text, x.signals) - (x.text == q.answer)) ** 2
        for x, (_, q) in zip(said, expected, strict=True)
    ]
    assert found.calibration.meta["brier"] == pytest.approx(sum(misses) / len(misses), abs=1e-3)


def test_a_store_without_validation_rows_calibrates_nothing(embedded_base, tmp_path):
    from weightdiff.diffs.store import DiffStore

    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    with pytest.raises(StoreError, match="no validation rows to calibrate on; make some with"):
        calibrating.calibrate(Interpreter(embedded_base, None), store)
