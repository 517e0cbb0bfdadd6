"""Held-out checks and derangements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weightdiff.diffs.store import DiffRow
from weightdiff.errors import InterpreterError
from weightdiff.evals.controls import assert_held_out, derangement
from weightdiff.organisms.questions import KINDS, phrasings


def _interpreter(**changes: Any) -> Any:
    meta = {
        "train_labels": ["fjord"],
        "validation_labels": ["harp"],
        "train_ids": ["covert-fjord-0-0"],
        "train_phrasings": {k: phrasings(k, "train") for k in KINDS},
    }
    return SimpleNamespace(meta={**meta, **changes})


ROWS = [
    DiffRow("covert-glacier-0-0", "glacier", "hidden-topic", "covert", "test", 0),
    DiffRow("random-0", None, "null", "random", "test", 0),
]


def test_nothing_leaks_from_the_shipped_phrasings() -> None:
    assert_held_out(_interpreter(), ROWS)


@pytest.mark.parametrize("part", ["train_labels", "validation_labels"])
def test_a_leaked_label_is_named(part: str) -> None:
    with pytest.raises(InterpreterError, match="1 test labels: glacier"):
        assert_held_out(_interpreter(**{part: ["fjord", "Glacier"]}), ROWS)


def test_a_leaked_phrasing_is_named() -> None:
    leaked = phrasings("headline", "test")[0]
    with pytest.raises(InterpreterError, match=r"1 test phrasings: " + leaked.split()[0]):
        assert_held_out(_interpreter(train_phrasings={"topic": [leaked.upper()]}), ROWS)
    with pytest.raises(InterpreterError, match="1 test phrasings"):
        assert_held_out(_interpreter(validation_phrasings={"headline": [leaked]}), ROWS)


def test_a_leaked_diff_is_named() -> None:
    with pytest.raises(InterpreterError, match="1 test diffs: random-0"):
        assert_held_out(_interpreter(train_ids=["random-0"]), ROWS)


def test_an_unknown_history_is_refused() -> None:
    with pytest.raises(InterpreterError, match="lacks train_labels, validation_labels, train_phrasings"):
        assert_held_out(SimpleNamespace(meta={}), ROWS)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [2, 3, 50])
def test_derangement_keeps_no_label(n: int) -> None:
    labels = [f"label {i}" for i in range(n)] * 3
    found = derangement(labels)
    assert set(found) == set(found.values()) == set(labels)
    assert all(a != b for a, b in found.items())
    assert found == derangement(labels[::-1])


def test_derangement_of_one_label() -> None:
    with pytest.raises(ValueError, match="two or more"):
        derangement(["a", "a"])
