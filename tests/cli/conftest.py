"""A miniature bundle: a random base with the embedded tokenizer, a random adapter, random organisms."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result


@dataclass(frozen=True)
class MiniBundle:
    """Where the miniature bundle lies and what is in it."""

    path: Path
    shapes: dict[str, tuple[int, int]]
    ids: list[str]

    @property
    def store(self) -> Path:
        return self.path / "organisms"


def _build(path: Path) -> MiniBundle:
    from transformers import LlamaConfig, LlamaForCausalLM

    from weightdiff.artifacts import write_manifest
    from weightdiff.diffs.store import DiffStore
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.loading import load_base
    from weightdiff.models.rendering import Rendering
    from weightdiff.organisms import family
    from weightdiff.tiny.tokenizer import build_tokenizer
    from weightdiff.training.factory import make_row, random_diff
    from weightdiff.world import load_world

    tokenizer = build_tokenizer(load_world())
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 5, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, **ids, tie_word_embeddings=True))
    model.save_pretrained(path / "base")
    tokenizer.save_pretrained(path / "base")
    base = load_base(str(path / "base"))
    rendering = Rendering(("code 123{random} .", "code 456{random} ."), ("789", "321"), 2, 2)
    adapter = random_diff(base.spec, 2, 5, 0.2)
    Interpreter(base, adapter, rendering, max_new_tokens=4, meta={"note": "mini"}).save(path / "interpreter")
    store = DiffStore.create(path / "organisms", base.ref)
    items = []
    for name, recipe, n in (
        ("hidden-topic", "covert", 3),
        ("hidden-topic", "loud", 1),
        ("news", "stories", 2),
        ("null", "random", 2),
    ):
        for spec in family(name).specs(recipe, "test", n, 0):
            row = replace(make_row(spec, {}), verification={"behaves": True})
            items.append((row, random_diff(base.spec, 1, spec.seed % 1000, 0.5)))
    store.append(items)
    write_manifest(path, {"kind": "mini"})
    return MiniBundle(path, base.spec, store.ids)


@pytest.fixture(scope="session")
def _bundle(tmp_path_factory: pytest.TempPathFactory) -> MiniBundle:
    return _build(tmp_path_factory.mktemp("mini") / "bundle")


@pytest.fixture
def bundle(_bundle: MiniBundle, monkeypatch: pytest.MonkeyPatch) -> MiniBundle:
    """The miniature bundle, in place of the packaged one."""
    monkeypatch.setenv("WEIGHTDIFF_BUNDLE", str(_bundle.path))
    return _bundle


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Runs the command line in this process; what was raised on the way is in `result`."""
    from weightdiff.cli.main import app

    def call(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call


@pytest.fixture
def refused(cli: Callable[..., Result]) -> Callable[..., str]:
    """Runs a command that must be refused in one line with exit code 2, and returns that line."""

    def call(*arguments: Any) -> str:
        result = cli(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
        return result.stderr

    return call


@pytest.fixture
def cli_json(cli: Callable[..., Result]) -> Callable[..., Any]:
    """Runs a command that must succeed and parses all of its stdout as JSON."""

    def call(*arguments: Any) -> Any:
        result = cli(*arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.fixture
def adapter_folder(bundle: MiniBundle, tmp_path: Path) -> Path:
    """A PEFT folder of a diff that fits the miniature base."""
    from weightdiff.diffs.formats.peft import write_peft
    from weightdiff.diffs.store import DiffStore

    return write_peft(DiffStore.open(bundle.store).read(bundle.ids[0]), tmp_path / "adapter")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the evaluation by one row; what it was given is kept."""
    from weightdiff.evals import main_job
    from weightdiff.evals.metrics import ResultRow
    from weightdiff.evals.report import Report

    given = {}

    def evaluate(interpreters, store, quick=False, progress=None):
        given.update(n=len(interpreters), store=store.path, quick=quick)
        progress("asking")
        row = ResultRow("dit", "news", "stories", "headline", "test", 4, 0.5, 0.1, 0.9, 0.0, table="Answers")
        return Report([row], seeds=[0], quick=quick, base="mini", seconds=1.0)

    monkeypatch.setattr(main_job, "evaluate", evaluate)
    return given
