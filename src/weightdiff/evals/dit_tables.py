"""Tables of the interpreter itself: right answers, unseen wording, controls, evidence, null diffs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightdiff.evals.baselines import chance_of, slot_chance, topic_names, topic_ranks
from weightdiff.evals.controls import derangement
from weightdiff.evals.metrics import UNBOUNDED
from weightdiff.evals.scoring import TOP, exact, slot_share
from weightdiff.evals.tally import Group, Tally, average
from weightdiff.methods.base import Answer
from weightdiff.methods.controls import noise_like
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.questions import KIND_ANSWERS, KINDS, phrasings, true_answer

if TYPE_CHECKING:
    from weightdiff.methods.dit import Interpreter

Say = Callable[[str], None]
GENERAL = {"kind": 1 / len(KIND_ANSWERS), "any_change": 1 / 2}
"""Kinds of question that every family answers, with their chance levels."""


@dataclass
class Told:
    """What one interpreter said about a group, one answer a row in every list."""

    unseen: list[Answer]
    """To the family's own question in test phrasings, with evidence."""
    seen: list[Answer]
    """To the same in training phrasings."""
    noise: list[Answer]
    """To the same with noise in the place of each diff."""
    ranks: list[int]
    """Of the label among all topics; empty for other families."""
    general: dict[str, list[Answer]] = field(default_factory=dict)
    """To the kinds of question of `GENERAL`."""


def interview(interpreter: Interpreter, group: Group, say: Say) -> Told:
    """Ask one interpreter everything about a group."""
    say(f"interpreter on {len(group.rows)} {group.recipe} organisms")
    questions = group.questions(group.kind)
    noise = [noise_like(d, seed=i) for i, d in enumerate(group.diffs)]
    return Told(
        unseen=interpreter.answer(group.diffs, questions, evidence=True),
        seen=interpreter.answer(group.diffs, group.questions(group.kind, "train")),
        noise=interpreter.answer(noise, questions),
        ranks=topic_ranks(interpreter, group, questions, topic_names()) if group.kind == "topic" else [],
        general={kind: interpreter.answer(group.diffs, group.questions(kind)) for kind in GENERAL},
    )


def answers(tally: Tally, group: Group, told: Sequence[Told]) -> None:
    """How often the label is told, in unseen and in seen wording."""
    tally.table = "DIT: what the adapter tells"
    chance = chance_of(group.kind)
    unseen = [_right(t.unseen, group.truths) for t in told]
    tally.seeded(group, unseen, chance=chance)
    if group.kind == "topic":
        by_seed = [[float(r <= TOP) for r in t.ranks] for t in told]
        tally.seeded(group, by_seed, metric="top five", chance=TOP / len(topic_names()))
    else:
        by_seed = [
            [slot_share(a.text, truth) for a, truth in zip(t.unseen, group.truths, strict=True)] for t in told
        ]
        tally.seeded(group, by_seed, metric="slots", chance=slot_chance())
    seen = [_right(t.seen, group.truths) for t in told]
    tally.seeded(group, seen, metric="exact, seen phrasing", chance=chance, note="training phrasings")
    gap = [[a - b for a, b in zip(u, s, strict=True)] for u, s in zip(unseen, seen, strict=True)]
    tally.seeded(group, gap, metric="unseen − seen phrasing", unit="points", bounds=(-1.0, 1.0))
    tally.everyone(group, average(unseen), chance=chance, seeds=tally.seeds)


def controls(tally: Tally, group: Group, told: Sequence[Told]) -> None:
    """Answers held against another organism's label, and answers about noise."""
    tally.table = "Controls"
    chance = chance_of(group.kind)
    if len(set(group.truths)) > 1:
        other = derangement(group.truths)
        by_seed = [_right(t.unseen, [other[x] for x in group.truths]) for t in told]
        tally.seeded(group, by_seed, method="dit-other", chance=chance, note="another organism's diff")
    noise = "noise of each module's norm"
    tally.seeded(
        group, [_right(t.noise, group.truths) for t in told], method="dit-noise", chance=chance, note=noise
    )
    nothing = [_nothing(t.noise) for t in told]
    tally.seeded(group, nothing, method="dit-noise", metric="nothing found", note=noise)


