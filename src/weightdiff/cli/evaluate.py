"""`weightdiff eval`: the main evaluation of interpreters over held-out organisms."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff eval --quick\n\n"
    "weightdiff eval --store runs/store --interpreter runs/seed0 --interpreter runs/seed1 --out docs/results"
)
FIELDS = ("seeds", "sizes", "quick", "base", "seconds")


def evaluate(
    store: Annotated[
        str, typer.Option(help="Store whose test rows are asked about.", metavar="STORE")
    ] = common.BUNDLED,
    interpreters: Annotated[
        list[str] | None,
        typer.Option(
            "--interpreter",
            help="An interpreter's folder; repeat for several tuning seeds. Left out, the bundled one.",
            metavar="DIR",
        ),
    ] = None,
    base: common.BaseOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rows: minutes instead of an hour.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to save the report in, as JSON and Markdown.", metavar="DIR")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="Learning curves to put into the report (weightdiff curves).", metavar="FILE"),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Measure interpreters against baselines, controls and chance, on labels they never saw."""
    diffs = common.open_store(store)
    with busy("loading interpreters") as say:
        from weightdiff.evals import main_job, report
        from weightdiff.methods.dit import Interpreter

        if curves:
            report.read_curves(curves)  # refused before the work, not after it
        loaded = common.load_quietly(base)
        its = [Interpreter.load(path, loaded) for path in interpreters or [None]]
        found = main_job.evaluate(its, diffs, quick, say)
    made: dict[str, Any] = {"command": _command(), "commit": common.code_commit(), "machine": _machine()}
    if out:
        text, _ = report.save(found, out, f"hidden-topic{'-quick' if quick else ''}", curves=curves, **made)
        note(f"report: {text}")
    if json:
        rows = [row.to_json() for row in found.rows]
        print_json({**made, **{k: getattr(found, k) for k in FIELDS}, "rows": rows})
    else:
        typer.echo(report.to_markdown(found, curves=curves, **made))


def _command() -> str:
    return shlex.join(["weightdiff", *sys.argv[1:]])


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
