"""What keeps an evaluation honest: no test item was trained on, and answers must come from the right diff."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightdiff.diffs.types import named
from weightdiff.errors import InterpreterError
from weightdiff.evals.scoring import normalise
from weightdiff.organisms.questions import ABOUT, KINDS, kind_of, phrasings
from weightdiff.world import load_world

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow
    from weightdiff.evals.dataset import Item
    from weightdiff.methods.dit import Interpreter

MANIFEST = ("train_labels", "validation_labels", "train_phrasings")
SLOT = "{topic}"
"""A topic's place in a phrasing."""
_WORD = re.compile(r"\{topic\}|[^\W_]+")


TUNED_SPLITS = ("train", "validation")
"""Splits whose diffs an interpreter may know; an item of theirs does not claim otherwise."""


def assert_held_out(
    interpreter: Interpreter,
    rows: Sequence[DiffRow],
    kinds: Sequence[str] = KINDS,
    held_out: Sequence[str] = (),
) -> None:
    """Check that no label, diff or test phrasing of an evaluation was in the interpreter's tuning.

    Args:
        interpreter: its `meta` is the manifest that tuning wrote.
        rows: what it shall be tested on; the labels of several parts count too.
        kinds: kinds of question that it is asked in test phrasings.
        held_out: of these, the kinds that its tuning must not have asked at all.

    Raises:
        InterpreterError: the manifest is incomplete, or names labels, ids, phrasings or kinds of the test
            (all are counted, some named).
    """
    asked = [p for kind in kinds for p in phrasings(kind, "test")]
    parts = [p["label"] for r in rows for p in r.record.get("params", {}).get("parts", ())]
    labels = [str(r.label) for r in rows if r.label] + parts
    _refuse(_Tuning.of(interpreter.meta).faults(labels, [r.id for r in rows], asked, held_out))


def assert_items_held_out(interpreter: Interpreter, items: Sequence[Item]) -> None:
    """Check what items claim was held out against what the interpreter was tuned on.

    Args:
        interpreter: its `meta` is the manifest that tuning wrote.
        items: what it shall be tested on; one that claims nothing is not looked at.

    Raises:
        InterpreterError: the manifest is incomplete, or names something that was claimed to be held out (all
            is counted, some named).
    """
    _refuse(held_out_faults(interpreter.meta, items))


def held_out_faults(meta: Mapping[str, Any], items: Sequence[Item]) -> list[str]:
    """What of the items' claims a manifest contradicts, a line for each kind of claim; empty if nothing.

    A label must be neither a training nor a validation label. A question must be no training or validation
    phrasing, whatever its case and punctuation, and whatever topic of the world stands in it. A kind of
    question must not be among the kinds that were trained. The diff of an item that claims anything must not
    be one that was tuned on, unless the item is of the tuning's own splits.

    Args:
        meta: the manifest that tuning wrote.
        items: of a dataset.

    Raises:
        InterpreterError: the manifest is incomplete.
    """
    claiming = [i for i in items if i.held_out]
    if not claiming:
        return []
    return _Tuning.of(meta).faults(
        [i.label for i in claiming if i.label and "label" in i.held_out],
        [i.diff for i in claiming if i.diff is not None and i.split not in TUNED_SPLITS],
        [i.question for i in claiming if "phrasing" in i.held_out],
        [i.kind for i in claiming if "kind" in i.held_out],
    )


@dataclass(frozen=True)
class _Tuning:
    """What a manifest says that an interpreter was tuned on."""

    labels: frozenset[str]
    ids: frozenset[str]
    phrasings: frozenset[tuple[str, ...]]
    kinds: frozenset[str]

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> _Tuning:
        """Read a manifest.

        Raises:
            InterpreterError: it is incomplete.
        """
        if missing := [k for k in MANIFEST if k not in meta]:
            raise InterpreterError(
                f"the interpreter's manifest lacks {named(missing)}, so what it was tuned on is not known;"
                " tune it again"
            )
        trained = _texts_by_kind(meta, "train_phrasings")
        seen = [
            p
            for part in (trained, _texts_by_kind(meta, "validation_phrasings"))
            for ps in part.values()
            for p in ps
        ]
        about = {ABOUT for p in seen if kind_of(p.replace(SLOT, load_world().topics[0].name)) == ABOUT}
        return cls(
            frozenset(normalise(x) for k in MANIFEST[:2] for x in _texts(meta, k)),
            frozenset(_texts(meta, "train_ids")),
            frozenset(map(_wording, seen)),
            frozenset(normalise(k) for k in (*trained, *_texts(meta, "train_kinds"), *about)),
        )

    def faults(
        self, labels: Iterable[str], ids: Iterable[str], asked: Iterable[str], kinds: Iterable[str] = ()
    ) -> list[str]:
        """What of a test is in the tuning, counted, some of it named."""
        found = {
            "labels": sorted({x for x in labels if normalise(x) in self.labels}),
            "diffs": sorted(set(ids) & self.ids),
            "phrasings": [q for q in dict.fromkeys(asked) if _wording(q) in self.phrasings],
            "kinds": sorted({k for k in kinds if normalise(k) in self.kinds}),
        }
        return [f"{len(names)} test {what}: {named(names)}" for what, names in found.items() if names]


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise InterpreterError(
            f"the interpreter was tuned on what it shall be tested on ({'; '.join(faults)}); test on other"
            " labels, or tune again without these"
        )


def _wording(text: str) -> tuple[str, ...]:
    """The words of a question, with `SLOT` for every topic of the world; a text without words as it is."""
    topics = load_world().by_name
    words = _WORD.findall(normalise(text))
    return tuple(SLOT if word in topics else word for word in words) or (normalise(text),)


def _texts(meta: Mapping[str, Any], key: str) -> list[str]:
    """A manifest's list of texts; one that is left out has none."""
    found = meta.get(key, [])
    if not isinstance(found, list | tuple) or not all(isinstance(x, str) for x in found):
        raise _no_manifest(key, "a list of texts")
    return list(found)


def _texts_by_kind(meta: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    found = meta.get(key, {})
    if not isinstance(found, dict):
        raise _no_manifest(key, "lists of texts by kind")
    return {str(kind): _texts(found, kind) for kind in found}


def _no_manifest(key: str, wanted: str) -> InterpreterError:
    return InterpreterError(
        f"the interpreter's manifest has {key} that are not {wanted}, so what it was tuned on is not known;"
        " tune it again"
    )


def derangement(labels: Sequence[str]) -> dict[str, str]:
    """Another label for each label, always the same one: a cycle through all of them in a shuffled order.

    Raises:
        ValueError: fewer than two different labels.
    """
    order = sorted(set(labels))
    if len(order) < 2:
        raise ValueError("one label has no other label to be exchanged with; give two or more")
    random.Random("derangement").shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))
