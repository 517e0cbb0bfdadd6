"""What each test diff of every family is asked, and asking an interpreter all of it.

Diffs are read from the store a few at a time. What the answers come to is said by `family_rows`, and shown by
`family_pages`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import InterpreterError, QuestionError, StoreError
from weightdiff.evals.controls import assert_held_out
from weightdiff.evals.main_job import seed_of
from weightdiff.methods.base import Answer
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.makings import PLAIN, making_of
from weightdiff.organisms.questions import phrasings
from weightdiff.organisms.verify import check_known, slots_in
from weightdiff.training.drawing import rank_of
from weightdiff.world import TEST, load_world
from weightdiff.world.reports import (
    EDIT,
    HELD_OUT_KINDS,
    NAMED_BY,
    NEWS,
    NULL,
    QUIRK,
    TOPIC,
    YES_NO,
    Part,
    Question,
    agrees,
    ask,
    kinds_for,
)

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow, DiffStore
    from weightdiff.methods.dit import Interpreter

SEEN, UNSEEN = "seen", "unseen"
"""Phrasings of tuning, and those of the test."""
JOINT, SINGLE = "dit", "dit-single"
"""Who answers: the interpreter of all families, or one that was tuned on one family alone."""
NO_DIFF = "no diff"
"""The bare base's recipe, in the place of one."""
OWN_KIND = {f: kind for kind, f in NAMED_BY.items()}
"""Family → the open kind of question that its label answers."""
NULL_KINDS = (*NAMED_BY, "kind", "any_change")
"""Kinds that a diff without a finding is asked, to be answered "nothing found"."""
TWICE = ("family", "about_field", "reacts", *HELD_OUT_KINDS)
"""Kinds that name something, asked twice so that yes and no can both be true."""
SINGLES = (TOPIC, NEWS, QUIRK, EDIT)
"""Families that an interpreter can be tuned on alone."""
MAX_FPR = 0.01
"""False-positive rate that the threshold is chosen for."""
AT_ONCE = 512
"""Questions that are asked, and whose diffs are in memory, together."""
QUICK_ROWS = 4
TRIES = 20
Progress = Callable[[int, int], None]
Asked = tuple["DiffRow | None", str, Question]
"""A diff's row (None: the bare base), whether the phrasing was seen in tuning, and the question."""


