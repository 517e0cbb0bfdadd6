"""Datasets made from stores: which diffs are asked, in which words, and what is true.

The families of the embedded world are asked in held-out phrasings; rows of anybody's own family are asked the
questions that are stored with them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from weightdiff import __version__
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import named
from weightdiff.errors import QuestionError, StoreError
from weightdiff.evals.baselines import chance_of, topic_names
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.dataset_files import is_bundled
from weightdiff.evals.groups import NULL
from weightdiff.evals.items import OWN_KIND, check_dataset, numbered, row_fields
from weightdiff.evals.scorers import score
from weightdiff.evals.typed_json import Mismatch, typed
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.questions import (
    ABOUT,
    KIND_ANSWERS,
    KINDS,
    about_question,
    phrasings,
    true_answer,
)
from weightdiff.organisms.verify import check_known
from weightdiff.world import TEST, load_world, reports, topic_splits

ASKED = {
    "hidden-topic": ("topic", "kind", "any_change", ABOUT),
    "news": ("headline", "kind", "any_change"),
    "quirk": ("behaviour", "kind", "any_change"),
    "edit": ("edit", "kind", "any_change"),
    "several": ("summary", "kind", "any_change"),
    NULL: (*KINDS, ABOUT),
}
"""Kinds of question that each family of the embedded world is asked."""
SCORERS = {
    "topic": ("exact", "ranked", "top five"),
    "headline": ("exact", "slots"),
    "behaviour": ("exact", "token_f1"),
    "edit": ("exact", "token_f1"),
    "summary": ("exact", "token_f1"),
    "kind": ("exact",),
    "any_change": ("exact",),
    ABOUT: ("yes_no",),
}
STORED_SCORERS = ("normalised", "token_f1", "rouge_l")
"""Scorers of questions that are stored with a row."""
CHANCE = {
    "topic": chance_of("topic"),
    "headline": chance_of("headline"),
    "behaviour": 1 / len(load_world().behaviours),
    "edit": 0.0,
    "summary": 0.0,
    "kind": 1 / len(KIND_ANSWERS),
    "any_change": 0.5,
    ABOUT: 0.5,
}
TOPICS = "topics"
"""Name of the list of all topics."""


def from_store(
    store: DiffStore,
    split: str = TEST,
    kinds: Sequence[str] | None = None,
    per_label: int | None = None,
    families: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    name: str = "",
    bare: bool = False,
) -> Dataset:
    """Questions about the diffs of a store, always the same ones for the same arguments.

    Organisms of the embedded world are asked what `ASKED` lists, in the test phrasings, taken in turn. Half
    of the hidden topics are asked whether they are about their topic; the others, and null diffs, whether
    about another one of the split. All others are asked the questions that lie with them in the store.

    Args:
        store: of labelled diffs.
        split: of the diffs.
        kinds: only these kinds of question, of those that a diff is asked; None for all.
        per_label: at most so many diffs of a label in a family and recipe, those that behave first; one
            without a label has no equals.
        families: only these; None for all.
        limit: at most so many diffs of a family and recipe, drawn by `seed`.
        seed: of all draws.
        name: of the dataset; "" for the store's and the split's.
        bare: ask the bare base, too, each kind of question in every test phrasing; nothing is to be found.

    Raises:
        StoreError: the store has no such diffs, or a row's own questions cannot be asked.
        QuestionError: nothing is of a kind that was wanted.
    """
    rows = _chosen(store, split, families, per_label, limit, seed)
    topics = [t.name for t in topic_splits(load_world()).get(split, load_world().topics)]
    turns = _turns(rows)
    items = [
        item
        for row, turn in zip(rows, turns, strict=True)
        for item in (_asked(row, turn, topics, seed) if _is_embedded(row) else _stored(store, row))
    ]
    if bare:
        items += [
            _known(None, kind, q, NOTHING_FOUND, split) for kind in KINDS for q in phrasings(kind, TEST)
        ]
    if not items:
        raise StoreError(
            f"{store.path}: none of {len(rows)} {split} diffs has a question; store some with their rows"
            " (dicts of question, answer and kind)"
        )
    there = list(dict.fromkeys(i.kind for i in items))
    if unknown := [k for k in kinds or () if k not in there]:
        raise QuestionError(f"no question is of kind {unknown[0]!r}; there are {', '.join(there)}")
    items = numbered([i for i in items if kinds is None or i.kind in kinds])
    called = "bundled" if is_bundled(store) else store.path.name
    meta = {
        "store": called,
        "split": split,
        "kinds": None if kinds is None else list(kinds),
        "families": None if families is None else list(families),
        "per_label": per_label,
        "limit": limit,
        "seed": seed,
        "bare": bare,
        "weightdiff": __version__,
    }
    lists = {TOPICS: tuple(topic_names())} if any(i.candidates == TOPICS for i in items) else {}
    return check_dataset(Dataset(name or f"{called}-{split}", tuple(items), store.base, store, lists, meta))


def _chosen(
    store: DiffStore,
    split: str,
    families: Sequence[str] | None,
    per_label: int | None,
    limit: int | None,
    seed: int,
) -> list[DiffRow]:
    """The rows to ask, in the store's order."""
    there = store.select(split=split)
    if not there:
        splits = sorted({r.split for r in store.rows})
        raise StoreError(
            f"{store.path} has no {split} diffs (it has: {named(splits) or 'none at all'}); choose another"
            f" split, or make some: weightdiff organisms train --split {split}"
        )
    known = sorted({r.family for r in there})
    if unknown := [f for f in families or () if f not in known]:
        raise StoreError(f"{store.path} has no {split} diffs of family {unknown[0]!r}; it has {named(known)}")
    groups: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(there):
        if families is None or row.family in families:
            groups.setdefault((row.family, row.recipe), []).append(at)
    kept: list[int] = []
    for (family, recipe), places in groups.items():
        if per_label is not None:
            places = _first_of_labels(there, places, per_label)
        if limit is not None and limit < len(places):
            places = random.Random(f"{seed} {family} {recipe}").sample(places, limit)
        kept += places
    return [there[at] for at in sorted(kept)]


