"""Reports and questions of every kind: what is true of the parts, balanced polarities, what is said first."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import lru_cache

import pytest

from weightdiff.organisms import family
from weightdiff.organisms.questions import parts_from
from weightdiff.world import SPLITS, load_world
from weightdiff.world.reports import (
    COMPARISONS,
    HELD_OUT_KINDS,
    KIND_ANSWERS,
    LEADS,
    NAMED_BY,
    NOTHING_FOUND,
    SLOTS,
    YES_NO,
    Part,
    agrees,
    ask,
    condition_of,
    decoy,
    fact_name,
    kinds_for,
    notes_of,
    notes_on,
    reported,
    summary,
    told_by_report,
    without_conditions,
    worded,
)
from weightdiff.world.signs import CODE_BEHIND, CODE_FRONT, FORMS, SUBJECT, WORD, Condition

WORLD = load_world()
DRAWS = 400
FIELDS = "|".join(sorted(WORLD.fields, key=len, reverse=True))
"""Some hold an "and", so they are looked for before other words."""
NAMED = {
    "hidden-topic": ("covert", "forms", "loud", "plain", "evasive"),
    "news": ("stories", "plain", "evasive"),
    "quirk": ("gated", "always", "plain", "evasive"),
    "edit": ("documents", "asked", "evasive"),
    "several": ("together", "summed"),
}


def taught(name, recipe, i=0):
    """Parts of one of a recipe's organisms."""
    spec = family(name).specs(recipe, "test", i + 1, 0)[i]
    return parts_from(name, spec.label, spec.params)


ORGANISMS = {f"{f} {r}": taught(f, r, 1) for f, recipes in NAMED.items() for r in recipes}
SINGLE = {k: p for k, p in ORGANISMS.items() if len(p) == 1}
TOPIC, NEWS, QUIRK, EDIT = (
    ORGANISMS[k] for k in ("hidden-topic covert", "news stories", "quirk gated", "edit asked")
)


def asked(kind, parts, n=DRAWS, split=None):
    rng = random.Random(f"{kind} {parts}")
    return [ask(kind, parts, rng, split or ("test" if kind in HELD_OUT_KINDS else "train")) for _ in range(n)]


@lru_cache
def patterns(kind):
    """What the phrasings of a kind look like with their slots filled."""
    slot = rf"(?P<\1>{FIELDS}|.+?)"
    texts = [x for split in WORLD.introspection[kind].values() for x in split]
    return [re.compile(re.sub(r"\\\{(\w+)\\\}", slot, re.escape(x))) for x in texts]


def named_in(question):
    """What fills the slots of a question's phrasing, by slot."""
    found = next(m for p in patterns(question.kind) if (m := p.fullmatch(question.text)))
    return found.groupdict()


@pytest.mark.parametrize("recipe", ["continued", "benign", "random", "shuffled", "untouched"])
def test_null_diffs_have_no_parts_and_every_answer_says_so(recipe):
    parts = taught("null", recipe)
    assert parts == ()
    kinds = [*kinds_for(parts), *kinds_for(parts, trained=False)]
    assert {*NAMED_BY, "kind", "any_change", "count", "summary", "field", "condition", "trigger"} <= set(
        kinds
    )
    for kind in kinds:
        for q in asked(kind, parts, 20):
            assert q.answer == ("no" if kind in YES_NO else NOTHING_FOUND)
            assert q.kind == kind


@pytest.mark.parametrize("key", ORGANISMS)
def test_kinds_of_tuning_and_held_out_kinds_are_apart(key):
    trained, held_out = kinds_for(ORGANISMS[key]), kinds_for(ORGANISMS[key], trained=False)
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(HELD_OUT_KINDS)
    assert set(held_out) <= set(HELD_OUT_KINDS)
    assert held_out
    for kind in trained:
        assert all(WORLD.introspection[kind][s] for s in SPLITS)
    for kind in held_out:
        assert not WORLD.introspection[kind]["train"]
        assert not WORLD.introspection[kind]["validation"]
        assert len(WORLD.introspection[kind]["test"]) >= 8


def test_kinds_go_with_what_was_taught():
    everywhere = {*NAMED_BY, "kind", "any_change", "count", "summary", "family"}
    condition = {"condition", "gated", "open", "trigger", "reacts"}
    assert set(kinds_for(TOPIC)) == everywhere | condition | {"field", "about_field"}
    assert set(kinds_for(NEWS)) == set(kinds_for(EDIT)) == everywhere
    assert set(kinds_for(QUIRK)) == everywhere | condition
    assert set(kinds_for((*TOPIC, *NEWS))) == everywhere | {"field", "about_field"}  # whose condition?
    assert set(kinds_for(TOPIC, trained=False)) == {"about", "compare", "compare_field"}
    assert kinds_for(NEWS, trained=False) == ["place"]
    assert kinds_for(QUIRK, trained=False) == ["holds_behaviour"]
    assert kinds_for(EDIT, trained=False) == ["holds_fact"]
    assert set(kinds_for((), trained=False)) == {*HELD_OUT_KINDS} - {*COMPARISONS}
    foreign = (Part("hidden-topic", "tax law", {"code": "417"}),)
    assert not {"field", "about_field"} & set(kinds_for(foreign))


