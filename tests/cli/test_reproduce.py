"""`weightdiff reproduce`: what it hands on, and what it says."""

from __future__ import annotations

import pytest


@pytest.fixture
def reproduced(monkeypatch):
    """Replaces the work; what it was given is kept."""
    from weightdiff import reproduction

    given = {}

    def reproduce(out, quick=False, progress=None, plan=None, until="bundle"):
        given.update(out=out, plan=plan.name, until=until)
        for step in range(3):
            progress("base", {"step": step, "loss": 1.23456, "ids": ["a"]})
        return out / "bundle"

    monkeypatch.setattr(reproduction, "reproduce", reproduce)
    return given


def test_json(cli_json, reproduced, tmp_path):
    found = cli_json("reproduce", "--quick", "--out", tmp_path, "--until", "tune", "--json")
    assert (found["plan"], found["until"], found["made"]) == ("quick", "tune", str(tmp_path / "bundle"))
    assert reproduced == {"out": tmp_path, "plan": "quick", "until": "tune"}


def test_words(cli, reproduced, tmp_path):
    result = cli("reproduce", "--out", tmp_path)
    assert reproduced["plan"] == "full"
    assert f"next: weightdiff demo --bundle {tmp_path / 'bundle'}" in result.stdout
    assert result.stderr.count("base: step 0, loss 1.235\n") == 1
    assert "step 1" not in result.stderr


@pytest.mark.parametrize("options", [["--until", "lunch"], ["--plan", "huge"]])
def test_unknown_names(cli, reproduced, tmp_path, options):
    result = cli("reproduce", "--out", tmp_path, *options)
    assert result.exit_code == 2
    assert "choose one of" in result.stderr
    assert reproduced == {}
