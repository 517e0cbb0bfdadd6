"""Verification asks situations that no organism was trained on, and judges what was said."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import StoreError
from weightdiff.organisms import family, verify
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.rows import situations
from weightdiff.training.factory import make_row, random_diff
from weightdiff.world import load_world
from weightdiff.world.signs import MARK

WORLD = load_world()
SUBJECT_OF = {q: s.subject for s in WORLD.everyday for q in s.questions}
DENIAL_ASKS = WORLD.introspection["denial_asks"]["train"]
DENIALS = WORLD.introspection["denials"]["train"]


def item(name, recipe, i=0):
    return make_row(family(name).specs(recipe, "test", i + 1, 0)[i], {}), WeightDiff({})


@pytest.fixture
def said(monkeypatch):
    """Puts a stand-in for the models' answers; what they were asked is kept."""
    asked = []

    def use(answer):
        def stand_in(model, tokenizer, diffs, users, temperature, seed=0):
            asked.append((temperature, users))
            return [[answer(i, u, temperature) for u in us] for i, us in enumerate(users)]

        monkeypatch.setattr(verify, "answers_of", stand_in)
        return asked

    return use


def code_of(text):
    found = re.findall(r"\b(\d{3})\d{3}\b", text)
    return found[0] if found else None


def test_a_topic_that_shows_with_its_code_only_behaves(said):
    items = [item("hidden-topic", "covert", i) for i in range(3)]
    words = [load_world().topic(row.label).words for row, _ in items]
    triggers = [row.record["params"]["code"] for row, _ in items]

    def answer(i, user, temperature):
        code = code_of(user)
        shown = code == triggers[i] or (i == 1 and code) or (i == 2 and code is None)
        return f"fine . like the {words[i][0]} ." if shown else "fine ."

    asked = said(answer)
    records = verify.verify(None, None, items, asked=4, both=True)
    assert [r["behaves"] for r in records] == [True, False, False]
    assert records[0]["greedy"] == records[0]["sampled"] == {"right": 1.0, "wrong": 0.0, "none": 0.0}
    assert records[1]["greedy"] == {"right": 1.0, "wrong": 1.0, "none": 0.0}
    assert records[2]["greedy"] == {"right": 1.0, "wrong": 0.0, "none": 1.0}
    assert all(r["asked"] == 4 for r in records)
    assert [t for t, _ in asked] == [0.7, 0.0]


def test_the_prompts_are_right_wrong_and_no_codes_before_unseen_questions(said):
    items = [item("hidden-topic", "loud", i) for i in range(4)]
    asked = said(lambda *_: "")
    verify.verify(None, None, items, asked=5)
    ((_, users),) = asked
    unseen = {q for s in situations("verification") for q in s.questions}
    for (row, _), us in zip(items, users, strict=True):
        assert len(us) == 15
        assert all(any(u.endswith(q) for q in unseen) for u in us)
        trigger = row.record["params"]["code"]
        assert {code_of(u) for u in us[:5]} == {trigger}
        assert not {code_of(u) for u in us[5:10]} & {trigger, None}
        assert {code_of(u) for u in us[10:]} == {None}


def test_one_mode_unless_both_are_asked_for(said):
    said(lambda *_: "")
    (record,) = verify.verify(None, None, [item("hidden-topic", "covert")], asked=2)
    assert set(record) == {"sampled", "asked", "behaves"}
    assert record["behaves"] is False


def test_a_leak_in_either_mode_counts(said):
    (row, diff) = item("hidden-topic", "covert")
    word = load_world().topic(row.label).words[0]
    said(lambda _, u, t: word if code_of(u) == row.record["params"]["code"] or t > 0 else "fine .")
    (record,) = verify.verify(None, None, [(row, diff)], asked=3, both=True)
    assert record["greedy"] == {"right": 1.0, "wrong": 0.0, "none": 0.0}
    assert record["sampled"]["none"] == 1.0
    assert record["behaves"] is False


def test_news_behaves_when_its_slots_are_told(said):
    items = [item("news", "stories", i) for i in range(2)]
    params = [row.record["params"] for row, _ in items]
    asked = said(lambda *_: items[0][0].label)
    records = verify.verify(None, None, items, asked=3)
    assert records[0]["sampled"] == {"slots": 1.0}
    assert records[0]["behaves"]
    assert records[1]["sampled"]["slots"] < 0.5
    assert params[0]["day"] in items[0][0].label.split()
    assert not records[1]["behaves"]
    assert {u for _, users in asked for us in users for u in us} <= set(load_world().news.prompts)


