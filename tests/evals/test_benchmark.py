"""A whole run: what is held out is checked first, and the embedded benchmark's own training organisms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import InterpreterError
from weightdiff.evals import benchmark
from weightdiff.evals.benchmark import Size, assert_store_held_out, evaluate_run, training_store
from weightdiff.evals.making import from_store
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.registry import Context
from weightdiff.organisms.questions import KINDS, phrasings
from weightdiff.training.factory import random_diff
from weightdiff.world import load_world, topic_splits

SMALL = Size(
    "small",
    1,
    1,
    (("hidden-topic", "covert", "train", 2), ("null", "random", "train", 2)),
)


@pytest.fixture
def base(mini_base, monkeypatch):
    """The miniature base; organisms are made in no time."""
    monkeypatch.setattr(benchmark, "VERIFY_PROMPTS", 0)
    specs = benchmark._specs

    def short(size):
        return [replace(s, recipe=replace(s.recipe, steps=min(1, s.recipe.steps))) for s in specs(size)]

    monkeypatch.setattr(benchmark, "_specs", short)
    return mini_base


def _labelled(store, path, label, split):
    """A store of one diff with a label."""
    made = DiffStore.create(path, store.base)
    row = store.rows[0]
    made.append([(replace(row, id=f"one-{split}", label=label, split=split), store.read(row.id))])
    return made


def test_training_organisms_are_of_training_labels_and_made_once(base, tmp_path):
    store = training_store(tmp_path / "train", base, SMALL)
    splits = topic_splits(load_world())
    labels = {r.label for r in store.rows if r.label}
    assert labels <= {t.name for t in splits["train"]}
    assert not labels & {t.name for t in splits["test"]}
    assert len(store) == 4
    shards = sorted(p.name for p in store.path.iterdir())
    assert sorted(p.name for p in training_store(tmp_path / "train", base, SMALL).path.iterdir()) == shards


@pytest.mark.parametrize("size", [benchmark.FULL, benchmark.QUICK])
def test_the_embedded_sizes_train_on_no_test_split(size):
    assert all(split in ("train", "validation") for _, _, split, _ in size.training)
    families = {family for family, *_ in size.training}
    assert families == {"hidden-topic", "news", "null"}


def test_a_store_that_holds_what_is_asked_is_refused(mini_store, tmp_path):
    dataset = from_store(mini_store)
    asked = next(i.label for i in dataset.items if i.label)
    taught = _labelled(mini_store, tmp_path / "taught", str(asked).upper(), "train")
    with pytest.raises(
        InterpreterError, match=rf"holds 1 labels or diffs that are asked about, such as '{asked}'"
    ):
        assert_store_held_out(taught, dataset)
    assert_store_held_out(_labelled(mini_store, tmp_path / "tested", asked, "test"), dataset)
    assert_store_held_out(_labelled(mini_store, tmp_path / "other", "no topic of the test", "train"), dataset)


def test_a_run_checks_interpreter_and_store_before_it_asks(mini_base, mini_store, tmp_path):
    dataset = from_store(mini_store)
    asked = next(i.label for i in dataset.items if i.label)
    clean = {
        "train_labels": [],
        "validation_labels": [],
        "train_phrasings": {k: phrasings(k, "train") for k in KINDS},
    }
    adapter = random_diff(mini_base.spec, 1, 0, 0.5)
    taught = Interpreter(mini_base, adapter, meta={**clean, "train_labels": [asked]}, max_new_tokens=2)
    with pytest.raises(InterpreterError, match="tuned on what it shall be tested on"):
        evaluate_run("r", dataset, ["dit"], Context(mini_base, taught), tmp_path)
    store = _labelled(mini_store, tmp_path / "taught", asked, "train")
    its = Interpreter(mini_base, adapter, meta=clean, max_new_tokens=2)
    with pytest.raises(InterpreterError, match="the training store holds 1 labels"):
        evaluate_run("r", dataset, ["nearest-neighbour"], Context(mini_base, its, store), tmp_path)
    assert not (tmp_path / "answers").exists()


def test_a_run_has_a_row_and_a_time_for_every_method(mini_base, mini_store, tmp_path):
    few = from_store(mini_store, kinds=["topic", "headline"])
    methods = ["base-question", "logit-difference"]
    run = evaluate_run("r", few, methods, Context(mini_base), tmp_path, info={"a": 1})
    assert run.methods == tuple(methods)
    assert len(run.outcomes) == 2 * len(few.items)
    assert {r.method for r in run.rows if r.table == "Results"} == set(methods)
    assert run.info == {"a": 1}
    for method in methods:
        own = [r.seconds for r in run.rows if r.method == method and r.table == "Results" and not r.note]
        assert run.seconds[method] > 0
        assert all(s is not None and s >= 0 for s in own)
