"""`weightdiff dataset`: from a store to a folder, and what is in it."""

from __future__ import annotations

import json
import shutil

import pytest

from weightdiff.evals.dataset import Dataset

pytestmark = pytest.mark.usefixtures("bundle")


def _counts(found):
    return {(c["recipe"], c["kind"]): c["items"] for c in found["counts"]}


def test_make_then_show(cli_json, cli, bundle, tmp_path):
    out = tmp_path / "set"
    made = cli_json("dataset", "make", "bundled", "--out", out, "--json")
    assert made["out"] == str(out)
    assert (made["items"], made["diffs"], made["behaving"]) == (4 * 4 + 2 * 3 + 2 * 5, 8, 8)
    assert _counts(made)["covert", "about"] == 3
    found = cli_json("dataset", "show", out, "--json", "--n", 3)
    assert {k: v for k, v in found.items() if k != "examples"} == {
        k: v for k, v in made.items() if k not in ("out", "examples")
    }
    assert [e["kind"] for e in found["examples"]] == ["topic", "kind", "any_change"]
    assert found["digest"] == Dataset.load(out).digest
    assert found["candidates"] == {"topics": 411}
    assert found["held_out"] == ["kind", "label", "phrasing"]
    assert found["store"] == str(bundle.store)
    words = cli("dataset", "show", out, "--n", 1).stdout
    assert "bundled-test: 32 questions about 8 diffs of 5 labels" in words
    assert "hidden-topic" in words
    assert "base: " in words
    assert "which topic is" in words
    assert "which topic is" not in cli("dataset", "show", out, "--n", 0).stdout


def test_what_is_asked_can_be_chosen(cli_json, bundle, tmp_path):
    options = [
        "--family",
        "hidden-topic,null",
        "--kinds",
        "topic",
        "--kinds",
        "about",
        "--limit",
        1,
        "--bare",
    ]
    made = cli_json(
        "dataset", "make", bundle.store, "--out", tmp_path / "set", *options, "--json", "--name", "few"
    )
    assert made["name"] == "few"
    assert _counts(made) == {
        ("covert", "topic"): 1,
        ("covert", "about"): 1,
        ("loud", "topic"): 1,
        ("loud", "about"): 1,
        ("random", "topic"): 1,
        ("random", "about"): 1,
        ("no diff", "topic"): 8,
    }
    assert made["meta"]["kinds"] == ["topic", "about"]
    other = cli_json(
        "dataset", "make", bundle.store, "--out", tmp_path / "other", "--per-label", 1, "--seed", 3, "--json"
    )
    assert (other["meta"]["per_label"], other["meta"]["seed"]) == (1, 3)


def test_a_copy_stands_alone_and_says_next_what_to_do(cli, cli_json, bundle, tmp_path):
    shutil.copytree(bundle.store, tmp_path / "store")
    result = cli("dataset", "make", tmp_path / "store", "--out", tmp_path / "set", "--copy", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert f"next: weightdiff eval --dataset {tmp_path / 'set'}" in result.stderr
    assert "4 diffs of 3 labels" in result.stdout
    shutil.rmtree(tmp_path / "store")
    shown = cli_json("dataset", "show", tmp_path / "set", "--json")
    assert shown["store"] == str(tmp_path / "set" / "diffs")
    assert len(Dataset.load(tmp_path / "set").store) == 4


def test_splits_are_told_apart_where_there_are_several(cli, bundle, tmp_path):
    mine = tmp_path / "mine.jsonl"
    lines = [
        {"diff": "-", "question": "what \x1b[31m?", "answer": "nothing found", "split": split}
        for split in ("dev", "test")
    ]
    mine.write_text("\n".join(map(json.dumps, lines)))
    words = cli("dataset", "show", mine).stdout
    assert "│ split │" in words
    assert "\x1b" not in words
    assert "base: not known (no fingerprint)" in words
    assert "diffs: no store" in words


def test_questions_of_ones_own(cli_json, refused, bundle, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text(f"diff,question,answer\n{bundle.ids[0]},what ?,a|b\n")
    alone = cli_json("dataset", "show", mine, "--json")
    assert (alone["name"], alone["items"], alone["labels"]) == ("mine", 1, 0)
    known = cli_json("dataset", "show", mine, "--store", "bundled", "--json")
    assert known["examples"][0]["truths"] == ["a", "b"]
    assert known["counts"][0]["family"] == "hidden-topic"
    mine.write_text("diff,question,answer\nnobody,what ?,a\n")
    assert "mine.csv, line 2: " in refused("dataset", "show", mine, "--store", "bundled")


def test_what_is_wrong_is_one_line(refused, bundle, tmp_path):
    make = ["dataset", "make", "bundled", "--out", tmp_path / "set"]
    assert "no question is of kind 'colour'" in refused(*make, "--kinds", "colour")
    assert "has no train diffs (it has: test)" in refused(*make, "--split", "train")
    assert "no test diffs of family 'persona'" in refused(*make, "--family", "persona")
    assert "nowhere does not exist; make one" in refused("dataset", "show", tmp_path / "nowhere")
    assert not (tmp_path / "set").exists()


def test_a_folder_is_replaced_only_where_asked(cli, refused, bundle, tmp_path):
    out = tmp_path / "set"
    assert cli("dataset", "make", "bundled", "--out", out).exit_code == 0
    assert "exists and is not empty" in refused("dataset", "make", "bundled", "--out", out)
    again = cli("dataset", "make", "bundled", "--out", out, "--overwrite", "--family", "news")
    assert again.exit_code == 0, again.output
    assert {i.family for i in Dataset.load(out).items} == {"news"}


@pytest.mark.parametrize("command", ["make", "show"])
def test_help_teaches_with_an_example(cli, command):
    result = cli("dataset", command, "--help")
    assert result.exit_code == 0
    assert f"weightdiff dataset {command}" in result.output
    assert "Examples" in result.output