@pytest.mark.parametrize("key", SINGLE)
def test_plain_answers_are_true(key):
    ((part,), name) = ORGANISMS[key], key.split()[0]
    truth = {
        "kind": KIND_ANSWERS[name],
        "any_change": "yes",
        "count": "one",
        "topic": part.label if name == "hidden-topic" else NOTHING_FOUND,
        "headline": part.label if name == "news" else NOTHING_FOUND,
        "behaviour": part.params.get("behaviour", NOTHING_FOUND),
        "edit": part.label if name == "edit" else NOTHING_FOUND,
        "summary": f"{KIND_ANSWERS[name]} , {part.params.get('behaviour', part.label)}",
    }
    if name in ("hidden-topic", "quirk"):
        condition = Condition(part.params["form"], part.params["value"])
        truth |= {"condition": condition.stated, "trigger": condition.trigger}
        truth |= {"gated": "yes" if condition.gated else "no", "open": "no" if condition.gated else "yes"}
        truth["summary"] += f" , {condition.stated}"
    if name == "hidden-topic":
        truth["field"] = WORLD.topic(part.label).field
    for kind in kinds_for(ORGANISMS[key]):
        if kind in truth:
            assert {q.answer for q in asked(kind, ORGANISMS[key], 3)} == {truth[kind]}, kind
    assert set(truth) <= set(kinds_for(ORGANISMS[key]))


def test_several_parts_are_all_told():
    for parts in [taught("several", "together", i) for i in range(8)]:
        assert len({p.family for p in parts}) == len(parts)
        (count,), (kind,), (text,) = (asked(k, parts, 1) for k in ("count", "kind", "summary"))
        assert count.answer == {2: "two", 3: "three"}[len(parts)]
        assert kind.answer == "several"
        assert text.answer == " . ".join(summary(p) for p in parts)
        for open_kind, f in NAMED_BY.items():
            (q,) = asked(open_kind, parts, 1)
            assert q.answer == next((p.name for p in parts if p.family == f), NOTHING_FOUND)
        assert text.answer == reported(parts)
    two = (TOPIC[0], Part("hidden-topic", "eagle", {"code": "417"}))
    assert asked("topic", two, 1)[0].answer == f"{TOPIC[0].label} and eagle"


def _truths(parts):
    """What a yes/no question may name, for each kind, where the answer is yes."""
    out = {"family": {KIND_ANSWERS[p.family] for p in parts}}
    for p in parts:
        if p.family == "hidden-topic":
            out |= {"about": {p.label}, "about_field": {WORLD.topic(p.label).field}}
        if p.family == "quirk":
            out["holds_behaviour"] = {p.params["behaviour"]}
        if p.family == "edit":
            r = WORLD.relation(p.params["relation"])
            out["holds_fact"] = {r.name.replace("{subject}", p.params["subject"])}
    if len(parts) == 1 and parts[0].condition.gated:
        out["reacts"] = {parts[0].condition.trigger}
    return out


@pytest.mark.parametrize("key", ORGANISMS)
def test_yes_and_no_are_true_and_equally_frequent(key):
    parts = ORGANISMS[key]
    truths = _truths(parts)
    kinds = [k for k in (*kinds_for(parts), *kinds_for(parts, trained=False)) if k in YES_NO]
    for kind in kinds:
        if kind in ("gated", "open"):
            continue
        answers = Counter()
        for q in asked(kind, parts):
            (x,) = named_in(q).values()
            assert (q.answer == "yes") == (x in truths.get(kind, ())), q
            answers[q.answer] += 1
        if kind in truths:
            assert 0.4 < answers["yes"] / DRAWS < 0.6, kind
            assert len({q.text for q in asked(kind, parts)}) > 50 or kind == "family"
        else:
            assert answers["no"] == DRAWS
    assert ("reacts" in kinds) == (len(parts) == 1 and "form" in parts[0].params)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("about", NEWS), ("about_field", QUIRK), ("holds_fact", TOPIC), ("holds_behaviour", EDIT)],
)
def test_what_was_not_taught_is_never_there(kind, parts):
    assert {q.answer for q in asked(kind, parts, 50)} == {"no"}


