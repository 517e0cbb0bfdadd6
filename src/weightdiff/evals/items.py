"""What items of a dataset have to be, and what is known of one from the row of its diff.

Items come from files, from stores and from other packages; all pass the checks here before anything is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import named
from weightdiff.errors import QuestionError, StoreError
from weightdiff.evals.dataset import HELD_OUT, OTHER_SCORERS, RANK_SCORERS, Dataset, Item
from weightdiff.evals.scorers import SCORERS, score

BARE = "-"
"""In a file of questions, and in ids, the bare base in a diff's place."""
NO_DIFF = "no diff"
"""Recipe of items about the bare base."""
OWN_KIND = "summary"
"""Kind of a question that does not say its own; graders that need a model take it."""


def check_dataset(dataset: Dataset, places: Sequence[str] = ()) -> Dataset:
    """A dataset that can be asked, as it is.

    Raises:
        QuestionError: it has no items; see `check_items`.
        StoreError: its store is of another base, or lacks a diff.
    """
    if not dataset.items:
        raise QuestionError(f"dataset {dataset.name!r} has no items; give it some")
    store = dataset.store
    if store is not None and (differs := dataset.base.difference(store.base)):
        raise StoreError(
            f"{store.path} is of {store.base.describe()}, and dataset {dataset.name!r} of"
            f" {dataset.base.describe()}: their {differs} differ; give the store that it was made of"
        )
    check_items(dataset.items, dataset.candidates, store, places)
    return dataset


def check_items(
    items: Sequence[Item],
    candidates: Mapping[str, Sequence[str]],
    store: DiffStore | None = None,
    places: Sequence[str] = (),
) -> None:
    """Refuse items that could not be asked or scored, before any work.

    Args:
        items: of a dataset.
        candidates: its lists of possible answers.
        store: of the diffs, where it is known.
        places: where each item stands, for messages; left out, they say its id.

    Raises:
        QuestionError: an id is taken, a question or an answer is empty, a scorer is unknown or does not suit
            the answers, or candidates are missing.
        StoreError: a diff is not in the store.
    """
    seen: set[str] = set()
    for n, item in enumerate(items):
        place = places[n] if places else f"item {item.id!r}"
        if item.id in seen:
            raise QuestionError(f"{place}: id {item.id!r} is another item's too; give each its own")
        if fault := next(_faults(item, candidates), ""):
            raise QuestionError(f"{place}: {fault}")
        if store is not None and item.diff is not None and item.diff not in store:
            has = f"it has {len(store)}, such as {named(store.ids, 3)}" if len(store) else "it is empty"
            raise StoreError(
                f"{place}: {store.path} has no diff {item.diff!r} ({has}); give the store that it is about"
            )
        seen.add(item.id)


def _faults(item: Item, candidates: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is wrong with an item, in words, the plainest first."""
    if not item.id:
        yield "it has no id; give each its own"
    if item.diff == "":
        yield "its diff has no name; give an id of the store, or null for the bare base"
    if not item.question.strip():
        yield "its question is empty; write one"
    if not item.truths or not isinstance(item.truths, tuple):
        yield "it has no truths; give a list of them, the reference answer first"
    if not all(truth.strip() for truth in item.truths):
        yield "one of its truths is empty; write it or leave it out"
    if not item.kind.strip():
        yield "it has no kind; give it a word"
    if not item.scorers:
        yield "it has no scorers; name at least one"
    if unknown := [s for s in item.scorers if s not in SCORERS and s not in OTHER_SCORERS]:
        yield f"no scorer is called {unknown[0]!r}; there are {', '.join((*SCORERS, *OTHER_SCORERS))}"
    if claims := [c for c in item.held_out if c not in HELD_OUT]:
        yield f"{claims[0]!r} is nothing that can be held out; choose of {', '.join(HELD_OUT)}"
    if item.chance is not None and not 0 <= item.chance <= 1:
        yield f"its chance is {item.chance}; give a share from 0 to 1"
    if item.candidates and item.candidates not in candidates:
        there = named([*candidates]) or "none"
        yield f"there is no list of candidates {item.candidates!r} (there are: {there}); give it, or none"
    if item.candidates and item.truths[0] not in candidates[item.candidates]:
        yield f"its answer {item.truths[0]!r} is not among its candidates {item.candidates!r}; add it to them"
    if not item.candidates and (ranked := [s for s in item.scorers if s in RANK_SCORERS]):
        yield f"scorer {ranked[0]!r} needs candidates, and it names none"
    if not _is_text(item):
        yield "it holds half of a surrogate pair, which is no text; leave that out"
    for name in item.scorers:  # such as yes_no, which needs a truth that says either
        if name in SCORERS:
            try:
                score("", item.truths, name)
            except QuestionError as error:
                yield f"{error}; give it another scorer"


def _is_text(item: Item) -> bool:
    try:
        json.dumps(asdict(item), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def row_fields(row: DiffRow | None, question: str) -> dict[str, Any]:
    """The fields of an item that the row of its diff tells; None is the bare base, which has nothing to find.

    Untouched diffs and the bare base are one function: the same question to them is one cluster.
    """
    if row is None:
        return {"diff": None, "family": "null", "recipe": NO_DIFF, "cluster": question}
    params = row.record.get("params")
    known = params if isinstance(params, dict) else {}
    trigger = known.get("code") or known.get("trigger")
    return {
        "diff": row.id,
        "family": row.family,
        "recipe": row.recipe,
        "label": row.label,
        "cluster": row.label or (question if row.recipe == "untouched" else row.id),
        "split": row.split,
        "trigger": None if trigger is None else str(trigger),
        "behaves": row.behaves,
    }


def numbered(items: Sequence[Item]) -> list[Item]:
    """Items with ids `diff/kind`, or `diff/kind/n` where a diff is asked several of a kind.

    An item that has an id keeps it.
    """
    names = [f"{BARE if i.diff is None else i.diff}/{i.kind}" for i in items]
    often = Counter(name for name, i in zip(names, items, strict=True) if not i.id)
    count: Counter[str] = Counter()
    out: list[Item] = []
    for name, item in zip(names, items, strict=True):
        count[name] += not item.id
        own = item.id or (name if often[name] == 1 else f"{name}/{count[name]}")
        out.append(replace(item, id=own))
    return out
