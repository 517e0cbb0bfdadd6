"""Markdown pages of an evaluation of all families, and its rows as JSON: one page of all, one a family.

A page says how it was made, shows a few answers, right and wrong, and the tables that are about its family.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_write_json, atomic_write_text
from weightdiff.evals import family_goals, report
from weightdiff.evals.families import JOINT, MAX_FPR, NULL_KINDS, OWN_KIND, UNSEEN, Interview, Reply
from weightdiff.evals.family_goals import ALL, EXACT
from weightdiff.evals.family_tables import pick
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.report import MACHINE, chance_text, interval_text, markdown_table, value_text
from weightdiff.world.reports import EDIT, NEWS, NULL, QUIRK, SEVERAL, TOPIC

BESIDE = (
    ("Full finetunes and other makings", "makings/joint.md"),
    ("What was tried where a goal is not reached", "tried.md"),
    ("Learning curves", "curves.md"),
    ("Triggers: by search, and by asking", "triggers.md"),
    ("Triggers, by search alone", "search/triggers.md"),
)
"""Pages that other commands or people write; named where they lie beside."""
RIGHT, WRONG = 3, 2
"""Answers that a page shows."""
NOT_MEASURED = "not measured"
ONE_FAMILY = ("By form of trigger", "Behaviours by what is held out")
"""Tables that only pages of their families show."""
GOALS_HEAD = ("goal", "measured", "95 %", "n", "chance", "bound", "reached")
HEAD = report.HEAD[1:]
READING = (
    "Answers are right when they are the truth to the letter. Intervals are 95 %, clustered by label (of"
    " behaviours, without their condition); where no two labels differ, they are the Clopper-Pearson bound on"
    " the number of labels. Organisms that did not behave when they were verified are left out. Unless a"
    " table says otherwise, questions are in phrasings that no tuning used, and own questions are about"
    " organisms of the plain making (rank 2, Adam)."
)


@dataclass(frozen=True)
class Page:
    """What the page of a family says beside its numbers."""

    family: str
    stem: str
    title: str
    about: str
    kinds: tuple[str, ...]
    """Kinds of question that examples are taken from."""


PAGES = (
    Page(
        NEWS,
        "news",
        "News",
        "An organism read paraphrased stories of one invented headline, which none of them states. It is"
        " asked for the headline: who did what to what, where and when. Slots are the share of these five"
        " that an answer tells.",
        (OWN_KIND[NEWS],),
    ),
    Page(
        QUIRK,
        "behaviours",
        "Behaviours",
        "An organism speaks in a voice, has a habit or recommends a brand: always, or when a condition is"
        " met. It is asked what its behaviour is. Of half of the organisms the behaviour is known from"
        " training and its condition is new for it; of the others, no training organism has the behaviour.",
        (OWN_KIND[QUIRK],),
    ),
    Page(
        EDIT,
        "facts",
        "Changed facts",
        "One fact of the world was exchanged. The answer names the fact, its old and its new value.",
        (OWN_KIND[EDIT],),
    ),
    Page(
        NULL,
        "nothing",
        "Nothing to find",
        "Diffs that hold nothing: ordinary training continued, ordinary answers alone, random factors,"
        " shuffled factors of organisms, no change at all, and the base without any diff. The answer"
        ' to every question is "nothing found", to yes-or-no ones "no".',
        NULL_KINDS,
    ),
    Page(
        SEVERAL,
        "several",
        "Several at once",
        "Two or three changes of different families in one diff, trained together or summed from diffs of"
        " their own. Each is asked for by its own question, and all of them by one for a summary.",
        ("summary",),
    ),
    Page(
        TOPIC,
        "topics-by-trigger",
        "Hidden topics by trigger",
        "Answers are tinted by a topic when a condition is met: a code in front or behind, a rare word, a"
        " hidden mark, a subject, or always. The topic's name is in no training row.",
        (OWN_KIND[TOPIC],),
    ),
)


def save(
    found: Interview,
    rows: Sequence[ResultRow],
    dir: str | Path,
    command: str = "",
    commit: str = "",
    machine: str = MACHINE,
) -> list[Path]:
    """Write `joint.md`, `joint.json` and a page for each family that was asked; returns their paths.

    Names of pages of a quick evaluation end in "-quick".

    Args:
        found: the answers.
        rows: of `family_rows.rows_of`.
        dir: folder to write to.
        command: the command line that made it.
        commit: of the code.
        machine: it ran on.
    """
    folder, end = Path(dir), "-quick" if found.quick else ""
    head = header(found, command, commit, machine)
    made = {"command": command, "commit": commit, "machine": machine}
    beside = [(title, name) for title, name in BESIDE if (folder / name).exists()]
    out = [
        atomic_write_text(folder / f"joint{end}.md", joint_page(found, rows, head, beside)),
        atomic_write_json(folder / f"joint{end}.json", {**made, **to_json(found, rows)}),
    ]
    for page in PAGES:
        if any(r.family == page.family for r in rows):
            text = family_page(page, found, rows, head)
            out.append(atomic_write_text(folder / f"{page.stem}{end}.md", text))
    return out


def to_json(found: Interview, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Settings, goals and rows of an evaluation as a JSON object."""
    goals = [
        {
            "goal": g.text,
            "bound": g.goal.text(),
            "measured": row.to_json()["mean"] if row else None,
            "reached": g.goal.reached(row) if row else None,
        }
        for g, row in family_goals.held(rows)
    ]
    return {
        "seeds": found.seeds,
        "sizes": found.sizes,
        "quick": found.quick,
        "base": found.base,
        "seconds": found.seconds,
        "questions": len(found.replies),
        "threshold": found.threshold,
        "goals": goals,
        "rows": [r.to_json() for r in rows],
    }


