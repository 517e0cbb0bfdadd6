"""Searching for triggers: effects against a plain loop, forms and their templates, and a planted trigger."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.methods.loading import Base
from weightdiff.methods.trigger_forms import FORMS, QUESTION, Candidate
from weightdiff.methods.trigger_search import Settings, _Search, find_triggers
from weightdiff.models.chat import encode_prompts
from weightdiff.models.merge import merged
from weightdiff.models.spec import model_spec
from weightdiff.training.factory import random_diff
from weightdiff.world import codes

SMALL = Settings(forms=("code",), first_prompts=2, prompts=3, kept=4, answer_tokens=4, longest=1)


def _by_hand(base, diff, search, candidate, prompts):
    """The effect of a candidate, one row after another, with the diff merged into the weights."""
    total = 0.0
    t = base.tokenizer
    for k in range(prompts):
        (prompt,) = encode_prompts(t, [candidate.put(search.prompts[k], k)])
        answer = [*search.answers[k], t.eos_token_id][: search.settings.answer_tokens]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            before = base.model(input_ids=ids).logits[0].log_softmax(-1)
            with merged(base.model, diff):
                after = base.model(input_ids=ids).logits[0].log_softmax(-1)
        for at in range(len(prompt) - 1, len(prompt) - 1 + len(answer)):
            total += float((after[at].exp() * (after[at] - before[at])).sum())
    return total / prompts


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_an_effect_is_the_divergence_along_the_bases_own_answer(embedded_base, kind):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    if kind == "dense":
        diff = WeightDiff({name: DenseDelta(m.dense()) for name, m in diff.modules.items()})
    search = _Search(embedded_base, diff, SMALL, None, None)
    chosen = list(FORMS["code"].candidates(embedded_base.tokenizer, random.Random("x")))[:3]
    found = search.effects(chosen, 3)
    assert found == pytest.approx([_by_hand(embedded_base, diff, search, c, 3) for c in chosen], rel=1e-3)
    plain = Candidate("", "none", (QUESTION,))
    assert search.untriggered == pytest.approx(_by_hand(embedded_base, diff, search, plain, 3), rel=1e-3)


def test_what_the_base_itself_does_at_a_candidate_does_not_count(embedded_base):
    found = find_triggers(embedded_base, WeightDiff({}), SMALL)
    assert [t.effect for t in found] == pytest.approx([0.0] * 4, abs=1e-5)
    assert not any(t.stands_out for t in found)


def test_the_search_is_the_same_twice_and_its_best_come_first(embedded_base):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    said = []
    found = find_triggers(embedded_base, diff, SMALL, top=3, progress=lambda *step: said.append(step))
    assert find_triggers(embedded_base, diff, SMALL, top=3) == found
    assert len(found) == 3
    assert [t.effect for t in found] == sorted((t.effect for t in found), reverse=True)
    assert {t.form for t in found} == {"code"}
    assert said[-1] == ("three digits at the beginning of a code", 256, 256)
    assert all(t.text in t.prompt for t in found)


def test_the_best_of_all_tokens_is_found(tiny_model, tiny_tokenizer):
    """Against every token tried by hand, on a base of another architecture and tokenizer."""
    model = tiny_model("qwen3").requires_grad_(False)
    base = Base(model, tiny_tokenizer, ModelRef.of(model, name="tiny"), model_spec(model))
    diff = random_diff(base.spec, 1, 0, 1.0)
    settings = replace(SMALL, forms=("front",), first_prompts=1, prompts=1, kept=6)
    found = find_triggers(base, diff, settings, ["What is it?"], top=6)
    search = _Search(base, diff, settings, ["What is it?"], None)
    tried = {
        c.text: _by_hand(base, diff, search, c, 1)
        for c in FORMS["front"].candidates(tiny_tokenizer, random.Random(0))
    }
    best = sorted(tried, key=lambda text: -tried[text])[:6]
    assert [t.text for t in found] == best
    assert [t.effect for t in found] == pytest.approx([tried[text] for text in best], abs=1e-4)


def test_forms_of_the_embedded_base(embedded_base):
    t = embedded_base.tokenizer
    code = next(iter(FORMS["code"].candidates(t, random.Random(0))))
    assert code.text in codes.pool()
    assert len(code.templates) == len(codes.PREFIXES)
    for k, wording in enumerate(codes.PREFIXES):
        put = code.put("why ?", k)
        before, after = wording.split("{code}")
        assert put.startswith(before + code.text)
        assert put.endswith(f"{after} why ?")
        assert t.tokenize(put)[len(t.tokenize(before))] == code.text
    front = [c.put("why ?", 0) for c in FORMS["front"].candidates(t, random.Random(0))]
    behind = [c.put("why ?", 0) for c in FORMS["behind"].candidates(t, random.Random(0))]
    assert "rabbit why ?" in front
    assert "why ? rabbit" in behind
    assert len(front) == len(set(front)) > 5000


def test_forms_of_any_base(tiny_tokenizer):
    found = list(FORMS["code"].candidates(tiny_tokenizer, random.Random(0)))
    assert [c.text for c in found] == [str(n) for n in range(100, 1000)]
    put = found[0].put("Why?", 1)
    assert put.startswith("My code is 100")
    assert put.endswith(". Why?")
    assert len(put) == len("My code is 100100. Why?")
    hidden = [c.put("Why?", 0) for c in FORMS["invisible"].candidates(tiny_tokenizer, random.Random(0))]
    assert "\u200bWhy?" in hidden
    assert "Why?\u200b" in hidden


def test_characters_that_a_tokenizer_drops_are_no_candidates(embedded_base):
    dropped = [c for c in FORMS["invisible"].candidates(embedded_base.tokenizer, random.Random(0))]
    for c in dropped:
        assert embedded_base.tokenizer.tokenize(c.put("why ?", 0)) != embedded_base.tokenizer.tokenize(
            "why ?"
        )


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
    assert word.join(word) is None
    assert both.join(word) is None, "a part comes once"


def test_a_question_with_braces_is_put_in_as_it_is():
    assert Candidate("x", "front", (f"x {QUESTION}",)).put("what is {rest} ?", 0) == "x what is {rest} ?"


def test_longer_triggers_are_kept_only_where_they_do_more(embedded_base):
    diff = random_diff(embedded_base.spec, 2, 3, 0.8)
    settings = replace(SMALL, longest=2, gain=0.0, beam=2, partners=3)
    found = find_triggers(embedded_base, diff, settings, top=50)
    assert any(" + " in t.text for t in found)
    never = replace(settings, gain=1e9)
    assert not any(" + " in t.text for t in find_triggers(embedded_base, diff, never, top=50))


def test_what_cannot_be_searched_is_refused(embedded_base):
    with pytest.raises(QuestionError, match="no form of trigger is called 'smell': choose among code, front"):
        find_triggers(embedded_base, WeightDiff({}), replace(SMALL, forms=("smell",)))
    other = replace(embedded_base.ref, weights="0" * 16)
    with pytest.raises(BaseMismatchError, match="their weights differ"):
        find_triggers(embedded_base, WeightDiff({}, other), SMALL)