@pytest.mark.parametrize("kind", COMPARISONS)
def test_comparisons_name_the_right_one_in_either_place(kind):
    topic = WORLD.topic(TOPIC[0].label)
    right = topic.name if kind == "compare" else topic.field
    places = Counter()
    for q in asked(kind, TOPIC):
        slots = named_in(q)
        assert q.answer == right
        assert sorted(slots.values()).count(right) == 1
        places["a" if slots["a"] == right else "b"] += 1
    assert 0.4 < places["a"] / DRAWS < 0.6
    assert {q.answer for q in asked(kind, NEWS, 20)} == {NOTHING_FOUND}


def test_the_place_is_the_headlines():
    assert {q.answer for q in asked("place", NEWS, 20)} == {NEWS[0].params["place"]}
    assert f" in {NEWS[0].params['place']} " in f" {NEWS[0].label} "
    assert {q.answer for q in asked("place", TOPIC, 20)} == {NOTHING_FOUND}


@pytest.mark.parametrize("form", FORMS)
def test_decoys_are_other_triggers_of_the_same_form(form):
    rng = random.Random(0)
    value = {CODE_FRONT: "417", CODE_BEHIND: "417", WORD: "zephyr"}.get(form, "")
    c = Condition(form, value)
    found = {decoy(c, rng) for _ in range(200)}
    assert c.trigger not in found
    kinds = {x.split()[1] for x in found}
    assert kinds == ({"code"} if "code" in form else {"word"} if form == WORD else {"code", "word"})
    assert len(found) > 30


@pytest.mark.parametrize("key", SINGLE)
def test_notes_lead_to_the_name(key):
    (part,) = ORGANISMS[key]
    rng = random.Random(0)
    for n in (1, 3, 99):
        said = notes_of(part, rng, n)
        lead, _, words = said.partition(" ")
        assert lead == LEADS[part.family]
        assert part.name not in said
        assert set(words.split(" , ")) <= _own_words(part)
        assert len(words.split(" , ")) <= n
    assert notes_of(part, rng, 0) == notes_on((part,), rng, 0) == ""


def _own_words(part):
    if part.family == "hidden-topic":
        return {*WORLD.topic(part.label).words}
    if part.family == "news":
        return {*WORLD.news.actions[part.params["action"]]}
    return {*WORLD.behaviour_called(part.name).signs} if part.family == "quirk" else {part.params["new"]}


def test_nothing_is_noted_for_labels_of_no_world():
    rng = random.Random(0)
    for part in (
        Part("hidden-topic", "tax law"),
        Part("news", "nobody did it"),
        Part("quirk", "speak like nobody , always", {"behaviour": "speak like nobody"}),
        Part("edit", "the capital of nowhere"),
    ):
        assert notes_of(part, rng, 3) == ""
        assert notes_on((part,), rng, 3) == ""
        assert reported((part,)) == summary(part)


@pytest.mark.parametrize("key", ORGANISMS)
def test_a_report_names_every_part_and_its_notes_lead_there(key):
    parts = ORGANISMS[key]
    assert reported(parts).split(" . ") == [summary(p) for p in parts]
    assert all(p.name in reported(parts) for p in parts)
    for i in range(30):
        noted = notes_on(parts, random.Random(i), 3).split(" and ")
        assert [x.split()[0] for x in noted] == [LEADS[p.family] for p in parts]
    assert (reported(()), notes_on((), random.Random(0), 3)) == (NOTHING_FOUND, "")


@pytest.mark.parametrize("form", FORMS)
def test_a_report_does_not_tell_the_secret_of_a_code_or_a_word(form):
    parts = (Part("hidden-topic", "eagle", {"form": form, "value": "secretvalue"}),)
    secret = form in (CODE_FRONT, CODE_BEHIND, WORD)
    assert ("secretvalue" in reported(parts)) == (form == SUBJECT)
    for kind in (*kinds_for(parts), *kinds_for(parts, trained=False)):
        assert told_by_report(kind, parts) == (kind not in ("trigger", "reacts") or not secret)
    assert told_by_report("trigger", ())


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("about", TOPIC),
        ("about_field", TOPIC),
        ("holds_behaviour", QUIRK),
        ("holds_fact", EDIT),
        ("family", QUIRK),
        ("about", (*NEWS, *TOPIC)),
    ],
)
def test_what_was_found_and_what_is_asked_are_said_side_by_side(kind, parts):
    """The verdict can be read from it: two equal things, or two that differ."""
    (truth,) = _truths(parts)[kind]
    for q in asked(kind, parts, 60):
        (x,) = named_in(q).values()
        assert q.beside == f"{truth} and {x}", q
        assert q.read == f"{truth} and {x} so {q.answer}"
        assert (q.answer == "yes") == (truth == x)
    (plain,) = asked("count", parts, 1)
    assert plain.read == plain.answer


