"""Making organisms and interpreters from the command line, and the way round: train → list → export → ask."""

from __future__ import annotations

import pytest

TRAIN = ["organisms", "train", "--family", "hidden-topic", "--recipe", "covert", "--steps", 2, "--slots", 2]


def test_train_list_export_ask(cli_json, cli, bundle, tmp_path):
    store = tmp_path / "store"
    made = cli_json(*TRAIN, "--n", 3, "--out", store, "--json")
    assert (made["stored"], made["skipped"], made["steps"], made["verified"]) == (3, 0, 6, 3)
    # A random base does not behave, and the store says so.
    assert made["behaving"] == 0
    rows = cli_json("organisms", "list", store, "--json")
    assert [r["verification"]["behaves"] for r in rows] == [False] * 3
    assert made["misbehaving"] == [r["id"] for r in rows]
    assert {"sampled", "asked", "behaves"} <= set(rows[0]["verification"])
    assert len(list(store.glob("shard-*"))) == 2

    first = rows[0]["id"]
    assert cli("organisms", "export", store, first, tmp_path / "lora").exit_code == 0
    found = cli_json("ask", "-d", f"{store}::{first}", "-d", tmp_path / "lora", "what topic ?", "--json")
    assert found[0]["answer"] == found[1]["answer"]
    assert found[0]["evidence"] == pytest.approx(found[1]["evidence"], abs=1e-3)


def test_train_goes_on_where_it_was(cli_json, bundle, tmp_path):
    store = tmp_path / "store"
    assert cli_json(*TRAIN, "--n", 2, "--out", store, "--no-verify", "--json")["verified"] == 0
    shards = sorted(store.glob("shard-*"))
    again = cli_json(*TRAIN, "--n", 4, "--out", store, "--no-verify", "--json")
    assert (again["stored"], again["skipped"], again["in_store"]) == (2, 2, 4)
    assert sorted(store.glob("shard-*"))[: len(shards)] == shards
    assert cli_json(*TRAIN, "--n", 4, "--out", store, "--no-verify", "--json")["stored"] == 0


def test_train_resumed_is_what_one_run_makes(cli_json, bundle, tmp_path):
    import torch

    from weightdiff.diffs.store import DiffStore

    cli_json(*TRAIN, "--n", 3, "--out", tmp_path / "one", "--no-verify", "--json")
    for n in (1, 3):
        cli_json(*TRAIN, "--n", n, "--out", tmp_path / "two", "--no-verify", "--json")
    one, two = DiffStore.open(tmp_path / "one"), DiffStore.open(tmp_path / "two")
    assert sorted(one.ids) == sorted(two.ids)
    for id in one.ids:
        for name, m in one.read(id).modules.items():
            torch.testing.assert_close(two.read(id).modules[name].dense(), m.dense(), atol=2e-3, rtol=2e-2)


def test_train_refuses_another_recipe_under_the_same_id(cli_json, cli, bundle, tmp_path):
    cli_json(*TRAIN, "--n", 1, "--out", tmp_path / "s", "--no-verify", "--json")
    result = cli(*TRAIN[:-4], "--steps", 1, "--n", 1, "--out", tmp_path / "s")
    assert result.exit_code == 2
    assert "made otherwise (steps 2 instead of 1)" in result.stderr


def test_train_refuses_a_store_of_another_base(cli, bundle, tmp_path):
    from weightdiff.diffs.reference import ModelRef
    from weightdiff.diffs.store import DiffStore

    DiffStore.create(tmp_path / "s", ModelRef("other", architecture="0" * 16))
    result = cli(*TRAIN, "--n", 1, "--out", tmp_path / "s")
    assert result.exit_code == 2
    assert "their architecture differ" in result.stderr


def test_train_in_words(cli, bundle, tmp_path):
    result = cli(
        "organisms", "train", "--family", "null", "--recipe", "random", "--n", 2, "--out", tmp_path / "s"
    )
    assert result.exit_code == 0
    assert "behaving: 2 of 2" in result.stdout


def test_list_selects(cli_json, cli, bundle):
    news = cli_json("organisms", "list", "bundled", "--family", "news", "--json")
    assert {r["family"] for r in news} == {"news"}
    assert cli_json("organisms", "list", "bundled", "--split", "train", "--json") == []
    assert "2 of 8 diffs" in cli("organisms", "list", "bundled", "--family", "news").stdout


