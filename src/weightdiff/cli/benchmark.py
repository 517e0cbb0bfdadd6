"""`weightdiff benchmark`: every method on the embedded base's held-out organisms, from one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightdiff.cli import common, runs
from weightdiff.cli.output import busy, progress_bar

if TYPE_CHECKING:
    from weightdiff.training.production import Production

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff benchmark --quick --out runs/bench-quick\n\n"
    "weightdiff benchmark --out runs/bench\n\n"
    "weightdiff benchmark --out runs/bench --methods dit,dit-shuffled,nearest-neighbour"
)


def benchmark(
    out: Annotated[
        Path, typer.Option(help="Folder of the run; the same one goes on with it.", metavar="DIR")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="A few diffs of each kind: minutes instead of a quarter hour.")
    ] = False,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Methods, with commas between; left out, every built-in one.", metavar="A,B"),
    ] = None,
    train_store: Annotated[
        str | None,
        typer.Option(help="Labelled diffs to learn from; left out, some are made.", metavar="STORE"),
    ] = None,
    interpreter: common.InterpreterOption = None,
    guesser: runs.GuesserOption = None,
    judge: runs.JudgeOption = None,
    repeats: runs.RepeatsOption = 3,
    embedding: runs.EmbeddingOption = None,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Run the embedded benchmark: all methods and controls on held-out organisms of the bundle.

    Methods that learn from labelled diffs learn from organisms that are made
    first, of other labels. Answers are kept as they come: a run that was
    stopped goes on with the same command.
    """
    from weightdiff.evals import benchmark as embedded

    scorers = runs.model_scorers(judge, repeats, embedding, out)
    size = embedded.QUICK if quick else embedded.FULL
    with busy("loading base and interpreter"):
        from weightdiff.evals.making import from_store
        from weightdiff.methods.dit import Interpreter
        from weightdiff.methods.registry import find

        names = runs.split_names(methods) or list(embedded.METHODS)
        entries = [find(name) for name in names]  # all of them: one that cannot run is refused now
        base = common.load_quietly(None)
        its = Interpreter.load(interpreter, base)
        dataset = from_store(
            common.open_store(common.BUNDLED),
            per_label=size.per_label,
            limit=size.limit,
            bare=True,
            name=f"embedded-{size.name}",
        )
    store = None
    if train_store is not None:
        store = common.open_store(train_store)
    elif any("store" in entry.needs for entry in entries):
        began = time.monotonic()
        with progress_bar("training diffs", total=1) as bar:

            def show(state: Production) -> None:
                words = f"stored {state.stored}/{state.wanted}  {time.monotonic() - began:.0f} s"
                bar(state.steps, words, total=max(1, state.steps_wanted))

            store = embedded.training_store(out / embedded.TRAIN, base, size, show)
    run = runs.run_methods(
        f"benchmark-{size.name}",
        dataset,
        names,
        base,
        out,
        its,
        store,
        guesser,
        scorers,
        seed,
        {
            "command": common.command_line(),
            "quick": quick,
            "interpreter": interpreter or "the bundled one",
        },
        size.effort,
    )
    runs.print_run(run, json)
