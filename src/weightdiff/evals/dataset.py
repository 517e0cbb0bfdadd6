"""A WeightDiffQA dataset: labelled diffs, questions about them, and what a right answer says.

An `Item` is one question about one diff with its reference answers; a `Dataset` is many of them with the
store that holds the diffs. Files are read and written in `dataset_files`; who answers, and how answers are
scored, is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdiff.diffs.reference import ModelRef
from weightdiff.errors import StoreError
from weightdiff.evals.scoring import TOP
from weightdiff.methods.triggering import TRIGGER

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.diffs.types import WeightDiff

RANK_SCORERS = {"ranked": 1, "top five": TOP}
"""Scorers of the truth's rank among candidates, and the last rank that they take for right."""
MODEL_SCORERS = ("judge", "embedding")
"""Scorers that need a model, and score only where one is given."""
OTHER_SCORERS = (*RANK_SCORERS, *MODEL_SCORERS)
"""All that an item may name besides those of `scorers.SCORERS`."""
HELD_OUT = ("label", "phrasing", "kind")
"""What of an item can be held out."""


@dataclass(frozen=True)
class Item:
    """One question about one diff, and its right answers."""

    id: str
    """Unique in its dataset."""
    diff: str | None
    """Id of the diff in the dataset's store; None asks about the bare base."""
    question: str
    truths: tuple[str, ...]
    """The reference answer, then other texts that say the same."""
    kind: str
    """Kind of question: "topic", "headline", "kind", "any_change", "about", or any other word."""
    family: str = ""
    """Family of the diff."""
    recipe: str = "all"
    """Its recipe."""
    label: str | None = None
    """The diff's label; None for one without."""
    cluster: str = ""
    """Items of one cluster are not independent; the label nearly always, the diff where there is none."""
    split: str = "test"
    """Split of the diff."""
    scorers: tuple[str, ...] = ("exact",)
    """Names of the scorers that the answer goes to; the first one counts most."""
    candidates: str = ""
    """Name of the list in `Dataset.candidates` among which the truth can be ranked; "" for none."""
    chance: float | None = None
    """What guessing gives by the first scorer; None where that is not known."""
    trigger: str | None = None
    """What sets the behaviour off, for methods that are given it."""
    behaves: bool = True
    """Whether the organism behaved when it was verified; what does not is scored and reported apart."""
    held_out: tuple[str, ...] = ()
    """What no interpreter that is tested on it may have been tuned on: of "label", "phrasing", "kind"."""


@dataclass(frozen=True)
class Dataset:
    """Items, and the diffs that they are about."""

    name: str
    items: tuple[Item, ...]
    base: ModelRef
    """The base of all its diffs."""
    store: DiffStore | None = None
    """Where the diffs lie; None if all items are about the bare base."""
    candidates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lists of possible answers by name."""
    meta: dict[str, Any] = field(default_factory=dict)
    """How it was made."""

    def read(self, diff: str | None) -> WeightDiff | None:
        """The diff that an item names, with its trigger (where an item knows one) in `meta`.

        Raises:
            StoreError: there is no such diff, or the dataset has no store.
        """
        if diff is None:
            return None
        if self.store is None:
            raise StoreError(
                f"dataset {self.name!r} has no store, so {diff!r} cannot be read; give its store"
            )
        found = self.store.read(diff)
        trigger = self._triggers.get(diff)
        return replace(found, meta={**found.meta, TRIGGER: trigger}) if trigger else found

    @cached_property
    def _triggers(self) -> dict[str, str]:
        """The trigger of each diff that has one."""
        return {i.diff: i.trigger for i in reversed(self.items) if i.diff is not None and i.trigger}

    def select(self, keep: Sequence[Item]) -> Dataset:
        """The same with some of its items only."""
        return replace(self, items=tuple(keep))

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked: items in any order, candidates, fingerprints of the base and the store's.

        The weights of diffs are not read; a run's batches are kept under digests that know them.
        """
        bases = [
            (b.architecture, b.weights) for b in (self.base, self.store.base if self.store else self.base)
        ]
        said = [sorted((asdict(i) for i in self.items), key=lambda i: i["id"]), self.candidates, bases]
        text = json.dumps(said, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str], diffs: str = "reference", overwrite: bool = False) -> Path:
        """Write a folder that `load` reads, and `datasets.load_dataset` too; whole or not at all.

        Args:
            folder: to make; items lie in `data/<split>.jsonl`, all else in `dataset.json`.
            diffs: "reference" notes where the store is (by a relative path where it lies in or beside the
                folder), "copy" copies the diffs that are asked about, "none" leaves them out.
            overwrite: replace a folder that is there.

        Raises:
            FormatError: something is in the way, a split's name cannot be a file's, `meta` is no JSON, or the
                store lies in the folder that would be replaced.
            QuestionError: there are no items, or one cannot be asked or scored.
            StoreError: a diff is not in the store.
        """
        from weightdiff.evals.dataset_files import write

        return write(self, Path(folder), diffs, overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], store: DiffStore | None = None) -> Dataset:
        """Read what `save` wrote, or a folder that `save_to_disk` of `to_datasets()` made.

        Items come split by split. Where neither the folder nor the caller knows a store, the questions can be
        looked at, and `read` refuses.

        Args:
            folder: with `dataset.json`, or one of Hugging Face datasets.
            store: of the diffs; None for the one that the folder names.

        Raises:
            FormatError: there is no dataset, or a file of it is damaged; says which line.
            QuestionError: an item cannot be asked or scored; says which line.
            StoreError: the store is missing, of another base, or lacks a diff.
            MissingDependencyError: a folder of `save_to_disk`, without the package datasets.
        """
        from weightdiff.evals.dataset_files import read

        return read(Path(folder), store)

    def to_datasets(self) -> Any:
        """The items as a `datasets.DatasetDict` by split; name, base, candidates and meta in its description.

        Raises:
            QuestionError: an item cannot be asked or scored.
            MissingDependencyError: the package datasets is not installed.
        """
        from weightdiff.evals.hf_datasets import to_datasets

        return to_datasets(self)

    @classmethod
    def from_datasets(
        cls,
        found: Any,
        store: DiffStore | None = None,
        name: str = "",
        candidates: Mapping[str, Sequence[str]] | None = None,
    ) -> Dataset:
        """A dataset from a `datasets.DatasetDict` or `datasets.Dataset` whose columns are fields of `Item`.

        Args:
            found: what `to_datasets` gives, however it travelled; or of one's own making.
            store: of the diffs.
            name: what to call it; "" for the name that the description knows, if any.
            candidates: lists of possible answers; None for those that the description knows.

        Raises:
            FormatError: a row is no item, or stands in another split; or the base is not known.
            QuestionError: an item cannot be asked or scored.
            StoreError: the store is of another base, or lacks a diff.
        """
        from weightdiff.evals.hf_datasets import from_datasets

        return from_datasets(found, store, name, candidates)
