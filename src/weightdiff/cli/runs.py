"""What `eval --methods` and `benchmark` share: options, the run with its bar, where it is saved."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, progress_bar
from weightdiff.errors import QuestionError

if TYPE_CHECKING:
    from weightdiff.evals.dataset import Dataset
    from weightdiff.evals.outcomes import Run
    from weightdiff.evals.scorers import BatchScorer
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.loading import Base

CACHE = "models"
"""Folder, in a run's, of what judges and guessers said."""
LEARNED = "learned"
"""Folder, in a run's, of what methods learned."""

GuesserOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--guesser",
        help=(
            "Language model that reads what finetuned models say, as inspect_ai names it"
            " (openai/gpt-…); left out, words of the embedded world are counted."
        ),
        metavar="MODEL",
    ),
]
JudgeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--judge", help="Language model that grades topics and headlines 1 to 5.", metavar="MODEL"),
]
RepeatsOption: TypeAlias = Annotated[
    int, typer.Option("--repeats", help="Gradings of each answer by the judge.", min=1)
]
EmbeddingOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--embedding", help="Encoder, folder or Hub name, that compares answer and truth.", metavar="MODEL"
    ),
]


def split_names(given: Sequence[str] | None) -> list[str] | None:
    """Names that were given in one option or several, with commas between them."""
    if given is None:
        return None
    return [name.strip() for part in given for name in part.split(",") if name.strip()]


def model_scorers(judge: str | None, repeats: int, embedding: str | None, out: Path) -> list[BatchScorer]:
    """The graders that need a model, built before any work so that a wrong name costs nothing."""
    found: list[BatchScorer] = []
    if judge is not None:
        from weightdiff.evals.judge import Judge
        from weightdiff.methods.language_model import LanguageModel

        found.append(Judge(LanguageModel(judge, cache=out / CACHE), repeats=repeats))
    if embedding is not None:
        from weightdiff.evals.embedding import EmbeddingSimilarity

        found.append(EmbeddingSimilarity(embedding))
    return found


def run_methods(
    name: str,
    dataset: Dataset,
    methods: Sequence[str],
    base: Base,
    out: Path,
    interpreter: Interpreter | None,
    store: Any = None,
    guesser: str | None = None,
    scorers: Sequence[BatchScorer] = (),
    seed: int = 0,
    info: dict[str, Any] | None = None,
    effort: float = 1.0,
) -> Run:
    """Ask the methods and write the report into `out`; a run that was stopped goes on."""
    from weightdiff.evals.benchmark import evaluate_run
    from weightdiff.evals.run_files import save
    from weightdiff.methods.model_guesser import guesser as find_guesser
    from weightdiff.methods.registry import Context

    context = Context(
        base,
        interpreter,
        store,
        seed,
        find_guesser(guesser, cache=out / CACHE),
        cache=out / LEARNED,
        effort=effort,
    )
    began = time.monotonic()
    done = dict.fromkeys(methods, 0)
    with progress_bar("questions", total=len(methods) * len(dataset.items)) as bar:

        def show(method: str, answered: int, _total: int) -> None:
            done[method] = answered
            bar(sum(done.values()), method)

        run = evaluate_run(
            name,
            dataset,
            methods,
            context,
            out,
            scorers,
            {
                **(info or {}),
                "seed": seed,
                "base": base.ref.describe(),
                "guesser": guesser or "counts of the embedded world's words",
                "scorers": [s.name for s in scorers],
                "commit": common.code_commit(),
                "machine": common.machine(),
                "date": datetime.date.today().isoformat(),
            },
            progress=show,
        )
    run.info["seconds"] = round(time.monotonic() - began, 1)
    with busy("writing the report"):
        files = save(run, out)
    for path in files.values():
        note(f"wrote {path}")
    return run


def print_run(run: Run, json: bool) -> None:
    """The run's rows as JSON, or its tables."""
    if json:
        from weightdiff.evals.run_files import row_json

        print_json({**run.info, "rows": [row_json(row) for row in run.rows]})
        return
    from weightdiff.evals.run_markdown import overview

    typer.echo("\n".join(overview(run)))


def need_out(out: Path | None) -> Path:
    """The folder of a run, which methods need to keep their answers.

    Raises:
        QuestionError: it was not given.
    """
    if out is None:
        raise QuestionError(
            "a run of methods needs a folder for its answers: add --out DIR (the same one goes on with it)"
        )
    return out
