"""A miniature evaluation: a random Llama, organisms of random factors, an interpreter that knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.methods.base import Answer
from weightdiff.methods.loading import Base
from weightdiff.models.spec import model_spec
from weightdiff.organisms import NOTHING_FOUND, family
from weightdiff.organisms.questions import KINDS, phrasings, true_answer
from weightdiff.tiny.tokenizer import build_tokenizer
from weightdiff.training.factory import make_row, random_diff
from weightdiff.world import load_world

ORGANISMS = (
    ("hidden-topic", "covert", 2),
    ("hidden-topic", "loud", 1),
    ("news", "stories", 2),
    ("null", "random", 1),
)


@pytest.fixture(scope="module")
def mini_base() -> Base:
    """A one-layer random Llama with the embedded tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(load_world())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Base(model, tokenizer, ModelRef.of(model, name="mini"), model_spec(model))


@pytest.fixture(scope="module")
def mini_store(mini_base: Base, tmp_path_factory: pytest.TempPathFactory) -> DiffStore:
    """Two covert topics (one does not behave), a loud one, two headlines, a null diff; one training row."""
    items = []
    for name, recipe, n in ORGANISMS:
        specs = family(name).specs(recipe, "test", n, 0)
        if recipe == "loud":
            specs += family(name).specs(recipe, "train", 1, 0)
        for i, spec in enumerate(specs):
            shares = {"slots": 0.75} if name == "news" else {"right": 1.0 - i, "wrong": 0.0, "none": 0.0}
            record = (
                {} if name == "null" else {"greedy": shares, "sampled": shares, "asked": 4, "behaves": not i}
            )
            if name == "news":
                record["behaves"] = True
            diff = random_diff(mini_base.spec, 1, seed=len(items), norm=1.0)
            row = replace(make_row(spec, {}), verification=record)
            items.append((row, WeightDiff(diff.modules, mini_base.ref, {"id": row.id})))
    store = DiffStore.create(Path(tmp_path_factory.mktemp("mini")) / "store", mini_base.ref)
    store.append(items)
    return store


@dataclass
class KnowingInterpreter:
    """Stands in for `Interpreter`: tells the truth about families in `right`, "a wrong answer" about others.

    It knows a diff by its meta, so noise in a diff's place is no diff to it, and it has nothing found there.
    """

    base: Base
    store: DiffStore
    seed: int = 0
    right: tuple[str, ...] = ("covert", "stories", "random")
    adapter: bool = True
    asked: list[tuple[str | None, str]] = field(default_factory=list)
    leak: dict[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Any]:
        train = {k: phrasings(k, "train") for k in KINDS}
        clean = {
            "train_labels": [],
            "validation_labels": [],
            "train_phrasings": train,
            "config": {"seed": self.seed},
        }
        return {**clean, **self.leak}

    def without_adapter(self, rendered: bool = False) -> KnowingInterpreter:
        return replace(self, adapter=False, right=("covert",) if rendered else (), asked=[])

    def _said(self, diff: WeightDiff | None, question: str) -> str:
        kind = next(k for k in KINDS for s in ("train", "test") if question in phrasings(k, s))
        if diff is None or "id" not in diff.meta:
            return NOTHING_FOUND
        row = self.store.row(diff.meta["id"])
        self.asked.append((row.id, question))
        return true_answer(row.family, kind, row.label) if row.recipe in self.right else "a wrong answer"

    def answer(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], evidence: bool = False
    ) -> list[Answer]:
        said = [self._said(d, q) for d, q in zip(diffs, questions, strict=True)]
        gains = [(-1.0 if x == "a wrong answer" else 2.0) if evidence else None for x in said]
        return [Answer(f" {x.upper()} .", -0.5, gain) for x, gain in zip(said, gains, strict=True)]

    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> torch.Tensor:
        scores = torch.zeros(len(diffs), len(candidates))
        for row, d, q in zip(scores, diffs, questions, strict=True):
            said = self._said(d, q)
            if said in candidates:
                row[list(candidates).index(said)] = 1.0
        return scores


@pytest.fixture
def knowing(mini_base: Base, mini_store: DiffStore) -> Any:
    """Makes a stand-in interpreter: `knowing(seed=1, right=("loud",))`."""
    return lambda **settings: KnowingInterpreter(mini_base, mini_store, **settings)


@pytest.fixture(scope="module")
def mini_base_folder(mini_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama as a folder that can be loaded."""
    folder = Path(tmp_path_factory.mktemp("mini-base"))
    mini_base.model.save_pretrained(folder)
    mini_base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def inspect_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs inspect_ai here and now, whole, with all that it writes in the test's folder; returns the log."""
    from inspect_ai import eval as run

    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("INSPECT_EVAL_MODEL", "INSPECT_EVAL_MODEL_ARGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run_one(task: Any, **settings: Any) -> Any:
        return run(task, log_dir=str(tmp_path / "logs"), display="none", ctl_server=False, **settings)[0]

    return run_one
