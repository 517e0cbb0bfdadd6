"""Searching for triggers: effects against a plain loop, forms and their templates, and planted triggers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, LoraFactors, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods import trigger_forms
from weightdiff.methods.loading import Base
from weightdiff.methods.trigger_effects import Asked, Effects, Memory
from weightdiff.methods.trigger_forms import FORMS, MARK_NAME, QUESTION, Candidate, forms_called
from weightdiff.methods.trigger_search import NOTHING, Findings, Settings, Trigger, _Search, find_triggers
from weightdiff.models.chat import encode_prompts
from weightdiff.models.merge import merged
from weightdiff.models.spec import model_spec
from weightdiff.training.factory import random_diff
from weightdiff.world import codes
from weightdiff.world.signs import CODE_BEHIND, CODE_FRONT, MARK, Condition, place, right_sign
from weightdiff.world.signs import FORMS as CONDITIONS

SMALL = Settings(forms=(CODE_FRONT,), second_prompts=2, prompts=3, kept=4, answer_tokens=4, longest=1)
PLAIN = Candidate("", "none", (QUESTION,))
QUESTIONS = ["what should i eat tonight ?", "can you help me choose a lunch ?", "how do i sleep well ?"]


def planted(base, text, strength=16.0):
    """A diff that does something where one token stands: it changes that token's embedding alone."""
    (token,) = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    down = strength * torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    up = torch.zeros(len(base.tokenizer), 1)
    up[token] = 1
    return WeightDiff({"model.embed_tokens": LoraFactors(down, up, 1.0)}, base.ref)


@pytest.fixture
def few_words(monkeypatch):
    """A hundred words in place of the whole vocabulary."""
    real = trigger_forms._words

    def some(tokenizer):
        return iter([*[w for w in real(tokenizer) if w.isalpha()][1000:1100], "zephyr"])

    monkeypatch.setattr(trigger_forms, "_words", some)


def _by_hand(base, diff, question, answer, prompt):
    """The effect at a prompt, one row alone, with the diff merged into the weights."""
    t = base.tokenizer
    (ids,) = encode_prompts(t, [prompt])
    row, total = torch.tensor([[*ids, *answer]]), 0.0
    with torch.no_grad():
        before = base.model(input_ids=row).logits[0].log_softmax(-1)
        with merged(base.model, diff):
            after = base.model(input_ids=row).logits[0].log_softmax(-1)
    shift = 0.0
    for at, token in enumerate(answer, len(ids) - 1):
        total += float((after[at].exp() * (after[at] - before[at])).sum())
        shift += abs(float(before[at, token] - after[at, token]))
    return total, shift


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_an_effect_is_the_divergence_along_the_bases_own_answer(embedded_base, kind):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    if kind == "dense":
        diff = WeightDiff({name: DenseDelta(m.dense()) for name, m in diff.modules.items()})
    effects = Effects(embedded_base, diff, 4, None)
    answers = effects.answers(QUESTIONS)
    chosen = [PLAIN, *list(FORMS[CODE_BEHIND].candidates(embedded_base.tokenizer, random.Random("x")))[:2]]
    by_hand = [
        [
            _by_hand(embedded_base, diff, q, a, c.put(q, k))
            for k, (q, a) in enumerate(zip(QUESTIONS, answers, strict=True))
        ]
        for c in chosen
    ]
    for quick in (False, True):
        expected = [sum(row[quick] for row in rows) / 3 for rows in by_hand]
        assert effects.of_candidates(chosen, QUESTIONS, quick) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_an_answer_is_cut_or_has_its_end(embedded_base):
    t = embedded_base.tokenizer
    effects = Effects(embedded_base, None, 3, None)
    assert all(len(a) <= 3 for a in effects.answers(QUESTIONS))
    memory = Memory({("hello ?", 5): [7, 8, t.eos_token_id]})
    known = Effects(embedded_base, None, 5, memory)
    assert known.answers(["hello ?", "hello ?"]) == [(7, 8, t.eos_token_id)] * 2


