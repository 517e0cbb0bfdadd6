"""What the answers about all families come to, as result rows: one function a table.

Own questions are those that a family's label answers. Unless a table is about phrasings or makings, answers
to test phrasings count, and of own questions those about organisms of the plain making.
"""

from __future__ import annotations

from collections.abc import Sequence

from weightdiff.evals.families import (
    JOINT,
    NO_DIFF,
    NULL_KINDS,
    OWN_KIND,
    SEEN,
    SINGLE,
    SINGLES,
    UNSEEN,
    Interview,
    Reply,
)
from weightdiff.evals.family_confidence import confidence
from weightdiff.evals.family_goals import (
    ALL,
    BEHAVIOURS,
    BOTH,
    COMBINATIONS,
    COMPARISON_KINDS,
    EVASIVE_GAP,
    EXACT,
    FINDING_KINDS,
    FORM_GAP,
    FULL_GAP,
    MAIN,
    MAKING_GAP,
    NOTHING,
    PHRASING,
    SINGLE_GAP,
    SLOTS,
    TWO,
    TWO_SUMMED_UP,
    YES_NO_KINDS,
    main_name,
    with_goals,
)
from weightdiff.evals.family_tables import Pair, Tables, chance_of, pick
from weightdiff.evals.metrics import ResultRow
from weightdiff.organisms.base import NOTHING_FOUND
from weightdiff.organisms.gated import HELD_OUT_FORM
from weightdiff.organisms.makings import PLAIN
from weightdiff.organisms.makings import UNSEEN as UNSEEN_MAKINGS
from weightdiff.world.reports import (
    COMPARISONS,
    HELD_OUT_KINDS,
    KIND_ANSWERS,
    NAMED_BY,
    NULL,
    QUIRK,
    SEVERAL,
    TOPIC,
    YES_NO,
)
from weightdiff.world.signs import FORMS

OWN = "own"
"""Kind of question of rows that pool the own questions of several families."""
EVASIVE = "evasive"
MARKS = {"headline": {SLOTS: "slots"}, "edit": {BOTH: "both"}}
"""Kind → what is measured beside exact answers, and the mark that has it."""


def rows_of(found: Interview) -> list[ResultRow]:
    """All result rows of an evaluation; those that a goal is held against say so."""
    t = Tables(found.seeds)
    joint = pick(found.replies, method=JOINT)
    unseen = pick(joint, phrasing=UNSEEN)
    own = [r for r in unseen if r.kind == OWN_KIND.get(r.family)]
    plain = pick(own, making=PLAIN)
    own_questions(t, plain)
    forms(t, plain)
    held_out_behaviours(t, plain)
    evasive(t, plain)
    singles(t, plain, pick(found.replies, method=SINGLE))
    makings(t, own)
    seen_phrasings(t, pick(joint, phrasing=SEEN), unseen)
    kind_of_change(t, pick(unseen, kind="kind"))
    held_out_kinds(t, unseen)
    trained_kinds(t, unseen)
    nulls(t, pick(unseen, family=NULL))
    several(t, pick(unseen, family=SEVERAL))
    confidence(t, unseen, found.threshold)
    return with_goals(t.rows)


def own_questions(t: Tables, plain: Sequence[Reply]) -> None:
    """Each family's own question, by recipe, and its main recipes together."""
    t.name = "Own question"
    for f in SINGLES:
        kind, mine = OWN_KIND[f], pick(plain, family=f)
        groups = {r.recipe: pick(mine, recipe=r.recipe) for r in mine}
        groups[main_name(f)] = pick(mine, recipe=MAIN[f])
        for recipe, group in groups.items():
            t.share(group, (f, recipe, kind, EXACT), chance=chance_of(kind))
            for metric, mark in MARKS.get(kind, {}).items():
                t.share(group, (f, recipe, kind, metric), mark)


def forms(t: Tables, plain: Sequence[Reply]) -> None:
    """Topics and behaviours of the main recipes, by form of trigger; the held-out one against the others."""
    t.name = "By form of trigger"
    pairs: list[Pair] = []
    for f in (TOPIC, QUIRK):
        kind, mine = OWN_KIND[f], pick(plain, family=f, recipe=MAIN[f])
        for form in FORMS:
            group = pick(mine, form=form)
            t.share(group, (f, main_name(f), kind, f"exact, {form}"), chance=chance_of(kind))
        seen = pick(mine, form=tuple(form for form in FORMS if form != HELD_OUT_FORM))
        pairs.append((pick(mine, form=HELD_OUT_FORM), seen))
        t.apart(pairs[-1:], (f, ALL, kind, FORM_GAP), note=f"{main_name(f)}; unseen: {HELD_OUT_FORM}")
    t.apart(pairs, (ALL, ALL, OWN, FORM_GAP), note="each family against its own")


