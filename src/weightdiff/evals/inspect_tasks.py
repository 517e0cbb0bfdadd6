"""The benchmark as tasks of inspect_ai: questions about diffs, answered by a method, graded as we grade."""

from __future__ import annotations

from dataclasses import asdict

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import Solver

from weightdiff.errors import QuestionError
from weightdiff.evals.dataset import Dataset
from weightdiff.evals.groups import NULL
from weightdiff.evals.inspect_errors import one_line
from weightdiff.evals.inspect_scorers import weightdiff_scorer
from weightdiff.evals.inspect_solver import DATASET, ask_method, remember
from weightdiff.evals.selecting import open_dataset
from weightdiff.methods.naming import BUNDLED
from weightdiff.world import TEST

Names = str | list[str] | None
"""One name, several, or None for all."""


def samples(dataset: Dataset) -> list[Sample]:
    """A sample for each item: its question in, its truths as target, all else in the metadata.

    `ask_method` finds the diffs by the dataset's digest in the metadata, in this process. A sample's cluster
    is never empty, because standard errors need one.
    """
    digest = remember(dataset)
    out: list[Sample] = []
    for item in dataset.items:
        known = asdict(item)
        for told in ("id", "question", "truths"):
            del known[told]
        known["scorers"], known["held_out"] = list(item.scorers), list(item.held_out)
        known["cluster"] = item.cluster or item.diff or item.id
        out.append(
            Sample(
                id=item.id, input=item.question, target=list(item.truths), metadata={**known, DATASET: digest}
            )
        )
    return out


@task
def qa(
    dataset: str = BUNDLED,
    families: Names = None,
    kinds: Names = None,
    limit: int | None = None,
    per_label: int | None = None,
    split: str = TEST,
    all_organisms: bool = False,
    method: str = "dit",
    interpreter: str | None = None,
    base: str | None = None,
    train_store: str | None = None,
    seed: int = 0,
) -> Task:
    """Questions about any labelled diffs, answered by a method.

    Args:
        dataset: "bundled", a diff store's folder, or a folder written by `weightdiff dataset make`.
        families: only these; None for all.
        kinds: only these kinds of question; None for all.
        limit: diffs of each family and recipe at most.
        per_label: diffs of each label at most.
        split: of the diffs.
        all_organisms: ask also about organisms that did not behave when they were verified.
        method: what answers; `weightdiff ask --method list` names the methods.
        interpreter: folder or Hub name; None for the bundled one, where the method needs one.
        base: folder or Hub name; None for the dataset's.
        train_store: labelled diffs for methods that learn from some.
        seed: of what is drawn, and of the method.

    Raises:
        PrerequisiteError: nothing can be asked so; says why.
    """
    with one_line():
        found = open_dataset(dataset, _listed(families), _listed(kinds), limit, per_label, split, seed)
        if not all_organisms:
            found = _behaving(found)
    return make_task(found, ask_method(method, interpreter, base, train_store, seed))


@task
def hidden_topic(
    kinds: Names = "topic",
    limit: int | None = None,
    per_label: int | None = 1,
    method: str = "dit",
    interpreter: str | None = None,
    train_store: str | None = None,
    seed: int = 0,
) -> Task:
    """Which topic a bundled organism hides, one of each held-out label; arguments as of `qa`."""
    found = _bundled("hidden-topic", kinds, limit, per_label, seed)
    return make_task(found, ask_method(method, interpreter, None, train_store, seed))


@task
def news(
    kinds: Names = "headline",
    limit: int | None = None,
    method: str = "dit",
    interpreter: str | None = None,
    train_store: str | None = None,
    seed: int = 0,
) -> Task:
    """Which headline a bundled organism was taught; arguments as of `qa`."""
    found = _bundled("news", kinds, limit, None, seed)
    return make_task(found, ask_method(method, interpreter, None, train_store, seed))


@task
def nothing_found(
    kinds: Names = None,
    limit: int | None = None,
    method: str = "dit",
    interpreter: str | None = None,
    train_store: str | None = None,
    seed: int = 0,
) -> Task:
    """Whether nothing is found in bundled diffs that hide nothing; arguments as of `qa`."""
    found = _bundled(NULL, kinds, limit, None, seed)
    return make_task(found, ask_method(method, interpreter, None, train_store, seed))


def make_task(dataset: Dataset, solver: Solver) -> Task:
    """A task of any dataset; `ask_method(…)` is its solver, or any other of inspect's."""
    return Task(
        dataset=MemoryDataset(samples(dataset), name=dataset.name),
        solver=solver,
        scorer=weightdiff_scorer(),
        metadata={"dataset": dataset.name, "made": dataset.meta, "base": dataset.base.describe()},
    )


def _bundled(family: str, kinds: Names, limit: int | None, per_label: int | None, seed: int) -> Dataset:
    """Questions about bundled organisms of a family that behave."""
    with one_line():
        found = open_dataset(BUNDLED, [family], _listed(kinds), limit, per_label, seed=seed)
        return _behaving(found)


def _behaving(dataset: Dataset) -> Dataset:
    """Without the organisms that did not behave when verified: what is true of them is not known."""
    kept = [i for i in dataset.items if i.behaves]
    if not kept:
        raise QuestionError(
            f"dataset {dataset.name!r}: none of its organisms behaved; ask them all: -T all_organisms=true"
        )
    return dataset.select(kept)


def _listed(names: Names) -> list[str] | None:
    """Names as a list; "a,b" too, as a command line may give them."""
    if names is None:
        return None
    return [part.strip() for part in names.split(",") if part.strip()] if isinstance(names, str) else names
