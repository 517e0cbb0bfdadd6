"""`weightdiff reproduce`: make everything again from nothing but the written world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import note, print_json

EXAMPLES = (
    "Examples:\n\nweightdiff reproduce --quick --out runs/quick\n\nweightdiff reproduce --out runs/full"
)


def reproduce(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.", metavar="DIR")] = Path(
        "runs/reproduce"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A small copy in minutes.")] = False,
    seed: common.SeedOption = 0,
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="Only this stage; repeat for more.", metavar="STAGE")
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Make the bundle again: pretrain the base, train organisms, tune the interpreter, evaluate.

    A stopped run goes on where it was.
    """
    from weightdiff.tiny import reproduce as job

    given: dict[str, Any] = common.picked({"seed": seed or None, "stages": stages})
    found = job.reproduce(out, quick, lambda words: note(str(words)), **given)
    if json:
        print_json(found)
    else:
        typer.echo(f"{out}: done; ask it with: WEIGHTDIFF_BUNDLE={out}/bundle weightdiff demo")
