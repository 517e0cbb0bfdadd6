"""What keeps an evaluation honest: no test item was trained on, and answers must come from the right diff."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightdiff.diffs.types import named
from weightdiff.errors import InterpreterError
from weightdiff.evals.scoring import normalise
from weightdiff.organisms.questions import KINDS, phrasings

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow
    from weightdiff.methods.dit import Interpreter

MANIFEST = ("train_labels", "validation_labels", "train_phrasings")


def assert_held_out(interpreter: Interpreter, rows: Sequence[DiffRow]) -> None:
    """Check that no label, diff or test phrasing of an evaluation was in the interpreter's tuning.

    Args:
        interpreter: its `meta` is the manifest that tuning wrote.
        rows: what it shall be tested on.

    Raises:
        InterpreterError: the manifest is incomplete, or names labels, ids or phrasings of the test (all are
            counted, some named).
    """
    meta = interpreter.meta
    missing = [k for k in MANIFEST if k not in meta]
    if missing:
        raise InterpreterError(
            f"the interpreter's manifest lacks {named(missing)}, so what it was tuned on is not known;"
            " tune it again"
        )
    used = {normalise(x) for x in (*meta["train_labels"], *meta["validation_labels"])}
    labels = sorted({str(r.label) for r in rows if r.label and normalise(r.label) in used})
    trained = set(meta.get("train_ids", ()))
    ids = sorted(r.id for r in rows if r.id in trained)
    seen = {
        normalise(p)
        for part in ("train_phrasings", "validation_phrasings")
        for texts in meta.get(part, {}).values()
        for p in texts
    }
    asked = [p for kind in KINDS for p in phrasings(kind, "test") if normalise(p) in seen]
    faults = [
        f"{len(found)} test {what}: {named(found)}"
        for what, found in (("labels", labels), ("diffs", ids), ("phrasings", asked))
        if found
    ]
    if faults:
        raise InterpreterError(
            f"the interpreter was tuned on what it shall be tested on ({'; '.join(faults)}); test on other"
            " labels, or tune again without these"
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
