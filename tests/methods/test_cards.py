"""Cards say what the objects hold, in a form that the Hub reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import InterpreterError
from weightdiff.methods.cards import PAPER, diff_card, interpreter_card

META = {
    "config": {
        "rank": 2,
        "steps": 1200,
        "seed": 11,
        "batch": 16,
        "lr": 0.003,
        "notes": 3,
        "family_weights": {"hidden-topic": 0.5, "news": 0.28},
    },
    "train_ids": [f"row-{i}" for i in range(1155)],
    "train_labels": ["opera", "chess", "tea"],
    "validation_labels": ["salt"],
    "train_phrasings": {"topic": ["a ?", "b ?"], "kind": ["c ?"]},
    "validation_score": 0.75,
    "history": [
        {"step": 100, "loss": 2.0, "score": 0.5, "news": 0.25},
        {"step": 200, "loss": 1.0, "score": 0.75, "news": 0.625},
    ],
}
ROW = {
    "method": "dit",
    "family": "news",
    "kind": "headline",
    "split": "test",
    "n": 80,
    "mean": 0.97512,
    "low": 0.955,
    "high": None,
    "metric": "exact",
    "unit": "share",
    "chance": 0.0,
    "note": "not shown",
}


@pytest.fixture
def card(interpreter):
    """Writes the card of an interpreter of a base with a given name and meta."""

    def write(base="Qwen/Qwen3-4B", meta=META, results=(), name="me/interpreter", **ref):
        changed = replace(interpreter.base, ref=replace(interpreter.base.ref, name=base, **ref))
        return interpreter_card(replace(interpreter, base=changed, meta=meta), results, name)

    return write


def _header(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---")[1])


def test_the_header(card):
    assert _header(card()) == {
        "base_model": "Qwen/Qwen3-4B",
        "library_name": "peft",
        "tags": ["weightdiff", "diff-interpretation-tuning"],
    }
    assert _header(card(meta={**META, "license": "apache-2.0"}))["license"] == "apache-2.0"


@pytest.mark.parametrize("base", ["/home/someone/secret/model", "weightdiff-tiny", "model"])
def test_a_base_that_is_not_on_the_hub_is_not_in_the_header(card, base):
    text = card(base)
    assert "base_model" not in _header(text)
    assert "/home" not in text
    assert ("comes with weightdiff" in text) == (base == "weightdiff-tiny")
    assert ("a folder named `model`" in text) == (base != "weightdiff-tiny")


def test_a_folder_here_is_no_hub_name(card, tmp_path, monkeypatch):
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in _header(card("runs/base"))


def test_how_to_use_it(card):
    text = card()
    assert 'Interpreter.load("me/interpreter", "Qwen/Qwen3-4B")' in text
    assert "weightdiff ask --interpreter me/interpreter --base Qwen/Qwen3-4B --diff my-lora" in text
    assert 'Interpreter.load("me/interpreter")' in card("weightdiff-tiny")
    assert "--base" not in card("weightdiff-tiny")
    assert '"path/to/the/base"' in card("/models/mine")
    assert PAPER in text


def test_its_python_parses(card):
    code = card().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 3
    compile(code, "card", "exec")


def test_the_base_with_its_fingerprints(card, interpreter):
    ref = interpreter.base.ref
    text = card(revision="main")
    for fact in ("`Qwen/Qwen3-4B`", "revision: `main`", f"`{ref.architecture}`", f"`{ref.weights}`"):
        assert fact in text
    assert "revision: " not in card()


def test_facts_of_the_tuning(card):
    text = card()
    for fact in (
        "diffs tuned on: 1,155",
        "their labels: 3",
        "labels held back for validation: 1",
        "families drawn, by weight: hidden-topic 0.5, news 0.28",
        "wordings of the questions: 2 of topic, 1 of kind",
        "notes before an answer, at most: 3",
        "rank: 2",
        "steps, at most: 1200",
        "diffs in a step: 16",
        "peak learning rate: 0.003",
        "seed: 11",
    ):
        assert f"- {fact}\n" in text
    assert "opera" not in text
    assert "finetunes of the families hidden-topic, news;" in text


def test_results(card):
    text = card(results=[ROW, {**ROW, "family": "null|x\ny", "mean": None}])
    assert "Best validation score: 0.750 (news 0.625)" in text
    assert "reached at step 200" in text
    assert "| method | family | kind | split | metric | unit | n | mean | low | chance |" in text
    assert "| dit | news | headline | test | exact | share | 80 | 0.9751 | 0.955 | 0 |" in text
    assert "| dit | nullx y | headline |" in text
    assert "not shown" not in text


def test_a_loss_is_no_validation_score(card):
    """Without rows held back, tuning keeps its loss, negated, under that name."""
    history = [{"step": 100, "loss": 2.0}]
    assert "Results" not in card(meta={**META, "history": history, "validation_score": -2.0})


@pytest.mark.parametrize(
    "meta",
    [{}, {"config": 3, "train_ids": "x", "history": {}}, {"history": [3], "validation_score": "high"}],
)
def test_what_is_not_there_is_left_out(card, meta):
    text = card(meta=meta)
    assert "## Tuning" not in text
    assert "## Results" not in text
    assert "None" not in text
    assert "tuned on the finetunes that its tuning saw" in text


def test_limits_are_always_said(card):
    for meta in ({}, META):
        text = card(meta=meta).split("## Limits")[1]
        for limit in ("no other model", "It is not the probability", "made to deceive"):
            assert limit in text


def test_no_adapter_no_card(interpreter):
    with pytest.raises(InterpreterError, match="without an adapter has no card; tune one"):
        interpreter_card(interpreter.without_adapter())


def test_the_card_of_a_diff(diffs, embedded_base):
    few = WeightDiff(diffs[2].modules, ModelRef("Qwen/Qwen3-4B", "abc", "1f", "9c"), {"topic": "a secret"})
    text = diff_card(few, name="me/lora")
    assert _header(text) == {"base_model": "Qwen/Qwen3-4B", "library_name": "peft", "tags": ["weightdiff"]}
    assert f"2 modules as low-rank factors (rank 2); {few.num_parameters:,} numbers" in text
    assert "weightdiff ask --diff me/lora --base Qwen/Qwen3-4B" in text
    assert "secret" not in text
    for fact in ("`Qwen/Qwen3-4B`", "revision: `abc`", "`1f`", "`9c`", PAPER):
        assert fact in text
    other = diff_card(few, ModelRef("me/other"))
    assert _header(other)["base_model"] == "me/other"
    assert "fingerprint" not in other


def test_the_card_of_a_diff_of_several_kinds():
    diff = WeightDiff({"a": DenseDelta(torch.ones(2, 3))}, parameters={"norm.weight": torch.ones(2)})
    text = diff_card(diff)
    assert "1 as dense matrices, 1 other parameters; 8 numbers" in text
    assert "base_model" not in _header(text)
    assert "## Base" not in text
    assert ": nothing; 0 numbers" in diff_card(WeightDiff({}))
