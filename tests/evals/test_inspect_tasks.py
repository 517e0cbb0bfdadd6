"""The benchmark in inspect_ai: tasks, the solver, the scorer, and logs, beside direct calls."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace

import pytest
from inspect_ai import Task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from weightdiff.errors import QuestionError
from weightdiff.evals.inspect_registry import (
    ask_method,
    hidden_topic,
    news,
    nothing_found,
    qa,
    weightdiff_scorer,
)
from weightdiff.evals.inspect_tasks import make_task, samples
from weightdiff.evals.making import from_store
from weightdiff.evals.runner import ask
from weightdiff.evals.scorers import SCORERS, score
from weightdiff.methods import registry
from weightdiff.methods.base import Answer
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.registry import Context
from weightdiff.organisms.questions import KINDS, phrasings
from weightdiff.training.factory import random_diff

MANIFEST = {
    "train_labels": [],
    "validation_labels": [],
    "train_phrasings": {kind: phrasings(kind, "train") for kind in KINDS},
}


class Guesswork:
    """Is right about one diff in two, says neither yes nor no to questions of the kind "about"."""

    name = "guesswork"

    def __init__(self, dataset):
        self.truths = {(i.diff, i.question): i.truths[0] for i in dataset.items}
        self.calls = []

    def answer(self, diffs, questions):
        self.calls.append(len(questions))
        ids = [None if d is None else d.meta["id"] for d in diffs]
        if any(name and name.startswith("news") for name in ids):
            raise QuestionError("guesswork reads no news")
        return [
            Answer(
                "perhaps" if "trained on" in q else self.truths[name, q] if len(str(name)) % 2 else "wrong",
                -1.5,
                0.25,
                "some notes",
            )
            for name, q in zip(ids, questions, strict=True)
        ]


@pytest.fixture
def dataset(mini_store):
    return from_store(mini_store)


@pytest.fixture
def guesswork(monkeypatch, dataset):
    made = Guesswork(dataset)
    registry.methods()
    entry = registry.Entry("guesswork", "", (), lambda _context: made)
    monkeypatch.setitem(registry._ENTRIES, "guesswork", entry)
    return made


@pytest.fixture
def interpreter(mini_base, tmp_path):
    """A saved interpreter of the random base that was tuned on nothing of this."""
    its = Interpreter(mini_base, random_diff(mini_base.spec, 2, 5, 0.5), max_new_tokens=4, meta=MANIFEST)
    return its.save(tmp_path / "interpreter")


def by_hand(log, dataset):
    """Mean, clustered standard error, and mean of each kind, from the log's samples alone."""
    items = {i.id: i for i in dataset.items}
    values = {s.id: s.scores["weightdiff_scorer"].value for s in log.samples}
    kept = {i: v for i, v in values.items() if not math.isnan(v)}
    mean = sum(kept.values()) / len(kept)
    residuals, kinds = defaultdict(float), defaultdict(list)
    for i, v in kept.items():
        residuals[items[i].cluster] += v - mean
        kinds[items[i].kind].append(v)
    g = len(residuals)
    error = math.sqrt(g / (g - 1) * sum(r**2 for r in residuals.values())) / len(kept)
    means = {kind: sum(own) / len(own) for kind, own in kinds.items()}
    return mean, error, means, len(values) - len(kept)


def test_a_sample_is_an_item(dataset):
    made = samples(dataset)
    assert [s.id for s in made] == [i.id for i in dataset.items]
    for sample, item in zip(made, dataset.items, strict=True):
        assert sample.input == item.question
        assert tuple(sample.target) == item.truths
        known = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(item).items()}
        told = {k: v for k, v in known.items() if k not in ("id", "question", "truths")}
        assert sample.metadata == {**told, "dataset": dataset.digest}
    bare = replace(dataset.items[0], id="a", diff=None, cluster="")
    loose = samples(dataset.select([bare, replace(dataset.items[1], id="b", cluster="")]))
    assert [s.metadata["cluster"] for s in loose] == ["a", dataset.items[1].diff]


