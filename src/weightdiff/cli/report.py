"""`weightdiff report`: what graded answers out of CSV files come to, published ones or one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from weightdiff.evals.graded import GradedSummary

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff report --graded base-question.graded.csv --graded dit.graded.csv --scale 1 5\n\n"
    "weightdiff report --graded mine.csv --truth secret --answer said --score judge --json\n\n"
    "weightdiff report --graded divisor-1.graded.csv --graded divisor-8.graded.csv --plot scaling.png"
)
COLUMNS = ("answers", "n", "unscored", "mean", "95 %")
SCORES_SHOWN = 7
"""More different scores than these have no columns in the table."""


def report(
    graded: Annotated[
        list[Path],
        typer.Option(help="A CSV file of graded answers, one a row; repeat for several.", metavar="FILE"),
    ],
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Lowest and highest score there can be, such as 1 5.", metavar="LOW HIGH"),
    ] = None,
    score: Annotated[str, typer.Option(help="Column with the scores.", metavar="COLUMN")] = "score",
    truth: Annotated[
        str | None,
        typer.Option(
            help="Column with the truth; left out, topic, summary, label or truth.", metavar="COLUMN"
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="Column with the answer; left out, guessed_topic, guessed_summary, answer or prediction.",
            metavar="COLUMN",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw how the scores of each file are distributed; .png or .svg.", metavar="FILE"),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Summarise graded answers: the mean score of each file, its interval, and how often each was given.

    Intervals are 95 %, and answers to one truth count as one cluster. A score
    that is empty or no number is unscored: it is counted and enters nothing
    else. With --scale, a score outside it is refused, and no interval leaves it.

    Files named divisor-N.graded.csv are taken for a data scaling, and --plot
    draws their means against N too.
    """
    from weightdiff.cli.plots import check_plot, plot_graded
    from weightdiff.evals.graded import distinct_names, read_graded, summarise

    if plot:
        check_plot(plot)
    files = [read_graded(path, score, truth, answer, scale) for path in graded]
    found = [summarise(f, name=name) for f, name in zip(files, distinct_names(graded), strict=True)]
    if plot:
        plot_graded(found, plot)
        note(f"plot: {plot}")
    if json:
        print_json([summary.to_json() for summary in found])
    else:
        _print(found, bounded=scale is not None)


def _print(found: Sequence[GradedSummary], bounded: bool) -> None:
    from weightdiff.evals.graded import score_text

    notes = [] if bounded else ["intervals know no scale; give it by --scale LOW HIGH"]
    scores = sorted({score for summary in found for score in summary.distribution})
    if len(scores) > SCORES_SHOWN:
        notes.append(f"{len(scores)} different scores; --json has how often each was given")
        scores = []
    elif scores:
        notes.append("under each score, how many answers got it")
    rows = [[*_cells(s), *(s.distribution.get(score, 0) for score in scores)] for s in found]
    print_table([*COLUMNS, *map(score_text, scores)], rows, note="\n".join(notes) or None)


def _cells(summary: GradedSummary) -> list[Any]:
    counts = [summary.name, summary.n, summary.unscored]
    if summary.mean is None or summary.low is None or summary.high is None:
        return [*counts, "n/a", "n/a"]
    return [*counts, f"{summary.mean:.2f}", f"{_end(summary.low)} … {_end(summary.high)}"]


def _end(value: float) -> str:
    if math.isfinite(value):
        return f"{value:.2f}"
    return "∞" if value > 0 else "−∞"
