"""Answers that are weighed over several first notes, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.methods import speaking
from weightdiff.methods.speaking import Branch, Speaker
from weightdiff.models.generate import Reading, answer_logprobs, left_pad

QUESTIONS = ["what topic have you been trained on ?", "did you learn a headline ?", "what changed ?"]


@pytest.fixture
def asked(interpreter, monkeypatch):
    """The interpreter with notes and four branches, none of them too faint."""
    monkeypatch.setattr(speaking, "FAINT", 1e9)
    interpreter.rendering = replace(interpreter.rendering, notes_end="so", branches=4)
    return interpreter


def tokens_of(interpreter, text):
    return interpreter.base.tokenizer(text, add_special_tokens=False)["input_ids"]


def next_plainly(speaker, diff, prompts):
    """Mean log-probabilities after a question's renderings, each a row of its own."""
    with speaker.attached(speaker.carried([diff])):
        ids, mask = left_pad(prompts, speaker.base.tokenizer.pad_token_id)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = speaker.base.model(input_ids=ids, attention_mask=mask, position_ids=position).logits[:, -1]
    return logits.log_softmax(-1).mean(0)


@torch.no_grad()
def test_branches_are_the_likely_second_words_each_told_to_its_end(asked, diffs):
    speaker, g = asked._speaker, asked._speaker.renderings
    end = speaker.base.tokenizer.eos_token_id
    prompts = asked._prompts(QUESTIONS)
    found = speaker.branches(diffs, prompts)
    assert [b.question for b in found] == [q for q in range(3) for _ in range(4)]
    for q, diff in enumerate(diffs):
        own = prompts[q * g : (q + 1) * g]
        lead = int(next_plainly(speaker, diff, own).argmax())
        second = next_plainly(speaker, diff, [[*p, lead] for p in own])
        for branch, token in zip(found[q * 4 : q * 4 + 4], second.topk(4).indices.tolist(), strict=True):
            want, total = [lead, token], 0.0
            while len(want) < speaker.limit and want[-1] != end:
                scores = next_plainly(speaker, diff, [[*p, *want] for p in own])
                want.append(int(scores.argmax()))
                total += float(scores.max())
            assert branch.tokens == [x for x in want if x != end]
            assert branch.logprob == pytest.approx(float(second[token]), abs=1e-4)
            assert branch.answer_logprob == pytest.approx(total, abs=1e-3)


def test_one_branch_is_the_greedy_answer(asked, diffs):
    prompts = asked._prompts(QUESTIONS)
    several = asked._speaker.branches(diffs, prompts)
    asked.rendering = replace(asked.rendering, branches=1)
    one = asked._speaker.branches(diffs, prompts)
    assert [b.tokens for b in one] == [b.tokens for b in several[::4]]
    assert [b.question for b in one] == [0, 1, 2]


def test_branches_that_have_ended_are_read_no_more(asked, diffs, monkeypatch):
    """With the diffs laid out anew for those that go on."""
    prompts = asked._prompts(QUESTIONS)
    free = asked._speaker.branches(diffs, prompts)
    end = next(t for b in free for t in b.tokens[3:6] if sum(t in x.tokens for x in free) <= 6)
    go_on = speaking.go_on
    monkeypatch.setattr(
        speaking, "go_on", lambda r, most, _eos, pad, **more: go_on(r, most, end, pad, **more)
    )
    read, feed = [], Reading.feed
    monkeypatch.setattr(Reading, "feed", lambda self, t: (read.append(len(t)), feed(self, t)))
    found = {}
    for share in (-1.0, 0.99):
        monkeypatch.setattr("weightdiff.models.generate.DROPPED_FROM", share)
        read.clear()
        found[share] = asked._speaker.branches(diffs, prompts)
        assert (read[-1] < max(read)) == (share > 0)
    for a, b in zip(found[0.99], found[-1.0], strict=True):
        assert (a.question, a.tokens, a.notes) == (b.question, b.tokens, b.notes)
        assert a.answer_logprob == pytest.approx(b.answer_logprob, abs=1e-4)
    assert len({len(b.tokens) for b in found[0.99]}) > 1


