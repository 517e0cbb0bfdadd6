"""Learning curves: what an interpreter is worth by what it was tuned on, its adapter's rank, and its base.

Nested subsets of the training diffs are drawn, other families are left out, or the rank is another; an
interpreter is tuned on each and asked about the covert test organisms, and about those of other families what
their labels answer. A finished point is on disk at once, so a stopped run goes on where it was. `report`
reads the file and shows it.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from weightdiff.artifacts import atomic_write_json, differing
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import FormatError, StoreError
from weightdiff.evals.baselines import chance_of, topic_names, topic_ranks
from weightdiff.evals.controls import assert_held_out
from weightdiff.evals.report import curve_lines, read_curves
from weightdiff.evals.runner import digest
from weightdiff.evals.scoring import TOP, exact
from weightdiff.evals.tally import Group, Tally
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import Base
from weightdiff.models.rendering import Rendering
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.makings import PLAIN, making_of
from weightdiff.organisms.questions import KINDS, phrasings
from weightdiff.organisms.verify import check_known
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.tuning import tune, usable
from weightdiff.world import TEST
from weightdiff.world.reports import NAMED_BY, SEVERAL, agrees, ask

FAMILY, RECIPE = "hidden-topic", "covert"
KIND, VERSION = "weightdiff-curves", 1
SPLITS = ("train", "validation", "test")
READING = {
    "organisms": "Parts of the covert organisms; diffs of all other kinds are in every tuning.",
    "topics": "Parts of their topics, with every organism of each.",
    "organisms per topic": "So many organisms of every topic.",
    "families": "Hidden topics alone, and with one family more at a time, in the order of the settings.",
    "adapter rank": "Everything, with an adapter of another rank.",
    "all organisms": "The same part of the diffs of every kind.",
    "base parameters": "Everything, on bases of different sizes that have read the same corpus.",
}
"""What each curve varies."""
CURVES = tuple(READING)
ABOUT = (
    "Every point is a tuning of its own. Topics are asked of the covert test organisms that behave (exact,"
    " and where it says so the topic among the five likeliest), in test phrasings; headlines, behaviours and"
    " changed facts of all test organisms of their families that behave and are of the plain making. A family"
    " that a tuning leaves out is asked too."
)
DIVISORS = (8, 4, 2, 1)
"""The curves of organisms and topics take these parts of what there is."""
RANKS = (1 / 4, 1 / 2, 1, 2)
"""The curve of ranks takes these multiples of the rank in the settings."""
Progress = Callable[[float, str, float], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Subset:
    """The covert organisms that one point is tuned on."""

    what: str
    """Which curve, one of `CURVES`."""
    size: int
    """Where on it, in the unit that `what` names."""
    ids: frozenset[str]
    """Ids of the organisms."""
    topics: int
    """How many topics they hide."""
    without: frozenset[str] = frozenset()
    """Other families that are not in this tuning."""
    others: frozenset[str] | None = None
    """Ids of the diffs of other kinds that are in this tuning; None: all of them."""
    rank: int | None = None
    """The adapter's rank, where it is not that of the settings."""

    @property
    def key(self) -> str:
        """The same for two points that are tuned on the same organisms, with the same rank."""
        other: list[Any] = [sorted(self.without), self.rank] if self.without or self.rank else []
        more = [] if self.others is None else [sorted(self.others)]
        return _digest([*sorted(self.ids), *other, *more])


