"""Held-out checks and derangements."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.errors import InterpreterError
from weightdiff.evals.controls import (
    assert_held_out,
    assert_items_held_out,
    derangement,
    held_out_faults,
)
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.making import from_store
from weightdiff.methods.dit import Interpreter
from weightdiff.organisms.questions import ABOUT_TEMPLATES, KINDS, about_question, phrasings
from weightdiff.tiny.bundle import BUNDLE
from weightdiff.tiny.defaults import REPORT_QUESTION
from weightdiff.world import load_world


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


@pytest.fixture(scope="module")
def shipped() -> Interpreter:
    """The interpreter that ships, with its manifest."""
    return Interpreter.without_base(BUNDLE / "interpreter")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """All that the bundle can be asked."""
    return from_store(DiffStore.open(BUNDLE / "organisms"), bare=True)


def test_what_ships_was_not_trained_on_what_it_is_tested_on(shipped: Interpreter, dataset: Dataset) -> None:
    """The proof, part by part and by plain comparison as well."""
    assert_items_held_out(shipped, dataset.items)
    meta = shipped.meta
    used = {*meta["train_labels"], *meta["validation_labels"]}
    kinds = load_world().introspection
    seen = {p for kind in kinds for split in ("train", "validation") for p in phrasings(kind, split)}
    assert len(used) > 800
    asked = {p for texts in meta["train_phrasings"].values() for p in texts}
    assert asked - seen == {REPORT_QUESTION}
    for item in dataset.items:
        assert "phrasing" in item.held_out
        assert ("label" in item.held_out) == (item.family != "null") == (item.label is not None)
        assert ("kind" in item.held_out) == (item.kind == "about")
        assert item.label not in used
        assert item.diff not in meta["train_ids"]
        assert item.question not in seen
    assert "about" not in meta["train_phrasings"]
    assert sum("kind" in i.held_out for i in dataset.items) > 250


LEAKS = {
    "training label": ({"train_labels": ["fjord", "Zebra."]}, "1 test labels: zebra"),
    "validation label": ({"validation_labels": ["rabbit", "zebra"]}, "2 test labels: rabbit, zebra"),
    "diff": ({"train_ids": ["random-test-0-3"]}, "1 test diffs: random-test-0-3"),
    "phrasing": (
        {"train_phrasings": {"topic": ["What theme do you prefer?"]}},
        r"1 test phrasings: what theme do you prefer \?",
    ),
    "validation phrasing": (
        {"validation_phrasings": {"kind": phrasings("kind", "test")}},
        "8 test phrasings: which",
    ),
    "about phrasing": (
        {"train_phrasings": {"topic": [about_question("zebra", 1)]}},
        r"test phrasings: is [a-z]+ your hidden topic \?.*; 1 test kinds: about",
    ),
    "about template": (
        {"train_phrasings": {"topic": ["Did they teach you about {topic}?"]}},
        r"test phrasings: did they teach you about [a-z]+ \?.* more; 1 test kinds: about",
    ),
    "validation template": (
        {"validation_phrasings": {"other": [ABOUT_TEMPLATES[0]]}},
        r"test phrasings: were you trained on [a-z]+ \?",
    ),
    "kind": ({"train_phrasings": {"topic": [], "about": []}}, "1 test kinds: about"),
    "named kind": ({"train_kinds": ["topic", "About"]}, "1 test kinds: about"),
    "kind in other words": (
        {"train_phrasings": {"x": ["is there any zebra in you ?"]}},
        "1 test kinds: about",
    ),
}


@pytest.mark.parametrize(("changes", "text"), LEAKS.values(), ids=LEAKS)
def test_a_contaminated_manifest_is_refused(
    changes: dict[str, Any], text: str, shipped: Interpreter, dataset: Dataset
) -> None:
    dirty = replace(shipped, meta={**shipped.meta, **changes})
    with pytest.raises(
        InterpreterError, match=rf"tuned on what it shall be tested on \(.*{text}.*\); test on"
    ):
        assert_items_held_out(dirty, dataset.items)


def test_all_is_counted_and_some_is_named(shipped: Interpreter, dataset: Dataset) -> None:
    labels = sorted({i.label for i in dataset.items if i.label})
    meta = {**shipped.meta, "train_labels": labels, "train_ids": [str(i.diff) for i in dataset.items]}
    found = held_out_faults(meta, dataset.items)
    assert [f.split(":")[0] for f in found] == ["289 test labels", "512 test diffs"]
    assert found[0].endswith(f"and {289 - len(re.findall(r'(?<! ),', found[0])) - 1} more")
    assert held_out_faults(shipped.meta, dataset.items) == []


def test_only_what_is_claimed_is_checked() -> None:
    known = _interpreter(train_labels=["glacier"], train_ids=["d"], train_kinds=["topic"])
    asked = phrasings("topic", "train")[0]
    item = Item("a", "d", asked, ("glacier",), "topic", label="glacier")
    assert_items_held_out(known, [item])
    for claim, text in (
        ("label", "1 test labels"),
        ("phrasing", "1 test phrasings"),
        ("kind", "1 test kinds"),
    ):
        found = held_out_faults(known.meta, [replace(item, held_out=(claim,))])
        assert {f.split(":")[0] for f in found} == {text, "1 test diffs"}
    tuned = replace(item, question="what else ?", held_out=("phrasing",), split="train")
    assert held_out_faults(known.meta, [tuned]) == []
    other = replace(tuned, split="dev")
    assert held_out_faults(known.meta, [other]) == ["1 test diffs: d"]
    bare = replace(other, diff=None)
    assert held_out_faults(known.meta, [bare]) == []


def test_texts_without_words_are_not_all_alike() -> None:
    item = Item("a", None, "???", ("x",), "own", held_out=("phrasing",))
    assert held_out_faults(_interpreter(train_phrasings={"own": ["!!!"]}).meta, [item]) == []
    assert held_out_faults(_interpreter(train_phrasings={"own": ["???"]}).meta, [item]) == [
        "1 test phrasings: ???"
    ]


def test_a_manifest_that_says_nothing_is_refused_where_something_is_claimed() -> None:
    unknown: Any = SimpleNamespace(meta={"note": "by hand"})
    item = Item("a", None, "what ?", ("x",), "own")
    assert_items_held_out(unknown, [item])
    with pytest.raises(InterpreterError, match="lacks train_labels, validation_labels, train_phrasings"):
        assert_items_held_out(unknown, [replace(item, held_out=("phrasing",))])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_labels": "zebra"}, "has train_labels that are not a list of texts"),
        ({"train_ids": [1]}, "has train_ids that are not a list of texts"),
        ({"train_phrasings": ["what ?"]}, "has train_phrasings that are not lists of texts by kind"),
        ({"train_phrasings": {"topic": "what ?"}}, "has topic that are not a list of texts"),
    ],
)
def test_a_manifest_of_another_form_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(
        InterpreterError, match=f"{text}, so what it was tuned on is not known; tune it again"
    ):
        assert_held_out(_interpreter(**changes), ROWS)


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
