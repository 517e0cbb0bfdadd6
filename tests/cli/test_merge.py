"""Merges and sweeps from the command line."""

from __future__ import annotations

import json
from inspect import signature

import pytest
import torch
from peft import PeftModel

from weightdiff.cli.merge import Rule, command
from weightdiff.diffs import algebra
from weightdiff.diffs.formats.peft import read_peft, write_peft
from weightdiff.diffs.merging import DENSITY, RULES
from weightdiff.diffs.store import DiffStore
from weightdiff.methods.loading import load_base


@pytest.fixture
def two(bundle, tmp_path):
    """Two LoRAs in folders, and as they were written."""
    store = DiffStore.open(bundle.store)
    diffs = [store.read(bundle.ids[i]) for i in (0, 1)]
    return [write_peft(d, tmp_path / f"lora-{i}") for i, d in enumerate(diffs)], diffs


def test_a_sum_loads_in_peft_and_acts_as_both(cli_json, two, bundle, tmp_path):
    paths, diffs = two
    report = cli_json("merge", *paths, "--weight", 0.5, "--weight", -2, "--out", tmp_path / "out", "--json")
    assert report["weights"] == [0.5, -2.0]
    assert (report["rank"], report["kept"]) == (2, 1.0)
    written = read_peft(tmp_path / "out")
    want = algebra.combine(diffs, [0.5, -2.0])
    assert algebra.distance(written, want) < 1e-5
    assert written.meta["merged"]["sources"] == [str(p) for p in paths]
    ids = torch.tensor([[2, 9, 30, 44]])
    base = load_base(str(bundle.path / "base"))
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base.model, str(tmp_path / "out"))(ids).logits
    by_hand = load_base(str(bundle.path / "base")).model
    for name, m in want.modules.items():
        by_hand.get_submodule(name).weight.data += m.dense()
    with torch.no_grad():
        torch.testing.assert_close(theirs, by_hand(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "weights"),
    [((), (1, 1)), (("--at", "0.25"), (0.75, 0.25)), (("-w", "2", "-w", "3"), (2, 3))],
)
def test_factors_are_told_in_three_ways(cli, two, tmp_path, options, weights):
    paths, diffs = two
    result = cli("merge", *paths, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "one LoRA of rank 2" in result.stdout
    assert algebra.distance(read_peft(tmp_path / "out"), algebra.combine(diffs, weights)) < 1e-5


def test_an_analogy_of_three_and_a_negated_diff(cli, two, bundle, tmp_path):
    (a, b), (first, second) = two
    assert cli("merge", a, b, a, "--analogy", "--rank", 2, "--out", tmp_path / "out").exit_code == 0
    want = algebra.combine([first, second], [2.0, -1.0])
    assert algebra.distance(read_peft(tmp_path / "out"), want) < 1e-5
    assert cli("merge", a, "--weight=-1", "--out", tmp_path / "negated").exit_code == 0
    assert algebra.norm(algebra.add(read_peft(tmp_path / "negated"), first)) < 1e-5


def test_rules_tell_what_truncation_lost(cli, two, tmp_path):
    paths, _ = two
    options = ("--rule", "dare-ties", "--density", 0.5, "--seed", 3)
    result = cli("merge", *paths, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "truncation kept" in result.stderr
    assert read_peft(tmp_path / "out").meta["merged"]["seed"] == 3
    cli("merge", *paths, *options, "--out", tmp_path / "again")
    again = read_peft(tmp_path / "again")
    for name, m in read_peft(tmp_path / "out").modules.items():
        assert torch.equal(m.dense(), again.modules[name].dense())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--at", "0.5", "--analogy"), "give one of them"),
        (("--analogy",), "--analogy is of three diffs (first - second + third), and 2 are given"),
        (("-w", "1"), "1 --weight for 2 diffs"),
        (("--rule", "ties", "--density", "0"), "a density lies above 0 and up to 1, not 0.0"),
    ],
)
def test_what_cannot_be_merged(refused, two, tmp_path, options, told):
    paths, _ = two
    assert told in refused("merge", *paths, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_that_cannot_be_merged(refused, two, tmp_path):
    (a, b), _ = two
    assert "--at lies between two diffs, and 1 are given" in refused(
        "merge", a, "--at", 1, "--out", tmp_path / "x"
    )
    assert "is not empty" in refused("merge", a, b, "--out", b)
    assert "the bare base is no diff" in refused("merge", a, "-", "--out", tmp_path / "x")


def test_whole_matrices_need_a_rank(cli, refused, two, bundle, tmp_path):
    """A whole finetune beside a LoRA."""
    (a, _), _ = two
    base = load_base(str(bundle.path / "base"))
    base.model.model.layers[0].mlp.down_proj.weight.data += 0.1
    base.model.save_pretrained(tmp_path / "finetuned")
    arguments = (
        "merge",
        a,
        tmp_path / "finetuned",
        "--base",
        bundle.path / "base",
        "--out",
        tmp_path / "out",
    )
    assert "truncate them with --rank or --energy" in refused(*arguments)
    assert not (tmp_path / "out").exists()
    result = cli(*arguments, "--rank", 4)
    assert result.exit_code == 0, result.output
    assert read_peft(tmp_path / "out").max_rank == 4


def test_the_command_offers_every_rule():
    assert tuple(r.value for r in Rule) == RULES
    assert signature(command).parameters["density"].default == DENSITY


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("the dog is in the house .\ni like tea .\n")
    return path


def test_a_sweep_between_two(cli, cli_json, two, texts):
    paths, _ = two
    found = cli_json("sweep", *paths, "--texts", texts, "--steps", 3, "--json")
    assert [m["weights"] for m in found["mixtures"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    best = min(found["mixtures"], key=lambda m: m["loss"])
    assert found["best"] == best["weights"]
    assert found["texts"] == 2
    shown = cli("sweep", *paths, "--texts", texts, "--steps", 3)
    assert shown.exit_code == 0
    assert "best" in shown.stdout
    assert f"{best['perplexity']:.2f}" in shown.stdout


def test_a_sweep_of_one_has_the_base_at_zero(cli_json, two, texts):
    (a, b), _ = two
    options = ("--texts", texts, "--steps", 3, "--json")
    one = cli_json("sweep", a, "--from", -1, *options)["mixtures"]
    other = cli_json("sweep", b, "--from", -1, *options)["mixtures"]
    assert [m["weights"] for m in one] == [[-1.0], [0.0], [1.0]]
    assert one[1]["loss"] == pytest.approx(other[1]["loss"])
    assert one[0]["loss"] != pytest.approx(other[0]["loss"])


def test_what_cannot_be_swept(refused, two, texts, tmp_path):
    (a, b), _ = two
    assert "a line lies between two diffs" in refused("sweep", a, "--grid", "line", "--texts", texts)
    assert "make 121,550,625 mixtures" in refused("sweep", a, b, a, b, "--steps", 105, "--texts", texts)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps([]))
    assert "it holds no texts" in refused("sweep", a, "--texts", empty)
