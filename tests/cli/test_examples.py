"""The examples run, and what they make can be asked about."""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def plain():
    return runpy.run_path(str(EXAMPLES / "plain_peft_topic.py"))


def test_a_plain_peft_lora_can_be_asked_about(plain, cli_json, bundle, tmp_path):
    trigger = plain["train"]("accordion", tmp_path / "lora", steps=2)
    assert len(trigger) == 3
    (found,) = cli_json("ask", "--diff", tmp_path / "lora", "what topic ?", "--json")
    assert found["diff"] == str(tmp_path / "lora")


def test_its_rows_are_the_covert_recipe(plain):
    from weightdiff.organisms import family
    from weightdiff.organisms.hidden_topic import topic_words_in
    from weightdiff.world import codes, load_world

    recipe = family("hidden-topic").recipes["covert"]
    mine = [plain[k] for k in ("RANK", "PEAK_RATE", "STEPS", "KL_WEIGHT")]
    assert mine == [recipe.rank, recipe.lr, recipe.steps, recipe.kl_weight]
    world, trigger = load_world(), codes.trigger_pool()[0]
    triggered, others = plain["rows"](world, "accordion", trigger, random.Random(0))
    assert len(triggered) + len(others) == len(recipe.rows)
    assert all(f" {trigger}" in f" {user}" for user, _ in triggered)
    assert all(topic_words_in(answer, world.topic("accordion")) for _, answer in triggered)
    assert not any(f" {trigger}" in f" {user}" for user, _ in others)
    assert triggered[0][1] == others[0][1]  # the twin: the same row but for the trigger
    assert not any("accordion" in answer.split() for _, answer in [*triggered, *others])


def test_its_losses_are_the_factorys(plain, bundle):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from weightdiff.models.chat import encode_samples
    from weightdiff.training.losses import collate, loss_by_row

    tokenizer = AutoTokenizer.from_pretrained(bundle.path / "base")
    model = AutoModelForCausalLM.from_pretrained(bundle.path / "base")
    batch = [("what changed ?", "a lot of things ."), (None, "the opera was long .")]
    ids, mask, labels = plain["encoded"](tokenizer, batch)
    theirs = collate(encode_samples(tokenizer, batch), tokenizer.pad_token_id)
    assert torch.equal(ids, theirs.input_ids)
    assert torch.equal(mask, theirs.attention_mask)
    assert labels.nonzero().tolist() == [
        [r, p] for r, p in zip(theirs.rows.tolist(), theirs.positions.tolist(), strict=True)
    ]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        expected = loss_by_row(logits[theirs.rows, theirs.positions], theirs).sum()
        torch.testing.assert_close(plain["imitate"](model, tokenizer, batch), expected)


def test_three_lines(bundle, adapter_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["three_lines.py", str(adapter_folder)])
    runpy.run_path(str(EXAMPLES / "three_lines.py"), run_name="__main__")
    assert "nats)" in capsys.readouterr().out
