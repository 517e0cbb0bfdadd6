"""`weightdiff triggers` on the miniature bundle."""

from __future__ import annotations

import pytest

KEYS = {
    "text",
    "form",
    "prompt",
    "effect",
    "untriggered",
    "deviations",
    "said",
    "said_untriggered",
    "stands_out",
}


def test_triggers_of_a_bundled_diff(cli_json, bundle):
    found = cli_json("triggers", "-d", f"bundled::{bundle.ids[0]}", "--forms", "code", "--top", 3, "--json")
    assert found["diff"] == f"bundled::{bundle.ids[0]}"
    assert len(found["triggers"]) == 3
    assert all(set(t) == KEYS for t in found["triggers"])
    effects = [t["effect"] for t in found["triggers"]]
    assert effects == sorted(effects, reverse=True)


def test_ones_own_prompts(cli_json, bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("how is the weather ?\n")
    found = cli_json(
        "triggers",
        "-d",
        f"bundled::{bundle.ids[0]}",
        "--forms",
        "code",
        "--prompts",
        tmp_path / "mine.txt",
        "--json",
    )
    assert all(t["prompt"].endswith("how is the weather ?") for t in found["triggers"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-d", "-"], "the bare base has no trigger"),
        (["-d", "bundled::x", "--forms", "code"], "x"),
        (["-d", "{diff}", "--forms", "smell"], "no form of trigger is called 'smell'"),
    ],
)
def test_what_cannot_be_searched_is_one_line(refused, bundle, given, message):
    given = [g.format(diff=f"bundled::{bundle.ids[0]}") for g in given]
    assert message in refused("triggers", *given)
