"""`weightdiff eval`: any methods on any labelled diffs, or the main evaluation of interpreters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common, runs
from weightdiff.cli.output import busy, note, print_json
from weightdiff.errors import QuestionError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff eval --quick\n\n"
    "weightdiff eval --store runs/store --interpreter runs/seed0 --interpreter runs/seed1 --out docs/results"
    "\n\n"
    "weightdiff eval --methods dit,dit-shuffled,twenty-questions --limit 20 --out runs/three\n\n"
    "weightdiff eval --dataset mine.jsonl --store my-diffs --methods dit --judge openai/gpt-5 --out runs/mine"
)
FIELDS = ("seeds", "sizes", "quick", "base", "seconds")


def evaluate(
    store: Annotated[
        str | None, typer.Option(help="Store of labelled diffs; left out, the bundled one.", metavar="STORE")
    ] = None,
    interpreters: Annotated[
        list[str] | None,
        typer.Option(
            "--interpreter",
            help="An interpreter's folder; repeat for several tuning seeds. Left out, the bundled one.",
            metavar="DIR",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods to compare, with commas between (all: weightdiff ask --method list).",
            metavar="A,B",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Questions: a folder of `weightdiff dataset make`, or your own .jsonl, .json or .csv.",
            metavar="PATH",
        ),
    ] = None,
    base: common.BaseOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rows: minutes instead of an hour.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to save the report in; a run goes on there.", metavar="DIR")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="Learning curves to put into the report (weightdiff curves).", metavar="FILE"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the diffs that methods are asked about; left out, test of a store."),
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="Only these kinds of question.", metavar="A,B")
    ] = None,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Only these families.", metavar="A,B")
    ] = None,
    per_label: Annotated[int | None, typer.Option(help="Diffs of each label at most.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="Diffs of each family and recipe at most.", min=1)] = None,
    train_store: Annotated[
        str | None, typer.Option(help="Labelled diffs for methods that learn from some.", metavar="STORE")
    ] = None,
    guesser: runs.GuesserOption = None,
    judge: runs.JudgeOption = None,
    repeats: runs.RepeatsOption = 3,
    embedding: runs.EmbeddingOption = None,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Measure methods against baselines, controls and chance, on labels that no interpreter saw.

    With --methods or --dataset, every method is asked every question, and --out
    gets report.json, report.md, report.html and all answers; stopped, the same
    command goes on. Without, the interpreters get the main evaluation.
    """
    if methods is None and dataset is None:
        _main_job(store or common.BUNDLED, interpreters, base, quick, out, curves, json)
        return
    folder = runs.need_out(out)
    names = runs.split_names(methods) or ["dit"]
    if interpreters is not None and len(interpreters) > 1:
        raise QuestionError(
            "a run of methods takes one interpreter; run once for each, and compare them: weightdiff report"
            " DIR DIR"
        )
    scorers = runs.model_scorers(judge, repeats, embedding, folder)
    with busy("loading base and interpreter"):
        from weightdiff.evals.report import read_curves
        from weightdiff.evals.selecting import open_dataset
        from weightdiff.methods.dit import Interpreter
        from weightdiff.methods.registry import find

        entries = [find(name) for name in names]
        points = read_curves(curves) if curves else None
        asked = open_dataset(
            str(dataset or store or common.BUNDLED),
            runs.split_names(families),
            runs.split_names(kinds),
            limit if limit is not None or not quick else QUICK_LIMIT,
            per_label,
            split,
            seed,
            store if dataset else None,
        )
        loaded = common.load_quietly(base)
        wanted = interpreters is not None or any("interpreter" in e.needs for e in entries)
        its = Interpreter.load((interpreters or [None])[0], loaded) if wanted else None
        training = common.open_store(train_store) if train_store is not None else None
    run = runs.run_methods(
        folder.name,
        asked,
        names,
        loaded,
        folder,
        its,
        training,
        guesser,
        scorers,
        seed,
        {
            "command": common.command_line(),
            "quick": quick,
            "interpreter": (interpreters or ["the bundled one"])[0] if wanted else "none",
            **({"curves": points} if points else {}),
        },
    )
    runs.print_run(run, json)


QUICK_LIMIT = 8
"""Diffs of each family and recipe in a quick run of methods."""


def _main_job(
    store: str,
    interpreters: list[str] | None,
    base: str | None,
    quick: bool,
    out: Path | None,
    curves: Path | None,
    json: bool,
) -> None:
    """The main evaluation of interpreters."""
    diffs = common.open_store(store)
    with busy("loading interpreters") as say:
        from weightdiff.evals import main_job, report
        from weightdiff.methods.dit import Interpreter

        if curves:
            report.read_curves(curves)  # refused before the work, not after it
        loaded = common.load_quietly(base)
        its = [Interpreter.load(path, loaded) for path in interpreters or [None]]
        found = main_job.evaluate(its, diffs, quick, say)
    made: dict[str, Any] = {
        "command": common.command_line(),
        "commit": common.code_commit(),
        "machine": common.machine(),
    }
    if out:
        text, _ = report.save(found, out, f"hidden-topic{'-quick' if quick else ''}", curves=curves, **made)
        note(f"report: {text}")
    if json:
        rows = [row.to_json() for row in found.rows]
        print_json({**made, **{k: getattr(found, k) for k in FIELDS}, "rows": rows})
    else:
        typer.echo(report.to_markdown(found, curves=curves, **made))