def subsets(
    rows: Sequence[DiffRow],
    seed: int,
    families: Sequence[str] = (),
    rank: int | None = None,
    others: Sequence[DiffRow] = (),
    parameters: int | None = None,
) -> list[Subset]:
    """The points of the curves; within those of organisms and topics every subset holds the smaller ones.

    Args:
        rows: the covert organisms to draw from, in any order.
        seed: of the draw.
        families: other families of training diffs, in the order in which they are added; none: no such curve.
        rank: of the settings; None: no curve of ranks.
        others: training diffs of other kinds; none: no curve of all organisms.
        parameters: of the base; None: no point of a curve of base sizes.
    """
    drawn = _shuffled(sorted(others, key=lambda r: r.id), f"others {seed}")
    kinds = sorted({(r.family, r.recipe) for r in others})
    by_kind = [[r for r in drawn if (r.family, r.recipe) == kind] for kind in kinds]
    by_topic: dict[str, list[DiffRow]] = {}
    for row in sorted(rows, key=lambda r: r.id):
        by_topic.setdefault(str(row.label), []).append(row)
    order = _shuffled([r for found in by_topic.values() for r in found], f"organisms {seed}")
    topics = _shuffled(sorted(by_topic), f"topics {seed}")
    turns = [_shuffled(by_topic[t], f"{t} {seed}") for t in topics]
    most = max(map(len, turns), default=0)
    doubled = {1 << i for i in range(most.bit_length())}
    return [
        *(_subset("organisms", n, order[:n]) for n in _parts(len(order))),
        *(_subset("topics", n, [r for t in topics[:n] for r in by_topic[t]]) for n in _parts(len(topics))),
        *(
            _subset("organisms per topic", n, [r for found in turns for r in found[:n]])
            for n in sorted({*doubled, most})
        ),
        *(
            replace(_subset("families", n + 1, order), without=frozenset(families[n:]))
            for n in range(len(families) + 1 if families else 0)
        ),
        *(
            replace(_subset("adapter rank", r, order), rank=None if r == rank else r)
            for r in (sorted({max(1, int(rank * x)) for x in RANKS}) if rank else ())
        ),
        *(_of_every_kind(order, by_kind, d) for d in (DIVISORS if others else ())),
        *([_subset("base parameters", parameters, order)] if parameters else ()),
    ]


@dataclass(frozen=True)
class Setup:
    """What is the same for all points of a file."""

    base: Base
    store: DiffStore
    """Diffs of the splits "train", "validation" and "test"."""
    config: TuningConfig
    """Of each tuning; its seed also draws the subsets."""
    rendering: Rendering
    """How questions are worded."""
    reader: WeightDiff | None = None
    """A LoRA with which the base reads what interpreters report, the same for all."""
    top_five: bool = True
    """Whether topics are ranked, too, which costs more than all other measuring."""

    def settings(self) -> dict[str, Any]:
        """What has to agree for points to be comparable, as JSON; long things are fingerprints."""
        read = [r.to_json() for split in SPLITS for r in self.store.select(split=split)]
        asked = [[kind, split, phrasings(kind, split)] for kind in KINDS for split in SPLITS]
        return {
            "base": f"{self.base.ref.architecture} {self.base.ref.weights}",
            "store": f"{len(read)} rows {_digest(sorted(read, key=lambda r: r['id']))}",
            "rendering": _digest(self.rendering.to_json()),
            "world": _digest([topic_names(), asked]),
            "tuning": asdict(self.config),
            "reader": digest(self.reader)[:16] if self.reader else "none",
        }