def test_a_whole_run_beside_direct_calls(inspect_eval, dataset, guesswork, mini_base_folder):
    task = qa(str(dataset.store.path), all_organisms=True, base=str(mini_base_folder), method="guesswork")
    log = inspect_eval(task)
    assert log.status == "success", log.error
    log = read_eval_log(log.location)
    items = {i.id: i for i in dataset.items}
    assert {s.id for s in log.samples} == items.keys()
    refused = unread = 0
    for sample in log.samples:
        item, found = items[sample.id], sample.scores["weightdiff_scorer"]
        if item.family == "news":
            refused += 1
            assert sample.output.completion == ""
            assert sample.metadata["answer"] == {"seconds": 0.0, "error": "guesswork reads no news"}
            assert (found.reason, found.explanation) == (
                "no_response",
                "no answer: guesswork reads no news",
            )
            assert math.isnan(found.value)
            continue
        said = guesswork.answer([dataset.read(item.diff)], [item.question])[0]
        assert sample.output.completion == said.text == sample.messages[-1].text
        answer = sample.metadata["answer"]
        assert (answer["logprob"], answer["evidence"], answer["notes"]) == (-1.5, 0.25, "some notes")
        scored = [score(said.text, item.truths, name) for name in item.scorers if name in SCORERS]
        assert found.metadata == {s.scorer: s.value for s in scored}
        if scored[0].value is None:
            unread += 1
            assert math.isnan(found.value)
            assert found.reason == "invalid_response_format"
            assert found.explanation == "yes_no cannot read the answer"
        else:
            assert found.value == scored[0].value
    assert refused == 6
    assert unread >= 1
    assert len({s.scores["weightdiff_scorer"].value for s in log.samples if s.metadata["kind"] == "kind"}) > 1
    (results,) = log.results.scores
    mean, error, means, unscored = by_hand(log, dataset)
    assert 0 < mean < 1
    assert results.metrics["mean"].value == pytest.approx(mean)
    assert results.metrics["stderr"].value == pytest.approx(error)
    for kind, value in means.items():
        assert results.metrics[kind].value == pytest.approx(value)
    assert (results.unscored_samples, results.scored_samples) == (unscored, len(items) - unscored)
    assert unscored == refused + unread


@pytest.mark.parametrize("max_samples", [1, 20])
def test_methods_get_the_runners_batches_however_many_samples_are_in_flight(
    inspect_eval, dataset, guesswork, mini_base_folder, max_samples
):
    task = make_task(dataset, ask_method("guesswork", base=str(mini_base_folder)))
    log = inspect_eval(task, max_samples=max_samples, epochs=2)
    assert log.status == "success", log.error
    assert len(log.samples) == 2 * len(dataset.items)
    by_family = defaultdict(int)
    for item in dataset.items:
        by_family[item.family] += 1
    assert sorted(guesswork.calls) == sorted(by_family.values())  # once each, in two epochs


@pytest.mark.parametrize("method", ["dit", "dit-shuffled", "dit-noise", "base-question"])
def test_built_in_methods_say_what_the_runner_has_them_say(
    inspect_eval, dataset, mini_base, mini_base_folder, interpreter, tmp_path, method
):
    topics = dataset.select([i for i in dataset.items if i.kind in ("topic", "kind")])
    made = ask_method(method, str(interpreter), str(mini_base_folder), seed=3)
    log = inspect_eval(make_task(topics, made), limit=5)
    assert log.status == "success", log.error
    context = Context(mini_base, Interpreter.load(interpreter, mini_base), seed=3)
    direct = ask(topics, [method], context, tmp_path / "run")[method]
    told = {i.id: t for i, t in zip(topics.items, direct, strict=True)}
    assert {s.id for s in log.samples} == {i.id for i in topics.items[:5]}
    for sample in log.samples:
        assert sample.output.completion == told[sample.id].answer.text
        found = sample.metadata["answer"]
        assert found.get("evidence") == told[sample.id].answer.evidence
        assert found.get("rank") == told[sample.id].rank
        assert "error" not in found
    if method == "dit":
        assert all(s.metadata["answer"]["evidence"] is not None for s in log.samples)
        assert any("rank" in s.metadata["answer"] for s in log.samples)


def test_parts_and_saved_datasets(dataset, tmp_path):
    store = str(dataset.store.path)
    asked = qa(store, families="hidden-topic", kinds="topic,kind", limit=1, method="base-question").dataset
    assert {s.metadata["kind"] for s in asked} == {"topic", "kind"}
    assert {s.metadata["family"] for s in asked} == {"hidden-topic"}
    assert len({s.metadata["diff"] for s in asked}) == len(asked) / 2
    everyone = {s.metadata["behaves"] for s in qa(store, all_organisms=True).dataset}
    assert everyone == {True, False}
    assert all(s.metadata["behaves"] for s in qa(store).dataset)
    saved = str(dataset.save(tmp_path / "saved"))
    few = qa(saved, families=["hidden-topic", "news"], limit=1, per_label=1).dataset
    groups = {(s.metadata["family"], s.metadata["recipe"]): s.metadata["diff"] for s in few}
    assert len(groups) == 3
    assert {s.metadata["diff"] for s in few} == set(groups.values())
    with pytest.raises(PrerequisiteError, match="no items of kind 'colour'; it has about, any_change"):
        qa(saved, kinds="colour")


