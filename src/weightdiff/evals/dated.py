"""Time in the weights, measured in the dated world, and an interpreter that dates a finetune.

The findings are those of "Time is Encoded in the Weights of Finetuned Language Models" (arXiv:2312.13401).
Every stage writes a file, and a run that was stopped goes on behind the last one. What is measured here is
shown by `dated_page`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from weightdiff.artifacts import atomic_write_json, differing, read_json
from weightdiff.diffs.algebra import combine, interpolate
from weightdiff.diffs.shards import DiffRow
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import FormatError, InterpreterError
from weightdiff.evals.sweep import Text, line, losses, sweep
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import Base
from weightdiff.methods.nearest import Gallery
from weightdiff.models.chat import encode_samples
from weightdiff.organisms.base import OrganismSpec, family
from weightdiff.organisms.fitting import divergences, encoded, fit
from weightdiff.organisms.period import TASK, YEAR
from weightdiff.training.dating import DatedLessons, dated_config, dated_rendering, is_month, month_of
from weightdiff.training.production import Production, produce
from weightdiff.training.tuning import tune_on, usable
from weightdiff.world.dated import MONTHS, PERIODS, QUESTIONS, YEARS, Said, load_dated, period_name
from weightdiff.world.dating import PAIRED, PERIOD, SINGLE, Dated, ask_about, is_right, period_called
from weightdiff.world.reports import NULL

STORE, INTERPRETER, SETTINGS = "organisms", "interpreter", "settings.json"
STAGES = ("organisms", "fits", "vectors", "between", "analogies", "tune", "answers")
"""In their order; each after the first has a file of its name."""
SPLITS = ("train", "validation", "test")
GAPS = (6, 12, 24)
"""Months between the two ends whose vectors are mixed, for sentences of the months between."""
EVERY = 6
"""Months from one pair of ends to the next."""
ALPHAS = 11
"""Mixtures from one end to the other, both among them."""
SHIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""By what the vector from one month to another is multiplied when it is added to a task."""
ASKED_BETWEEN = (2, 4, 6, 8, 12)
"""Months between two organisms whose mean is dated."""
Tell = Callable[[str, float, float], None]
"""Called with a stage, what of it is done, and all of it."""


@dataclass(frozen=True)
class DatedPlan:
    """How much of everything a run makes and asks."""

    train: int = 5
    """Organisms of each month of training."""
    validation: int = 3
    """Of each of validation."""
    test: int = 6
    """Of each of test."""
    null: int = 24
    """Null diffs of each split."""
    full: int = 12
    """Full finetunes, of months spread over the calendar."""
    asked: int = 6
    """Prompts for verification; 0: without."""
    pairs: int = 40
    """Pairs of organisms of each distance whose mean is dated, and of test organisms of which one is asked
    what lies between."""
    steps: int = 1800
    """Of tuning."""
    organism_steps: int | None = None
    """Of every organism; None: as its recipe says."""
    seed: int = 0


def miniature_plan() -> DatedPlan:
    """Seconds, for tests: nothing is learned, everything is exercised."""
    return DatedPlan(1, 1, 1, 2, 1, 0, 2, steps=2, organism_steps=1)