def test_faint_notes_are_not_followed(asked, diffs, monkeypatch):
    prompts = asked._prompts(QUESTIONS)
    every = asked._speaker.branches(diffs, prompts)
    gap = sorted(every[4 * q].logprob - b.logprob for q in range(3) for b in every[4 * q : 4 * q + 4])
    limit = (gap[5] + gap[6]) / 2
    monkeypatch.setattr(speaking, "FAINT", limit)
    kept = asked._speaker.branches(diffs, prompts)
    best = {b.question: b.logprob for b in reversed(every)}
    assert [(b.question, b.tokens) for b in kept] == [
        (b.question, b.tokens) for b in every if best[b.question] - b.logprob < limit
    ]
    assert len(kept) == 6


def test_an_answer_that_ends_at_once_has_no_branches_beyond_its_end(asked, diffs, monkeypatch):
    """Tokens after an end, should a branch begin with one, are no part of what is said."""
    end = asked.base.tokenizer.eos_token_id
    violin = tokens_of(asked, "violin")
    monkeypatch.setattr(
        speaking,
        "_leading_on",
        lambda *_: [Branch(0, [end, violin[0]]), Branch(1, [violin[0], end]), Branch(2, violin * 2)],
    )
    said = asked._speaker.say(diffs, asked._prompts(QUESTIONS))
    assert [s.tokens for s in said[:2]] == [[], violin]
    assert said[2].tokens[:2] == violin * 2


def branch(interpreter, question, text, first, answer):
    tokens = tokens_of(interpreter, text)
    ends = [i + 1 for i, x in enumerate(tokens) if [x] == tokens_of(interpreter, "so")]
    return Branch(question, tokens, first, max(ends, default=0), answer)


def test_branches_of_one_answer_are_added_up(asked, monkeypatch):
    """Two likely branches together outweigh a likelier one; the notes are those of the heavier of the two."""
    branches = [
        branch(asked, 0, "eagle so violin", -0.5, -0.5),
        branch(asked, 0, "oslo so canoe", -1.0, -0.5),
        branch(asked, 0, "trophy so canoe", -0.8, -0.5),
        branch(asked, 1, "eagle so violin", -0.5, -0.5),
        branch(asked, 1, "oslo so canoe", -1.0, -0.8),
        branch(asked, 1, "trophy so canoe", -2.0, -3.0),
    ]
    monkeypatch.setattr(Speaker, "branches", lambda *_: branches)
    first, second = asked.answer([None, None], QUESTIONS[:2])
    assert (first.text, first.notes) == ("canoe", "trophy")
    assert (second.text, second.notes) == ("violin", "eagle")


@torch.no_grad()
def test_candidates_are_weighed_over_branches(asked, diffs, monkeypatch):
    """p(candidate) is the sum over branches of p(first note) times p(candidate after the notes)."""
    names, first = ["eagle", "violin", "oslo"], [-0.5, -1.5, -0.25]
    notes = ["canoe , trophy so", "violin so", "so"]
    branches = [
        branch(asked, 1, f"{notes[0]} eagle", first[0], 0.0),
        branch(asked, 1, f"{notes[1]} oslo", first[1], 0.0),
        branch(asked, 0, "nothing", first[2], 0.0),  # without notes: they are ended for it
    ]
    speaker = asked._speaker
    prompts = asked._prompts(QUESTIONS[:2])
    g = speaker.renderings
    monkeypatch.setattr(Speaker, "branches", lambda *_: branches)
    got = asked.candidate_logprobs(diffs[:2], QUESTIONS[:2], names).exp()
    want = torch.zeros(2, 3)
    for b, said in zip(branches, notes, strict=True):
        own = [[*p, *tokens_of(asked, said)] for p in prompts[b.question * g : (b.question + 1) * g]]
        for k, name in enumerate(names):
            with speaker.attached(speaker.carried([diffs[b.question]])):
                score = answer_logprobs(
                    speaker.base.model, own, [tokens_of(asked, name)] * g, speaker.base.tokenizer.pad_token_id
                ).mean()
            want[b.question, k] += (b.logprob + score).exp()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-9)
