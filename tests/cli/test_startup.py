"""What the command line costs before it does anything, and whether every command explains itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import weightdiff

COMMANDS = [
    ("ask",),
    ("demo",),
    ("tune",),
    ("time",),
    ("scan",),
    ("app",),
    ("plan",),
    ("chat",),
    ("eval",),
    ("benchmark",),
    ("families",),
    ("triggers",),
    ("dataset", "make"),
    ("dataset", "show"),
    ("curves",),
    ("inspect",),
    ("extract",),
    ("convert",),
    ("export",),
    ("report",),
    ("reproduce",),
    ("organisms", "train"),
    ("organisms", "list"),
    ("organisms", "verify"),
    ("organisms", "export"),
]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["organisms", "train", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from weightdiff.cli.main import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as e: assert not e.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "peft", "numpy"}.isdisjoint(result.stderr.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_teaches_with_an_example(cli, command):
    result = cli(*command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"weightdiff {command[0]}" in result.output


def test_version(cli):
    assert cli("--version").output == f"weightdiff {weightdiff.__version__}\n"


def test_an_interrupt_leaves_with_130(cli, monkeypatch, bundle):
    from weightdiff.cli import common

    def interrupted(_name):
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "open_store", interrupted)
    result = cli("organisms", "list", "bundled")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"
