"""The activation difference lens, against merged weights and transformers' own hidden states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import QuestionError
from weightdiff.methods.activation_difference import ActivationDifference
from weightdiff.methods.registry import Context, build
from weightdiff.models.chat import chat_format, encode_answers
from weightdiff.models.merge import merged
from weightdiff.organisms.base import NOTHING_FOUND

TEXTS = ("the cat sat by the door .", "how do i make good soup ?", "it was a quiet sunday in minsk .")
PROMPTS = ("how do i thank a friend ?",)


class Reader:
    """A guesser that keeps what it is shown."""

    def __init__(self):
        self.read = []

    def guess(self, texts, question):
        self.read.append((list(texts), question))
        return f"guess {len(self.read)}"


@pytest.fixture
def method(embedded_base):
    return ActivationDifference(
        embedded_base,
        Reader(),
        TEXTS,
        PROMPTS,
        layer=1,
        first=2,
        longest=6,
        strengths=(1.0,),
        words=3,
        max_new_tokens=3,
    )


def _by_hand(method, diff):
    """Mean differences after layer 1, text by text, with the diff merged into the weights."""
    base, t = method.base, method.base.tokenizer
    start = chat_format(t).plain_start
    rows = [ids[:6] for ids in encode_answers(t, [start + x for x in TEXTS], end=False)]

    def streams():
        return [
            base.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
            for ids in rows
        ]

    with torch.no_grad():
        before = streams()
        with merged(base.model, diff):
            after = streams()
    change = [b - a for a, b in zip(before, after, strict=True)]
    positions = [torch.stack([c[j] for c in change]).mean(0) for j in range(2)]
    return torch.stack([*positions, torch.cat([c[1:] for c in change]).mean(0)])


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_differences_are_means_over_merged_weights(method, diffs, kind):
    diff = diffs[1]
    if kind == "dense":
        diff = WeightDiff({k: DenseDelta(m.dense()) for k, m in diff.modules.items()})
    found = method.differences([None, diff])
    torch.testing.assert_close(found[1], _by_hand(method, diff), rtol=1e-3, atol=1e-5)
    assert not found[0].any()


def test_the_guesser_reads_words_and_steered_texts_of_each_different_diff(method, diffs):
    questions = ["which topic ?", "any change ?", "which topic ?", "which topic ?"]
    answers = method.answer([diffs[0], diffs[0], None, diffs[1]], questions)
    read = method.guesser.read
    assert [q for _, q in read] == ["which topic ?", "any change ?", "which topic ?"]
    assert read[0][0] == read[1][0] != read[2][0]
    assert answers[2].text == NOTHING_FOUND
    assert [a.text for a in answers] == ["guess 1", "guess 2", NOTHING_FOUND, "guess 3"]
    places = 3  # two positions and all
    assert len(read[0][0]) == places + places * len(PROMPTS)
    assert answers[0].notes.split("; ")[0].split(", ") == read[0][0][0].split(", ")


def test_one_by_one_is_the_same(method, diffs):
    together = method.answer(diffs, ["which topic ?"] * 3)
    alone = [replace(method, guesser=Reader()).answer([d], ["which topic ?"])[0] for d in diffs]
    assert [a.notes for a in together] == [a.notes for a in alone]


def test_the_base_is_as_before_and_layers_are_checked(method, diffs):
    state = {k: v.clone() for k, v in method.base.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in method.base.model.modules())
    method.answer([diffs[0]], ["which topic ?"])
    assert all(torch.equal(v, state[k]) for k, v in method.base.model.state_dict().items())
    assert sum(len(m._forward_hooks) for m in method.base.model.modules()) == hooks
    with pytest.raises(QuestionError, match="there is no layer 9"):
        replace(method, layer=9).answer([diffs[0]], ["which topic ?"])


def test_its_guesser_is_the_contexts(embedded_base):
    reader = Reader()
    assert build("activation-difference", Context(embedded_base, guesser=reader)).guesser is reader
