"""Datasets by name, and a part of one: which families, which kinds of question, how many diffs.

What front ends call a dataset: "bundled", the folder of a store, the folder of a saved dataset, or a file of
one's own questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightdiff.diffs.types import named
from weightdiff.errors import QuestionError
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.making import from_store
from weightdiff.evals.own_questions import read_items
from weightdiff.methods.naming import BUNDLED, open_store
from weightdiff.world import TEST


def open_dataset(
    name: str = BUNDLED,
    families: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int | None = None,
    per_label: int | None = None,
    split: str | None = None,
    seed: int = 0,
    store: str | None = None,
) -> Dataset:
    """A dataset, or the part of it that is wanted.

    Args:
        name: "bundled"; a folder of a store, about whose diffs questions are made, or of a saved dataset; or
            a file of one's own questions.
        families: only these; None for all.
        kinds: only these kinds of question; None for all.
        limit: at most so many diffs of a family and recipe: of a store drawn by `seed`, of a saved dataset
            the first ones.
        per_label: at most so many diffs of a label in a family and recipe, those that behave first.
        split: of the diffs; None for "test" of a store, for all of what was saved.
        seed: of what is drawn.
        store: of the diffs of what was saved, by name; None for the one that a dataset names, and for the
            bundled one with a file of questions.

    Raises:
        StoreError: a store is missing or has no such diffs.
        FormatError: there is no dataset, or it is damaged.
        QuestionError: nothing is left of it.
    """
    if name == BUNDLED or (Path(name) / "store.json").is_file():
        return from_store(open_store(name), split or TEST, kinds, per_label, families, limit, seed)
    diffs = None if store is None else open_store(store)
    if Path(name).is_file():
        diffs = open_store(BUNDLED) if diffs is None else diffs
        found = Dataset(Path(name).stem, tuple(read_items(name, diffs)), diffs.base, diffs)
    else:
        found = Dataset.load(name, diffs)
    return narrowed(found, families, kinds, limit, per_label, split)


def narrowed(
    dataset: Dataset,
    families: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int | None = None,
    per_label: int | None = None,
    split: str | None = None,
) -> Dataset:
    """The items of a dataset that are wanted; arguments are those of `open_dataset`, None for all splits.

    Raises:
        QuestionError: nothing is left, or there is no such family, kind or split (those there are, are
            named).
    """
    wanted = {"family": families, "kind": kinds, "split": None if split is None else [split]}
    kept = list(dataset.items)
    for field, values in wanted.items():
        there = sorted({getattr(i, field) for i in dataset.items})
        if unknown := [v for v in values or () if v not in there]:
            raise QuestionError(
                f"dataset {dataset.name!r} has no items of {field} {unknown[0]!r}; it has {named(there)}"
            )
        kept = [i for i in kept if values is None or getattr(i, field) in values]
    if not kept:
        raise QuestionError(
            f"dataset {dataset.name!r} has no items that are all of what was asked for; ask for less"
        )
    few = _first_diffs(kept, limit, per_label)
    return dataset.select([i for i in kept if (i.family, i.recipe, i.diff) in few])


def _first_diffs(
    items: Sequence[Item], limit: int | None, per_label: int | None
) -> set[tuple[str, str, str | None]]:
    """Diffs that stay, with family and recipe: the first ones, of a label those that behave first."""
    chosen: dict[tuple[str, str], list[str | None]] = {}
    labels: dict[tuple[str, str, str], set[str | None]] = {}
    for item in sorted(items, key=lambda i: not i.behaves):
        group = (item.family, item.recipe)
        own = chosen.setdefault(group, [])
        if item.diff in own:
            continue
        if per_label is not None and item.label is not None:
            same = labels.setdefault((*group, item.label), set())
            if len(same) == per_label:
                continue
            same.add(item.diff)
        own.append(item.diff)
    order = {d: n for n, d in enumerate(dict.fromkeys(i.diff for i in items))}
    return {(*group, d) for group, own in chosen.items() for d in sorted(own, key=lambda d: order[d])[:limit]}
