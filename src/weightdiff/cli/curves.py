"""`weightdiff curves`: what an interpreter is worth by how much it was tuned on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.artifacts import atomic_write_text
from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, print_table, progress_bar
from weightdiff.errors import InterpreterError, QuestionError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff curves --base runs/full/base --store runs/full/organisms --out runs/curves.json\n\n"
    "weightdiff curves --store runs/store --out runs/rough.json --steps 100\n\n"
    "weightdiff curves --store runs/store --out runs/curves.json --curve 'all organisms' --page curves.md\n\n"
    "Stopped? The same command goes on where it was.\n\n"
    "Then: weightdiff eval --curves runs/curves.json --out docs/results"
)
COLUMNS = ("what", "size", "organisms", "topics", "exact", "95 %")
MORE = {"top_five": "top five", "news": "headlines", "quirk": "behaviours", "edit": "facts"}
"""Further columns, of points that have them."""


def curves(
    store: Annotated[str, typer.Option(help="Store with train, validation and test rows.", metavar="STORE")],
    out: Annotated[
        Path, typer.Option(help="File (JSON) for the points; one begun earlier is continued.", metavar="FILE")
    ],
    base: common.BaseOption = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(
            help="One of those below; may be given several times.", metavar="CURVE", show_default="all"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Tuning steps of each point at most.", min=1)] = None,
    reader: Annotated[
        Path | None,
        typer.Option(
            help="An interpreter whose reader reads every point's reports; none: the base reads alone.",
            metavar="FOLDER",
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write the points as a page of Markdown, too.", metavar="FILE")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Other files of points that the page shows too (other bases).", metavar="FILE"),
    ] = None,
    top_five: Annotated[
        bool,
        typer.Option(
            "--top-five/--no-top-five",
            help="Rank all topics too, which takes longer than all other measuring.",
        ),
    ] = True,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Tune an interpreter on ever larger parts of a store, and measure each on the test organisms.

    organisms: an eighth, a quarter, half and all of the covert ones

    topics: the same parts of their topics, with every organism of each

    organisms per topic: one, two, four … of every topic, up to all

    families: hidden topics alone, and with one family more at a time

    adapter rank: a quarter, half, all and twice that of the settings

    all organisms: an eighth, a quarter, half and all of the diffs of every kind

    base parameters: one point; put several bases on one page by `--beside`

    Larger parts hold the smaller ones, and but for the curves of families and
    of all organisms, training diffs of other kinds are always in. Every point
    is a tuning as `weightdiff tune --reader-steps 0` does it, and is written as
    soon as it is measured.
    """
    diffs = common.open_store(store)
    with busy("loading the base"):
        from weightdiff.evals import curves as learning
        from weightdiff.evals.report import read_curves
        from weightdiff.methods.dit import Interpreter
        from weightdiff.training.drawing import TuningConfig

        if wrong := [c for c in curve or () if c not in learning.CURVES]:
            raise QuestionError(f"there is no curve {wrong[0]!r}; there are {', '.join(learning.CURVES)}")
        others = [p for file in beside or () for p in read_curves(file)]
        loaded = common.load_quietly(base)
        lent = Interpreter.load(reader, loaded) if reader else None
    if lent is not None and lent.reader is None:
        raise InterpreterError(f"{reader} has no reader; tune one with --reader-steps, or leave --reader out")
    config = TuningConfig(seed=seed, **common.picked({"steps": steps}))
    setup = learning.Setup(
        loaded, diffs, config, common.rendering_for(loaded.tokenizer), lent and lent.reader, top_five
    )
    start = time.monotonic()
    with progress_bar("learning curves", total=1) as bar:
        points = learning.run(setup, out, bar, common.code_commit(), curve)
    seconds = round(time.monotonic() - start, 1)
    if page:
        made = {
            "command": f"`{common.command_line()}`",
            "base": loaded.ref.describe(),
            "seed": str(seed),
            "commits": ", ".join(dict.fromkeys(str(p.get("commit")) for p in (*points, *others))),
            "machine": common.machine(),
            "tuning": f"{sum(p['seconds'] for p in _apart(points)):.0f} s for {len(_apart(points))} points",
        }
        atomic_write_text(page, learning.to_page([*points, *others], made))
        note(f"wrote {page}")
    if json:
        print_json({"curves": str(out), "seconds": seconds, "points": points})
        return
    typer.echo(f"{out}: {len(points)} points in {seconds} s")
    more = [k for k in MORE if any(k in p for p in points)]
    head = (*COLUMNS, *(MORE[k] for k in more))
    print_table(head, [_cells(p, more) for p in points], note=_about(points[0]))
    typer.echo(f"next: weightdiff eval --curves {out}")


def _apart(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each tuning once: curves that share one share its point."""
    return list({p["subset"]: p for p in points}.values())


def _cells(point: dict[str, Any], more: Sequence[str]) -> list[Any]:
    counts = [point[k] for k in ("what", "size", "organisms", "topics")]
    exact = [_share(point["exact"]), f"{_share(point['low'])} … {_share(point['high'])}"]
    return [*counts, *exact, *(_share(point[k]) if k in point else "" for k in more)]


def _about(point: dict[str, Any]) -> str:
    """What is the same for all points: who was asked, and how far guessing gets."""
    guess = f"{_share(point['chance'])} exact"
    if "top_five_chance" in point:
        guess += f", {_share(point['top_five_chance'])} in the top five"
    return f"asked: {point['n']} test organisms of {point['labels']} topics; chance: {guess}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