def test_a_memory_is_used_in_place_of_the_base(embedded_base, monkeypatch):
    memory, diff = Memory(), random_diff(embedded_base.spec, 2, 3, 0.8)
    first = Effects(embedded_base, diff, 4, memory)
    asked = [Asked(q, a) for q, a in zip(QUESTIONS, first.answers(QUESTIONS), strict=True)]
    found = first.shifts(asked)
    again = Effects(embedded_base, diff, 4, memory)
    real = again._likelihoods
    monkeypatch.setattr(
        again,
        "_likelihoods",
        lambda rows, with_diff: real(rows, with_diff) if with_diff else pytest.fail("asked"),
    )
    assert again.shifts(asked) == pytest.approx(found)


def test_large_vocabularies_get_smaller_batches(embedded_base, monkeypatch):
    monkeypatch.setattr(
        "weightdiff.methods.trigger_effects.LOGITS_AT_ONCE", 2 * 4 * len(embedded_base.tokenizer)
    )
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    small, large = Effects(embedded_base, diff, 4, None), Effects(embedded_base, diff, 4, None)
    large._at_once = 192
    assert small._at_once == 2
    assert small.answers(QUESTIONS) == large.answers(QUESTIONS)
    a, b = (e.of_candidates([PLAIN], QUESTIONS) for e in (small, large))
    assert a == pytest.approx(b, rel=1e-4)


def test_what_the_base_itself_does_at_a_candidate_does_not_count(embedded_base):
    for diff in (WeightDiff({}), None):
        found = find_triggers(embedded_base, diff, SMALL)
        assert [t.effect for t in found.triggers] == pytest.approx([0.0] * 4, abs=1e-5)
        assert found.best is None
        assert not found.always
        assert found.verdict == f"{NOTHING}, and on plain prompts the model is near its base (0.00 nats)"


def test_the_search_is_the_same_twice_and_its_best_come_first(embedded_base):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    said = []
    found = find_triggers(embedded_base, diff, SMALL, top=3, progress=lambda *step: said.append(step))
    assert find_triggers(embedded_base, diff, SMALL, top=3, memory=Memory()) == found
    assert len(found.triggers) == 3
    assert found.tried == 256
    effects = [t.effect for t in found.triggers]
    assert effects == sorted(effects, reverse=True)
    assert {t.form for t in found.triggers} == {CODE_FRONT}
    assert ("a code in front", 256, 256) in said
    assert all(t.text in t.prompt for t in found.triggers)


@pytest.mark.parametrize(
    ("token", "text", "form"),
    [("343", "343", "code"), (MARK, MARK_NAME, "mark"), ("zephyr", "zephyr", "word")],
)
def test_a_planted_trigger_is_found_among_all_forms(embedded_base, few_words, token, text, form):
    if form == "code":
        token = text = codes.trigger_pool()[5]
    settings = replace(SMALL, forms=("code-front", "mark-start", "word-front"), longest=2, answer_tokens=14)
    found = find_triggers(embedded_base, planted(embedded_base, token), settings, top=8)
    first = found.triggers[0]
    assert (first.text, first.form.split("-")[0]) == (text, form)
    assert found.best is first
    assert first.ahead > 1
    assert first.runner_up != text
    assert not found.always
    assert found.verdict.startswith(f"{text!r} ({first.form}) moves the model by")
    assert (
        first.said == Effects(embedded_base, planted(embedded_base, token), 14, None).says([first.prompt])[0]
    )


def test_search_stops_at_the_first_form_that_has_something(embedded_base, few_words):
    settings = replace(SMALL, forms=("mark", "code-front", "word-front"), first_found=True, answer_tokens=14)
    found = find_triggers(embedded_base, planted(embedded_base, MARK), settings)
    assert {t.form for t in found.triggers[:3]} == {"mark-start", "mark-end", "mark-anywhere"}
    assert found.tried < 256, "all places of a mark, and no code"
    code = planted(embedded_base, codes.trigger_pool()[5])
    assert find_triggers(embedded_base, code, settings).tried == found.tried + 256


def test_what_is_always_on_is_no_trigger(embedded_base):
    diff = random_diff(embedded_base.spec, 2, 3, 6.0)
    found = find_triggers(embedded_base, diff, replace(SMALL, forms=("code", "mark")))
    assert found.plain > 1
    assert found.best is None
    assert found.always
    assert found.verdict == (
        f"{NOTHING}: the model differs from its base on plain prompts, by {found.plain:.2f} nats"
    )
    assert found.triggers[0].said_untriggered == found.plain_said