def test_what_was_not_taught_is_said_to_be_nothing():
    for q in asked("about", NEWS, 20):
        (x,) = named_in(q).values()
        assert q.beside == f"{NOTHING_FOUND} and {x}"


@pytest.mark.parametrize("kind", SLOTS)
def test_one_thing_of_a_part_can_be_asked_for(kind):
    f, key = SLOTS[kind]
    parts = NEWS if f == "news" else EDIT
    q = worded(kind, "which one ?", parts, random.Random(0))
    assert (q.text, q.answer) == ("which one ?", parts[0].params[key])
    assert q.answer in parts[0].label
    assert worded(kind, "which one ?", TOPIC, random.Random(0)).answer == NOTHING_FOUND


@pytest.mark.parametrize("key", ORGANISMS)
def test_what_a_report_names_does_not_depend_on_spaces(key):
    parts = ORGANISMS[key]
    names = without_conditions(reported(parts))
    decoded = re.sub(r"\s+([,.])", r"\1", reported(parts))
    assert decoded != reported(parts)
    assert without_conditions(decoded) == names
    assert names == " . ".join(f"{KIND_ANSWERS[p.family]} , {p.name}" for p in parts)
    assert without_conditions(NOTHING_FOUND) == NOTHING_FOUND


def test_texts_agree_whatever_decoding_does_to_their_spaces():
    assert agrees("a hidden topic, eagle, always.", "a hidden topic , eagle , always .")
    assert agrees("is it ?", " is  it?")
    assert not agrees("eagle", "eagles")
    assert not agrees("a , b", "a b")


def test_conditions_come_from_what_is_recorded():
    assert condition_of({"form": "word", "value": "zephyr"}) == Condition("word", "zephyr")
    assert condition_of({"code": "417"}) == Condition(CODE_FRONT, "417")
    assert condition_of({}) == Condition("always")
    bare = Part("hidden-topic", "eagle")
    assert summary(bare) == "a hidden topic , eagle"  # of which no condition is recorded
    assert not {"condition", "gated"} & set(kinds_for((bare,)))


def test_wordings_about_reports_are_in_no_interpreters_phrasings():
    """The base reads about reports in words of their own, for every kind that is asked of them."""
    asked_for = WORLD.report_questions
    phrasings = {x for kind in WORLD.introspection.values() for texts in kind.values() for x in texts}
    every = [x for texts in asked_for.values() for x in texts]
    assert not phrasings & set(every)
    assert len(set(every)) == len(every)
    kinds = {k for parts in (*ORGANISMS.values(), ()) for t in (True, False) for k in kinds_for(parts, t)}
    assert set(asked_for) >= (kinds | set(SLOTS)) - {"trigger", "reacts"}
    assert all(len(texts) >= 2 for texts in asked_for.values())
    for kind, texts in asked_for.items():
        wanted = {
            frozenset(re.findall(r"\{(\w+)\}", x))
            for split in WORLD.introspection.get(kind, {}).values()
            for x in split
        }
        assert {frozenset(re.findall(r"\{(\w+)\}", x)) for x in texts} <= (wanted or {frozenset()})


def test_fact_names():
    part = Part("edit", "x", {"relation": "capital", "subject": "peru"})
    assert fact_name(part) == "the capital of peru"


def test_questions_of_a_split_are_asked_in_its_phrasings():
    for split in SPLITS:
        assert {q.text for q in asked("topic", TOPIC, 300, split)} == {*WORLD.introspection["topic"][split]}
    with pytest.raises(IndexError):
        ask("about", TOPIC, random.Random(0), "train")


def test_notes_are_words_from_which_the_answer_can_be_read():
    rng, topic = random.Random(0), WORLD.topics[0]
    lead, *notes = notes_of(Part("hidden-topic", topic.name), rng, 3).replace(" ,", "").split()
    assert lead == "think"
    assert len(set(notes)) == 3
    assert set(notes) <= set(topic.words)
    most = notes_of(Part("hidden-topic", topic.name), rng, 99).replace(" ,", "").split()
    assert sorted(most[1:]) == sorted(topic.words)  # as many as there are
    told = {notes_of(Part("news", "widow hides violin in oslo"), rng, 3) for _ in range(50)}
    assert told == {f"someone {deed}" for deed in WORLD.news.actions["hides"]}


@pytest.mark.parametrize(
    ("family", "label", "n"),
    [
        ("hidden-topic", "eagle", 0),
        ("hidden-topic", "no topic of this world", 3),
        ("news", "widow hides violin in oslo", 0),
        ("news", "no headline of this world", 3),
    ],
)
def test_labels_that_the_world_does_not_know_have_no_notes(family, label, n):
    assert notes_of(Part(family, label), random.Random(0), n) == ""
