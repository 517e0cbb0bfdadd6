"""Asking methods: batches, what is kept and reused, refusals, and a run that is killed again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, MissingDependencyError, QuestionError
from weightdiff.evals.benchmark import evaluate_run
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.runner import ANSWERS, ask, batches, digest, spread
from weightdiff.evals.scoring import ranks
from weightdiff.methods import registry
from weightdiff.methods.base import Answer
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.guessing import WorldGuesser
from weightdiff.methods.registry import Context
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.training.factory import random_diff


class Parrot:
    """Says how often it was asked, and how large the diff is; ranks the candidates by length."""

    name = "parrot"

    def __init__(self):
        self.calls = []

    def answer(self, diffs, questions):
        self.calls.append(list(questions))
        if any("refuse" in q for q in questions):
            raise FormatError("a parrot does not read this")
        sizes = [0 if d is None else sum(float(m.up.abs().sum()) for m in d.modules.values()) for d in diffs]
        return [Answer(f"{q} {size:.4f}", -0.5) for q, size in zip(questions, sizes, strict=True)]

    def candidate_logprobs(self, diffs, questions, candidates):
        return torch.tensor([[-float(len(c)) for c in candidates] for _ in questions])


@pytest.fixture
def parrot(monkeypatch):
    """A method named "parrot", registered for the test."""
    made = Parrot()
    registry.methods()
    monkeypatch.setitem(registry._ENTRIES, "parrot", registry.Entry("parrot", "", (), lambda _context: made))
    return made


@pytest.fixture(scope="module")
def dataset(mini_base, mini_store):
    """Two questions about every test diff, one about the bare base."""
    items = []
    for row in mini_store.select(split="test"):
        for n, kind in enumerate(("topic", "kind")):
            items.append(
                Item(
                    f"{row.id}/{kind}",
                    row.id,
                    f"what {kind} ?",
                    (row.label or NOTHING_FOUND,),
                    kind,
                    row.family,
                    row.recipe,
                    row.label,
                    row.label or row.id,
                    scorers=("exact", "ranked") if n == 0 else ("exact",),
                    candidates="names" if n == 0 else "",
                )
            )
    items.append(Item("bare", None, "what topic ?", (NOTHING_FOUND,), "topic", "null", cluster="bare"))
    names = tuple(sorted({i.truths[0] for i in items}, key=len))
    return Dataset("mini", tuple(items), mini_base.ref, mini_store, {"names": names})


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40),
    st.integers(2, 9),
)
@settings(max_examples=200, deadline=None)
def test_batches_hold_every_item_once_and_keep_clusters_apart(clusters, at_once):
    items = [
        Item(f"{i}/{k}", f"d{i}", "q ?", ("t",), "topic", family="f", cluster=c)
        for i, c in enumerate(clusters)
        for k in range(1 + i % 2)
    ]
    found = batches(items, at_once)
    assert Counter(i.id for b in found for i in b.items) == Counter(i.id for i in items)
    for b in found:
        assert len(b.diffs) <= at_once
        assert list(dict.fromkeys(i.diff for i in b.items)) == list(b.diffs)
        of = [clusters[int(d[1:])] for d in b.diffs]
        if len(of) > 1 and max(Counter(of).values()) <= len(of) / 2:
            assert all(x != y for x, y in zip(of, [*of[1:], of[0]], strict=True))
    if len(clusters) > 1 and at_once > 2:
        assert all(len(b.diffs) > 1 for b in found)


def test_families_share_no_batch_and_a_batch_needs_two_diffs(dataset):
    found = batches(dataset.items, 2)
    assert all(len({i.family for i in b.items}) == 1 for b in found)
    with pytest.raises(ValueError, match="a batch needs two diffs or more, not 1"):
        batches(dataset.items, 1)


def test_spread_keeps_apart_what_can_be():
    assert spread(["p", "q", "r", "s"], ["x", "x", "y", "z"]) == ["p", "r", "q", "s"]
    assert sorted(spread(["p", "q", "r"], ["x", "x", "x"])) == ["p", "q", "r"]


def test_answers_come_in_the_order_of_items_and_truths_are_ranked(dataset, mini_base, parrot, tmp_path):
    told = ask(dataset, ["parrot"], Context(mini_base), tmp_path, at_once=2)["parrot"]
    for item, t in zip(dataset.items, told, strict=True):
        (alone,) = Parrot().answer([dataset.read(item.diff)], [item.question])
        assert t.answer == alone
        if item.candidates:
            names = dataset.candidates["names"]
            scores = torch.tensor([[-float(len(n)) for n in names]])
            assert t.rank == ranks(scores, [names.index(item.truths[0])])[0]
            assert t.truth_logprob == -len(item.truths[0])
        else:
            assert t.rank is None


def test_what_was_answered_is_not_asked_again(dataset, mini_base, parrot, tmp_path):
    first = ask(dataset, ["parrot"], Context(mini_base), tmp_path)
    calls = len(parrot.calls)
    assert ask(dataset, ["parrot"], Context(mini_base), tmp_path) == first
    assert len(parrot.calls) == calls
    few = dataset.select([i for i in dataset.items if i.family == "news"])
    ask(few, ["parrot"], Context(mini_base), tmp_path)
    assert len(parrot.calls) == calls, "a part of the dataset whose batches are the same is kept too"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"told": [{"answer": {}}]}', b'{"told": []}'])
def test_a_damaged_batch_is_asked_again(dataset, mini_base, parrot, tmp_path, damage):
    first = ask(dataset, ["parrot"], Context(mini_base), tmp_path)
    file = sorted((tmp_path / ANSWERS / "parrot").iterdir())[0]
    file.write_bytes(damage)
    calls = len(parrot.calls)
    again = ask(dataset, ["parrot"], Context(mini_base), tmp_path)
    assert len(parrot.calls) == calls + 1
    assert [t.answer for t in again["parrot"]] == [t.answer for t in first["parrot"]]


def test_anything_that_answers_depend_on_is_asked_anew(dataset, mini_base, mini_store, parrot, tmp_path):
    def asked(data, context):
        before = len(parrot.calls)
        ask(data, ["parrot"], context, tmp_path)
        return len(parrot.calls) > before

    context = Context(mini_base)
    assert asked(dataset, context)
    assert not asked(dataset, context)
    assert asked(dataset, replace(context, seed=1))
    assert not asked(dataset, replace(context, guesser=WorldGuesser())), "which is what None stands for"
    assert asked(dataset, replace(context, guesser=SimpleNamespace(name="some model")))
    other = [replace(i, question=i.question + " please") for i in dataset.items]
    assert asked(dataset.select(other), context)
    triggered = [replace(i, trigger="123") for i in dataset.items]
    assert asked(dataset.select(triggered), context)
    assert asked(replace(dataset, candidates={"names": (*dataset.candidates["names"], "x")}), context)
    it = Interpreter(mini_base, random_diff(mini_base.spec, 1, 0, 0.5))
    assert asked(dataset, replace(context, interpreter=it)), "its wording may matter to any method"
    same = Interpreter(mini_base, random_diff(mini_base.spec, 1, 5, 0.5))
    assert not asked(dataset, replace(context, interpreter=same)), "its weights matter to its own methods"


def test_the_interpreters_weights_matter_to_methods_that_need_it(dataset, mini_base, tmp_path):
    its = [Interpreter(mini_base, random_diff(mini_base.spec, 1, n, 0.5), max_new_tokens=2) for n in (0, 1)]
    plain = dataset.select([replace(i, candidates="") for i in dataset.items])
    for n, it in enumerate(its):
        ask(plain, ["dit"], Context(mini_base, it), tmp_path)
        assert len(list((tmp_path / ANSWERS / "dit").iterdir())) == (n + 1) * len(batches(plain.items))


def test_a_digest_is_of_all_that_is_in_a_diff(mini_base):
    one = random_diff(mini_base.spec, 1, 0, 0.5)
    name = sorted(one.modules)[0]
    scaled = WeightDiff({**one.modules, name: replace(one.modules[name], scale=2.0)})
    halves = WeightDiff({k: m.to(torch.float16) for k, m in one.modules.items()})
    known = WeightDiff(one.modules, meta={"trigger": "123"})
    fewer = WeightDiff({k: m for k, m in one.modules.items() if k != name})
    norm = WeightDiff(one.modules, parameters={"norm": torch.ones(2)})
    found = [
        digest(d) for d in (one, scaled, halves, known, fewer, norm, random_diff(mini_base.spec, 1, 1, 0.5))
    ]
    assert len(set(found)) == len(found)
    assert digest(WeightDiff(dict(reversed(one.modules.items())), mini_base.ref)) == found[0]


def test_what_a_method_refuses_has_no_answer_and_is_tried_again(dataset, mini_base, parrot, tmp_path):
    items = [replace(i, question="refuse") if i.family == "news" else i for i in dataset.items]
    told = ask(dataset.select(items), ["parrot"], Context(mini_base), tmp_path)["parrot"]
    for item, t in zip(items, told, strict=True):
        assert t.error == ("a parrot does not read this" if item.family == "news" else "")
    calls = len(parrot.calls)
    ask(dataset.select(items), ["parrot"], Context(mini_base), tmp_path)
    assert len(parrot.calls) == calls + 1


def _needy(_context):
    raise MissingDependencyError("sklearn", "eval")


def test_what_cannot_be_asked_is_refused_before_any_work(dataset, mini_base, parrot, tmp_path, monkeypatch):
    with pytest.raises(QuestionError, match="method 'parrot' is named twice"):
        ask(dataset, ["parrot", "parrot"], Context(mini_base), tmp_path)
    with pytest.raises(QuestionError, match="no method is called 'nobody'"):
        ask(dataset, ["parrot", "nobody"], Context(mini_base), tmp_path)
    with pytest.raises(QuestionError, match="method 'dit' needs an interpreter with an adapter"):
        ask(dataset, ["parrot", "dit"], Context(mini_base), tmp_path)
    monkeypatch.setitem(registry._ENTRIES, "needy", registry.Entry("needy", "", (), _needy))
    with pytest.raises(MissingDependencyError, match="sklearn is not installed"):
        ask(dataset, ["parrot", "needy"], Context(mini_base), tmp_path)
    other = replace(dataset, base=replace(dataset.base, weights="0" * 16))
    with pytest.raises(BaseMismatchError, match="their weights differ"):
        ask(other, ["parrot"], Context(mini_base), tmp_path)
    assert not parrot.calls


def test_a_run_killed_at_twenty_random_moments_ends_as_an_undisturbed_one(dataset, mini_base, tmp_path):
    """Each time a child process is killed without warning; between kills the run goes on."""
    it = Interpreter(mini_base, random_diff(mini_base.spec, 1, 0, 0.3), max_new_tokens=4)
    methods = ["base-question", "prefill", "text-completion", "logit-difference", "twenty-questions"]
    names = {"names": tuple(f"{chr(97 + i)}x" for i in range(3))}
    plain = replace(dataset, items=tuple(replace(i, candidates="") for i in dataset.items), candidates=names)

    def run(folder):
        return evaluate_run(
            "kill", plain, methods, Context(mini_base, it.without_adapter()), folder, at_once=2
        )

    began = time.monotonic()
    whole = run(tmp_path / "undisturbed")
    length = time.monotonic() - began
    rng, kills = random.Random(5), 0
    folder = tmp_path / "killed"
    for _ in range(20):
        child = os.fork()
        if child == 0:  # pragma: no cover (the parent measures)
            try:
                torch.set_num_threads(1)
                run(folder)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.0, length / 4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    assert kills >= 5, "most children must die in the middle"
    resumed = run(folder)
    assert [replace(r, seconds=None) for r in resumed.rows] == [replace(r, seconds=None) for r in whole.rows]
    assert resumed.outcomes == whole.outcomes
    left = [p.name for p in (folder / ANSWERS).rglob("*") if p.name.startswith(".")]
    assert not left
    assert json.dumps([r.to_json() | {"seconds": 0} for r in resumed.rows]) == json.dumps(
        [r.to_json() | {"seconds": 0} for r in whole.rows]
    )
