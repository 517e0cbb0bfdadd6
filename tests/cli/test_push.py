"""`weightdiff push`, and `ask` by Hub names, with a Hub on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOGIN = "hf auth login"


@pytest.mark.usefixtures("logged_in")
def test_what_is_pushed_can_be_asked_with(cli_json, hub, bundle, adapter_folder):
    found = cli_json("push", "diff", adapter_folder, "me/lora", "--json")
    assert found == {"pushed": str(adapter_folder), "repository": "me/lora", "url": f"{hub.url}/me/lora"}
    found = cli_json("push", "interpreter", bundle.path / "interpreter", "me/interpreter", "--json")
    assert found["url"] == f"{hub.url}/me/interpreter"
    assert all(repo.private for repo in hub.repos.values())
    asked = ["what changed ?", "--json"]
    (there,) = cli_json("ask", "--diff", "me/lora", "--interpreter", "me/interpreter", *asked)
    (here,) = cli_json("ask", "--diff", adapter_folder, *asked)
    assert there["diff"] == "me/lora"
    assert {k: v for k, v in there.items() if k != "diff"} == {k: v for k, v in here.items() if k != "diff"}


@pytest.mark.usefixtures("logged_in")
def test_options(cli, hub, bundle):
    name = f"bundled::{bundle.ids[0]}"
    result = cli("push", "diff", name, "me/lora", "--public", "--revision", "v2", "-m", "a better one")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{name}: {hub.url}/me/lora/tree/v2\n"
    assert not hub.repos["me/lora"].private
    assert hub.messages == ["a better one"]
    assert "adapter_config.json" in hub.files("me/lora", "v2")
    assert cli("ask", "--diff", "me/lora@v2", "what changed ?").exit_code == 0


@pytest.mark.usefixtures("logged_in")
def test_the_bundled_interpreter_can_be_pushed(cli, hub, bundle):
    assert cli("push", "interpreter", "bundled", "me/mini", "--public").exit_code == 0
    settings = (bundle.path / "interpreter" / "interpreter.json").read_bytes()
    assert hub.files("me/mini")["interpreter.json"] == settings


def test_errors_are_one_line(refused, hub, bundle, adapter_folder, tmp_path):
    assert f"may write it: {LOGIN}" in refused("push", "diff", adapter_folder, "me/lora")
    assert "lora is no repository on the Hub; give owner/name" in refused(
        "push", "diff", adapter_folder, "lora"
    )
    assert "there is no diff to push" in refused("push", "diff", "-", "me/lora")
    assert "does not exist; give a local file or folder" in refused(
        "push", "diff", tmp_path / "no", "me/lora"
    )
    assert "no interpreter.json there" in refused("push", "interpreter", adapter_folder, "me/lora")
    assert "shows no repository me/nowhere" in refused("ask", "--diff", "me/nowhere", "what changed ?")
    assert "shows no repository me/nowhere" in refused("ask", "--no-diff", "--interpreter", "me/nowhere")


@pytest.mark.parametrize("what", ["interpreter", "diff"])
def test_help_teaches_with_an_example(cli, what):
    result = cli("push", what, "--help")
    assert result.exit_code == 0
    assert f"weightdiff push {what} " in result.output


def test_help_of_ask_speaks_of_hub_names(cli):
    text = " ".join(cli("ask", "--help").output.replace("│", " ").split())
    assert "Hub name (owner/name)" in text
    assert "Interpreter: a folder or Hub name" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from weightdiff.cli.main import app\n"
        "try: app(['push', 'diff', '--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "peft", "huggingface_hub"}.isdisjoint(result.stderr.split())
