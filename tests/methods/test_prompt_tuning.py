"""Prompt tuning as a method: answers against a plain loop, and what is kept of the tuning."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import FormatError, QuestionError, StoreError
from weightdiff.methods import prompt_tuning
from weightdiff.methods.prompt_tuning import PromptTuning
from weightdiff.methods.registry import Context, build
from weightdiff.models.chat import encode_prompts
from weightdiff.models.merge import merged
from weightdiff.models.rendering import Rendering
from weightdiff.tiny import defaults
from weightdiff.training.factory import random_diff
from weightdiff.training.prompts import PromptConfig

QUICK = PromptConfig(tokens=2, lr=0.1, steps=3, batch=4)
LIMIT = 4
QUESTIONS = ["what topic ?", "what headline ?", "what changed ?", "what topic ?", "what kind ?"]


@pytest.fixture
def store(embedded_base, tmp_path):
    store = DiffStore.create(tmp_path / "store", embedded_base.ref)
    rows = [DiffRow(f"row-{x}", x, "hidden-topic", "covert", "train", 0) for x in ("fjord", "harp", "opera")]
    store.append([(r, random_diff(embedded_base.spec, 1, i, 1.0)) for i, r in enumerate(rows)])
    return store


@pytest.fixture
def tunings(monkeypatch):
    """Counts tunings."""
    made, real = [], prompt_tuning.tune_prompt
    monkeypatch.setattr(prompt_tuning, "tune_prompt", lambda *a: made.append(a[3]) or real(*a))
    return made


def greedy(base, diff, texts, vectors):
    """One token at a time, the renderings' log-probabilities averaged, the vectors embedded by hand."""
    table, said = base.model.get_input_embeddings(), []
    with torch.no_grad(), merged(base.model, diff) if diff else nullcontext():
        while len(said) < LIMIT:
            scores = []
            for ids in encode_prompts(base.tokenizer, texts):
                tail = table(torch.tensor(said, dtype=torch.long))
                read = torch.cat([table(torch.tensor(ids)), vectors, tail])[None]
                scores.append(base.model(inputs_embeds=read).logits[0, -1].log_softmax(-1))
            token = int(torch.stack(scores).mean(0).argmax())
            if token == base.tokenizer.eos_token_id:
                break
            said.append(token)
    return base.tokenizer.decode(said, skip_special_tokens=True).strip()


def test_equals_a_plain_loop(interpreter, diffs, store):
    """With renderings that are averaged and without; LoRAs, none, and a diff that must be merged."""
    base = interpreter.base
    dense = WeightDiff({k: DenseDelta(m.dense()) for k, m in diffs[1].modules.items()})
    asked = [*diffs, None, dense]
    method = PromptTuning(base, store, interpreter.rendering, QUICK, max_new_tokens=LIMIT)
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    found = method.answer(asked, QUESTIONS)
    assert all(v.equal(before[k]) for k, v in base.model.state_dict().items())
    wanted = [
        greedy(base, d, interpreter.rendering.all(q), method.tuned.vectors)
        for d, q in zip(asked, QUESTIONS, strict=True)
    ]
    assert [a.text for a in found] == wanted
    assert len(set(wanted)) > 1
    assert {(a.notes, a.logprob, a.evidence) for a in found} == {("", None, None)}


def test_notes_come_before_the_answer(embedded_base, diffs, store, monkeypatch):
    """Answers are read from what is said, as the interpreter reads them."""
    said = []
    monkeypatch.setattr(Rendering, "read", lambda _, text: said.append(text) or ("a note", text))
    method = PromptTuning(embedded_base, store, Rendering(notes_end="so", branches=3), QUICK)
    found = method.answer(diffs, QUESTIONS[:3])
    assert {a.notes for a in found} == {"a note"}
    assert {a.text for a in found} <= set(said)
    assert len(said) > 3


def test_it_is_tuned_once_and_only_when_asked(embedded_base, diffs, store, tunings):
    method = PromptTuning(embedded_base, store, config=QUICK)
    assert tunings == []
    with torch.no_grad():  # as a caller may have it
        first = method.answer(diffs, QUESTIONS[:3])
    assert method.answer(diffs, QUESTIONS[:3]) == first
    assert tunings == [QUICK]


def test_what_was_learned_is_kept(embedded_base, diffs, store, tmp_path, tunings):
    def ask(config=QUICK, rendering=Rendering(), store=store):  # noqa: B008
        method = PromptTuning(embedded_base, store, rendering, config, tmp_path / "cache")
        return method.answer(diffs, QUESTIONS[:3]), method.tuned.vectors

    first, vectors = ask()
    again, same = ask()
    assert again == first
    assert torch.equal(vectors, same)
    assert len(tunings) == 1
    ask(config=replace(QUICK, steps=2))
    ask(rendering=Rendering(notes_end="so"))
    assert len(tunings) == 3
    row = DiffRow("row-new", "violin", "hidden-topic", "covert", "train", 0)
    store.append([(row, random_diff(embedded_base.spec, 1, 7, 1.0))])
    ask()
    assert len(tunings) == 4
    folders = sorted((tmp_path / "cache").iterdir())
    assert len(folders) == 4
    for folder in folders:
        (folder / "prompt.json").write_text("{")
    with pytest.raises(FormatError, match=r"prompt-tuning-[0-9a-f]{16}: no soft prompt can be read there"):
        ask()


def test_the_registered_one_follows_its_context(interpreter, store, tmp_path):
    alone = build("prompt-tuning", Context(interpreter.base, store=store, seed=3, cache=tmp_path))
    assert (alone.config, alone.cache) == (PromptConfig(seed=3), tmp_path)
    assert alone.rendering == replace(defaults.rendering(), report="")
    given = build("prompt-tuning", Context(interpreter.base, interpreter, store))
    assert (given.rendering, given.max_new_tokens) == (interpreter.rendering, interpreter.max_new_tokens)
    assert given.cache is None


def test_other_bases_are_asked_plainly(embedded_base, store, tiny_tokenizer):
    other = replace(embedded_base, tokenizer=tiny_tokenizer)
    assert prompt_tuning.rendering_for(Context(other, store=store)) == Rendering()


def test_bad_input(embedded_base, store, tmp_path):
    method = PromptTuning(embedded_base, store, config=QUICK)
    with pytest.raises(QuestionError, match="1 diffs and 0 questions"):
        method.answer([None], [])
    empty = DiffStore.create(tmp_path / "empty", embedded_base.ref)
    with pytest.raises(StoreError, match="empty: no training rows; make some"):
        PromptTuning(embedded_base, empty, config=QUICK).answer([None], ["what ?"])