def test_the_bundled_tasks():
    for task, family, kinds in (
        (hidden_topic(limit=2), "hidden-topic", {"topic"}),
        (news(limit=2), "news", {"headline"}),
        (nothing_found(limit=1), "null", {*KINDS, "about"}),
    ):
        assert {s.metadata["family"] for s in task.dataset} == {family}
        assert {s.metadata["kind"] for s in task.dataset} == kinds
        assert task.metadata["dataset"] == "bundled-test"
    labels = [(s.metadata["recipe"], s.metadata["label"]) for s in hidden_topic().dataset]
    assert len(set(labels)) == len(labels) > 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dot"}, "no method is called 'dot': choose one of"),
        ({"method": "nearest-neighbour"}, "needs a store of labelled diffs.*-T train_store=FOLDER"),
        ({"kinds": "colour"}, "no question is of kind 'colour'"),
        ({"families": ["colour"]}, "no test diffs of family 'colour'"),
        ({"dataset": "nowhere"}, "nowhere"),
        ({"interpreter": "nowhere"}, "nowhere does not exist"),
        ({"train_store": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings, message):
    with pytest.raises(PrerequisiteError, match=message) as caught:
        qa(**settings)
    assert "\n" not in str(caught.value)


def test_errors_while_it_runs_end_it(inspect_eval, dataset, mini_base_folder, interpreter):
    base = str(mini_base_folder)
    foreign = Task(dataset=[Sample("what is it ?")], solver=ask_method("base-question", base=base))
    log = inspect_eval(foreign)
    assert log.status == "error"
    assert "this sample is of no weightdiff dataset" in log.error.message
    log = inspect_eval(make_task(dataset, ask_method("base-question")), limit=1)  # there is no folder "mini"
    assert log.status == "error"
    assert "mini: no base model could be loaded" in log.error.message
    known = Interpreter.load(interpreter, base)
    known.meta = {**MANIFEST, "train_labels": [dataset.items[0].label]}
    known.save(interpreter, overwrite=True)
    log = inspect_eval(make_task(dataset, ask_method("dit", str(interpreter), base)), limit=1)
    assert log.status == "error"
    assert "tuned on what it shall be tested on (1 test labels" in log.error.message


def saying(texts):
    """A model of inspect that says these texts; with their usage, which it would else count by a download."""
    outputs = [ModelOutput.from_content("m", text) for text in texts]
    for output in outputs:
        output.usage = ModelUsage()
    return get_model("mockllm/model", custom_outputs=outputs)


def test_a_solver_of_inspect_and_scorers_by_name(inspect_eval, dataset):
    three = dataset.select([i for i in dataset.items if i.kind == "topic"][:3])
    said = [f"The {three.items[0].truths[0]}."] * 3
    model = saying(said)
    several = weightdiff_scorer(["token_f1", "exact"])
    log = inspect_eval(Task(dataset=samples(three), scorer=several), model=model)
    assert log.status == "success", log.error
    items = {i.id: i for i in three.items}
    for sample in log.samples:
        item, found = items[sample.id], sample.scores["weightdiff_scorer"]
        assert found.value == SCORERS["token_f1"](said[0], item.truths)
        assert found.metadata == {"token_f1": found.value, "exact": 0.0}
        assert found.explanation == f"token_f1: {found.value:g}; the truth is {item.truths[0]!r}"
    with pytest.raises(PrerequisiteError, match="no scorer is called 'nope': choose of alias, char_f1"):
        weightdiff_scorer("nope")
    model = saying(said)
    one = weightdiff_scorer("slots")  # a topic is no headline
    log = inspect_eval(Task(dataset=samples(three), scorer=one), model=model)
    assert {s.scores["weightdiff_scorer"].reason for s in log.samples} == {"scoring_failed"}
    assert log.results.scores[0].unscored_samples == 3
    assert math.isnan(log.results.scores[0].metrics["mean"].value)


def test_the_package_does_without_inspect_until_it_is_asked_for():
    code = (
        "import sys, weightdiff, weightdiff.cli.main\n"
        "from weightdiff.methods.registry import methods\n"
        "methods()\n"
        "import weightdiff.evals.selecting, weightdiff.evals.gathering, weightdiff.evals.benchmark\n"
        "assert 'inspect_ai' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