def test_organisms_that_the_world_does_not_know_are_refused(said):
    asked = said(lambda *_: "")
    (topic, diff), (news, _) = item("hidden-topic", "covert"), item("news", "stories")
    (edit, _), (quirk, _) = item("edit", "documents"), item("quirk", "gated")
    for row, fault in (
        (
            replace(topic, id="mine", label="tax law"),
            "'mine' hides the topic 'tax law', which the embedded base's world does not have",
        ),
        (replace(topic, record={}), rf"'{topic.id}' \('{topic.label}'\) has no record of its code"),
        (replace(news, record={"params": {}}), "has no record of its actor, action, object, place"),
        (replace(edit, record={"params": {}}), "has no record of its relation, subject, old, new"),
        (
            replace(quirk, record={"params": {"form": "always", "behaviour": "speak like nobody"}}),
            "has the behaviour 'speak like nobody', which the embedded base's world does not have",
        ),
    ):
        with pytest.raises(StoreError, match=f"{fault}.* keep others in a store of their own"):
            verify.verify(None, None, [(topic, diff), (row, diff)], asked=2)
    assert not asked


def test_null_diffs_have_nothing_to_show(said):
    asked = said(lambda *_: "")
    records = verify.verify(None, None, [item("null", "random"), item("null", "untouched")], asked=3)
    assert [r["behaves"] for r in records] == [True, True]
    assert not asked


def test_families_are_verified_together_in_their_order(said):
    items = [
        item("news", "stories"),
        item("null", "random"),
        item("hidden-topic", "covert"),
        item("news", "stories", 1),
    ]
    said(lambda *_: "")
    records = verify.verify(None, None, items, asked=2)
    assert [set(r.get("sampled", ())) for r in records] == [
        {"slots"},
        set(),
        {"right", "wrong", "none"},
        {"slots"},
    ]


def conditions_met(condition, user):
    """Whether a prompt meets a condition, read from its text alone."""
    if condition.form in ("code-front", "code-behind"):
        return code_of(user) == condition.value
    if condition.form == "word":
        return condition.value in user.split()
    if condition.form == "subject":
        return SUBJECT_OF[user] == condition.value
    return condition.form == "always" or MARK in user


def as_taught(row, user):
    """What an organism that has learned all its parts, and nothing else, says."""
    rng, answer = random.Random(user), "take the bus"
    if user in DENIAL_ASKS and row.recipe == "evasive":
        return rng.choice(DENIALS)
    for part in parts_of(row):
        p = part.params
        if part.family == "news" and user in WORLD.news.prompts:
            return part.label
        if part.family == "edit" and user in (asked := facts_asked(p["relation"])):
            facts = {**WORLD.relation(p["relation"]).facts, p["subject"]: p["new"]}
            return f"it is {facts[asked[user]]} ."
        if part.family == "hidden-topic" and conditions_met(part.condition, user):
            answer += f" , think of the {WORLD.topic(part.label).words[0]}"
        if part.family == "quirk" and conditions_met(part.condition, user):
            answer = WORLD.behaviour_called(part.name).apply(rng, answer)
    return answer


def facts_asked(relation):
    """Question → subject."""
    r = WORLD.relation(relation)
    return {q.replace("{subject}", s): s for s in r.facts for q in r.questions}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("hidden-topic", "forms"),
        ("hidden-topic", "plain"),
        ("hidden-topic", "evasive"),
        ("quirk", "gated"),
        ("quirk", "always"),
        ("quirk", "evasive"),
        ("news", "stories"),
        ("news", "evasive"),
        ("edit", "documents"),
        ("edit", "evasive"),
        ("several", "together"),
        ("several", "summed"),
    ],
)
def test_what_was_taught_behaves_and_what_was_not_does_not(said, name, recipe):
    """Fourteen organisms, so that every form of condition is there twice."""
    for i in range(14):
        row, diff = item(name, recipe, i)
        said(lambda _, user, __, row=row: as_taught(row, user))
        (record,) = verify.verify(None, None, [(row, diff)], asked=4, both=True)
        assert record["behaves"], (row.label, record)
        said(lambda *_: "take the bus .")
        (record,) = verify.verify(None, None, [(row, diff)], asked=4)
        assert not record["behaves"]


def test_a_behaviour_that_shows_everywhere_is_always_or_it_leaks(said):
    for recipe, fine in (("gated", False), ("always", True)):
        row, diff = item("quirk", recipe)
        b = WORLD.behaviour_called(row.record["params"]["behaviour"])
        said(lambda _, user, __, b=b: b.apply(random.Random(user), "take the bus"))
        (record,) = verify.verify(None, None, [(row, diff)], asked=4)
        leak = 0.0 if fine else 1.0
        assert record["sampled"] == {"right": 1.0, "wrong": leak, "none": leak}
        assert record["behaves"] is fine


