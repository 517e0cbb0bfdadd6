"""The solver that lets any method answer in inspect_ai: samples come one by one, methods answer in batches.

What is asked together is the runner's choice and depends on the dataset alone, never on how many samples are
in flight: answers are those of `weightdiff eval`, and the same every time. The first sample of a batch has
the whole batch answered; the others find their answers there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import ChatMessageAssistant, ModelOutput
from inspect_ai.solver import Generate, Solver, TaskState, solver

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import QuestionError, WeightDiffError
from weightdiff.evals.benchmark import assert_store_held_out
from weightdiff.evals.controls import assert_items_held_out
from weightdiff.evals.dataset import Dataset
from weightdiff.evals.inspect_errors import no_bars, one_line
from weightdiff.evals.runner import DIFFS_AT_ONCE, Asked, Told, batches, tell
from weightdiff.methods.base import Method
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import BUNDLED_NAME, Base, load_base
from weightdiff.methods.naming import BUNDLED, open_store
from weightdiff.methods.registry import NEEDS, Context, build, find

ANSWER = "answer"
"""Key of a sample's metadata for what came with its answer."""
DATASET = "dataset"
"""Key of a sample's metadata for the digest of the dataset that it is of."""
_DATASETS: dict[str, Dataset] = {}
_ONE_AT_A_TIME = threading.Lock()
"""Held while a method answers: it puts hooks on its model, and the processor is busy anyway."""


def remember(dataset: Dataset) -> str:
    """Make a dataset known to solvers of this process, and return its digest, by which samples name it."""
    digest = dataset.digest
    _DATASETS[digest] = dataset
    return digest


@solver
def ask_method(
    method: str = "dit",
    interpreter: str | None = None,
    base: str | None = None,
    train_store: str | None = None,
    seed: int = 0,
    at_once: int = DIFFS_AT_ONCE,
) -> Solver:
    """Have a method answer samples of weightdiff's tasks; no model is asked.

    The answer is the sample's output; its evidence, log-probability and notes, the rank of the truth, and why
    there is no answer (where a method refuses) are in the sample's metadata under "answer". Controls that
    exchange the diffs of a batch find others there; where the dataset has only one diff they refuse.

    Args:
        method: name in the registry (`weightdiff ask --method list`).
        interpreter: folder or Hub name; None or "bundled" for the bundled one, where the method needs one.
        base: folder or Hub name of the base; None for the dataset's.
        train_store: folder of labelled diffs for methods that learn from some.
        seed: of a method's random choices.
        at_once: diffs that are asked about together.

    Raises:
        PrerequisiteError: no such method, or what it needs is not given or cannot be read.
    """
    asker = _Asker(method, interpreter, base, train_store, seed, at_once)
    with one_line():
        asker.check()

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001 (inspect's signature)
        with one_line():
            told = await asker.told(state.metadata, str(state.sample_id))
        message = ChatMessageAssistant(content=told.answer.text, model=method, source="generate")
        state.metadata[ANSWER] = _details(told)
        state.messages.append(message)
        state.output = ModelOutput.from_message(message)
        return state

    return solve


def _details(told: Told) -> dict[str, Any]:
    """All that is known of an answer besides its text, without what is not known."""
    found = {**asdict(told), **asdict(told.answer)}
    return {k: v for k, v in found.items() if k not in ("answer", "text") and v not in (None, "")}


@lru_cache(maxsize=1)
def _base(name: str) -> Base:
    """A base, one for all tasks of a run: methods leave it as they find it, and one asks at a time."""
    with no_bars():
        return load_base(name)


class _Asker:
    """One method, built when it is first asked, and what it has told."""

    def __init__(
        self,
        method: str,
        interpreter: str | None,
        base: str | None,
        train_store: str | None,
        seed: int,
        at_once: int,
    ) -> None:
        self.method, self.seed, self.at_once = method, seed, at_once
        self.interpreter, self.base, self.train_store = interpreter, base, train_store
        self._told: dict[tuple[str, str], Told] = {}
        self._parts: dict[str, dict[str, Asked]] = {}
        self._built: dict[str, Method | WeightDiffError] = {}
        self._turn = anyio.Lock()

    def check(self) -> None:
        """Refuse what cannot work, before a model is loaded.

        Raises:
            WeightDiffError: no such method, it needs a store that is not given, batches of one diff, or the
                interpreter or the store cannot be read.
        """
        if "store" in find(self.method).needs and self.train_store is None:
            raise QuestionError(
                f"method {self.method!r} needs {NEEDS['store']}; in inspect: -T train_store=FOLDER"
            )
        if self.at_once < 2:
            raise QuestionError(
                f"a batch needs two diffs or more, not {self.at_once}: controls exchange them"
            )

        if self.interpreter not in (None, BUNDLED):
            Interpreter.without_base(self.interpreter)
        if self.train_store is not None:
            open_store(self.train_store)

    async def told(self, metadata: Mapping[str, Any], item: str) -> Told:
        """What the method says to an item; the first one asked of a batch waits for the whole batch."""
        digest = str(metadata.get(DATASET, ""))
        async with self._turn:
            if (digest, item) not in self._told:
                answered = await anyio.to_thread.run_sync(self._ask, digest, item)
                self._told |= {(digest, name): told for name, told in answered.items()}
            return self._told[digest, item]

    def _ask(self, digest: str, item: str) -> dict[str, Told]:
        """The answers to an item's batch, by item."""
        dataset = _DATASETS.get(digest)
        if dataset is None:
            raise QuestionError(
                "this sample is of no weightdiff dataset; use ask_method with weightdiff/qa and its like, or"
                " a model weightdiff/BASE?diff=… with other tasks"
            )
        if digest not in self._parts:
            parts = batches(dataset.items, self.at_once)
            self._parts[digest] = {i.id: part for part in parts for i in part.items}
        part = self._parts[digest].get(item)
        if part is None:
            raise QuestionError(f"dataset {dataset.name!r} has no item {item!r}; make the task again")
        with _ONE_AT_A_TIME:
            told = tell(self._method(digest, dataset), part, dataset)
        return {i.id: t for i, t in zip(part.items, told, strict=True)}

    def _method(self, digest: str, dataset: Dataset) -> Method:
        """The method for a dataset; what went wrong once goes wrong again, without loading anything."""
        if digest not in self._built:
            try:
                self._built[digest] = self._build(dataset)
            except WeightDiffError as error:
                self._built[digest] = error
        found = self._built[digest]
        if isinstance(found, WeightDiffError):
            raise found
        return found

    def _build(self, dataset: Dataset) -> Method:
        name = self.base or dataset.base.name
        base = _base(BUNDLED if name == BUNDLED_NAME else name)
        WeightDiff({}, dataset.base).check_base(base.ref)
        wanted = self.interpreter is not None or "interpreter" in find(self.method).needs
        path = None if self.interpreter == BUNDLED else self.interpreter
        its = Interpreter.load(path, base) if wanted else None
        store = None if self.train_store is None else open_store(self.train_store)
        if its is not None and its.adapter is not None:
            assert_items_held_out(its, dataset.items)
        if store is not None:
            assert_store_held_out(store, dataset)
        return build(self.method, Context(base, its, store, self.seed))