def evidence(tally: Tally, group: Group, told: Sequence[Told]) -> None:
    """How much right and wrong answers are due to the diff, those of all seeds together."""
    tally.table = "Evidence"
    split: dict[bool, list[tuple[float, str]]] = {True: [], False: []}
    for t in told:
        for answer, truth, good in zip(t.unseen, group.truths, group.verified, strict=True):
            if good and answer.evidence is not None:
                split[bool(exact(answer.text, truth))].append((answer.evidence, truth))
    for right, found in split.items():
        tally.add(
            [v for v, _ in found],
            [label for _, label in found],
            method="dit",
            family=group.family,
            recipe=group.recipe,
            kind=group.kind,
            metric=f"evidence, {'right' if right else 'wrong'} answers",
            unit="nats",
            bounds=UNBOUNDED,
            seeds=tally.seeds,
        )


def general(tally: Tally, family: str, groups: Sequence[Group], told: Sequence[Sequence[Told]]) -> None:
    """The questions that every family answers, recipes together; `told` is one list of seeds a group."""
    tally.table = "Kind of change, and whether there is one"
    for kind, chance in GENERAL.items():
        by_seed = []
        for s in range(len(tally.seeds)):
            by_seed.append(
                [
                    exact(a.text, true_answer(family, kind, truth))
                    for group, seeds in zip(groups, told, strict=True)
                    for a, truth in zip(seeds[s].general[kind], group.truths, strict=True)
                ]
            )
        merged = Group(
            family, "all", [r for g in groups for r in g.rows], [d for g in groups for d in g.diffs]
        )
        tally.seeded(merged, by_seed, kind=kind, chance=chance)


def nulls(tally: Tally, groups: Sequence[Group], interpreters: Sequence[Interpreter], say: Say) -> None:
    """How often "nothing found" is said where there is nothing: null diffs, by recipe and together."""
    pooled: dict[str, list[tuple[str, list[float]]]] = {kind: [] for kind in KINDS}
    tally.table = "Nothing there, nothing found"
    for group in groups:
        per_kind: dict[str, list[tuple[str, list[float]]]] = {}
        for kind in KINDS:
            say(f"interpreter on {len(group.rows)} {group.recipe} null diffs, {kind}")
            questions = group.questions(kind)
            by_seed = [_nothing(i.answer(group.diffs, questions)) for i in interpreters]
            # Untouched diffs are all the same function, so that only the wording sets their answers apart.
            clusters = questions if group.recipe == "untouched" else [r.id for r in group.rows]
            per_kind[kind] = [(c, list(v)) for c, v in zip(clusters, zip(*by_seed, strict=True), strict=True)]
            pooled[kind] += per_kind[kind]
        _null_rows(tally, group.recipe, per_kind)
    if groups:
        _null_rows(tally, "all nulls", pooled, each_seed=True)


def no_diff(tally: Tally, interpreters: Sequence[Interpreter]) -> None:
    """The adapter on the bare base, in every test phrasing."""
    tally.table = "Nothing there, nothing found"
    asked = {kind: phrasings(kind, "test") for kind in KINDS}
    found = {
        kind: list(zip(*[_nothing(i.answer([None] * len(qs), qs)) for i in interpreters], strict=True))
        for kind, qs in asked.items()
    }
    per_kind = {kind: [(q, list(v)) for q, v in zip(asked[kind], found[kind], strict=True)] for kind in KINDS}
    _null_rows(tally, "no diff", per_kind, each_seed=True, note="clusters are phrasings")


def _null_rows(
    tally: Tally,
    recipe: str,
    per_kind: dict[str, list[tuple[str, list[float]]]],
    each_seed: bool = False,
    note: str = "",
) -> None:
    """A row for each kind and one for all; entries are (cluster, value by seed)."""
    everything = [entry for found in per_kind.values() for entry in found]
    for kind, found in {**per_kind, "all": everything}.items():
        clusters = [c for c, _ in found]

        def add(
            values: list[float], seeds: list[int], goal: bool, kind: str = kind, c: list[str] = clusters
        ) -> None:
            tally.add(
                values,
                c,
                method="dit",
                family="null",
                recipe=recipe,
                kind=kind,
                metric="nothing found",
                seeds=seeds,
                note=note,
                goal=goal,
            )

        if each_seed and kind == "all" and len(tally.seeds) > 1:
            for s, seed in enumerate(tally.seeds):
                add([v[s] for _, v in found], [seed], goal=False)
        add([sum(v) / len(v) for _, v in found], tally.seeds, goal=True)


def _right(said: Sequence[Answer], truths: Sequence[str]) -> list[float]:
    return [exact(a.text, truth) for a, truth in zip(said, truths, strict=True)]


def _nothing(said: Sequence[Answer]) -> list[float]:
    return [exact(a.text, NOTHING_FOUND) for a in said]