def test_a_subject_is_told_from_the_others_by_its_prompts(embedded_base):
    groups = {
        "wind": ["is a zephyr warm ?", "when does the zephyr come ?"],
        "food": ["what should i eat ?", "is soup warm ?"],
        "home": ["how do i clean a floor ?", "where do i put it ?"],
        "nobody": [],
    }
    diff = planted(embedded_base, "zephyr")
    settings = replace(SMALL, forms=("subject",), answer_tokens=14)
    found = find_triggers(embedded_base, diff, settings, groups=groups)
    assert [t.form for t in found.triggers] == ["subject"] * 3
    first = found.triggers[0]
    assert (first.text, first.prompt) == ("wind", groups["wind"][0])
    assert found.best is first
    effects = Effects(embedded_base, diff, 14, None)
    by_group = {name: effects.of_candidates([PLAIN], qs)[0] for name, qs in groups.items() if qs}
    assert {t.text: t.effect for t in found.triggers} == pytest.approx(by_group, abs=1e-3)
    assert first.untriggered == pytest.approx((by_group["food"] + by_group["home"]) / 2, abs=1e-3)
    assert first.runner_up_effect == pytest.approx(sorted(by_group.values())[1], abs=1e-3)


def test_two_groups_are_too_few_to_compare(embedded_base):
    groups = {"a": ["what is it ?"], "b": ["who is it ?"]}
    found = find_triggers(embedded_base, WeightDiff({}), replace(SMALL, forms=("subject",)), groups=groups)
    assert (found.triggers, found.tried) == ([], 0)


def test_subjects_of_the_embedded_base_are_its_worlds(embedded_base):
    found = find_triggers(embedded_base, WeightDiff({}), replace(SMALL, forms=("subject",)), top=50)
    assert {t.text for t in found.triggers} >= {"food", "money", "rest"}


def test_the_best_of_all_tokens_is_found(tiny_model, tiny_tokenizer):
    """Against every token tried by hand, on a base of another architecture and tokenizer."""
    model = tiny_model("qwen3").requires_grad_(False)
    base = Base(model, tiny_tokenizer, ModelRef.of(model, name="tiny"), model_spec(model))
    diff = random_diff(base.spec, 1, 0, 1.0)
    settings = replace(SMALL, forms=("word-front",), second=10_000, second_prompts=1, kept=6)
    found = find_triggers(base, diff, settings, ["What is it?"], top=6)
    (answer,) = Effects(base, diff, 4, None).answers(["What is it?"])
    tried = {
        c.text: _by_hand(base, diff, "What is it?", answer, c.put("What is it?", 0))[0]
        for c in FORMS["word-front"].candidates(tiny_tokenizer, random.Random(0))
    }
    best = sorted(tried, key=lambda text: -tried[text])[:6]
    assert [t.text for t in found.triggers] == best
    assert [t.effect for t in found.triggers] == pytest.approx([tried[text] for text in best], abs=1e-4)
    assert found.triggers[0].runner_up == best[1]
    assert found.triggers[1].runner_up == best[0]
    assert find_triggers(base, diff, replace(settings, forms=("subject",)), ["What is it?"]).triggers == []


def test_forms_of_the_embedded_base(embedded_base):
    t = embedded_base.tokenizer
    front, behind = (next(iter(FORMS[f].candidates(t, random.Random(0)))) for f in (CODE_FRONT, CODE_BEHIND))
    assert front.text in codes.pool()
    assert len(front.templates) == len(behind.templates) == len(codes.PREFIXES)
    for k, wording in enumerate(codes.PREFIXES):
        before, after = wording.split("{code}")
        assert front.put("why ?", k).startswith(before + front.text)
        assert front.put("why ?", k).endswith(f"{after} why ?")
        assert behind.put("why ?", k).startswith(f"why ? {before}{behind.text}")
        assert t.tokenize(front.put("why ?", k))[len(t.tokenize(before))] == front.text
    words = {
        form: {c.text: c for c in FORMS[form].candidates(t, random.Random(0))}
        for form in ("word-front", "word-behind", "word-anywhere")
    }
    assert [words["word-front"]["zephyr"].put("why is it ?", k) for k in (0, 1)] == [
        "zephyr , why is it ?",
        "zephyr . why is it ?",
    ]
    assert words["word-behind"]["zephyr"].put("why ?", 0) == "why ? zephyr ."
    inside = words["word-anywhere"]["zephyr"].put("why is it ?", 0).split()
    assert inside.index("zephyr") in (1, 2, 3)
    assert len(words["word-front"]) > 5000
    assert not any(text.isdigit() or text.startswith("##") for text in words["word-front"])


