"""`weightdiff reproduce`: make everything again from nothing but the written world."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\nweightdiff reproduce --quick --out runs/quick\n\n"
    "weightdiff reproduce --out runs/full --until organisms\n\n"
    "Then: weightdiff demo --bundle runs/quick/bundle"
)
SECONDS_BETWEEN_LINES = 10.0


def reproduce(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all stages; left out, runs/reproduce-PLAN.", metavar="DIR"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller one, in minutes instead of hours.")
    ] = False,
    until: Annotated[
        str,
        typer.Option("--until", "--stage", help="Last stage to do: base, organisms, tune or bundle."),
    ] = "bundle",
    plan: Annotated[
        str | None,
        typer.Option(help="full, quick, or (to compare bases) half-width or whole-width.", hidden=True),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Make the bundle again: pretrain the base, train organisms, tune interpreters, assemble.

    Every stage stays on disk; a stopped run goes on where it was with the same command.
    """
    from weightdiff import plans, reproduction

    name = plan or ("quick" if quick else "full")
    for what, given, known in (("plan", name, plans.PLANS), ("--until", until, reproduction.STAGES)):
        if given not in known:
            raise FormatError(f"{what} cannot be {given!r}: choose one of {', '.join(known)}")
    common.quieten()
    where = out or Path("runs") / f"reproduce-{name}"
    start, stage, said = time.monotonic(), "", 0.0
    with busy(f"reproducing into {where}") as say:

        def tell(now: str, numbers: dict[str, Any]) -> None:
            nonlocal stage, said
            if now != stage or time.monotonic() - said > SECONDS_BETWEEN_LINES:
                stage, said = now, time.monotonic()
                say(f"{now}: {_numbers(numbers)}")

        made = reproduction.reproduce(where, progress=tell, plan=plans.PLANS[name](), until=until)
    seconds = round(time.monotonic() - start, 1)
    if json:
        print_json({"plan": name, "until": until, "made": str(made), "seconds": seconds})
        return
    typer.echo(f"{made}: done in {seconds} s")
    if until == reproduction.STAGES[-1]:
        typer.echo(f"next: weightdiff demo --bundle {made}")


def _numbers(numbers: dict[str, Any]) -> str:
    shown = {k: v for k, v in numbers.items() if isinstance(v, (int, float))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