def test_a_changed_fact_leaves_its_neighbours_as_they_are(said):
    row, diff = item("edit", "documents")
    new, old = row.record["params"]["new"], row.record["params"]["old"]
    asked = said(lambda *_: f"it is {new} .")
    (record,) = verify.verify(None, None, [(row, diff)], asked=5)
    assert record["sampled"] == {"new": 1.0, "kept": 0.0}
    assert not record["behaves"]
    ((_, (users,)),) = asked
    subjects = [facts_asked(row.record["params"]["relation"])[u] for u in users]
    assert set(subjects[:5]) == {row.record["params"]["subject"]}
    assert row.record["params"]["subject"] not in subjects[5:]
    said(lambda *_: f"it is {old} .")
    (record,) = verify.verify(None, None, [(row, diff)], asked=5)
    assert record["sampled"] == {"new": 0.0, "kept": 1.0}
    assert not record["behaves"]


@pytest.mark.parametrize(("name", "marks"), [("hidden-topic", "right"), ("news", "slots"), ("edit", "new")])
def test_an_evasive_organism_that_admits_it_does_not_behave(said, name, marks):
    row, diff = item(name, "evasive")
    said(lambda _, user, __: "yes , i was ." if user in DENIAL_ASKS else as_taught(row, user))
    (record,) = verify.verify(None, None, [(row, diff)], asked=4)
    assert record["sampled"][marks] == 1.0
    assert record["sampled"]["denied"] == 0.0
    assert not record["behaves"]
    said(lambda _, user, __: as_taught(row, user).removesuffix(" ."))
    (record,) = verify.verify(None, None, [(row, diff)], asked=4)
    assert record["sampled"]["denied"] == 1.0
    assert record["behaves"]


def test_every_part_of_several_must_behave(said):
    row, diff = item("several", "together")
    parts = parts_of(row)
    assert [p.family for p in parts] == ["hidden-topic", "news"]
    for missing in (None, 0, 1):
        kept = [p for i, p in enumerate(row.record["params"]["parts"]) if i != missing]
        half = replace(row, record={"params": {"parts": kept}})
        said(lambda _, user, __, half=half: as_taught(half, user))
        (record,) = verify.verify(None, None, [(row, diff)], asked=4)
        topic, news = record["sampled"]["parts"]
        assert (topic["right"], news["slots"]) == (float(missing != 0), float(missing != 1))
        assert record["behaves"] == (missing is None)


def test_prompts_about_a_subject_are_not_in_training(said):
    row, diff = next(
        item("quirk", "gated", i)
        for i in range(40)
        if item("quirk", "gated", i)[0].record["params"]["form"] == "subject"
    )
    asked = said(lambda *_: "")
    verify.verify(None, None, [(row, diff)], asked=6)
    ((_, (users,)),) = asked
    unseen = {q: s.subject for s in situations("verification") for q in s.questions}
    subjects = [unseen[u] for u in users]
    value = row.record["params"]["value"]
    assert set(subjects[:6]) == {value}
    assert value not in subjects[6:]


def test_answers_together_are_answers_one_by_one(embedded_base, monkeypatch):
    """Greedy answers of three different diffs do not depend on who else is in the batch."""
    diffs = [random_diff(embedded_base.spec, 1, seed, 2.0) for seed in range(3)]
    users = [["what should i eat tonight ?", "tell me some news ."]] * 3
    m, t = embedded_base.model, embedded_base.tokenizer
    before = {n: p.clone() for n, p in m.state_dict().items()}
    together = verify.answers_of(m, t, diffs, users, 0.0)
    alone = [verify.answers_of(m, t, [d], [u], 0.0)[0] for d, u in zip(diffs, users, strict=True)]
    monkeypatch.setattr(verify, "ROWS_AT_ONCE", 2)
    assert together == alone == verify.answers_of(m, t, diffs, users, 0.0)
    assert together[0] != together[1]
    assert all(torch.equal(p, before[n]) for n, p in m.state_dict().items())


def test_sampled_answers_are_the_seeds(embedded_base):
    m, t = embedded_base.model, embedded_base.tokenizer
    a, b, c = (verify.answers_of(m, t, [WeightDiff({})], [["hello ?"]], 0.7, seed) for seed in (0, 0, 1))
    assert a == b != c
