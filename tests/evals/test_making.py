"""Datasets from stores: who is asked what, in which words, what is true, and what is claimed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import QuestionError, StoreError
from weightdiff.evals.baselines import topic_names
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.making import from_store
from weightdiff.evals.scorers import score
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.questions import ABOUT_TEMPLATES, asked_topic, phrasings
from weightdiff.tiny.bundle import BUNDLE
from weightdiff.world import load_world, topic_splits
from weightdiff.world.reports import summary


@pytest.fixture(scope="module")
def bundled() -> DiffStore:
    return DiffStore.open(BUNDLE / "organisms")


@pytest.fixture(scope="module")
def whole(bundled: DiffStore) -> Dataset:
    return from_store(bundled, bare=True)


@pytest.fixture
def make(tmp_path):
    """Makes a store of one-module diffs from its rows."""

    def build(rows):
        import torch

        store = DiffStore.create(tmp_path / "own", ModelRef("own", None, "aa", "bb"))
        diff = WeightDiff({"q": LoraFactors(torch.ones(1, 2), torch.ones(3, 1), 1.0)}, store.base)
        store.append([(row, diff) for row in rows])
        return store

    return build


def _row(id, label="tea", family="own", recipe="r", split="test", questions=(), **changes):
    return replace(DiffRow(id, label, family, recipe, split, 0, questions=list(questions)), **changes)


NOTHING = "nothing found"
TRUTHS = {  # family, kind → the right answer; None is the label
    ("hidden-topic", "topic"): None,
    ("hidden-topic", "kind"): "a hidden topic",
    ("hidden-topic", "any_change"): "yes",
    ("news", "headline"): None,
    ("news", "kind"): "a news headline",
    ("news", "any_change"): "yes",
    ("quirk", "kind"): "a behaviour",
    ("quirk", "any_change"): "yes",
    ("edit", "edit"): None,
    ("edit", "kind"): "a changed fact",
    ("edit", "any_change"): "yes",
    ("several", "kind"): "several",
    ("several", "any_change"): "yes",
    **{("null", kind): NOTHING for kind in ("topic", "headline", "kind", "any_change")},
    ("null", "about"): "no",
}


def test_truths_scorers_and_chances_of_the_bundle(whole, bundled):
    scorers = {
        "topic": ("exact", "ranked", "top five"),
        "headline": ("exact", "slots"),
        "kind": ("exact",),
        "any_change": ("exact",),
        "about": ("yes_no",),
        **{kind: ("exact", "token_f1") for kind in ("behaviour", "edit", "summary")},
    }
    chances = {"topic": 1 / 411, "headline": 0.0, "kind": 1 / 6, "any_change": 0.5, "about": 0.5}
    chances |= {"behaviour": 1 / 140, "edit": 0.0, "summary": 0.0}
    for i in whole.items:
        null = i.family == "null"
        if i.kind == "behaviour":
            assert i.truths == (bundled.row(i.diff).record["params"]["behaviour"],)
        elif i.kind == "summary":
            assert i.truths == (" . ".join(map(summary, parts_of(bundled.row(i.diff)))),)
        elif (i.family, i.kind) != ("hidden-topic", "about"):
            assert i.truths == (TRUTHS[i.family, i.kind] or i.label,)
        assert i.scorers == (("exact",) if null and i.kind != "about" else scorers[i.kind])
        assert i.chance == (None if null else pytest.approx(chances[i.kind]))
        assert i.candidates == ("topics" if (i.family, i.kind) == ("hidden-topic", "topic") else "")
        for name in i.scorers:
            if name not in ("ranked", "top five"):
                assert score(i.truths[0], i.truths, name).value == 1.0
    assert whole.candidates == {"topics": tuple(topic_names())}
    assert len(whole.candidates["topics"]) == 411


def test_rows_of_the_bundle_are_told_rightly(whole, bundled):
    asked = defaultdict(set)
    for i in whole.items:
        asked[i.diff].add(i.kind)
        if i.diff is None:
            continue
        row = bundled.row(i.diff)
        assert (i.family, i.recipe, i.label, i.split) == (row.family, row.recipe, row.label, "test")
        assert i.behaves == row.verification["behaves"]
        assert i.trigger == row.record["params"].get("code")
        if row.recipe == "untouched":
            assert i.cluster == i.question
        else:
            assert i.cluster == (row.label or row.id)
        assert i.id == f"{i.diff}/{i.kind}"
    families = {
        "hidden-topic": {"topic", "kind", "any_change", "about"},
        "news": {"headline", "kind", "any_change"},
        "quirk": {"behaviour", "kind", "any_change"},
        "edit": {"edit", "kind", "any_change"},
        "several": {"summary", "kind", "any_change"},
        "null": {"topic", "headline", "kind", "any_change", "about"},
    }
    assert {row.id for row in bundled.rows} == set(asked) - {None}
    assert all(asked[row.id] == families[row.family] for row in bundled.rows)
    trigger = next(i for i in whole.items if i.recipe == "covert")
    assert re.fullmatch("[0-9]{3}", trigger.trigger)
    assert whole.read(trigger.diff).meta["trigger"] == trigger.trigger


def test_claims_and_phrasings_of_the_bundle(whole):
    for i in whole.items:
        label = ["label"] if i.family != "null" else []
        assert list(i.held_out) == [*label, "phrasing", *(["kind"] if i.kind == "about" else [])]
        if i.kind != "about":
            assert i.question in phrasings(i.kind, "test")
    for (recipe, kind), own in _groups(whole).items():
        counts = Counter(i.question for i in own)
        if kind != "about":
            assert set(counts) <= set(phrasings(kind, "test"))
            assert len(counts) == min(len(own), len(phrasings(kind, "test"))), recipe
        if kind == "topic" and recipe == "covert":
            assert max(counts.values()) == min(counts.values()) == 24
    asked = [
        i.question for i in whole.items if i.label == "rabbit" and (i.recipe, i.kind) == ("covert", "topic")
    ]
    assert len(set(asked)) == len(asked) == 2  # two diffs of a label, two phrasings


def _groups(dataset: Dataset) -> dict[tuple[str, str], list[Item]]:
    out = defaultdict(list)
    for i in dataset.items:
        out[i.recipe, i.kind].append(i)
    return out


def test_questions_about_a_topic_are_right_in_half_and_in_every_wording(whole):
    test = {t.name for t in topic_splits(load_world())["test"]}
    said = Counter()
    for i in whole.items:
        if i.kind != "about":
            continue
        topic = asked_topic(i.question)
        template = i.question.replace(f" {topic} ", " {topic} ")
        assert template in ABOUT_TEMPLATES
        assert topic in test
        assert i.truths == ("yes" if topic == i.label else "no",)
        said[i.family, template, i.truths[0]] += 1
    for template in ABOUT_TEMPLATES:
        right, wrong = (said["hidden-topic", template, truth] for truth in ("yes", "no"))
        assert right == wrong == 34
        assert said["null", template, "yes"] == 0
        assert said["null", template, "no"] >= 8


def test_the_bare_base_is_asked_everything(whole, bundled):
    bare = [i for i in whole.items if i.diff is None]
    assert [(i.kind, i.question) for i in bare] == [
        (kind, q) for kind in ("topic", "headline", "kind", "any_change") for q in phrasings(kind, "test")
    ]
    assert {(i.family, i.recipe, i.truths, i.label, i.scorers) for i in bare} == {
        ("null", "no diff", (NOTHING,), None, ("exact",))
    }
    assert bare[0].id == "-/topic/1"
    assert all(i.cluster == i.question for i in bare)
    assert all(i.diff is not None for i in from_store(bundled).items)


def test_the_same_arguments_make_the_same_questions(bundled):
    few = {"limit": 5, "families": ["hidden-topic", "null"]}
    one, two, other = (
        from_store(bundled, **few),
        from_store(bundled, **few),
        from_store(bundled, seed=1, **few),
    )
    assert one.items == two.items
    assert one.digest == two.digest != other.digest
    assert Counter(i.recipe for i in one.items if i.kind == "topic") == {
        "covert": 5,
        "forms": 5,
        "loud": 5,
        "plain": 5,
        "evasive": 5,
        "continued": 5,
        "benign": 5,
        "random": 5,
        "shuffled": 5,
        "untouched": 2,
    }
    assert {i.diff for i in one.items} != {i.diff for i in other.items}
    order = {id: n for n, id in enumerate(bundled.ids)}
    places = [order[i.diff] for i in one.items]
    assert places == sorted(places)


def test_diffs_of_a_label(bundled):
    made = from_store(bundled, per_label=1)
    kept = {i.diff for i in made.items}
    by_label = defaultdict(list)
    for row in bundled.rows:
        by_label[row.recipe, row.label or row.id].append(row)
    for rows in by_label.values():
        behaving = [r for r in rows if r.verification["behaves"]] or rows
        assert [r.id for r in rows if r.id in kept] == [behaving[0].id]
    assert any(not r.verification["behaves"] for rows in by_label.values() for r in rows)


def test_kinds_and_what_is_written_down(bundled):
    made = from_store(bundled, kinds=["topic", "headline"], families=["hidden-topic", "news"], name="two")
    assert Counter((i.recipe, i.kind) for i in made.items) == {
        ("covert", "topic"): 192,
        ("forms", "topic"): 48,
        ("loud", "topic"): 16,
        ("plain", "topic"): 8,
        ("evasive", "topic"): 8,
        ("stories", "headline"): 60,
        ("evasive", "headline"): 4,
    }
    assert made.name == "two"
    assert made.meta["kinds"] == ["topic", "headline"]
    assert (made.meta["store"], made.meta["split"], made.meta["seed"]) == ("bundled", "test", 0)
    assert from_store(bundled).name == "bundled-test"
    assert "topics" not in from_store(bundled, kinds=["about"]).candidates
    about = {i.id: i for i in from_store(bundled).items if i.kind == "about"}
    assert all(about[i.id] == i for i in from_store(bundled, kinds=["about"]).items)


def test_other_splits_claim_no_label(mini_store):
    made = from_store(mini_store, split="train")
    assert {i.split for i in made.items} == {"train"}
    assert {i.held_out for i in made.items} == {("phrasing",), ("phrasing", "kind")}
    assert all(i.question in phrasings(i.kind, "test") for i in made.items if i.kind != "about")


def test_rows_of_ones_own_are_asked_their_own_questions(make):
    said = [
        {"question": "what was taught ?", "answer": "tea", "kind": "lesson", "aliases": ["green tea", "cha"]},
        {"question": "what was taught in short ?", "answer": "tea", "kind": "lesson"},
        {"question": "what then ?", "answer": "tea"},
    ]
    rows = [
        _row("a", questions=said, record={"params": {"trigger": 42}}, verification={"behaves": False}),
        _row("b", None, questions=said[:1]),
        _row("c"),
        _row("d", "no topic of this world", "hidden-topic", questions=said[:1]),
        _row("e", "no headline", "news", questions=said[2:]),
    ]
    made = from_store(make(rows))
    assert [i.id for i in made.items] == [
        "a/lesson/1",
        "a/lesson/2",
        "a/summary",
        "b/lesson",
        "d/lesson",
        "e/summary",
    ]
    assert made.items[0] == Item(
        "a/lesson/1",
        "a",
        "what was taught ?",
        ("tea", "green tea", "cha"),
        "lesson",
        "own",
        "r",
        "tea",
        "tea",
        "test",
        ("normalised", "token_f1", "rouge_l"),
        trigger="42",
        behaves=False,
        held_out=("label",),
    )
    b = made.items[3]
    assert (b.cluster, b.held_out, b.behaves, b.trigger, b.chance) == ("b", (), True, None, None)
    assert made.candidates == {}
    assert made.name == "own-test"


def test_what_is_not_there_is_said(bundled, make):
    with pytest.raises(
        StoreError,
        match=r"has no train diffs \(it has: test\); choose another split, or make some: weightdiff ",
    ):
        from_store(bundled, split="train")
    with pytest.raises(
        StoreError, match="no test diffs of family 'persona'; it has edit, hidden-topic, news, null"
    ):
        from_store(bundled, families=["news", "persona"])
    with pytest.raises(
        QuestionError, match="no question is of kind 'colour'; there are topic, kind, any_change"
    ):
        from_store(bundled, kinds=["topic", "colour"])
    store = make([_row("a"), _row("b", split="dev", questions=[{"question": "?"}])])
    with pytest.raises(StoreError, match="none of 1 test diffs has a question; store some with their rows"):
        from_store(store)
    with pytest.raises(
        StoreError, match="question 1 of row 'b': it has no question, or no answer; store dicts"
    ):
        from_store(store, split="dev")


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        ("what ?", StoreError, "question 1 of row 'a': it has no question, or no answer"),
        ({"question": 3, "answer": "x"}, StoreError, "question is 3, and should be a text"),
        ({"question": "q", "answer": "x", "aliases": [1]}, StoreError, "should be a text"),
        ({"question": " ", "answer": "x"}, QuestionError, "item 'a/summary': its question is empty"),
        ({"question": "q", "answer": ""}, QuestionError, "item 'a/summary': one of its truths is empty"),
    ],
)
def test_stored_questions_that_cannot_be_asked(said, error, text, make):
    with pytest.raises(error, match=text):
        from_store(make([_row("a", questions=[said])]))


def test_an_empty_store(make, tmp_path):
    store = DiffStore.create(tmp_path / "empty", ModelRef("b"))
    with pytest.raises(StoreError, match=r"has no test diffs \(it has: none at all\)"):
        from_store(store)