def test_verify_leaves_with_one_where_some_do_not_behave(cli, bundle):
    import json

    result = cli("organisms", "verify", "bundled", "--asked", 1, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [f["id"] for f in found] == bundle.ids
    assert {f["family"] for f in found if f["behaves"]} == {"null"}
    assert "do not behave: covert-" in result.stderr


def test_tune_then_ask(cli_json, bundle, tmp_path):
    store = tmp_path / "store"
    for split in ("train", "validation"):
        train = ["--split", split, "--steps", 0, "--n", 2, "--out", store, "--no-verify", "--json"]
        cli_json("organisms", "train", "--family", "null", "--recipe", "random", *train)
    options = ["--steps", 2, "--rank", 1, "--batch", 2, "--probes", 1, "--renderings", 1, "--json"]
    made = cli_json("tune", "--store", store, "--out", tmp_path / "it", *options)
    assert [line["step"] for line in made["history"]] == [2]
    assert 0 <= made["validation_score"] <= 1
    (found,) = cli_json(
        "ask", "--interpreter", tmp_path / "it", "-d", f"bundled::{bundle.ids[0]}", "what ?", "--json"
    )
    assert found["evidence"] is not None


def test_tune_says_which_rows_it_ignores(cli, bundle, tmp_path):
    import json
    from dataclasses import replace

    from weightdiff.diffs.store import DiffStore

    whole = DiffStore.open(bundle.store)
    own = [("a", "train", "own"), ("b", "validation", "own"), ("c", "test", "own"), ("d", "train", "odd")]
    own += [("e", "train", "hidden-topic"), ("f", "validation", "hidden-topic")]
    store = DiffStore.create(tmp_path / "own", whole.base)
    rows = [replace(whole.rows[0], id=id, split=split, family=family) for id, split, family in own]
    store.append([(row, whole.read(whole.ids[0])) for row in rows])
    options = ["--steps", 2, "--rank", 1, "--batch", 2, "--probes", 0]
    result = cli("tune", "--store", store.path, "--out", tmp_path / "it", *options)
    assert result.exit_code == 0, result.output
    known = "edit, hidden-topic, news, null, quirk, several"
    said = f"warning: rows of other families than {known} are ignored: odd (1), own (2)\n"
    assert said in result.stderr
    meta = json.loads((tmp_path / "it" / "interpreter.json").read_text())["meta"]
    assert meta["train_ids"] == ["e"]
    assert not {"own", "odd"} & set(meta["history"][-1])


def test_makings_are_trained_in_turn(cli_json, bundle, tmp_path):
    store = tmp_path / "store"
    made = ("organisms", "train", "--family", "news", "--n", 3, "--out", store, "--steps", 1, "--no-verify")
    assert cli_json(*made, "--makings", "unseen", "--json")["stored"] == 3
    rows = cli_json("organisms", "list", store, "--json")
    assert [r["record"]["params"]["making"] for r in rows] == ["r32", "r2-sgd", "r3"]
    assert [r["record"]["recipe"]["rank"] for r in rows] == [32, 2, 3]


def test_unknown_makings_are_named(refused, bundle, tmp_path):
    given = ("--family", "news", "--n", 1, "--out", tmp_path / "store", "--makings", "huge")
    assert "makings cannot be 'huge': choose one of seen, unseen, full, r8" in refused(
        "organisms", "train", *given
    )


def test_tuning_one_family_alone(cli_json, refused, bundle, tmp_path):
    store, out = tmp_path / "store", tmp_path / "it"
    for family in ("news", "null", "quirk"):
        cli_json(
            "organisms", "train", "--family", family, "--n", 2, "--out", store, "--steps", 1, "--no-verify",
            "--json",
        )  # fmt: skip
    small = ("--steps", 2, "--batch", 2, "--rank", 1, "--validate-every", 2)
    found = cli_json("tune", "--store", store, "--out", out, *small, "--family", "quirk", "--json")
    assert found["calibration"] is None
    import json

    ids = json.loads((out / "interpreter.json").read_text())["meta"]["train_ids"]
    assert {i.split("-")[0] for i in ids} == {"quirk", "continued"}
    again = ("tune", "--store", store, "--out", tmp_path / "other", "--family", "poems")
    assert "tuning draws no family 'poems'" in refused(*again)