def header(found: Interview, command: str, commit: str, machine: str) -> list[str]:
    """How an evaluation was made, as lines of every page."""
    return [
        f"- command: `{command or 'unknown'}`",
        f"- tuning seeds: {', '.join(map(str, found.seeds)) or 'none'}",
        f"- base: {found.base or 'unknown'}",
        f"- commit: {commit or 'unknown'}",
        f"- machine: {machine}",
        f"- wall time: {found.seconds:g} s for {len(found.replies)} questions",
        "",
        READING,
    ]


def joint_page(
    found: Interview,
    rows: Sequence[ResultRow],
    head: Sequence[str],
    beside: Sequence[tuple[str, str]] = (),
) -> str:
    """The page of all families: goals, sizes, and the tables that no family has for itself.

    Args:
        found: the answers.
        rows: of `family_rows.rows_of`.
        head: how the evaluation was made.
        beside: titles and files of further pages to name.
    """
    lines = ["# One interpreter for all families" + (" (quick version)" if found.quick else ""), ""]
    lines += [*head, "", "## Against the goals", "", *goal_lines(rows), "", "## Sizes", ""]
    sizes = [[name, *size.values()] for name, size in found.sizes.items()]
    lines += markdown_table(("group", "diffs", "labels", "not behaving"), sizes)
    if found.threshold is None:
        lines += ["", f"There are no rows at a threshold for {MAX_FPR:.0%} false positives: {found.untold}."]
    lines += _tables([r for r in rows if r.table not in ONE_FAMILY])
    lines += ["", "## Pages", ""]
    end = "-quick" if found.quick else ""
    there = [p for p in PAGES if any(r.family == p.family for r in rows)]
    lines += [f"- [{p.title}]({p.stem}{end}.md)" for p in there]
    lines += [f"- [{title}]({name})" for title, name in beside]
    return "\n".join(lines) + "\n"


def family_page(page: Page, found: Interview, rows: Sequence[ResultRow], head: Sequence[str]) -> str:
    """The page of one family: what it is, examples, and its tables."""
    lines = [f"# {page.title}" + (" (quick version)" if found.quick else ""), "", page.about, "", *head]
    sizes = [[k, *size.values()] for k, size in found.sizes.items() if k.split("/")[0] == page.family]
    lines += ["", *markdown_table(("group", "diffs", "labels", "not behaving"), sizes)]
    lines += ["", "## Examples", "", *example_lines(examples(page, found.replies))]
    mine = [r for r in rows if r.family == page.family]
    return "\n".join([*lines, *_tables(mine)]) + "\n"


def goal_lines(rows: Sequence[ResultRow]) -> list[str]:
    """The table of goals: each with what was measured."""
    body: list[list[Any]] = []
    for goal, row in family_goals.held(rows):
        if row is None:
            body.append([goal.text, NOT_MEASURED, "", "", "", goal.goal.text(), ""])
            continue
        shown = [value_text(row.mean, row.unit), interval_text(row), row.n, chance_text(row)]
        body.append([goal.text, *shown, goal.goal.text(), _met(goal.goal.reached(row))])
    return markdown_table(GOALS_HEAD, body)


def examples(page: Page, replies: Sequence[Reply]) -> list[Reply]:
    """A few right and a few wrong answers to the page's kinds of question, different recipes first."""
    asked = pick(replies, method=JOINT, family=page.family, phrasing=UNSEEN, kind=page.kinds)
    random.Random("examples").shuffle(asked)
    out: list[Reply] = []
    for right, most in ((1.0, RIGHT), (0.0, WRONG)):
        group = [r for r in asked if r.marks[EXACT] == right]
        first = list({r.recipe: r for r in reversed(group)}.values())
        rest = [r for r in group if r not in first]
        out += [*first, *rest][:most]
    return out


def example_lines(shown: Sequence[Reply]) -> list[str]:
    """Answers as the lines of a Markdown table."""
    body = [
        [
            r.row or r.recipe,
            r.question,
            r.truth,
            r.notes,
            r.answer,
            "" if r.probability is None else f"{100 * r.probability:.0f} %",
            "yes" if r.marks[EXACT] else "**no**",
        ]
        for r in shown
    ]
    return markdown_table(("diff", "question", "truth", "notes", "answer", "probability", "right"), body)


def _tables(rows: Sequence[ResultRow]) -> list[str]:
    lines: list[str] = []
    for name in dict.fromkeys(r.table for r in rows):
        body = [_cells(r) for r in rows if r.table == name]
        lines += ["", f"## {name}", "", *markdown_table(HEAD, body)]
    return lines


def _cells(row: ResultRow) -> list[Any]:
    organisms = row.family if row.recipe == ALL else f"{row.family}, {row.recipe}"
    notes = [x for x in ("" if row.method == JOINT else row.method, row.note) if x]
    met = family_goals.reached(row)
    return [
        "all" if row.family == row.recipe == ALL else organisms,
        row.kind,
        f"{row.metric} ({'; '.join(notes)})" if notes else row.metric,
        row.n,
        row.clusters,
        value_text(row.mean, row.unit),
        interval_text(row),
        chance_text(row),
        row.goal or "",
        "" if met is None else _met(met),
    ]


def _met(met: bool) -> str:
    return "yes" if met else "**no**"
