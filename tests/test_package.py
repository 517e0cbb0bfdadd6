"""The package as a whole: what importing it costs, and which names it offers."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import weightdiff

HEAVY = ("torch", "transformers", "peft", "numpy", "gradio", "ray", "sklearn")


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("statement", ["import weightdiff", "import weightdiff.errors, weightdiff.artifacts"])
def test_importing_loads_nothing_heavy(statement):
    assert _loaded_after(statement).isdisjoint(HEAVY)


def test_lazy_names_are_the_real_ones():
    from weightdiff.diffs.store import DiffStore
    from weightdiff.diffs.types import WeightDiff

    assert weightdiff.DiffStore is DiffStore
    assert weightdiff.WeightDiff is WeightDiff
    assert set(weightdiff.__all__) <= set(dir(weightdiff))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = weightdiff.nonsense


def test_every_public_name_resolves():
    homes = weightdiff._HOMES
    missing = [name for name, home in homes.items() if find_spec(home) is None]
    assert missing == []
    assert all(getattr(weightdiff, name) is not None for name in homes)


def test_errors_are_one_tree_with_an_exit_code():
    import pickle

    from weightdiff import errors

    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(kind, errors.WeightDiffError) and kind.exit_code == 2 for kind in kinds)
    missing = errors.MissingDependencyError("gradio", "app")
    assert 'pip install "weightdiff[app]"' in str(missing)
    assert pickle.loads(pickle.dumps(missing)).extra == "app"


def test_the_network_is_refused():
    with socket.socket() as client, pytest.raises(RuntimeError, match="may not use the network"):
        client.connect(("192.0.2.1", 80))


def test_fixtures_build_models_that_chat(any_tiny_model, tiny_tokenizer):
    messages = [{"role": "user", "content": "What changed? é"}]
    encoded = tiny_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert (
        tiny_tokenizer.decode(encoded["input_ids"][0])
        == "<bos><turn>user\nWhat changed? é<eos><turn>assistant\n"
    )
    logits = any_tiny_model(**encoded).logits
    assert logits.shape == (*encoded["input_ids"].shape, any_tiny_model.config.vocab_size)


def test_the_readme_shows_the_results_as_they_were_measured():
    root = Path(__file__).parents[1]
    shown = (root / "README.md").read_text().split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    page = (root / "docs" / "results" / "joint.md").read_text()
    assert shown.count("\n") > 10
    assert f"## Against the goals\n\n{shown}\n" in page
