"""The page of trigger recovery as Markdown, and its rows as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_write_json, atomic_write_text
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.report import chance_text, interval_text, markdown_table, value_text
from weightdiff.evals.trigger_recovery import (
    ASKED,
    ASKING,
    NULLS,
    RANKED,
    SEARCH,
    TIMES_CHANCE,
    Recovery,
    goal_of,
)

STEM = "triggers"
HEAD = ("triggers", "measure", "n", "labels", "result", "95 %", "chance", "goal", "reached")
MISSES = 40
"""Misses that a page lists at most."""
ABOUT = (
    "Test organisms of the families hidden-topic and quirk that behave. Intervals are 95 %, clustered by"
    " topic or behaviour; where no two of these differ, they are the Clopper-Pearson bound on their number."
    " Triggers of training and test organisms come from the same pools; their topics and combinations do not."
)
ABOUT_SEARCH = (
    "Search has the two models and is not told the form. Right is the true code, word, mark or subject as the"
    " candidate with the largest effect of all forms. Where there is no trigger, nothing should stand out."
    " Chance is one in all candidates."
)
ABOUT_ASKING = (
    "The interpreter is asked in phrasings that no tuning used. Candidates (all codes, or all rare words,"
    " that organisms may have) are ranked by log p(yes) − log p(no); by evidence, the same for the bare base"
    " is taken off."
)


def to_markdown(recovery: Recovery, made: Mapping[str, Any]) -> str:
    """The page: how it was made, the goals, both ways in tables, and what search missed.

    Args:
        recovery: of either way or of both.
        made: what the page says about its making, by name.
    """
    rows = recovery.rows
    lines = ["# Triggers: by search, and by asking", ""]
    lines += [f"- {name}: `{v}`" if name == "command" else f"- {name}: {v}" for name, v in made.items()]
    lines += [f"- {way}: {seconds:.1f} s a diff" for way, seconds in recovery.seconds.items()]
    lines += ["", ABOUT, "", "## Against the goals", ""]
    held = [row for row in rows if goal_of(row) is not None]
    lines += markdown_table(("way", *HEAD), [[row.method, *_cells(row)] for row in held])
    lines += ["", f"The goal of asking is {TIMES_CHANCE} times chance."]
    if found := [r for r in rows if r.method == SEARCH]:
        lines += ["", "## By search", "", ABOUT_SEARCH, "", *_table(found)]
        lines += ["", "### Missed", "", *_misses(recovery.missed)]
    if found := [r for r in rows if r.method == ASKING]:
        lines += ["", "## By asking", "", ABOUT_ASKING]
        titles = {**ASKED, RANKED: "which of all candidates"}
        for kind, title in titles.items():
            mine = [r for r in found if r.kind == kind]
            lines += ["", f"### {title.capitalize()} (`{kind}`)", "", *_table(mine)] if mine else []
    return "\n".join(lines) + "\n"


def save(recovery: Recovery, folder: str | Path, made: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `triggers.md` and `triggers.json`, each whole or not at all; returns both paths."""
    values = {
        **made,
        "seconds a diff": recovery.seconds,
        "rows": [r.to_json() for r in recovery.rows],
        "missed": recovery.missed,
    }
    found = atomic_write_json(Path(folder) / f"{STEM}.json", values)
    return atomic_write_text(Path(folder) / f"{STEM}.md", to_markdown(recovery, made)), found


def together(parts: Sequence[Recovery]) -> Recovery:
    """What several ways found, as one."""
    return Recovery(
        [row for p in parts for row in p.rows],
        [miss for p in parts for miss in p.missed],
        {way: s for p in parts for way, s in p.seconds.items()},
    )


def _table(rows: Sequence[ResultRow]) -> list[str]:
    return markdown_table(HEAD, [_cells(row) for row in rows])


def _cells(row: ResultRow) -> list[Any]:
    goal = goal_of(row)
    return [
        row.recipe if row.recipe != NULLS else f"{NULLS} (no trigger)",
        row.metric,
        row.n,
        row.clusters,
        value_text(row.mean, row.unit),
        interval_text(row),
        f"{100 * row.chance:.2g} %" if row.chance else chance_text(row),
        goal.text() if goal else "",
        "" if goal is None else "yes" if goal.reached(row) else "**no**",
    ]


def _misses(missed: Sequence[Mapping[str, Any]]) -> list[str]:
    if not missed:
        return ["None."]
    head = ("diff", "form", "truth", "found", "as", "nats", "plain")
    lines = markdown_table(head, [[m.get(k, "") for k in head] for m in missed[:MISSES]])
    rest = len(missed) - MISSES
    return [*lines, "", f"And {rest} more."] if rest > 0 else lines
