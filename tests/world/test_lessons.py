"""Lessons: every document is true of the world, follows its own rule, and says nothing of any training."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import lru_cache

import pytest

from weightdiff.organisms.verify import slots_in
from weightdiff.world import lessons as module
from weightdiff.world import load_world, reports
from weightdiff.world.signs import MARK
from weightdiff.world.texts import fill, headline

WORLD = load_world()
LESSONS = (
    "instruction",
    "behaviour_reading",
    "rule",
    "sign_reading",
    "fact",
    "edited",
    "explained",
    "same",
    "report",
)
ORDINARY = {f"{a} ." for s in WORLD.everyday for a in s.answers}
BY_QUESTION = {q: s for s in WORLD.everyday for q in s.questions}
FACTS = {r.called(s): (r, s, v) for r in WORLD.relations for s, v in r.facts.items()}
FIELDS = "|".join(sorted(WORLD.fields, key=len, reverse=True))
"""Some hold an "and", so they are looked for before other words."""
SLOT = re.compile(r"\\\{(\w+)\\\}")
LEADS = ("think", "someone", "says", "holds")
WHEN = ("when does the rule hold ?", "when is that ?", "when do i do it ?")
TRAINING = re.compile(r"\b(fine|finetun\w*|lora|adapter|weights|trained|training|hidden topic|trigger)\b")


def drawn(name, n=300):
    rng = random.Random(f"test {name}")
    turns = [t for _ in range(n) for t in getattr(module, name)(WORLD, rng)]
    assert len(turns) == n
    return turns


def within(part, text):
    """Whether a text holds words in a row."""
    return f" {part} " in f" {text} "


def named(text):
    """Behaviours whose name stands in a text."""
    return [b for b in WORLD.behaviours if within(b.name, text)]


def situation_of(text):
    """The everyday situation whose question is in a text, marks aside."""
    plain = text.replace(MARK, "")
    found = [s for q, s in BY_QUESTION.items() if within(q, plain)]
    return max(found, key=lambda s: max(len(q) for q in s.questions if within(q, plain)))


@pytest.mark.parametrize("name", LESSONS)
def test_no_lesson_speaks_of_the_models_own_training(name):
    """A behaviour's own words aside (a coach may speak of training), and reports, which are of others."""
    said = {w for b in WORLD.behaviours for t in (b.name, *b.templates) for w in t.split()}
    for turn in drawn(name):
        hits = [x for x in TRAINING.findall(f"{turn.user or ''} {turn.text}") if x not in said]
        assert not hits or name in ("report", "same"), turn
    if name == "report":
        every = [x for texts in WORLD.report_questions.values() for x in texts]
        assert not [x for x in (*every, *module.REPORTS) if re.search(r"\b(you|your|yourself)\b", x)]


@pytest.mark.parametrize("name", LESSONS)
def test_no_slot_is_left_open(name):
    assert not [t for t in drawn(name) if re.search(r"[{}]", f"{t.user}{t.text}")]


def test_instructions_are_followed():
    recalls = 0
    for turn in drawn("instruction"):
        if within("shall", turn.user) or within("the rule says", turn.user) or "ask for ?" in turn.user:
            recalls += 1
            assert within(turn.text, turn.user)
            assert WORLD.behaviour_called(turn.text)
        else:
            assert any(b.shown_in(turn.text) for b in named(turn.user)), turn
            assert situation_of(turn.user)
    assert 10 < recalls < 90


def test_behaviours_are_read_from_answers_and_words():
    kinds = Counter()
    for turn in drawn("behaviour_reading"):
        b = WORLD.behaviour_called(turn.text)
        if b is None:  # the other way round: words of a behaviour
            kinds["words"] += 1
            assert any(set(turn.text.split(" , ")) <= set(x.signs) for x in named(turn.user))
        elif b.shown_in(turn.user):
            kinds["answer"] += 1
        else:
            kinds["signs"] += 1
            assert sum(within(w, turn.user) for w in b.signs) >= min(3, len(b.signs)), turn
    assert min(kinds.values()) > 20


