"""A WeightDiffQA dataset: labelled diffs, questions about them, and what a right answer says.

An `Item` is one question about one diff with its reference answers; a `Dataset` is many of them with the
store that holds the diffs. Who answers, and how answers are scored, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from weightdiff.diffs.reference import ModelRef

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.diffs.types import WeightDiff

TRIGGER = "trigger"
"""Key of a diff's `meta` under which methods that are given the trigger find it."""


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
            StoreError: there is no such diff.
        """
        if diff is None or self.store is None:
            return None
        found = self.store.read(diff)
        trigger = next((i.trigger for i in self.items if i.diff == diff and i.trigger), None)
        return replace(found, meta={**found.meta, TRIGGER: trigger}) if trigger else found

    def select(self, keep: Sequence[Item]) -> Dataset:
        """The same with some of its items only."""
        return replace(self, items=tuple(keep))