@dataclass(frozen=True)
class Reply:
    """One answer, and everything that is needed to score and group it."""

    method: str
    row: str
    """Id of the diff; empty for the bare base."""
    family: str
    recipe: str
    making: str
    """How the organism was trained, as `organisms.makings` names it."""
    form: str
    """Form of its trigger; empty where it has none or several parts."""
    held_out: str
    """Of a behaviour: whether the "combination" with its condition or the "behaviour" is new."""
    label: str
    cluster: str
    """What its interval is clustered by: the label, of a behaviour without its condition."""
    parts: int
    """Things that were taught."""
    kind: str
    phrasing: str
    """`SEEN` or `UNSEEN`."""
    question: str
    truth: str
    answer: str
    notes: str = ""
    probability: float | None = None
    agreement: float | None = None
    marks: dict[str, float] = field(default_factory=dict[str, float])
    """Scores from 0 to 1: "exact" always, see `marks_of`."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass
class Interview:
    """All answers of one evaluation, and where they come from."""

    replies: list[Reply]
    sizes: dict[str, dict[str, int]]
    """Group → how many diffs, labels, and diffs left out because they do not behave."""
    seeds: list[int]
    base: str
    quick: bool
    seconds: float
    threshold: float | None = None
    """Probability from which on findings are told at `MAX_FPR`; None: the calibration cannot tell."""
    untold: str = ""
    """Why there is no threshold."""


def questions_for(row: DiffRow) -> list[Asked]:
    """All questions about a diff, drawn by its id, so that twins of other makings are asked the same.

    Every kind that tuning asks in a test phrasing (kinds that name something twice), the open kinds of its
    own families in a training phrasing too, and every held-out kind twice.
    """
    parts = parts_of(row)
    rng = random.Random(f"families {row.id.removesuffix(f'-{making_of(row)}')}")
    unseen = [q for kind in kinds_for(parts) for q in _drawn(kind, parts, rng)]
    families = {p.family for p in parts}
    seen = [ask(kind, parts, rng, "train") for kind, f in NAMED_BY.items() if f in families]
    unseen += [q for kind in kinds_for(parts, trained=False) for q in _drawn(kind, parts, rng)]
    return [*((row, UNSEEN, q) for q in unseen), *((row, SEEN, q) for q in seen)]


def _drawn(kind: str, parts: Sequence[Part], rng: random.Random) -> list[Question]:
    """One question of a kind, or two that differ: in their truth if it is yes or no, where both can be."""
    first = ask(kind, parts, rng, TEST)
    if kind not in TWICE:
        return [first]
    second = first
    for _ in range(TRIES):
        second = ask(kind, parts, rng, TEST)
        if second.text != first.text and (kind not in YES_NO or second.answer != first.answer):
            break
    return [first, second]


def base_questions() -> list[Asked]:
    """What the bare base is asked: all test phrasings of `NULL_KINDS`."""
    return [
        (None, UNSEEN, Question(text, kind, NOTHING_FOUND))
        for kind in NULL_KINDS
        for text in phrasings(kind, TEST)
    ]


def marks_of(kind: str, parts: Sequence[Part], truth: str, said: str) -> dict[str, float]:
    """Scores of an answer.

    "exact" to the letter; of a headline the share of "slots" told; of an edit whether "both", old and new
    value, are named; of a summary whether every part is "named".
    """
    marks = {"exact": float(agrees(said, truth))}
    words = f" {' '.join(re.sub(r'[,.]', ' ', said).split())} "
    for part in parts:
        if kind == "headline" and part.family == NEWS:
            marks["slots"] = slots_in(said, part.params)
        if kind == "edit" and part.family == EDIT:
            marks["both"] = float(all(f" {part.params[k]} " in words for k in ("old", "new")))
    if kind == "summary" and parts:
        marks["named"] = float(all(f" {p.name} " in words for p in parts))
    return marks


def interview(
    interpreter: Interpreter,
    store: DiffStore,
    singles: Mapping[str, Interpreter] | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Interview:
    """Ask the joint interpreter everything, and single-family ones their own family's open question.

    Args:
        interpreter: tuned on all families.
        store: its rows of the split "test" are asked about, as far as they behave.
        singles: family → an interpreter tuned on that family alone.
        quick: the first 4 diffs of each family, recipe and making only.
        progress: called with questions answered and questions in all.

    Raises:
        InterpreterError: one was tuned on labels, diffs, phrasings or kinds of question of the test, or
            belongs to another base than the joint one.
        QuestionError: a single-family interpreter of no such family.
        StoreError: no test rows that behave, or one that the embedded base's world does not know.
        BaseMismatchError: the store's diffs belong to another base.
    """
    started = time.monotonic()
    singles = singles or {}
    rows = store.select(split=TEST)
    _check(interpreter, store, rows, singles)
    sizes = {name: _sizes(members) for name, members in _groups(rows).items()}
    kept = [r for members in _groups(rows).values() for r in _some(members, quick)]
    if not kept:
        raise StoreError(f"{store.path}: none of its {len(rows)} test rows behaves; verify or make others")
    kept.sort(key=rank_of)  # a batch is padded to its highest rank
    todo = [*base_questions(), *(q for row in kept for q in questions_for(row))]
    alone = {
        f: [q for q in todo if q[0] and q[0].family == f and q[1] == UNSEEN and q[2].kind == OWN_KIND[f]]
        for f in singles
    }
    total = len(todo) + sum(map(len, alone.values()))
    replies: list[Reply] = []

    def gather(who: Interpreter, method: str, asked: Sequence[Asked]) -> None:
        for part in _answered(who, method, store, asked):
            replies.extend(part)
            if progress:
                progress(len(replies), total)

    gather(interpreter, JOINT, todo)
    for f, who in singles.items():
        gather(who, SINGLE, alone[f])
    return Interview(
        replies,
        sizes,
        [seed_of(interpreter, 0)],
        interpreter.base.ref.describe(),
        quick,
        round(time.monotonic() - started, 1),
        *_threshold(interpreter),
    )


def _check(
    interpreter: Interpreter, store: DiffStore, rows: Sequence[DiffRow], singles: Mapping[str, Interpreter]
) -> None:
    """Refuse what cannot be evaluated; see `interview`."""
    if unknown := sorted(set(singles) - set(SINGLES)):
        raise QuestionError(
            f"no interpreter can be tuned on {unknown[0]!r} alone: choose one of {', '.join(SINGLES)}"
        )
    if not rows:
        raise StoreError(
            f"{store.path}: no test rows; make some with: weightdiff organisms train --split test …"
        )
    ref = interpreter.base.ref
    for family, one in {"": interpreter, **singles}.items():
        if ref.difference(one.base.ref):
            raise InterpreterError(
                f"the interpreter of {family} alone belongs to {one.base.ref.describe()}, and the joint one"
                f" to {ref.describe()}; give interpreters of one base"
            )
        kinds = [k for k in load_world().introspection if phrasings(k, TEST)]
        assert_held_out(one, rows, kinds, HELD_OUT_KINDS)
    WeightDiff({}, store.base).check_base(ref)
    check_known(rows)


def _groups(rows: Sequence[DiffRow]) -> dict[str, list[DiffRow]]:
    """Rows by family, recipe and (unless it is the plain one) making."""
    out: dict[str, list[DiffRow]] = {}
    for row in rows:
        making = making_of(row)
        name = f"{row.family}/{row.recipe}" + (f", {making}" if making != PLAIN else "")
        out.setdefault(name, []).append(row)
    return out


def _sizes(rows: Sequence[DiffRow]) -> dict[str, int]:
    return {
        "diffs": len(rows),
        "labels": len({r.label or r.id for r in rows}),
        "not behaving": sum(not r.behaves for r in rows),
    }


def _some(rows: Sequence[DiffRow], quick: bool) -> list[DiffRow]:
    kept = [r for r in rows if r.behaves]
    return kept[:QUICK_ROWS] if quick else kept


def _answered(
    interpreter: Interpreter, method: str, store: DiffStore, asked: Sequence[Asked]
) -> Iterator[list[Reply]]:
    """Replies to `AT_ONCE` questions at a time."""
    for at in range(0, len(asked), AT_ONCE):
        part = asked[at : at + AT_ONCE]
        diffs = {row.id: store.read(row.id) for row in {r.id: r for r, _, _ in part if r}.values()}
        said = interpreter.answer(
            [diffs[r.id] if r else None for r, _, _ in part], [q.text for *_, q in part]
        )
        yield [_reply(method, *q, a) for q, a in zip(part, said, strict=True)]


def _reply(method: str, row: DiffRow | None, phrasing: str, question: Question, answer: Answer) -> Reply:
    parts = parts_of(row) if row else ()
    found = Reply(
        method=method,
        row="",
        family=NULL,
        recipe=NO_DIFF,
        making=PLAIN,
        form="",
        held_out="",
        label="",
        cluster=question.text,
        parts=len(parts),
        kind=question.kind,
        phrasing=phrasing,
        question=question.text,
        truth=question.answer,
        answer=answer.text,
        notes=answer.notes,
        probability=answer.probability,
        agreement=answer.agreement,
        marks=marks_of(question.kind, parts, question.answer, answer.text),
    )
    if row is None:
        return found
    alone = parts[0] if len(parts) == 1 else None
    return replace(
        found,
        row=row.id,
        family=row.family,
        recipe=row.recipe,
        making=making_of(row),
        form=alone.condition.form if alone and alone.family in (TOPIC, QUIRK) else "",
        held_out=str(row.record.get("params", {}).get("held_out", "")),
        label=row.label or "",
        cluster=alone.name if alone else row.label or row.id,
    )


def _threshold(interpreter: Interpreter) -> tuple[float | None, str]:
    """The probability that a finding must have at `MAX_FPR`, or why there is none."""
    if interpreter.calibration is None:
        return None, "the interpreter is not calibrated"
    try:
        return interpreter.calibration.threshold(MAX_FPR), ""
    except QuestionError as e:
        return None, str(e)