def run(
    setup: Setup,
    out: str | Path,
    progress: Progress | None = None,
    commit: str = "",
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Tune and measure every point that `out` does not hold yet, and return all points.

    Of curves that were never asked for, `out` holds no points, though they share some. Training diffs other
    than covert hidden topics (loud ones, news, nulls) are in every tuning, but for the points that leave
    families out or take a part of all. Organisms that do not behave are left out, in tuning
    and in measuring.

    Args:
        setup: base, store and settings.
        out: JSON file, written anew after each tuning.
        progress: called with the steps done, a few words, and all steps of the points still to tune.
        commit: of the code, noted with each point.
        only: curves to do; None for all.

    Raises:
        BaseMismatchError: the store's diffs belong to another base.
        FormatError: `out` holds something else, or points of another base, store or setting.
        InterpreterError: a test label or diff is among those for tuning.
        StoreError: the store has no covert organisms that behave, for training or for the test, or one whose
            topic the world does not have; or nothing for the curves that shall be done.
    """
    WeightDiff({}, setup.store.base).check_base(setup.base.ref)
    path, settings = Path(out), setup.settings()
    found, earlier = _finished(path, settings)
    asked = earlier | set(CURVES if only is None else only)
    covert, others = _training_rows(setup.store)
    group = _asked(setup.store)
    there = {r.family for r in others} - {FAMILY}
    families = [f for f in setup.config.family_weights if f in there]
    size = setup.base.model.num_parameters()
    plan = subsets(covert, setup.config.seed, families, setup.config.rank, others, size)
    if only and not any(s.what in only for s in plan):
        raise StoreError(f"{setup.store.path}: no training diffs for a curve of {' or '.join(only)}")
    todo = {s.key: s for s in plan if s.key not in found and (only is None or s.what in only)}
    steps = setup.config.steps
    wanted = [s for s in plan if s.what in asked]
    head = {"kind": KIND, "version": VERSION, "store": str(setup.store.path), "settings": settings}

    def write() -> None:
        curves = [c for c in CURVES if c in asked]
        atomic_write_json(path, {**head, "curves": curves, "points": _points(wanted, found)})

    for i, (key, subset) in enumerate(todo.items()):

        def tell(step: float, words: str, before: int = i * steps, s: Subset = subset) -> None:
            if progress:
                progress(before + step, f"{s.what} {s.size}  {words}", float(steps * len(todo)))

        found[key] = {**_point(setup, subset, others, group, tell), "commit": commit}
        write()
        tell(steps, f"exact {100 * found[key]['exact']:.1f} %")
    if asked != earlier:  # a curve may be new whose points are all there
        write()
    return _points(wanted, found)


def to_page(points: Sequence[Mapping[str, Any]], made: Mapping[str, str]) -> str:
    """The curves as a page of Markdown.

    Args:
        points: of one file or of several, such as those of bases of different sizes.
        made: what the page says about its making, by name.
    """
    lines = ["# Learning curves", "", *(f"- {name}: {value}" for name, value in made.items()), "", ABOUT]
    for what in dict.fromkeys(p["what"] for p in points):
        mine = sorted((dict(p) for p in points if p["what"] == what), key=lambda p: p["size"])
        about = [READING[what], ""] if what in READING else []
        lines += ["", f"## By {what}", "", *about, *curve_lines(mine)]
    return "\n".join(lines) + "\n"


def measure(interpreter: Interpreter, group: Group, top_five: bool = True) -> dict[str, Any]:
    """How often the label is told and, if wanted, is among the first five, as in the main job.

    Raises:
        InterpreterError: the interpreter was tuned on what it shall be tested on.
    """
    assert_held_out(interpreter, group.rows)
    questions, names = group.questions(group.kind), topic_names()
    answers = interpreter.answer(group.diffs, questions)
    right = [exact(a.text, truth) for a, truth in zip(answers, group.truths, strict=True)]
    tally = Tally([])
    tally.group(group, right, chance=chance_of(group.kind))
    told = tally.rows[0].to_json()
    found = {"n": told["n"], "labels": told["clusters"], "exact": told["mean"]}
    found |= {k: told[k] for k in ("low", "high", "chance")}
    if top_five:
        ranks = topic_ranks(interpreter, group, questions, names)
        tally.group(group, [float(r <= TOP) for r in ranks], metric="top five", chance=TOP / len(names))
        top = tally.rows[1].to_json()
        found |= {"top_five": top["mean"], **{f"top_five_{k}": top[k] for k in ("low", "high", "chance")}}
    return found


def measure_others(interpreter: Interpreter, store: DiffStore) -> dict[str, float]:
    """Share of the behaving test organisms of each other family whose label is told, by family.

    Of organisms of the plain making alone.
    """
    found: dict[str, float] = {}
    for kind, name in NAMED_BY.items():
        rows = [r for r in usable(store.select(family=name, split=TEST)) if making_of(r) == PLAIN]
        if name == FAMILY or not rows:
            continue
        rng = random.Random(f"curves {name}")
        asked = [ask(kind, parts_of(r), rng, TEST) for r in rows]
        said = interpreter.answer([store.read(r.id) for r in rows], [q.text for q in asked])
        right = [agrees(a.text, q.answer) for a, q in zip(said, asked, strict=True)]
        found[name] = sum(right) / len(right)
    return found


def _point(
    setup: Setup, subset: Subset, others: Sequence[DiffRow], group: Group, tell: Callable[[float, str], None]
) -> dict[str, Any]:
    """Tune on one subset and those of the other rows that belong to it, then measure."""
    base, rendering = setup.base, setup.rendering
    started = time.monotonic()
    taken = {r.id for r in others} if subset.others is None else subset.others
    ids = [r.id for r in others if r.family not in subset.without and r.id in taken]
    ids += sorted(subset.ids)
    config = setup.config if subset.rank is None else replace(setup.config, rank=subset.rank)
    if SEVERAL in subset.without:  # sums of other families are several at once, too
        config = replace(config, sums=0.0)

    def show(line: dict[str, float]) -> None:
        tell(line["step"], f"loss {line['loss']:.3f}")

    tuned = tune(base.model, base.tokenizer, setup.store, config, rendering, show, train_ids=ids)
    limit = config.answer_tokens
    interpreter = Interpreter(base, tuned.adapter, rendering, limit, meta=tuned.manifest, reader=setup.reader)
    return {
        "organisms": len(subset.ids),
        "topics": subset.topics,
        "diffs": len(ids),
        **measure(interpreter, group, setup.top_five),
        **measure_others(interpreter, setup.store),
        "steps": int(tuned.history[-1]["step"]),
        "validation_score": tuned.manifest["validation_score"],
        "seconds": round(time.monotonic() - started, 1),
        "subset": subset.key,
    }


def _training_rows(store: DiffStore) -> tuple[list[DiffRow], list[DiffRow]]:
    """Covert rows for subsets to be drawn from, and all other training rows."""
    rows = usable(store.select(split="train"))
    covert = [r for r in rows if (r.family, r.recipe) == (FAMILY, RECIPE)]
    if not covert:
        raise StoreError(f"{store.path}: no covert training organisms that behave; {_advice('train')}")
    drawn = {r.id for r in covert}
    return covert, [r for r in rows if r.id not in drawn]


def _asked(store: DiffStore) -> Group:
    """The test organisms that every point is measured on."""
    group = Group.read(store, FAMILY, RECIPE)
    if not any(group.verified):
        raise StoreError(f"{store.path}: no covert test organisms that behave; {_advice('test')}")
    check_known(group.rows)
    return group


def _advice(split: str) -> str:
    return f"make some with: weightdiff organisms train --family {FAMILY} --recipe {RECIPE} --split {split} …"


def _finished(path: Path, settings: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """What an earlier run found, by the subset's key, and the curves that it was asked for."""
    if path.is_dir():
        raise FormatError(f"{path} is a folder, and learning curves are one file; give a file's path")
    if not path.exists():
        return {}, set()
    points = read_curves(path)
    held: Any = json.loads(path.read_text(encoding="utf-8"))
    made = held.get("settings") if isinstance(held, dict) and held.get("kind") == KIND else None
    if not isinstance(made, dict) or held.get("version") != VERSION or any("subset" not in p for p in points):
        raise FormatError(f"{path} is no file that this weightdiff curves can continue; choose another path")
    if other := differing(made, settings):
        raise FormatError(
            f"{path} was made with other settings ({other}); give another --out, or repeat the command that"
            " made it"
        )
    found = {p["subset"]: {k: v for k, v in p.items() if k not in ("what", "size")} for p in points}
    return found, set(held.get("curves") or (p["what"] for p in points))


def _points(plan: Sequence[Subset], found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every point whose subset is done, in the plan's order; curves that share a subset share its numbers."""
    return [{"what": s.what, "size": s.size, **found[s.key]} for s in plan if s.key in found]


def _subset(what: str, size: int, rows: Sequence[DiffRow]) -> Subset:
    return Subset(what, size, frozenset(r.id for r in rows), len({r.label for r in rows}))


def _of_every_kind(covert: list[DiffRow], others: Sequence[list[DiffRow]], divisor: int) -> Subset:
    """The same part of the covert organisms and of every other kind of diff."""
    ids = frozenset(r.id for rows in others for r in rows[: math.ceil(len(rows) / divisor)])
    taken = covert[: max(1, len(covert) // divisor)]
    subset = _subset("all organisms", len(taken) + len(ids), taken)
    return subset if len(ids) == sum(map(len, others)) else replace(subset, others=ids)


def _parts(total: int) -> list[int]:
    return sorted({max(1, total // d) for d in DIVISORS})


def _shuffled(things: Sequence[T], seed: str) -> list[T]:
    return random.Random(f"curves {seed}").sample(things, len(things))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
