"""A whole run of the benchmark, and the embedded one: which diffs, which questions, which methods.

The embedded benchmark asks every built-in method about held-out organisms of the bundle. Methods that learn
from labelled diffs learn from organisms that it makes itself, of training labels only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdiff.diffs.store import DiffStore
from weightdiff.errors import InterpreterError
from weightdiff.evals.controls import assert_items_held_out
from weightdiff.evals.dataset import Dataset
from weightdiff.evals.grading import grade
from weightdiff.evals.outcomes import Run
from weightdiff.evals.results import result_rows
from weightdiff.evals.runner import DIFFS_AT_ONCE, Progress, ask
from weightdiff.evals.scorers import BatchScorer
from weightdiff.evals.scoring import normalise
from weightdiff.methods.loading import Base
from weightdiff.methods.registry import Context
from weightdiff.organisms.base import OrganismSpec, family
from weightdiff.training.production import Production, produce
from weightdiff.world import TEST

METHODS = (
    "dit",
    "dit-no-diff",
    "dit-shuffled",
    "dit-noise",
    "base-question",
    "base-question-trigger",
    "twenty-questions",
    "twenty-questions-trigger",
    "generated-text",
    "prefill",
    "text-completion",
    "prompt-tuning",
    "perplexity-difference",
    "activation-difference",
    "logit-difference",
    "nearest-neighbour",
    "spectral",
)
"""Every built-in method, the interpreter first: the others are held against it."""
TRAIN = "train-store"
"""Folder, in a run's, of the organisms that methods learn from."""
VERIFY_PROMPTS = 4


@dataclass(frozen=True)
class Size:
    """How much of everything the embedded benchmark takes."""

    name: str
    per_label: int | None
    """Diffs of each label; None for all."""
    limit: int | None
    """Diffs of each family and recipe; None for all."""
    training: tuple[tuple[str, str, str, int], ...]
    """Organisms to learn from: family, recipe, split, how many."""
    effort: float = 1.0
    """See `Context.effort`."""


FULL = Size(
    "full",
    per_label=1,
    limit=None,
    training=(
        ("hidden-topic", "covert", "validation", 8),
        ("hidden-topic", "covert", "train", 64),
        ("hidden-topic", "loud", "train", 8),
        ("news", "stories", "validation", 8),
        ("news", "stories", "train", 64),
        ("null", "continued", "validation", 4),
        ("null", "continued", "train", 16),
        ("null", "random", "validation", 4),
        ("null", "random", "train", 16),
        ("null", "untouched", "train", 2),
    ),
    effort=0.7,
)
QUICK = Size(
    "quick",
    per_label=1,
    limit=3,
    training=(
        ("hidden-topic", "covert", "train", 8),
        ("news", "stories", "train", 8),
        ("null", "continued", "train", 4),
        ("null", "random", "train", 4),
    ),
    effort=0.05,
)


def evaluate_run(
    name: str,
    dataset: Dataset,
    methods: Sequence[str],
    context: Context,
    out: Path,
    scorers: Sequence[BatchScorer] = (),
    info: dict[str, Any] | None = None,
    at_once: int = DIFFS_AT_ONCE,
    progress: Progress | None = None,
) -> Run:
    """Ask, grade and sum up; what was answered before a kill is read from `out`.

    Args:
        name: of the run.
        dataset: what is asked.
        methods: names in the registry; the first is held against each of the others.
        context: what methods are built from.
        out: the run's folder.
        scorers: graders that need a model.
        info: how the run came about, for its report.
        at_once: diffs of a batch.
        progress: see `runner.ask`.

    Raises:
        InterpreterError: the interpreter was tuned on what it shall be tested on.
        QuestionError: a method is unknown or lacks something.
        BaseMismatchError: dataset, interpreter and base do not fit.
    """
    if context.interpreter is not None and context.interpreter.adapter is not None:
        assert_items_held_out(context.interpreter, dataset.items)
    if context.store is not None:
        assert_store_held_out(context.store, dataset)
    told = ask(dataset, methods, context, out, at_once, progress)
    outcomes = grade(dataset, told, scorers)
    seconds = {
        (m, item.id): t.seconds for m in methods for item, t in zip(dataset.items, told[m], strict=True)
    }
    return Run(
        name,
        dataset,
        tuple(methods),
        tuple(outcomes),
        result_rows(dataset, outcomes, methods, seconds),
        {m: round(sum(t.seconds for t in told[m]), 2) for m in methods},
        info or {},
    )


def assert_store_held_out(store: DiffStore, dataset: Dataset) -> None:
    """Check that methods which learn from a store learn nothing that is asked: none reads its test rows.

    Raises:
        InterpreterError: the store holds a diff or a label that the dataset claims was held out.
    """
    rows = [r for r in store.rows if r.split != TEST]
    labels = {normalise(r.label) for r in rows if r.label}
    held = {normalise(i.label) for i in dataset.items if i.label and "label" in i.held_out}
    shared = sorted(labels & held) + sorted({r.id for r in rows} & {str(i.diff) for i in dataset.items})
    if shared:
        raise InterpreterError(
            f"{store.path}: the training store holds {len(shared)} labels or diffs that are asked about,"
            f" such as {shared[0]!r}; give one of other labels"
        )


def training_store(
    path: Path, base: Base, size: Size, progress: Callable[[Production], None] | None = None
) -> DiffStore:
    """The organisms that methods learn from, made here or (after a kill) completed.

    Raises:
        StoreError: what is at `path` is another base's, or was made otherwise.
    """
    there = (path / "store.json").is_file()
    store = DiffStore.open(path) if there else DiffStore.create(path, base.ref)
    produce(
        base.model,
        base.tokenizer,
        base.ref,
        _specs(size),
        store,
        slots=24,
        asked=VERIFY_PROMPTS,
        progress=progress,
    )
    return store


def _specs(size: Size) -> list[OrganismSpec]:
    return [
        spec for name, recipe, split, n in size.training for spec in family(name).specs(recipe, split, n, 0)
    ]