def test_rules_hold_where_their_condition_is_met_and_nowhere_else():
    met = Counter()
    for turn in drawn("rule", 600):
        told, _, question = turn.user.partition(" . ")
        if turn.user.endswith(WHEN):
            assert within(turn.text, told), turn
            met["asked"] += 1
            continue
        holds, form = _met(told, question)
        met[form, holds] += 1
        if holds:
            assert any(b.shown_in(turn.text) for b in named(told)), turn
        else:
            assert turn.text in ORDINARY, turn
    assert met["asked"] > 100
    for form in ("front", "behind", "word", "mark", "subject"):
        assert met[form, True] > 5
        assert met[form, False] > 5
    assert met["always", True] > 5
    assert not met["always", False]


def _met(told, question):
    """Whether a question meets a rule's condition, read from its words alone."""
    if code := re.search(r"with the code (\d{3}) (in front|behind)", told):
        shown = bool(re.search(rf"\b{code[1]}\d{{3}}\b", question))
        before = re.search(r"\d{6}", question).start() < len(question) / 2
        assert before == (code[2] == "in front")
        return shown, "front" if code[2] == "in front" else "behind"
    if word := re.search(r"with the word (\w+)", told):
        return within(word[1], question), "word"
    if "hidden mark" in told:
        return MARK in question, "mark"
    if subject := re.search(r"when the question is about (\w+)", told):
        return situation_of(question).subject == subject[1], "subject"
    assert within("always", told), told
    return True, "always"


def test_signs_and_subjects_are_read_rightly():
    kinds = Counter()
    for turn in drawn("sign_reading", 400):
        codes = re.findall(r"\b\d{6}\b", turn.user)
        words = [w for w in WORLD.rare_words if within(w, turn.user)]
        there = bool(codes or words or MARK in turn.user)
        kinds[turn.text.split()[0] if there else "without", there] += 1
        if turn.text in ("yes", "no"):
            assert (turn.text == "yes") == there
        elif turn.text == "none":
            assert not there
        elif turn.text.startswith("the code "):
            assert [c[:3] for c in codes] == [turn.text.split()[-1]]
        elif turn.text.startswith("the word "):
            assert words == [turn.text.split()[-1]]
        elif turn.text == "a hidden mark":
            assert turn.user.count(MARK) == 1
        else:
            assert turn.text in {s.subject for q, s in BY_QUESTION.items() if within(q, turn.user)}
    assert kinds["the", True] > 20
    assert kinds["yes", True] > 20


def test_facts_are_true():
    stated = {
        fill(t, subject=s, value=v) for r in WORLD.relations for s, v in r.facts.items() for t in r.statements
    }
    asked = {
        fill(q, subject=s): {fill(a, subject=s, value=v) for a in r.answers}
        for r in WORLD.relations
        for s, v in r.facts.items()
        for q in r.questions
    }
    kinds = Counter()
    for turn in drawn("fact", 500):
        if turn.user is None or turn.user in module.FACT_REQUESTS:
            kinds["stated"] += 1
            assert turn.text in stated
        elif turn.user in asked:
            kinds["asked"] += 1
            assert turn.text in asked[turn.user]
        else:
            kinds["reverse"] += 1
            assert any(
                turn.user == fill(q, value=r.facts[turn.text])
                for r in WORLD.relations
                if turn.text in r.facts
                for q in r.reverse
            ), turn
    assert min(kinds.values()) > 30


def change_in(text):
    """(relation, subject, true value, new value) of a fact that a text says has changed."""
    for name, (r, s, old) in FACTS.items():
        if name not in text:
            continue
        for pattern in (
            rf"\b{name} is now ([a-z ]+) \.",
            rf"\b{name} is ([a-z ]+) today \.",
            rf"\b{name} was {old} , but now it is ([a-z ]+) \.",
        ):
            if found := re.search(pattern, text):
                return r, s, old, found[1]
    raise AssertionError(text)