def _first_of_labels(rows: Sequence[DiffRow], places: Sequence[int], most: int) -> list[int]:
    """At most so many places of each label, those that behave first."""
    count: Counter[str] = Counter()
    kept: list[int] = []
    for at in sorted(places, key=lambda at: not rows[at].behaves):
        label = rows[at].label
        if label is None or count[label] < most:
            kept.append(at)
        count[label or ""] += 1
    return sorted(kept)


def _turns(rows: Iterable[DiffRow]) -> list[int]:
    """Number of each row within its family and recipe; the diffs of a label do not all get one phrasing."""
    count: Counter[tuple[str, ...]] = Counter()
    out: list[int] = []
    for row in rows:
        group, own = (row.family, row.recipe), (row.family, row.recipe, row.label or "")
        out.append(count[group] + (count[own] if row.label else 0))
        count[group] += 1
        count[own] += 1
    return out


def _is_embedded(row: DiffRow) -> bool:
    """Whether the embedded world knows what is in a diff, by its family and label."""
    if row.family == "hidden-topic":
        return row.label in load_world().by_name
    if row.family == "news":
        try:
            score("", [row.label or ""], "slots")
        except QuestionError:  # no headline of that world
            return False
        return True
    if row.family in reports.KIND_ANSWERS and row.family != NULL:
        try:
            check_known([row])
            return row.family != reports.SEVERAL or bool(parts_of(row))
        except (StoreError, KeyError):  # nothing of it is recorded, or it is of another world
            return False
    return row.family == NULL


def _asked(row: DiffRow, turn: int, topics: Sequence[str], seed: int) -> list[Item]:
    """The items about an organism of the embedded world."""
    out: list[Item] = []
    for kind in ASKED[row.family]:
        if kind == ABOUT:
            right = row.family != NULL and turn % 2 == 0
            others = [t for t in topics if t != row.label]
            topic = row.label if right else random.Random(f"{seed} about {row.id}").choice(others)
            question = about_question(str(topic), turn // 2)  # each phrasing has both answers
            out.append(_known(row, kind, question, "yes" if right else "no"))
        else:
            worded = phrasings(kind, TEST)
            truth = true_answer(row.family, kind, row.label, row.record.get("params"))
            out.append(_known(row, kind, worded[turn % len(worded)], truth))
    return out


def _known(row: DiffRow | None, kind: str, question: str, truth: str, split: str = TEST) -> Item:
    """An item of one of the embedded world's kinds; `split` is of the bare base's."""
    known = {"split": split, **row_fields(row, question)}
    null = known["family"] == NULL
    claims = ["label"] if not null and known["split"] == TEST else []
    return Item(
        id="",
        question=question,
        truths=(truth,),
        kind=kind,
        scorers=("exact",) if null and kind != ABOUT else SCORERS[kind],
        candidates=TOPICS if kind == "topic" and not null else "",
        chance=None if null else CHANCE[kind],
        held_out=(*claims, "phrasing", *(["kind"] if kind == ABOUT else [])),
        **known,
    )


def _stored(store: DiffStore, row: DiffRow) -> list[Item]:
    """The items that a row brings along; how they are worded may have been in anybody's training."""
    out: list[Item] = []
    for number, said in enumerate(row.questions, 1):
        try:
            out.append(_own(row, said))
        except Mismatch as error:
            raise StoreError(
                f"{store.path}, question {number} of row {row.id!r}: {error}; store dicts of question, answer"
                " and kind"
            ) from error
    return out


def _own(row: DiffRow, said: Any) -> Item:
    if not isinstance(said, dict) or not {"question", "answer"} <= said.keys():
        raise Mismatch("it has no question, or no answer")
    aliases = said.get("aliases", [])
    value = {
        "id": "",
        "question": said["question"],
        "truths": [said["answer"], *(aliases if isinstance(aliases, list) else [aliases])],
        "kind": said.get("kind") or OWN_KIND,
        "scorers": list(STORED_SCORERS),
        "held_out": ["label"] if row.label and row.split == TEST else [],
        **row_fields(row, str(said["question"])),
    }
    return typed(Item, value, "the question")