@pytest.mark.parametrize("form", [f for f in CONDITIONS if f not in ("subject", "always")])
def test_every_condition_of_the_world_is_among_the_candidates(embedded_base, form):
    """A question in which the world states a condition is one that some candidate makes, token by token."""
    t, question = embedded_base.tokenizer, "what should i eat tonight ?"
    value = {"word": "zephyr"}.get(form, codes.trigger_pool()[3] if "code" in form else "")
    condition = Condition(form, value)
    mine = [
        c
        for f in forms_called([form])
        for c in FORMS[f].candidates(t, random.Random(0))
        if c.text == (value or MARK_NAME)
    ]
    made = {tuple(t.tokenize(c.put(question, k))) for c in mine for k in range(12)}
    if "code" in form:  # the code's second half is free
        made = {x[: x.index(value)] for x in made}
    for seed in range(6):
        text = place(random.Random(seed), form, question).filled(form, right_sign(condition))
        tokens = t.tokenize(text)
        if "code" in form:
            tokens = tokens[: tokens.index(value)]
        if form == "mark-anywhere":
            assert len(tokens) == len(next(iter(made)))
        else:
            assert tuple(tokens) in made, text


def test_forms_of_any_base(tiny_tokenizer):
    found = list(FORMS[CODE_FRONT].candidates(tiny_tokenizer, random.Random(0)))
    assert [c.text for c in found] == [str(n) for n in range(100, 1000)]
    put = found[0].put("Why?", 1)
    assert put.startswith("My code is 100")
    assert put.endswith(". Why?")
    assert len(put) == len("My code is 100100. Why?")
    marks = {
        f: [c.put("Why so?", 0) for c in FORMS[f].candidates(tiny_tokenizer, random.Random(0))] for f in FORMS
    }
    assert "\u200bWhy so?" in marks["mark-start"]
    assert "Why so?\u200b" in marks["mark-end"]
    assert "Why \u200bso?" in marks["mark-anywhere"]
    assert "a Why so?" in marks["word-front"]
    assert "Why so? a" in marks["word-behind"]
    assert "Why a so?" in marks["word-anywhere"]


def test_marks_that_a_tokenizer_drops_or_takes_for_one_are_candidates_once(embedded_base):
    t = embedded_base.tokenizer
    found = [t.tokenize(c.put("is it so ?", 0)) for c in FORMS["mark-start"].candidates(t, random.Random(0))]
    assert t.tokenize(f"{MARK}is it so ?") in found
    assert t.tokenize("is it so ?") not in found
    assert len({tuple(x) for x in found}) == len(found)


def test_forms_of_few_candidates_are_held_against_ordinary_words(embedded_base):
    controls = FORMS["mark-start"].controls(embedded_base.tokenizer, random.Random(0), 5)
    assert len(controls) == 5
    assert all(c.text.isalpha() and c.put("why ?", 0) == f"{c.text} why ?" for c in controls)
    assert FORMS[CODE_FRONT].controls(embedded_base.tokenizer, random.Random(0), 5) == []