def specs_of(plan: DatedPlan) -> list[OrganismSpec]:
    """All organisms of a run, those that others need first."""
    periods, null = family(PERIOD), family(NULL)
    months = {"train": 36, "validation": 4, "test": 8}
    each = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    out: list[OrganismSpec] = []
    for split, n in months.items():
        out += periods.specs("vector", split, n, plan.seed)
    out += periods.specs(YEAR, "train", YEARS, plan.seed)
    tasks = [s for split, n in months.items() for s in periods.specs(TASK, split, n, plan.seed)]
    out += [s for s in tasks if s.params["month"] % MONTHS == MONTHS // 2]
    full = sorted(
        (s for split, n in months.items() for s in periods.specs("full", split, n, plan.seed)),
        key=lambda s: s.params["month"],
    )
    out += full[PERIODS // plan.full // 2 :: PERIODS // plan.full] if plan.full else []
    for split, n in months.items():
        out += periods.specs("month", split, n * each[split], plan.seed)
        out += null.specs("random", split, plan.null, plan.seed)
    if plan.organism_steps is None:
        return out
    return [replace(s, recipe=replace(s.recipe, steps=min(s.recipe.steps, plan.organism_steps))) for s in out]


@dataclass(frozen=True)
class Running:
    """What a stage works with."""

    base: Base
    store: DiffStore
    plan: DatedPlan
    folder: Path
    tell: Tell


def run(base: Base, out: str | Path, plan: DatedPlan, tell: Tell, until: str = STAGES[-1]) -> Path:
    """Do every stage that `out` does not hold yet, up to and with `until`.

    Raises:
        FormatError: `out` holds a run of another base or plan.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"base": f"{base.ref.architecture} {base.ref.weights}", "plan": asdict(plan)}
    if (folder / SETTINGS).is_file():
        if other := differing(read_json(folder / SETTINGS), settings):
            raise FormatError(
                f"{folder} holds another run ({other}); give another --out, or the same settings"
            )
    else:
        atomic_write_json(folder / SETTINGS, settings)
    done: dict[str, Callable[[Running], Any]] = {
        "fits": _fits,
        "vectors": _vectors,
        "between": _between,
        "analogies": _analogies,
        "tune": _tune,
        "answers": _answers,
    }
    at = Running(base, _organisms(base, folder, plan, tell), plan, folder, tell)
    for stage in STAGES[1 : STAGES.index(until) + 1]:
        path = folder / f"{stage}.json"
        if not path.is_file():
            atomic_write_json(path, done[stage](at))
    return folder


def read(folder: str | Path) -> dict[str, Any]:
    """What the stages of a run found, by stage, with its settings.

    Raises:
        FormatError: the run is not finished.
    """
    root = Path(folder)
    missing = [s for s in STAGES[1:] if not (root / f"{s}.json").is_file()]
    if missing:
        raise FormatError(f"{root}: {missing[0]} is not done; run: weightdiff time --out {root}")
    found = {s: read_json(root / f"{s}.json") for s in STAGES[1:]}
    return {**found, "settings": read_json(root / SETTINGS)}


def _organisms(base: Base, folder: Path, plan: DatedPlan, tell: Tell) -> DiffStore:
    path = folder / STORE
    store = DiffStore.open(path) if (path / "store.json").is_file() else DiffStore.create(path, base.ref)

    def show(state: Production) -> None:
        tell("organisms", state.steps, state.steps_wanted)

    produce(
        base.model, base.tokenizer, base.ref, specs_of(plan), store, asked=plan.asked, progress=show, slots=16
    )
    return store


def vectors_of(store: DiffStore) -> list[DiffRow]:
    """The vectors of all months, in order of time."""
    return sorted((r for r in store.select(family=PERIOD) if r.recipe == "vector"), key=month_of)


def _fits(at: Running) -> dict[str, Any]:
    """How far vectors, years, full finetunes and test organisms are from every month (`fitting.fit`)."""
    every = at.store.select(family=PERIOD)
    groups = {
        "vector": vectors_of(at.store),
        YEAR: sorted((r for r in every if r.recipe == YEAR), key=month_of),
        "full": sorted((r for r in every if r.recipe == "full"), key=month_of),
        "test": [r for r in usable(every) if r.split == "test" and is_month(r)],
    }
    total, done = sum(map(len, groups.values())), 0
    model, tokenizer = at.base.model, at.base.tokenizer
    out: dict[str, Any] = {"base": fit(model, tokenizer, [None])[0].tolist()}
    for name, rows in groups.items():
        far = []
        for row in rows:
            far += fit(model, tokenizer, [at.store.read(row.id)]).tolist()
            done += 1
            at.tell("fits", done, total)
        out[name] = {"months": [month_of(r) for r in rows], "far": far}
    recipes = sorted({r.recipe for r in every})
    found = {k: [r for r in every if r.recipe == k] for k in recipes}
    out["verified"] = {k: [sum(r.behaves for r in rows), len(rows)] for k, rows in found.items()}
    return out


def _vectors(at: Running) -> dict[str, Any]:
    """Cosines between the vectors of all months, and their norms."""
    rows = vectors_of(at.store)
    gallery = Gallery(at.store.stack([r.id for r in rows]))
    found = []
    for i, row in enumerate(rows):
        found.append(gallery.cosines(at.store.read(row.id)).tolist())
        at.tell("vectors", i + 1, len(rows))
    return {"months": [month_of(r) for r in rows], "cosines": found, "norms": gallery.norms.tolist()}


def ends() -> Iterator[tuple[int, int]]:
    """Pairs of months whose vectors are mixed."""
    for gap in GAPS:
        yield from ((a, a + gap) for a in range(0, PERIODS - gap, EVERY))


def _between(at: Running) -> list[dict[str, Any]]:
    """How far mixtures of two months' vectors are from the months between."""
    ids = {month_of(r): r.id for r in vectors_of(at.store)}
    pairs = list(ends())
    texts = [Text(r.ids, r.start) for r in encoded(at.base.tokenizer)]
    out = []
    for i, (a, b) in enumerate(pairs):
        diffs = [at.store.read(ids[a]), at.store.read(ids[b])]
        far = divergences(losses(at.base, diffs, line(ALPHAS), texts).numpy())
        out += [{"ends": [a, b], "month": m, "far": far[:, m].tolist()} for m in range(a + 1, b)]
        at.tell("between", i + 1, len(pairs))
    return out


def texts_said(tokenizer: Any, said: Sequence[Said]) -> list[Text]:
    """Answers to what they were said to: the answer is predicted."""
    return [Text(r.ids, r.start) for r in encode_samples(tokenizer, [(x.prompt, x.text) for x in said])]


def _analogies(at: Running) -> list[dict[str, Any]]:
    """A task learned in one month, moved to another by the months' vectors: task + s · (later - earlier).

    The loss is on the right answers of the later month for places whose mayor is another one by then, and
    beside it that on the earlier month's answers.
    """
    months = {month_of(r): r.id for r in vectors_of(at.store)}
    tasks = {month_of(r): r.id for r in at.store.select(family=PERIOD) if r.recipe == TASK}
    world, out = load_dated(), list[dict[str, Any]]()
    pairs = [(a, b) for a, b in product(tasks, tasks) if a != b]
    for i, (a, b) in enumerate(pairs):
        diffs = [at.store.read(x) for x in (tasks[a], months[b], months[a], tasks[b])]
        mixtures = [*((1.0, s, -s, 0.0) for s in SHIFTS), (0.0, 0.0, 0.0, 1.0)]
        for place, _, _ in world.changed_hands(a, b):
            loss = []
            for month in (b, a):
                said = [world.asked(month, place, q) for q in QUESTIONS]
                found = sweep(at.base, diffs, mixtures, texts_said(at.base.tokenizer, said))
                loss.append([m.loss for m in found])
            out.append({"from": a, "to": b, "place": place, "loss": loss[0], "old": loss[1]})
        at.tell("analogies", i + 1, len(pairs))
    return out


def _tune(at: Running) -> dict[str, Any]:
    """An interpreter of months, in the run's folder."""
    config = dated_config(steps=at.plan.steps, seed=at.plan.seed)
    rendering = dated_rendering()
    lessons = DatedLessons(at.base.model, at.base.tokenizer, at.store, config, rendering)

    def show(now: dict[str, float]) -> None:
        at.tell("tune", now["step"], config.steps)

    found = tune_on(at.base.model, at.base.tokenizer, lessons, config, rendering, show)
    made = Interpreter(at.base, found.adapter, rendering, config.answer_tokens, found.manifest)
    made.save(at.folder / INTERPRETER, overwrite=True)
    return {"history": found.history, "score": found.manifest["validation_score"]}


@dataclass(frozen=True)
class Asked:
    """A question put to an interpreter, and what is true."""

    group: str
    cluster: str
    kind: str
    question: str
    truth: str
    dated: Dated | None
    diff: int
    """Which one is asked."""


def _answers(at: Running) -> list[dict[str, Any]]:
    """Answers about diffs that tuning did not see, in phrasings that it did not see."""
    made = Interpreter.load(at.folder / INTERPRETER, at.base)
    assert_unseen(made, at.store)
    rng = random.Random(f"answers {at.plan.seed}")
    diffs, asked = list[WeightDiff](), list[Asked]()
    test = [r for r in usable(at.store.select(family=PERIOD, split="test")) if is_month(r)]
    vectors = {month_of(r): r for r in vectors_of(at.store)}
    train = {m: r for m, r in vectors.items() if r.split == "train" and r.behaves}
    full = [r for r in usable(at.store.select(family=PERIOD)) if r.recipe == "full"]

    def add(group: str, diff: WeightDiff, kinds: Sequence[str], dated: Dated | None, cluster: str) -> None:
        for kind in kinds:
            q = ask_about(kind, dated, rng, "test")
            asked.append(Asked(group, cluster, kind, q.text, q.answer, dated, len(diffs)))
        diffs.append(diff)

    for r in test:
        add("months held out", at.store.read(r.id), SINGLE, Dated(month_of(r)), str(r.label))
    for m, r in train.items():
        add("months seen, another start", at.store.read(r.id), ("period",), Dated(m), str(r.label))
    for r in full:
        add(
            "full finetunes, months held out" if r.split == "test" else "full finetunes, months seen",
            at.store.read(r.id),
            ("period",),
            Dated(month_of(r)),
            str(r.label),
        )
    for a, b in _pairs(test, at.plan.pairs, rng):
        since, month = month_of(a), month_of(b)
        diff = combine([at.store.read(b.id), at.store.read(a.id)], [1.0, -1.0])
        add("two models, months held out", diff, PAIRED, Dated(month, since), f"{a.label} {b.label}")
    for gap in ASKED_BETWEEN:
        firsts = [m for m in vectors if m + gap in vectors]
        for m in rng.sample(firsts, min(at.plan.pairs, len(firsts))):
            mixed = interpolate(at.store.read(vectors[m].id), at.store.read(vectors[m + gap].id), 0.5)
            middle = m + gap // 2
            add(f"mean of two, {gap} months apart", mixed, ("period",), Dated(middle), str(middle))
    for r in at.store.select(family=NULL, split="test"):
        add("null diffs", at.store.read(r.id), ("period", "mayor"), None, r.id)
    out = []
    for first in range(0, len(asked), 256):
        part = asked[first : first + 256]
        said = made.answer([diffs[x.diff] for x in part], [x.question for x in part])
        out += [_answered(x, a.text) for x, a in zip(part, said, strict=True)]
        at.tell("answers", len(out), len(asked))
    return out + _by_nearest(at.store, test) + _by_fit(at.folder)


def _pairs(rows: Sequence[DiffRow], n: int, rng: random.Random) -> list[tuple[DiffRow, DiffRow]]:
    """Pairs of organisms of different months, in either order."""
    every = [(a, b) for a in rows for b in rows if month_of(a) != month_of(b)]
    return rng.sample(every, min(n, len(every)))


def _answered(x: Asked, said: str) -> dict[str, Any]:
    named = period_called(said)
    return {
        "group": x.group,
        "cluster": x.cluster,
        "kind": x.kind,
        "question": x.question,
        "truth": x.truth,
        "said": said,
        "score": is_right(x.kind, said, x.truth, x.dated),
        "off": None if x.dated is None or x.kind != "period" or named is None else named - x.dated.month,
    }


def _by_nearest(store: DiffStore, test: Sequence[DiffRow]) -> list[dict[str, Any]]:
    """What the month of the training organism with the largest cosine gives."""
    rows = [r for r in usable(store.select(family=PERIOD, split="train")) if is_month(r)]
    gallery = Gallery(store.stack([r.id for r in rows]))
    out = []
    for r in test:
        at = int(gallery.cosines(store.read(r.id)).argmax())
        out.append(_dated_otherwise("nearest neighbour", month_of(r), month_of(rows[at])))
    return out


def _dated_otherwise(group: str, truth: int, month: int) -> dict[str, Any]:
    return {
        "group": group,
        "cluster": period_name(truth),
        "kind": "period",
        "score": float(month == truth),
        "off": month - truth,
    }


def _by_fit(folder: Path) -> list[dict[str, Any]]:
    """What the month gives to which the diff is nearest; for whoever has sentences of every month."""
    found = read_json(folder / "fits.json")["test"]
    name = "best fit to dated sentences"
    return [
        _dated_otherwise(name, month, int(np.argmin(far)))
        for month, far in zip(found["months"], found["far"], strict=True)
    ]


def assert_unseen(made: Interpreter, store: DiffStore) -> None:
    """Refuse an interpreter that was tuned on a month, or an organism, that it is to be tested on.

    Raises:
        InterpreterError: it was; the message names one.
    """
    test = [r for r in store.select(family=PERIOD, split="test")]
    seen = set(made.meta["train_labels"]) | set(made.meta["validation_labels"])
    if known := sorted({str(r.label) for r in test} & seen):
        raise InterpreterError(f"the interpreter was tuned on {known[0]}, which is held out; tune it again")
    asked = {r.id for r in store.rows if not is_month(r) and r.family == PERIOD} | {r.id for r in test}
    if known := sorted(asked & set(made.meta["train_ids"])):
        raise InterpreterError(f"the interpreter was tuned on {known[0]}, which is held out; tune it again")
