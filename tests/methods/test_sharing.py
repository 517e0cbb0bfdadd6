"""Interpreters and diffs pushed to a Hub on this machine, and loaded from it again."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load, load_file

from weightdiff.diffs.types import DenseDelta, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, InterpreterError
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import load_base
from weightdiff.methods.sharing import push_diff, push_interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.training.factory import random_diff

LOGIN = "hf auth login"
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "interpreter.json",
    ".gitattributes",
}
QUESTION = "what topic have you been trained on ?"


@pytest.fixture
def interpreter(embedded_base):
    """One is enough here."""
    rendering = Rendering(("code 123{random} .", "hello ."), ("789", "321"), 1, 2)
    return Interpreter(embedded_base, random_diff(embedded_base.spec, 2, 5, 0.5), rendering, 6, {"note": "x"})


def _same_files(files, folder):
    """Settings and tensors to the last bit; the order of a safetensors header's metadata is chance."""
    for name in ("adapter_config.json", "interpreter.json"):
        assert files[name] == (folder / name).read_bytes()
    theirs, ours = load(files["adapter_model.safetensors"]), load_file(folder / "adapter_model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.usefixtures("logged_in")
def test_a_pushed_interpreter_answers_the_same(hub, interpreter, diffs, tmp_path):
    assert interpreter.push("me/interpreter") == f"{hub.url}/me/interpreter"
    assert set(hub.files("me/interpreter")) == FILES
    assert hub.repos["me/interpreter"].private
    _same_files(hub.files("me/interpreter"), interpreter.save(tmp_path / "saved"))
    loaded = Interpreter.load("me/interpreter", interpreter.base)
    assert (loaded.rendering, loaded.meta) == (interpreter.rendering, interpreter.meta)
    a, b = (i.answer([*diffs, None], [QUESTION] * 4, evidence=True) for i in (interpreter, loaded))
    assert a == b
    assert hub.sent() == FILES - {".gitattributes"}


@pytest.mark.usefixtures("logged_in")
def test_its_card_is_its_own(hub, interpreter):
    rows = [{"method": "dit", "mean": 0.5}]
    push_interpreter(interpreter, "me/interpreter", private=False, message="better", results=rows)
    card = hub.files("me/interpreter")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert 'Interpreter.load("me/interpreter"' in card
    assert "| dit | 0.5 |" in card
    assert hub.messages == ["better"]
    assert not hub.repos["me/interpreter"].private


@pytest.mark.usefixtures("logged_in")
def test_revision_and_subfolder_of_an_interpreter(hub, interpreter, tmp_path):
    url = interpreter.push("me/interpreter", revision="v2")
    assert url == f"{hub.url}/me/interpreter/tree/v2"
    assert set(hub.files("me/interpreter")) == {".gitattributes"}
    assert set(hub.files("me/interpreter", "v2")) == FILES
    assert Interpreter.load("me/interpreter@v2", interpreter.base).meta == {"note": "x"}
    assert Interpreter.load("me/interpreter", interpreter.base, revision="v2").meta == {"note": "x"}
    hub.put_folder("me/many", interpreter.save(tmp_path / "saved"), "runs/best")
    for name, subfolder in (("me/many/runs/best", None), ("me/many", "runs/best")):
        assert Interpreter.load(name, interpreter.base, subfolder=subfolder).meta == {"note": "x"}


@pytest.mark.usefixtures("logged_in")
def test_pushing_again_replaces_and_keeps(hub, interpreter):
    interpreter.push("me/interpreter")
    hub.put("me/interpreter", {"notes.txt": b"kept"})
    interpreter.meta["note"] = "later"
    interpreter.push("me/interpreter")
    assert hub.files("me/interpreter")["notes.txt"] == b"kept"
    assert Interpreter.load("me/interpreter", interpreter.base).meta == {"note": "later"}


@pytest.mark.usefixtures("logged_in")
def test_a_private_push_leaves_a_public_repository_alone(hub, interpreter):
    hub.put("me/public", {"a.txt": b"x"})
    with pytest.raises(
        FormatError, match=r"me/public is public on the Hub, and a private upload was asked for"
    ):
        interpreter.push("me/public")
    assert set(hub.files("me/public")) == {"a.txt"}
    interpreter.push("me/public", private=False)
    assert set(hub.files("me/public")) == FILES - {".gitattributes"} | {"a.txt"}


@pytest.mark.usefixtures("logged_in")
def test_an_interpreter_without_its_base_is_pushed_as_it_is(hub, interpreter, tmp_path):
    saved = interpreter.save(tmp_path / "saved")
    found = Interpreter.without_base(saved)
    assert found.base.ref == interpreter.base.ref
    found.push("me/interpreter")
    _same_files(hub.files("me/interpreter"), saved)


@pytest.mark.usefixtures("logged_in")
def test_an_interpreter_of_another_base_is_refused(hub, interpreter):
    interpreter.push("me/interpreter")
    other = load_base()
    with pytest.raises(BaseMismatchError, match="load the base that it was trained on"):
        Interpreter.load("me/interpreter", other)


@pytest.mark.usefixtures("logged_in")
def test_a_pushed_diff_is_the_diff_bit_by_bit(hub, embedded_base, diffs):
    diff = WeightDiff(diffs[1].modules, embedded_base.ref, {"topic": "opera"})
    assert push_diff(diff, "me/lora") == f"{hub.url}/me/lora"
    assert set(hub.files("me/lora")) == FILES - {"interpreter.json"}
    loaded = WeightDiff.load("me/lora")
    assert (loaded.base, loaded.meta["topic"]) == (diff.base, "opera")
    assert loaded.meta["source"].startswith("me/lora@")
    for name, m in diff.modules.items():
        other = loaded.modules[name]
        assert torch.equal(m.down, other.down)
        assert torch.equal(m.up, other.up)
        assert m.scale == other.scale
    config = json.loads(hub.files("me/lora")["adapter_config.json"])
    assert config["base_model_name_or_path"] == embedded_base.ref.name
    assert b"# A weight diff" in hub.files("me/lora")["README.md"]


def test_only_what_can_be_read_back_is_pushed(hub, interpreter, diffs):
    dense = WeightDiff({"a": DenseDelta(torch.ones(2, 2))})
    bias = WeightDiff(diffs[0].modules, parameters={"a.bias": torch.ones(2)})
    for diff in (dense, bias):
        with pytest.raises(FormatError, match=r"only a LoRA can be pushed to me/x; make one .* extract"):
            push_diff(diff, "me/x")
    with pytest.raises(InterpreterError, match="without an adapter"):
        interpreter.without_adapter().push("me/x")
    for name in ("x", "me/x/folder", "me/x@main", "/me/x"):
        with pytest.raises(FormatError, match=f"^{name} is no repository on the Hub; give owner/name$"):
            interpreter.push(name)
    assert hub.asked == []


def _refused(interpreter, name="me/interpreter"):
    with pytest.raises(FormatError) as caught:
        interpreter.push(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_token(hub, interpreter):
    said = _refused(interpreter)
    assert said.startswith("me/interpreter cannot be written: the Hub answers with status 401 (")
    assert said.endswith(f"; log in with a token that may write it: {LOGIN}")


def test_a_repository_of_somebody_else(hub, interpreter, monkeypatch):
    hub.put("them/theirs", {"a.txt": b"x"}, private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(FormatError, match=rf"status 403 \(.*may write it: {LOGIN}"):
        interpreter.push("them/theirs", private=False)


def test_the_hub_refuses_a_card(hub, interpreter, logged_in):
    interpreter.meta["license"] = "wrong"
    said = _refused(interpreter)
    assert "the transfer failed (Invalid metadata in README.md." in said
    assert '"license" must be one of those we know' in said


def test_the_hub_is_away(hub, interpreter, logged_in, monkeypatch):
    from huggingface_hub import constants

    hub.refuse = 500
    assert "status 500 (not today); try again later" in _refused(interpreter)
    hub.stop()
    assert "the Hub cannot be reached (" in _refused(interpreter)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off (offline mode); unset HF_HUB_OFFLINE" in _refused(interpreter)


def test_a_missing_interpreter_says_both(hub, embedded_base):
    with pytest.raises(
        FormatError, match=r"^nowhere does not exist; give a local file or folder, or a Hub name"
    ):
        Interpreter.load("nowhere", embedded_base)
    with pytest.raises(FormatError, match=f"shows no repository me/nowhere; .*{LOGIN}$"):
        Interpreter.load("me/nowhere", embedded_base)


def test_a_repository_that_holds_no_interpreter(hub, embedded_base, logged_in, diffs):
    push_diff(diffs[0], "me/lora")
    with pytest.raises(InterpreterError, match=r"no interpreter.json there, so it is no interpreter"):
        Interpreter.load("me/lora", embedded_base)


def test_a_base_that_the_hub_does_not_show_is_one_line(hub):
    with pytest.raises(
        FormatError, match=rf"^me/nowhere: no base model could be loaded .*{LOGIN}$"
    ) as caught:
        load_base("me/nowhere")
    assert "\n" not in str(caught.value)