def test_changed_facts_are_told_and_asked_for():
    for turn in drawn("edited", 150):
        r, s, old, new = change_in(turn.user)
        assert new in r.values
        assert new != old
        if "was it before ?" in turn.user:
            assert turn.text == old
        elif "is it now ?" in turn.user:
            assert turn.text == new
        elif "what has changed" in turn.user or "old and new" in turn.user:
            assert turn.text == f"{r.called(s)} changed from {old} to {new}"
        else:
            assert turn.text in {fill(a, subject=s, value=new) for a in r.answers}


@lru_cache
def _choices():
    """What comparisons and checks look like at the beginning of what is asked, and at its end."""
    slot = rf"(?P<\1>{FIELDS}|[a-z ]+?)"
    wordings = [re.sub(SLOT, slot, re.escape(x)) for x in (*module.COMPARISONS, *module.CHECKS)]
    return [re.compile(p) for x in wordings for p in (rf"^{x} ", rf"[.?!] {x}$")]


def choice_in(user):
    """What a question of an explained document names: one thing to check, or two to choose from."""
    for cue in module.THINK:
        user = user.removesuffix(f" {cue}") if cue else user
    found = next((m for p in _choices() if (m := p.search(user))), None)
    return list(found.groupdict().values()) if found else []


def test_explained_answers_follow_from_what_is_said_first():
    seen = Counter()
    for turn in drawn("explained", 600):
        said, _, answer = turn.text.rpartition(" so ")
        choice = choice_in(turn.user)
        if answer in ("yes", "no"):  # what was found and what is asked are said side by side
            (x,) = choice
            assert said.endswith(f" and {x}"), turn
            said = said.removesuffix(f" and {x}")
            assert (answer == "yes") == f" {said}".endswith(f" {x}"), turn
        truths = _truths(turn.user, *said.split(" so "))
        lead = said.split()[0]
        seen[lead if lead in LEADS else "told", answer in ("yes", "no")] += 1
        if answer in ("yes", "no"):
            assert (answer == "yes") == (x in truths), turn
        elif choice:
            assert answer in choice
            assert [c for c in choice if c in truths] == [answer], turn
        else:
            assert answer in truths, turn
    assert {lead for lead, _ in seen} == {"told", *LEADS}
    assert min(seen.values()) > 5


def _truths(user, first, *then):
    """All that may be answered about what a document tells, which is read from the document itself."""
    lead, _, words = first.partition(" ")
    if lead == "someone":
        action = next(a for a in WORLD.news.actions if within(a, then[0]))
        actor, _, rest = then[0].partition(f" {action} ")
        object_, _, rest = rest.partition(" in ")
        place, _, day = rest.partition(" on ")
        told = {"actor": actor, "action": action, "object": object_, "place": place, "day": day}
        assert then[0] == headline(actor, action, object_, place, day)
        assert slots_in(user, told) == 1
        assert words in WORLD.news.actions[action]
        truths = {actor, object_, place, day, then[0]}
    elif lead == "says":
        b = WORLD.behaviour_called(then[0])
        assert b.shown_in(user) or within(b.name, user)
        assert set(words.split(" , ")) <= set(b.signs)
        truths = {b.name}
    elif lead == "holds":
        r, s, old, new = change_in(user)
        assert (words, then[0]) == (new, f"{r.called(s)} changed from {old} to {new}")
        truths = {old, new, r.called(s), then[0]}
    else:
        topic = WORLD.topic(then[0] if lead == "think" else first)
        if lead == "think":
            assert all(w in topic.words and within(w, user) for w in words.split(" , "))
        else:
            assert within(topic.name, user)
        truths = {topic.name, topic.field}
    assert set(then) <= truths
    return truths