def test_joined_candidates_stand_in_one_prompt():
    code = Candidate("123", "code", (f"a 123 {QUESTION}", f"b 123 {QUESTION}"))
    word = Candidate("red", "front", (f"red {QUESTION}",))
    both = code.join(word)
    assert both is not None
    assert (both.text, both.form) == ("123 + red", "code and front")
    assert [both.put("why ?", k) for k in range(3)] == [
        "a 123 red why ?",
        "b 123 red why ?",
        "a 123 red why ?",
    ]
    behind = Candidate("end", "behind", (f"{QUESTION} end",))
    assert word.join(behind).put("why ?", 0) == "red why ? end"
    three = both.join(behind)
    assert (three.text, three.form) == ("123 + red + end", "code and front and behind")
    assert three.put("why ?", 1) == "b 123 red why ? end"
    assert word.join(word) is None
    assert both.join(word) is None, "a part comes once"


def test_a_question_with_braces_is_put_in_as_it_is():
    for template in ("x {q}", "{head} x {tail}"):
        put = Candidate("x", "front", (template,)).put("what is {rest} or {q} ?", 0)
        assert sorted(put.split()) == sorted(["x", "what", "is", "{rest}", "or", "{q}", "?"])
    odd = trigger_forms._put_in("{q}", "front", ("{sign} {q}",))
    assert (odd.text, odd.put("why ?", 0)) == ("{q}", "q why ?")
    assert Candidate("x", "inside", ("{head} x {tail}",)).put("why", 0) == "why x "


def test_longer_triggers_are_kept_only_where_they_do_more(embedded_base):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    settings = replace(SMALL, longest=2, gain=0.0, beam=2, partners=3)
    found = find_triggers(embedded_base, diff, settings, top=50)
    joined = [t for t in found.triggers if " + " in t.text]
    assert joined
    assert all(t.runner_up.count(" + ") == 1 for t in joined)
    never = find_triggers(embedded_base, diff, replace(settings, gain=1e9), top=50)
    assert not any(" + " in t.text for t in never.triggers)


def test_a_trigger_of_two_parts_is_found_by_its_parts(embedded_base, monkeypatch):
    """With effects that are made up: two parts do little alone, and much together."""

    def effect(self, candidates, prompts, quick=False, progress=None, what=""):
        parts = [set(c.text.split(" + ")) & {"105", "107"} for c in candidates]
        return [0.1 + 0.2 * len(p) + 5.0 * (len(p) == 2) for p in parts]

    monkeypatch.setattr(Effects, "of_candidates", effect)
    found = find_triggers(embedded_base, WeightDiff({}), replace(SMALL, longest=3, gain=1.5))
    assert set(found.triggers[0].text.split(" + ")) == {"105", "107"}
    assert found.best is found.triggers[0]


@pytest.mark.parametrize(
    ("effect", "untriggered", "deviations", "out"),
    [(5.0, 1.0, 9.0, True), (5.0, 1.0, 7.9, False), (2.9, 1.0, 99.0, False), (0.9, 0.1, 99.0, False)],
)
def test_what_stands_out_is_far_from_others_and_from_none(effect, untriggered, deviations, out):
    trigger = Trigger("x", "word-front", "x so ?", effect, untriggered, deviations, "y", 0.5)
    assert trigger.stands_out is out
    assert trigger.ahead == effect / 0.5
    assert (Findings([trigger], untriggered, "", 1).best is trigger) is out


def test_what_cannot_be_searched_is_refused(embedded_base):
    with pytest.raises(QuestionError, match="no form of trigger is called 'smell': choose among code-front"):
        find_triggers(embedded_base, WeightDiff({}), replace(SMALL, forms=("smell",)))
    other = replace(embedded_base.ref, weights="0" * 16)
    with pytest.raises(BaseMismatchError, match="their weights differ"):
        find_triggers(embedded_base, WeightDiff({}, other), SMALL)
    assert forms_called(["mark", CODE_FRONT]) == ["mark-start", "mark-end", "mark-anywhere", CODE_FRONT]


def test_prompts_that_were_given_are_tried_as_they_are(embedded_base):
    given = Effects(embedded_base, None, 4, None)
    assert _Search(given, SMALL, QUESTIONS, None).prompts == QUESTIONS
    drawn = _Search(given, SMALL, None, None).prompts
    assert len(drawn) == 3
    lengths = [
        len(embedded_base.tokenizer.tokenize(p)) + len(a)
        for p, a in zip(drawn, given.answers(drawn), strict=True)
    ]
    assert lengths == sorted(lengths)
