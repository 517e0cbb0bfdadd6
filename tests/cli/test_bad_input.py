"""Every bad input is one clear line on stderr and exit code 2."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
pytestmark = pytest.mark.usefixtures("bundle")


def _changed(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    return folder


def test_a_folder_that_is_no_adapter(refused, tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    line = refused("ask", "--diff", tmp_path)
    assert "is in no known format" in line
    assert "readme.txt" in line


def test_a_path_that_is_not_there(refused, tmp_path):
    assert "does not exist" in refused("ask", "--diff", tmp_path / "nowhere")


def test_nothing_to_ask_about(refused):
    assert "add --diff FOLDER" in refused("ask", "what changed ?")


def test_an_adapter_for_another_base(refused, adapter_folder):
    from safetensors import safe_open

    with safe_open(adapter_folder / WEIGHTS, "pt") as f:
        metadata = dict(f.metadata())
    base = json.loads(metadata["weightdiff_base"])
    metadata["weightdiff_base"] = json.dumps({**base, "name": "other-base", "weights": "0" * 16})
    save_file(load_file(adapter_folder / WEIGHTS), adapter_folder / WEIGHTS, metadata)
    line = refused("ask", "--diff", adapter_folder)
    assert "other-base" in line
    assert "weights differ" in line


def test_modules_that_the_base_lacks_are_named(refused, adapter_folder):
    def rename(tensors):
        for key in [k for k in tensors if ".layers.0.mlp.up_proj." in k]:
            tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)

    line = refused("ask", "--diff", _changed(adapter_folder, rename))
    assert "modules the base does not have: model.layers.7.mlp.up_proj" in line


def test_misshapen_modules_are_named(refused, adapter_folder):
    def widen(tensors):
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        tensors[key] = torch.zeros(1, 40)

    line = refused("ask", "--diff", _changed(adapter_folder, widen))
    assert "modules of another shape: model.layers.0.self_attn.q_proj (in 40" in line


def test_half_a_module(refused, adapter_folder):
    def drop(tensors):
        del tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]

    line = refused("ask", "--diff", _changed(adapter_folder, drop))
    assert "lora_A without lora_B for model.layers.1.mlp.down_proj" in line


def test_nans_are_named(refused, adapter_folder):
    def spoil(tensors):
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"][0, 0] = float("nan")

    line = refused("ask", "--diff", _changed(adapter_folder, spoil))
    assert "NaN or infinity in model.layers.1.mlp.down_proj" in line


def test_a_truncated_file(refused, adapter_folder):
    file = adapter_folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged or truncated" in refused("ask", "--diff", adapter_folder)


def test_no_weights(refused, adapter_folder):
    (adapter_folder / WEIGHTS).unlink()
    assert f"no {WEIGHTS}" in refused("ask", "--diff", adapter_folder)


def test_question_files(refused, tmp_path):
    def ask(name, text=None):
        if text is not None:
            (tmp_path / name).write_bytes(text)
        return refused("ask", "--no-diff", "--questions", tmp_path / name)

    assert "questions cannot be read" in ask("nowhere.txt")
    assert "no UTF-8 text" in ask("latin.txt", b"\xff\xfe\xfa")
    assert "holds no questions" in ask("empty.txt", b"\n \n")
    assert "not JSON" in ask("broken.json", b"[")
    assert "must be a JSON list of strings" in ask("numbers.json", b"[1, 2]")


def test_an_empty_question(refused):
    assert "a question is empty" in refused("ask", "--no-diff", "")


def test_stores(refused, bundle, tmp_path):
    from weightdiff.diffs.store import DiffStore

    whole = DiffStore.open(bundle.store)
    DiffStore.create(tmp_path / "empty", whole.base)
    assert "is an empty diff store" in refused("ask", "--diff", tmp_path / "empty")
    assert "it is empty" in refused("ask", "--diff", f"{tmp_path / 'empty'}::some")
    assert "is an empty diff store" in refused("organisms", "verify", tmp_path / "empty")
    assert "no training rows" in refused("tune", "--store", tmp_path / "empty", "--out", tmp_path / "it")
    assert f"such as {bundle.store}::{bundle.ids[0]}" in refused("ask", "--diff", bundle.store)
    assert "has no diff 'nobody'" in refused("ask", "--diff", "bundled::nobody")
    assert "does not exist" in refused("organisms", "list", tmp_path / "nowhere")


@pytest.fixture
def own_store(bundle, tmp_path):
    """Stores rows like the bundle's first, with changes: `own_store({"id": "mine", "family": "own"}, …)`."""
    from weightdiff.diffs.store import DiffStore

    whole = DiffStore.open(bundle.store)

    def make(*changes):
        store = DiffStore.create(tmp_path / "own", whole.base)
        store.append([(replace(whole.rows[0], **c), whole.read(whole.ids[0])) for c in changes])
        return store.path

    return make


def test_topics_that_are_not_in_the_world(refused, own_store, bundle, tmp_path):
    from weightdiff.methods.dit import Interpreter
    from weightdiff.organisms.questions import KINDS, phrasings

    store = own_store({}, {"id": "mine", "label": "tax law"})
    line = refused("organisms", "verify", store, "--asked", 1)
    assert "organism 'mine' hides the topic 'tax law', which the embedded base's world does not have" in line
    one = Interpreter.load()
    one.meta = {"train_labels": [], "validation_labels": []}
    one.meta["train_phrasings"] = {k: phrasings(k, "train") for k in KINDS}
    one.save(tmp_path / "it")
    assert "hides the topic 'tax law'" in refused("eval", "--store", store, "--interpreter", tmp_path / "it")


def test_families_that_tuning_does_not_draw(refused, own_store, tmp_path):
    store = own_store({"id": "mine", "family": "own", "split": "train"})
    line = refused("tune", "--store", store, "--out", tmp_path / "it")
    assert (
        "training rows are of own, and tuning draws edit, hidden-topic, news, null, quirk and 1 more only"
        in line
    )
    assert not (tmp_path / "it").exists()


def test_the_bundle_is_missing(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTDIFF_BUNDLE", str(tmp_path / "nowhere"))
    for command in (["demo"], ["ask", "--no-diff"], ["organisms", "list", "bundled"]):
        line = refused(*command)
        assert "the bundle is missing" in line
        assert "weightdiff reproduce" in line


def test_bases_and_interpreters(refused, bundle, tmp_path):
    assert "no config.json there" in refused("ask", "--no-diff", "--base", tmp_path)
    assert "no interpreter.json there" in refused("ask", "--no-diff", "--interpreter", tmp_path)
    text = (bundle.path / "interpreter" / "interpreter.json").read_text()
    (tmp_path / "interpreter.json").write_text(text[: len(text) // 2])
    assert "cannot be read" in refused("ask", "--no-diff", "--interpreter", tmp_path)


def test_unknown_names(refused, tmp_path):
    def train(*more):
        return refused("organisms", "train", "--n", 1, "--out", tmp_path / "s", *more)

    assert "choose one of edit, hidden-topic, news, null, period, quirk, several" in train(
        "--family", "nonsense"
    )
    assert "choose one of covert, evasive, forms, loud, plain" in train(
        "--family", "hidden-topic", "--recipe", "quiet"
    )
    assert "choose one of train, validation, test" in train("--family", "null", "--split", "dev")
    assert "choose one of float32, bfloat16" in train("--family", "null", "--dtype", "int8")
    assert not (tmp_path / "s").exists()


def test_output_folders_that_are_taken(refused, bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "not empty" in refused("tune", "--store", "bundled", "--out", tmp_path)
    assert "not empty" in refused("organisms", "export", "bundled", bundle.ids[0], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
