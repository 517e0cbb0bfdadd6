"""`weightdiff time`: time in the weights, from finetunes to an interpreter that dates them."""

from __future__ import annotations

import time as clock
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from weightdiff.artifacts import atomic_write_json, atomic_write_text
from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, print_table, progress_bar
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff time --out runs/time\n\n"
    "weightdiff time --out runs/time --page docs/results/time.md\n\n"
    "Then: weightdiff ask --interpreter runs/time/interpreter --diff my-lora 'which month is it ?'\n\n"
    "Stopped? The same command goes on where it was."
)


def command(
    out: Annotated[
        Path, typer.Option(help="Folder for all stages; one begun earlier is continued.", metavar="DIR")
    ],
    base: common.BaseOption = None,
    until: Annotated[
        str,
        typer.Option(help="Last stage to do: organisms, fits, vectors, between, analogies, tune or answers."),
    ] = "answers",
    page: Annotated[
        Path | None,
        typer.Option(
            help="Write what was found as a page of Markdown, with figures beside it.", metavar="FILE"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Tuning steps at most.", min=1)] = None,
    miniature: Annotated[bool, typer.Option("--miniature", hidden=True)] = False,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Finetune to months of a world that changes, measure what their weights tell, and tune an interpreter.

    Forty-eight months, a LoRA for each (and years, tasks, full finetunes): how loss grows with the distance
    in time, what mixtures of two months know of the months between, what the difference of two months does to
    a task, how the vectors lie; and whether an interpreter can say which month a finetune is of. About an
    hour on two cores.
    """
    from weightdiff.evals import dated, dated_page

    if until not in dated.STAGES:
        raise FormatError(f"--until cannot be {until!r}: choose one of {', '.join(dated.STAGES)}")
    if page and until != dated.STAGES[-1]:
        raise FormatError("a page needs every stage; leave out --until or --page")
    plan = dated.miniature_plan() if miniature else dated.DatedPlan()
    plan = replace(plan, seed=seed, **common.picked({"steps": steps}))
    start = clock.monotonic()
    with busy("loading the base"):
        loaded = common.load_quietly(base)
    with progress_bar("time", total=1) as bar:

        def tell(stage: str, done: float, total: float) -> None:
            bar(done, stage, total=max(1.0, total))

        dated.run(loaded, out, plan, tell, until)
    seconds = round(clock.monotonic() - start, 1)
    if until != dated.STAGES[-1]:
        typer.echo(f"{out}: done up to {until} in {seconds} s")
        return
    found = dated.read(out)
    goals = dated_page.goals(found)
    told = {
        "goals": [{"goal": w, "measured": v, "bound": b, "reached": ok} for w, v, b, ok in goals],
        "dates": dated_page.date_rows(found),
        "analogies": dated_page.analogy_rows(found),
        "verified": found["fits"]["verified"],
    }
    if page:
        from weightdiff.evals.dated_plots import draw

        made = {
            "command": f"`{common.command_line()}`",
            "base": loaded.ref.describe(),
            "commit": common.code_commit(),
            "machine": common.machine(),
        }
        page.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw(found, page.parent, page.stem)
        atomic_write_text(page, dated_page.to_page(found, made, drawn))
        atomic_write_json(page.with_suffix(".json"), {"made": made, **told})
        note(f"wrote {page}")
    if json:
        print_json({"out": str(out), "seconds": seconds, **told})
        return
    typer.echo(f"{out}: done in {seconds} s")
    print_table(
        ["goal", "measured", "bound", ""],
        [[w, f"{v:.2f}", f"≥ {b:g}", "✓" if ok else "✗"] for w, v, b, ok in goals],
    )
    typer.echo(
        f"next: weightdiff ask --interpreter {out / 'interpreter'} --diff my-lora 'which month is it ?'"
    )
