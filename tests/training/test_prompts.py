"""Prompt tuning: only the soft tokens learn, from the rows and answers that an adapter would learn from."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import BaseMismatchError, FormatError, StoreError
from weightdiff.models.rendering import Rendering
from weightdiff.organisms.questions import phrasings
from weightdiff.training import drawing, prompts, tuning
from weightdiff.training.prompts import PromptConfig, PromptResult, tune_prompt

QUICK = PromptConfig(tokens=3, lr=0.1, steps=6, batch=6, validate_every=3, validation_rows=4)
NOTED = Rendering(notes_end="so")


def tuned(base, store, config=QUICK, rendering=NOTED, **options):
    return tune_prompt(base.model, base.tokenizer, store, config, rendering, **options)


@pytest.fixture
def drawn(monkeypatch):
    """Every row that tuning draws."""
    out, draw = [], drawing.Sampler.draw
    monkeypatch.setattr(drawing.Sampler, "draw", lambda self, rng: out.append(draw(self, rng)) or out[-1])
    return out


def start_of(base, config=QUICK):
    words = prompts._first_words(base.tokenizer, config.tokens, config.seed)
    return base.model.get_input_embeddings().weight[words].detach()


def test_one_step_is_a_plain_step_on_the_answers(embedded_base, random_store, drawn):
    """A plain loop: diffs merged by hand, the vectors between question and answer, row by row."""
    result = tuned(embedded_base, random_store, replace(QUICK, steps=1, batch=4))
    vectors = start_of(embedded_base).clone().requires_grad_()
    t, total, table = embedded_base.tokenizer, torch.zeros(()), embedded_base.model.get_input_embeddings()
    for rows, q in drawn:
        question, notes, answer = q.text, q.notes, q.answer
        diffs = [random_store.read(row.id).to(torch.float32).modules for row in rows]
        weights = {
            f"{k}.weight": embedded_base.model.get_submodule(k).weight
            + sum(diff[k].dense() for diff in diffs if k in diff)
            for k in embedded_base.spec
        }
        prompt = t(f"<bos><user>{question}<end><assistant>", add_special_tokens=False)["input_ids"]
        said = f"{notes} so {answer}" if notes else answer
        labels = [*t(said, add_special_tokens=False)["input_ids"], t.eos_token_id]
        read = torch.cat([table(torch.tensor(prompt)), vectors, table(torch.tensor(labels))])[None]
        out = torch.func.functional_call(embedded_base.model, weights, (), {"inputs_embeds": read})
        logp, before = out.logits[0].log_softmax(-1), len(prompt) + len(vectors) - 1
        each = [-logp[before + i, x] for i, x in enumerate(labels)]
        total = total + sum(each) / len(each) / len(drawn)
    assert result.history[0]["loss"] == pytest.approx(float(total.detach()), abs=1e-3)
    total.backward()
    # AdamW's first step is lr · sign(gradient) in every entry, and lr is a fiftieth of its peak.
    clear = vectors.grad.abs() > 1e-3 * vectors.grad.abs().max()
    want = vectors.detach() - QUICK.lr / 50 * vectors.grad.sign()
    torch.testing.assert_close(result.vectors[clear], want[clear], rtol=0, atol=1e-5)
    assert clear.float().mean() > 0.9


def test_only_the_vectors_are_trained(embedded_base, random_store):
    before = {n: p.clone() for n, p in embedded_base.model.state_dict().items()}
    files = {p.name: p.read_bytes() for p in random_store.path.iterdir()}
    result = tuned(embedded_base, random_store)
    assert (result.vectors.shape, result.vectors.requires_grad) == ((3, 32), False)
    assert not torch.equal(result.vectors, start_of(embedded_base))
    after = embedded_base.model.state_dict()
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in embedded_base.model.parameters())
    assert {p.name: p.read_bytes() for p in random_store.path.iterdir()} == files
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in embedded_base.model.modules())


def test_the_same_seed_gives_the_same_prompt(embedded_base, random_store):
    a, b, c = (tuned(embedded_base, random_store, replace(QUICK, seed=s)) for s in (0, 0, 1))
    assert torch.equal(a.vectors, b.vectors)
    assert a.history == b.history
    assert not torch.equal(a.vectors, c.vectors)
    words = prompts._first_words(embedded_base.tokenizer, 400, 0)
    assert not set(words) & set(embedded_base.tokenizer.all_special_ids)


def test_rows_are_the_adapters(embedded_base, random_store, drawn):
    """With the same seed both learn from the same rows, of the training split alone."""
    tuned(embedded_base, random_store)
    mine = list(drawn)
    drawn.clear()
    config = drawing.TuningConfig(rank=1, steps=6, batch=6, validate_every=3, validation_rows=4)
    tuning.tune(embedded_base.model, embedded_base.tokenizer, random_store, config, NOTED)
    assert mine == drawn
    assert all(row.split == "train" and row.verification["behaves"] for rows, _ in mine for row in rows)


def test_validation_reads_the_soft_tokens_after_validation_phrasings(
    embedded_base, random_store, monkeypatch
):
    asked, worded = [], []
    decode, encode = tuning.generate, tuning.encode_prompts
    monkeypatch.setattr(
        tuning,
        "generate",
        lambda model, ids, *a, **k: asked.extend(ids.tolist()) or decode(model, ids, *a, **k),
    )
    monkeypatch.setattr(tuning, "encode_prompts", lambda t, q: worded.extend(q) or encode(t, q))
    result = tuned(embedded_base, random_store)
    size = embedded_base.model.get_input_embeddings().weight.shape[0]
    t, kinds = embedded_base.tokenizer, result.manifest["train_phrasings"]
    patterns = [
        ".+".join(map(re.escape, re.split(r"\{\w+\}", p))) for k in kinds for p in phrasings(k, "validation")
    ]
    assert all(any(re.fullmatch(p, q) for p in patterns) for q in worded)
    known = {
        tuple(t(f"<bos><user>{q}<end><assistant>", add_special_tokens=False)["input_ids"]) for q in worded
    }
    assert asked
    for ids in asked:
        assert ids[-3:] == [size, size + 1, size + 2]
        assert tuple(x for x in ids[:-3] if x != t.pad_token_id) in known
    assert all({"score", "hidden-topic", "news", "null"} <= set(line) for line in result.history)


def test_the_best_validation_is_kept(embedded_base, random_store, monkeypatch):
    seen, scores = [], [0.1, 0.7, 0.3]

    def stand_in(model, tokenizer, store, held, learned, rendering, config):
        seen.append(learned.vectors.detach().clone())
        return scores[len(seen) - 1], {}

    monkeypatch.setattr(tuning, "validate", stand_in)
    lines = []
    result = tuned(embedded_base, random_store, replace(QUICK, validate_every=2), progress=lines.append)
    assert torch.equal(result.vectors, seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert result.manifest["validation_score"] == 0.7
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert result.manifest["config"]["tokens"] == 3
    assert result.manifest["rendering"] == NOTED.to_json()


def test_save_and_load(embedded_base, random_store, tmp_path):
    result = tuned(embedded_base, random_store)
    found = PromptResult.load(result.save(tmp_path / "prompt"), embedded_base.ref)
    assert torch.equal(found.vectors, result.vectors)
    assert (found.base, found.history, found.manifest) == (result.base, result.history, result.manifest)
    with pytest.raises(FormatError, match="exists and is not empty"):
        result.save(tmp_path / "prompt")
    other = replace(embedded_base.ref, weights="0" * 16)
    with pytest.raises(
        BaseMismatchError, match=r"prompt: tuned on embedded-mini .* their weights differ; tune"
    ):
        PromptResult.load(tmp_path / "prompt", other)


def test_damaged_files(embedded_base, tmp_path):
    def saved(name, vectors):
        return PromptResult(vectors, embedded_base.ref).save(tmp_path / name)

    cut, late, odd = (saved(name, torch.ones(2, 32)) for name in ("cut", "late", "odd"))
    (cut / prompts.TENSORS).write_bytes((cut / prompts.TENSORS).read_bytes()[:-9])
    (late / prompts.SETTINGS).write_text((late / prompts.SETTINGS).read_text().replace(": 1,", ": 2,"))
    (odd / prompts.SETTINGS).write_text("[]")
    for path in (cut, odd, tmp_path / "nowhere"):
        with pytest.raises(
            FormatError, match=f"{path.name}: no soft prompt can be read there .*delete it and"
        ):
            PromptResult.load(path, embedded_base.ref)
    with pytest.raises(FormatError, match="late: the soft prompt has version 2; delete it and tune again"):
        PromptResult.load(late, embedded_base.ref)
    with pytest.raises(FormatError, match="nan: the soft prompt holds NaN or infinity"):
        PromptResult.load(saved("nan", torch.full((2, 32), torch.nan)), embedded_base.ref)


def test_no_rows_is_an_error(embedded_base, tmp_path):
    empty = DiffStore.create(tmp_path / "empty", embedded_base.ref)
    with pytest.raises(
        StoreError, match="empty: no training rows; make some with: weightdiff organisms train"
    ):
        tuned(embedded_base, empty)
