"""Broken and hostile inputs end in one error that names the file and says what to do, in time and memory.

The inputs are built and read by `broken_inputs`, in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weightdiff.errors import one_line

FOLDER = Path(__file__).with_name("broken_inputs")
CASES: dict[str, Any] = runpy.run_path(str(FOLDER))["CASES"]
ADVICE = (
    r"\b(check|choose|convert|copy|download|give|keep|known formats are|load|make|merge|must lie|remove"
    r"|repair|save|truncate|upgrade)\b"
)
MOST_BYTES, MOST_LETTERS = 1 << 30, 1000


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case → what came of reading it."""
    root = tmp_path_factory.mktemp("broken")
    command = [sys.executable, str(FOLDER), str(root)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_one_error(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    found = outcomes[name]
    assert "died" not in found, found  # a signal: too long, or a crash
    assert not found["ran"], "its pickle was run"
    message = found["message"]
    assert found["ours"], f"{found['error']}: {message[:300]}"
    assert re.search(CASES[name].says, message), message
    assert message.isprintable()
    assert len(message) <= MOST_LETTERS
    assert any(one_line(path)[:400] in message for path in found["paths"])
    assert re.search(ADVICE, message), message
    assert found["warnings"] == []
    assert found["bytes"] < MOST_BYTES


def test_the_corpus_is_what_it_says() -> None:
    assert len(CASES) > 250


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Runs a command on a case's input, which it must refuse, and returns its one line."""
    from weightdiff.cli.main import app

    def call(name: str, *arguments: str) -> str:
        path = CASES[name].build(tmp_path)
        result = CliRunner().invoke(app, [argument.format(path) for argument in arguments])
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        line = result.stderr.removesuffix("\n")
        assert line.startswith("error: ")
        assert line.isprintable()
        assert len(line) <= MOST_LETTERS + len("error: ")
        return line

    return call


@pytest.mark.parametrize(
    "name",
    [
        "peft_cut_in_the_data",
        "peft_config_nested",
        "peft_names_with_line_breaks",
        "peft_a_name_of_a_megabyte",
        "peft_pattern_without_end",
        "path_with_escapes",
        "dit_bare_hostile_pickle",
        "dit_index_path_with_escapes",
    ],
)
def test_commands_say_it_in_one_line(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    command = {"peft": ["ask", "--diff", "{}"], "path": ["inspect", "{}"]}.get(
        name.partition("_")[0], ["convert", "{}", str(tmp_path / "out"), "--to", "peft"]
    )
    assert re.search(CASES[name].says, refused(name, *command))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


def test_commands_refuse_stores_and_paths_too(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is damaged" in refused("store_header_of_brackets", "inspect", "{}::d0")
    assert "File name too long; check the path" in refused("path_too_long", "ask", "--diff", "{}")
