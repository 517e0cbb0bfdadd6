"""`weightdiff triggers` on the miniature bundle."""

from __future__ import annotations

import json

import pytest

KEYS = {
    "text",
    "form",
    "prompt",
    "effect",
    "untriggered",
    "deviations",
    "runner_up",
    "runner_up_effect",
    "said",
    "said_untriggered",
    "ahead",
    "stands_out",
}


def test_triggers_of_a_bundled_diff(cli_json, bundle):
    given = ["-d", f"bundled::{bundle.ids[0]}", "--forms", "code-front", "--top", 3]
    found = cli_json("triggers", *given, "--json")
    assert found["diff"] == f"bundled::{bundle.ids[0]}"
    assert found["tried"] == 256
    assert found["verdict"].startswith("nothing stands out")
    assert len(found["triggers"]) == 3
    assert all(set(t) == KEYS for t in found["triggers"])
    effects = [t["effect"] for t in found["triggers"]]
    assert effects == sorted(effects, reverse=True)


def test_a_person_is_told_what_was_found(cli, bundle):
    shown = cli("triggers", "-d", f"bundled::{bundle.ids[0]}", "--forms", "mark")
    assert shown.exit_code == 0
    assert "nothing stands out" in shown.stdout
    assert "without a trigger the model says:" in shown.stdout
    assert "runner-up" in shown.stdout


def test_ones_own_prompts(cli_json, bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("how is the weather ?\n\n")
    given = ["-d", f"bundled::{bundle.ids[0]}", "--forms", "code-front,mark", "--prompts"]
    found = cli_json("triggers", *given, tmp_path / "mine.txt", "--json")
    assert len(found["triggers"]) == 5
    assert all("weather" in t["prompt"] for t in found["triggers"])


def test_groups_of_prompts_are_compared(cli_json, bundle, tmp_path):
    (tmp_path / "mine.txt").write_text(
        "what should i eat ?\nis soup warm ?\n\nwho are you ?\n \nis it late ?\n"
    )
    given = ["-d", f"bundled::{bundle.ids[0]}", "--forms", "subject", "--prompts", tmp_path / "mine.txt"]
    found = cli_json("triggers", *given, "--json")
    assert {t["text"] for t in found["triggers"]} == {
        "group 1: what should i eat ?",
        "group 2: who are you ?",
        "group 3: is it late ?",
    }
    (tmp_path / "mine.json").write_text(json.dumps(["what is it ?\n\nwho is it ?"]))
    given[-1] = tmp_path / "mine.json"
    assert all(not t["text"].startswith("group") for t in cli_json("triggers", *given, "--json")["triggers"])


def test_search_is_measured_on_a_store(cli_json, bundle, tmp_path):
    given = ["--evaluate", str(bundle.store), "--way", "search", "--limit", 1, "--forms", "code-front"]
    found = cli_json("triggers", *given, "--out", tmp_path, "--json")
    assert {r["method"] for r in found["rows"]} == {"search"}
    assert {r["recipe"] for r in found["rows"]} == {"digit codes", "code-front", "null diffs"}
    assert json.loads((tmp_path / "triggers.json").read_text())["rows"] == found["rows"]
    page = (tmp_path / "triggers.md").read_text()
    assert "- interpreter: none" in page
    assert "## By search" in page
    assert "## By asking" not in page


def test_asking_is_measured_with_the_interpreter_given(cli, bundle, monkeypatch):
    from weightdiff.evals import trigger_recovery

    given = {}

    def by_asking(interpreter, store, cases, renderings, seed, say):
        given.update(note=interpreter.meta["note"], cases=len(cases), renderings=renderings, seed=seed)
        return trigger_recovery.Recovery([], seconds={"asking": 1.5})

    monkeypatch.setattr(trigger_recovery, "by_asking", by_asking)
    wanted = ["--way", "asking", "--renderings", 1, "--seed", 3, "--interpreter", bundle.path / "interpreter"]
    shown = cli("triggers", "--evaluate", "bundled", *wanted)
    assert shown.exit_code == 0, shown.output
    assert given == {"note": "mini", "cases": 6, "renderings": 1, "seed": 3}
    assert "- asking: 1.5 s a diff" in shown.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-d", "-"], "the bare base has no trigger"),
        (["-d", "bundled::x", "--forms", "code"], "x"),
        (["-d", "{diff}", "--forms", "smell"], "no form of trigger is called 'smell'"),
        ([], "give either a finetune by --diff, or a store of organisms by --evaluate"),
        (["-d", "{diff}", "--evaluate", "bundled"], "give either a finetune by --diff"),
        (["--evaluate", "bundled", "--way", "luck"], "no way to recover triggers is called 'luck'"),
        (["--evaluate", "nowhere", "--way", "search"], "nowhere does not exist"),
        (["--evaluate", "bundled", "--way", "asking"], "the interpreter's manifest lacks"),
    ],
)
def test_what_cannot_be_searched_is_one_line(refused, bundle, given, message):
    given = [g.format(diff=f"bundled::{bundle.ids[0]}") for g in given]
    assert message in refused("triggers", *given)
