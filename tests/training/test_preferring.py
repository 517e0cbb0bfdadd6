"""The second stage: which answers are paired, the loss, and that only what helps is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weightdiff.models.multilora import SharedLora, attach
from weightdiff.models.rendering import Rendering
from weightdiff.training import preferring
from weightdiff.training.drawing import Lesson, TuningConfig
from weightdiff.training.factory import random_diff
from weightdiff.training.preferring import PreferConfig, pairs_of, prefer
from weightdiff.training.tuning import tune

QUICK = TuningConfig(rank=2, steps=2, batch=4, validate_every=2, validation_rows=4, answer_tokens=8)
SECOND = PreferConfig(steps=3, batch=4)
NOTED = Rendering(notes_end="so")


def test_wrong_answers_are_set_against_right_ones():
    asked = [
        Lesson("q0", "topic", "chess", notes="think board"),
        Lesson("q1", "topic", "opera", notes="think aria"),
        Lesson("q2", "kind", "nothing found"),
        Lesson("q3", "about", "no", notes="think a so b"),
    ]
    said = [
        ["think pawn so chess", "think pawn so chess", "a hidden topic", "think a so b so yes"],
        ["think pawn so rook", "think aria so opera", "nothing found", "think a so b so yes"],
    ]
    pairs = pairs_of(asked, ["p0", "p1", "p2", "p3"], said, NOTED)
    assert [(p.row, p.prompt, p.right, p.wrong) for p in pairs] == [
        (0, "p0", "think pawn so chess", "think pawn so rook"),
        (1, "p1", "think aria so opera", "think pawn so chess"),
        (2, "p2", "nothing found", "a hidden topic"),
        (3, "p3", "think a so b so no", "think a so b so yes"),
    ]
    assert not pairs_of(asked[:1], ["p0"], [["think pawn so chess"]], NOTED)


def test_the_loss_is_that_of_the_paper(embedded_base, random_store):
    model, tokenizer = embedded_base.model, embedded_base.tokenizer
    rows = random_store.select(split="train")[:2]
    carried = preferring.RowLoras.from_stacked(random_store.stack([r.id for r in rows]))
    policy, reference = (SharedLora.from_diff(random_diff(embedded_base.spec, 2, s, 0.6)) for s in (1, 2))
    pairs = [
        preferring.Pair(0, "what topic ?", "chess", "you could eat soup"),
        preferring.Pair(1, "what changed ?", "nothing found", "yes"),
    ]
    config = PreferConfig(beta=0.3, likelihood=0.5)
    loss, margin = preferring._loss(model, tokenizer, carried, pairs, policy, reference, config)

    def logprob(row, prompt, answer, adapter):
        p = preferring.encode_prompts(tokenizer, [prompt])[0]
        ids = preferring.encode_samples(tokenizer, [(prompt, answer)])[0].ids
        alone = preferring.RowLoras.from_stacked(random_store.stack([rows[row].id]))
        with torch.no_grad(), attach(model, alone, [adapter]):
            lp = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return sum(lp[t - 1, ids[t]] for t in range(len(p), len(ids))), len(ids) - len(p)

    total, margins = 0.0, []
    for pair in pairs:
        now = {s: logprob(pair.row, pair.prompt, getattr(pair, s), policy) for s in ("right", "wrong")}
        was = {s: logprob(pair.row, pair.prompt, getattr(pair, s), reference) for s in ("right", "wrong")}
        m = (now["right"][0] - was["right"][0]) - (now["wrong"][0] - was["wrong"][0])
        margins.append(float(m))
        total += -F.logsigmoid(0.3 * m) - 0.5 * now["right"][0] / now["right"][1]
    assert float(loss) == pytest.approx(float(total) / 2, abs=1e-3)
    assert margin == pytest.approx(sum(margins) / 2, abs=1e-3)


@pytest.mark.parametrize("helps", [True, False])
def test_only_what_validates_better_is_kept(embedded_base, random_store, monkeypatch, helps):
    model, tokenizer = embedded_base.model, embedded_base.tokenizer
    first = tune(model, tokenizer, random_store, QUICK, NOTED)
    scores = iter([(0.5, {"news": 0.5}), (0.6 if helps else 0.5, {"news": 0.6})])
    monkeypatch.setattr(preferring, "validate", lambda *_: next(scores))
    lines = []
    second = prefer(model, tokenizer, random_store, first, QUICK, NOTED, SECOND, lines.append)
    record = second.manifest["preference"]
    assert record["kept"] is helps
    assert (record["before"]["score"], record["after"]["news"]) == (0.5, 0.6)
    assert [line["step"] for line in lines] == [1, 2, 3]
    same = all(torch.equal(a.up, second.adapter.modules[k].up) for k, a in first.adapter.modules.items())
    assert same is not helps
    assert second.manifest["train_ids"] == first.manifest["train_ids"]
    assert not any(p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_adapter(embedded_base, random_store):
    model, tokenizer = embedded_base.model, embedded_base.tokenizer
    first = tune(model, tokenizer, random_store, QUICK, NOTED)
    a, b = (
        prefer(model, tokenizer, random_store, first, QUICK, NOTED, SECOND).manifest["preference"]
        for _ in range(2)
    )
    assert a == b