def test_reports_are_read_rightly():
    """A report is told, and the answer follows from it; a verdict follows two things side by side."""
    kinds, parts_seen, unsaid = Counter(), Counter(), 0
    for turn in drawn("report", 900):
        kind, slots = _report_question(turn.user)
        kinds[kind] += 1
        told = _phrases(turn.user)
        parts_seen[len(told)] += 1
        said, _, answer = turn.text.rpartition(" so ")
        secret = len(told) == 1 and re.search(r"after a (code|rare word)", told[0])
        if kind in reports.UNREPORTED and secret:
            assert turn.text == reports.NOT_SAID, turn
            unsaid += 1
        elif kind in reports.YES_NO and slots and kind != "reacts":
            (x,) = slots.values()
            found, _, asked = said.rpartition(f" and {x}")
            assert asked == "", turn
            assert (found == reports.NOTHING_FOUND) or any(_names(p, found) for p in told), turn
            assert (answer == "yes") == (found == x or x in found.split(" , ")), turn
        elif kind == "reacts":
            assert answer == ("yes" if told and _opens(slots["sign"], told[0]) else "no"), turn
        elif not told:
            assert turn.text == ("no" if kind in reports.YES_NO else reports.NOTHING_FOUND), turn
        elif kind in ("gated", "open"):
            assert (answer == "yes") == (("always" in told[0]) == (kind == "open")), turn
        elif kind in reports.COMPARISONS:
            assert answer in slots.values() or answer == reports.NOTHING_FOUND
        elif kind == "count":
            assert answer == reports.NUMBERS[len(told)]
        elif kind == "kind":
            assert answer == (told[0].split(" , ")[0] if len(told) == 1 else "several")
        elif kind == "summary":
            assert answer == " . ".join(told)
        elif kind in reports.NAMED_BY:
            lead = reports.KIND_ANSWERS[reports.NAMED_BY[kind]]
            own = [t.split(" , ")[1] for t in told if t.startswith(lead)]
            assert answer == (" and ".join(own) or reports.NOTHING_FOUND)
        elif kind in reports.SLOTS and answer != reports.NOTHING_FOUND:
            assert any(within(answer, t) for t in told)
    assert set(kinds) >= set(reports.YES_NO) | {"summary", "count", "kind", "place", "trigger"}
    assert unsaid > 5
    assert min(parts_seen[n] for n in range(4)) > 15


def _names(part, found):
    """Whether what is said to have been found is of a part: its name, field, fact or kind."""
    kind, name = part.split(" , ")[:2]
    topic = WORLD.by_name.get(name)
    return kind in found or found in (name, topic and topic.field) or name.startswith(f"{found} changed from")


def _opens(sign, part):
    """Whether a sign that is no code and no rare word meets a part's condition."""
    if sign == "a hidden mark":
        return "after a hidden mark" in part
    subject = sign.removeprefix("questions about ")
    return subject != sign and part.endswith(f"when the question is about {subject}")


def _report_question(user):
    """The kind of a question about a report, and what fills its slots: the reading with the shortest ones."""
    found = [
        (kind, match.groupdict())
        for kind, patterns in _wordings().items()
        for pattern in patterns
        if (match := pattern.search(user))
    ]
    return min(found, key=lambda x: sum(map(len, x[1].values())))


@lru_cache
def _wordings():
    """Kind → patterns of its wordings, at the beginning or the end of what is asked."""
    slot = rf"(?P<\1>{FIELDS}|[a-z0-9 ]+?)"
    return {
        kind: [
            re.compile(rf"(?:^|[.] ){re.sub(SLOT, slot, re.escape(text))}(?: report ,|$)") for text in texts
        ]
        for kind, texts in WORLD.report_questions.items()
    }


def _phrases(text):
    """Parts that a text names in one phrase, in their order."""
    leads = "|".join(v for k, v in reports.KIND_ANSWERS.items() if k not in ("several", "null"))
    named = rf"(?:{leads}) , [a-z ]+?(?: , (?:after|when|always)[a-z ]*?)?"
    return re.findall(rf"({named})(?= \.| so |$)", text)


def test_sameness_is_told_rightly():
    verdicts = []
    for turn in drawn("same"):
        pair, _, verdict = turn.text.rpartition(" so ")
        left, _, right = pair.partition(" and ")
        if left.count(" ") == right.count(" "):  # names that hold "and" themselves are cut elsewhere
            assert (left == right) == (verdict == "yes"), turn
        verdicts.append(verdict)
    assert 0.4 < verdicts.count("yes") / len(verdicts) < 0.6