def held_out_behaviours(t: Tables, plain: Sequence[Reply]) -> None:
    """Behaviours by what of them is new."""
    t.name = "Behaviours by what is held out"
    for held_out, metric in (("combination", COMBINATIONS), ("behaviour", BEHAVIOURS)):
        group = pick(plain, family=QUIRK, recipe=MAIN[QUIRK], held_out=held_out)
        kind = OWN_KIND[QUIRK]
        t.share(group, (QUIRK, main_name(QUIRK), kind, metric), chance=chance_of(kind))


def evasive(t: Tables, plain: Sequence[Reply]) -> None:
    """Organisms that deny against the main recipes of their family; these are other diffs."""
    t.name = "Evasive organisms"
    groups = {
        f: (pick(plain, family=f, recipe=EVASIVE), pick(plain, family=f, recipe=MAIN[f])) for f in SINGLES
    }
    for f, pair in groups.items():
        t.apart([pair], (f, ALL, OWN_KIND[f], EVASIVE_GAP), note=f"not evasive: {main_name(f)}")
    t.apart(list(groups.values()), (ALL, ALL, OWN, EVASIVE_GAP), note="each family against its own")


def singles(t: Tables, plain: Sequence[Reply], single: Sequence[Reply]) -> None:
    """The joint interpreter against one that was tuned on a family alone, on the same questions."""
    t.name = "Joint against single-family interpreters"
    joint = {(r.row, r.question): r for r in plain}
    for f in SINGLES:
        kind = OWN_KIND[f]
        both = [(joint[r.row, r.question], r) for r in pick(single, family=f, making=PLAIN)]
        t.share([r for _, r in both], (f, ALL, kind, EXACT), method=SINGLE, chance=chance_of(kind))
        t.share([r for r, _ in both], (f, ALL, kind, EXACT), note="the same", chance=chance_of(kind))
        pairs = [(a.marks[EXACT], b.marks[EXACT], a.cluster) for a, b in both]
        t.paired(pairs, (f, ALL, kind, SINGLE_GAP), note="all recipes")


def makings(t: Tables, own: Sequence[Reply]) -> None:
    """Organisms of other makings, and differences over those of one label."""
    t.name = "By making"
    unseen = tuple(m.name for m in UNSEEN_MAKINGS)
    for f in SINGLES:
        recipes = tuple(sorted({r.recipe for r in pick(own, family=f) if r.making != PLAIN}))
        group = pick(own, family=f, recipe=recipes)
        for making in sorted({r.making for r in group}):
            key = (f, " and ".join(recipes), OWN_KIND[f], f"exact, {making}")
            t.share(pick(group, making=making), key, chance=chance_of(OWN_KIND[f]))
    for f in (*SINGLES, ALL):
        mine = list(own) if f == ALL else pick(own, family=f)
        kind = OWN_KIND.get(f, OWN)
        t.paired(_twins(mine, ("full",), ("r8",)), (f, ALL, kind, FULL_GAP), note="of one label")
        for making in unseen:
            pairs = _twins(mine, (making,), (PLAIN,))
            t.paired(pairs, (f, ALL, kind, f"{making} − r2"), note="of one label")
        t.paired(_twins(mine, unseen, (PLAIN,)), (f, ALL, kind, MAKING_GAP), note="of one label")


def _twins(
    own: Sequence[Reply], ones: tuple[str, ...], others: tuple[str, ...]
) -> list[tuple[float, float, str]]:
    """Mean exact answers of two groups of makings, for each recipe's label that both have."""
    found: dict[tuple[str, str, str], list[Reply]] = {}
    for r in own:
        found.setdefault((r.family, r.recipe, r.label), []).append(r)
    out: list[tuple[float, float, str]] = []
    for group in found.values():
        a, b = ([r.marks[EXACT] for r in pick(group, making=makings)] for makings in (ones, others))
        if a and b:
            out.append((sum(a) / len(a), sum(b) / len(b), group[0].cluster))
    return out


def seen_phrasings(t: Tables, seen: Sequence[Reply], unseen: Sequence[Reply]) -> None:
    """The same open questions in test phrasings and in those of tuning."""
    t.name = "Held-out phrasings"
    other = {(r.row, r.kind): r for r in unseen if r.kind in NAMED_BY}
    for f in (*SINGLES, SEVERAL, ALL):
        mine = seen if f == ALL else pick(seen, family=f)
        pairs = [(other[r.row, r.kind].marks[EXACT], r.marks[EXACT], r.cluster) for r in mine]
        kind = ALL if f == ALL else OWN_KIND.get(f, OWN)
        t.paired(pairs, (f, ALL, kind, PHRASING), note="all recipes and makings")


def kind_of_change(t: Tables, asked: Sequence[Reply]) -> None:
    """Which kind of change a diff is, over all diffs and by family; the bare base is not among them."""
    t.name = "Kind of change"
    diffs = [r for r in asked if r.recipe != NO_DIFF]
    for f in KIND_ANSWERS:
        t.share(pick(diffs, family=f), (f, ALL, "kind", EXACT), chance=chance_of("kind"))
    t.share(diffs, (ALL, ALL, "kind", EXACT), chance=chance_of("kind"))


def held_out_kinds(t: Tables, unseen: Sequence[Reply]) -> None:
    """Kinds of question that no tuning asks, about diffs that hold what they ask for."""
    t.name = "Held-out kinds of question"
    something = [r for r in unseen if r.family != NULL and r.kind in HELD_OUT_KINDS]
    for kind in HELD_OUT_KINDS:
        _one_kind(t, pick(something, kind=kind), kind)
    for name, kinds in ((YES_NO_KINDS, YES_NO), (COMPARISON_KINDS, COMPARISONS)):
        t.share(pick(something, kind=kinds), (ALL, ALL, name, EXACT), chance=0.5)


def trained_kinds(t: Tables, unseen: Sequence[Reply]) -> None:
    """Every other kind of question, about all diffs that are not null."""
    t.name = "Kinds of question that tuning asks"
    something = [r for r in unseen if r.family != NULL and r.kind not in HELD_OUT_KINDS]
    for kind in dict.fromkeys(r.kind for r in something):
        if kind != "kind":
            _one_kind(t, pick(something, kind=kind), kind)
    t.share(pick(something, kind=YES_NO), (ALL, ALL, "yes/no, tuned", EXACT), chance=0.5)


def _one_kind(t: Tables, asked: Sequence[Reply], kind: str) -> None:
    """A kind's exact answers; apart where the truth is yes or no, or where it is "nothing found"."""
    t.share(asked, (ALL, ALL, kind, EXACT), chance=chance_of(kind))
    if kind in YES_NO:
        for truth in ("yes", "no"):
            t.share(pick(asked, truth=truth), (ALL, ALL, kind, f"exact, truth {truth}"))
    elif kind in NAMED_BY:
        something = [r for r in asked if r.truth != NOTHING_FOUND]
        t.share(something, (ALL, ALL, kind, "exact, there is one"))
        t.share(pick(asked, truth=NOTHING_FOUND), (ALL, ALL, kind, "exact, there is none"))


def nulls(t: Tables, asked: Sequence[Reply]) -> None:
    """Whether nothing is found where nothing is, by recipe, by kind, and on the bare base."""
    t.name = "Nothing found where nothing is"
    findings = pick(asked, kind=NULL_KINDS)
    diffs = [r for r in findings if r.recipe != NO_DIFF]
    for recipe in sorted({r.recipe for r in diffs}):
        t.share(pick(diffs, recipe=recipe), (NULL, recipe, FINDING_KINDS, NOTHING))
    t.share(diffs, (NULL, ALL, FINDING_KINDS, NOTHING))
    t.share(pick(findings, recipe=NO_DIFF), (NULL, NO_DIFF, FINDING_KINDS, NOTHING))
    for kind in NULL_KINDS:
        t.share(pick(diffs, kind=kind), (NULL, ALL, kind, NOTHING))
    for recipe in (*sorted({r.recipe for r in diffs}), ALL):
        mine = asked if recipe == ALL else pick(asked, recipe=recipe)
        t.share(pick(mine, kind=YES_NO), (NULL, recipe, YES_NO_KINDS, 'exact: "no"'))


def several(t: Tables, asked: Sequence[Reply]) -> None:
    """Whether all parts are named, asked for each or for a summary, and whether they are counted."""
    t.name = "Several at once"
    recipes = (*sorted({r.recipe for r in asked}), ALL)
    for recipe in recipes:
        mine = list(asked) if recipe == ALL else pick(asked, recipe=recipe)
        for parts, metric, summed_up in (
            (2, TWO, TWO_SUMMED_UP),
            (3, "every one of three parts named", "every one of three parts named in the summary"),
        ):
            of_parts = pick(mine, parts=parts)
            open_ = [r for r in of_parts if r.kind in NAMED_BY and r.truth != NOTHING_FOUND]
            by_row: dict[str, list[Reply]] = {}
            for r in open_:
                by_row.setdefault(r.row, []).append(r)
            every = [min(r.marks[EXACT] for r in rs) for rs in by_row.values()]
            t.mean(every, [rs[0].cluster for rs in by_row.values()], (SEVERAL, recipe, "open", metric))
            t.share(pick(of_parts, kind="summary"), (SEVERAL, recipe, "summary", summed_up), "named")
    open_ = [r for r in asked if r.kind in NAMED_BY and r.truth != NOTHING_FOUND]
    for kind in NAMED_BY:
        t.share(pick(open_, kind=kind), (SEVERAL, ALL, kind, "exact, part by part"), chance=chance_of(kind))
    t.share(pick(asked, kind="count"), (SEVERAL, ALL, "count", EXACT))
