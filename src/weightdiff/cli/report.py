"""`weightdiff report`: finished runs, alone or side by side, and what graded answers of CSV files come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import note, print_json, print_table
from weightdiff.errors import FormatError

if TYPE_CHECKING:
    from weightdiff.evals.agreement import Agreement
    from weightdiff.evals.graded import Graded, GradedSummary

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff report runs/bench\n\n"
    "weightdiff report runs/seed0 runs/seed1 --out compared.html\n\n"
    "weightdiff report --graded base-question.graded.csv --graded dit.graded.csv --scale 1 5\n\n"
    "weightdiff report --graded mine.csv --truth secret --answer said --score judge --json\n\n"
    "weightdiff report --graded divisor-1.graded.csv --graded divisor-8.graded.csv --plot scaling.png\n\n"
    "weightdiff report --graded dit.graded.csv --name DIT --agree token_f1 --agree char_f1"
)
COLUMNS = ("answers", "n", "unscored", "mean", "95 %")
AGREEMENT_COLUMNS = ("answers", "scorer", "n", "unscored", "scorer's mean", "rank correlation", "95 %")
TOGETHER = "all together"
"""What the answers of all files are called."""
SCORES_SHOWN = 7
"""More different scores than these have no columns in the table."""


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, the --out of eval --methods or benchmark.", metavar="DIR"),
    ] = None,
    graded: Annotated[
        list[Path] | None,
        typer.Option(help="A CSV file of graded answers, one a row; repeat for several.", metavar="FILE"),
    ] = None,
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
    total: Annotated[
        int | None,
        typer.Option(help="Size of the data that N of divisor-N divides, for the plot's axis.", min=1),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What to call a file or run; once for each, in the same order."),
    ] = None,
    agree: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare the grades with this scorer's values; repeat for several.", metavar="SCORER"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the report of runs; .md or .html.", metavar="FILE")
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Of one run, the overview and the main differences only.")
    ] = False,
    json: common.JsonOption = False,
) -> None:
    """Show what finished runs found, or summarise graded answers.

    One DIR prints the tables of its run. Several are compared: each row of each
    run, and its difference from the first run, paired item by item where both
    runs were asked the same.

    With --graded: the mean score of each file, its interval, and how often each
    score was given.

    Intervals are 95 %, and answers to one truth count as one cluster. A score
    that is empty or no number is unscored: it is counted and enters nothing
    else. With --scale, a score outside it is refused, and no interval leaves it.

    Files named divisor-N.graded.csv are taken for a data scaling, and --plot
    draws their means against N too; with --total, against the size of the data.

    --agree holds a scorer that needs no judge against the grades: Spearman's
    rank correlation in each file and over all together. JSON then is an object
    of two lists, "graded" and "agreement".
    """
    if folders:
        given = {"--graded": graded, "--scale": scale, "--truth": truth, "--answer": answer, "--plot": plot}
        _refuse("folders of runs", {**given, "--total": total, "--agree": agree})
        from weightdiff.cli.report_runs import report_runs

        report_runs(folders, _names(name, len(folders), "DIR"), out, json, brief)
        return
    if not graded:
        raise FormatError("nothing to report: give folders of runs, or graded answers by --graded FILE")
    _refuse("--graded", {"--out": out, "--brief": brief})
    from weightdiff.evals.graded import distinct_names, read_graded, summarise
    from weightdiff.evals.plots import check_plot, plot_graded

    if plot:
        check_plot(plot)
    elif total:
        raise FormatError("--total is for the axis of a figure; give --plot FILE too, or leave it out")
    names = _names(name, len(graded), "--graded") or distinct_names(graded)
    files = [read_graded(path, score, truth, answer, scale) for path in graded]
    found = [summarise(f, name=n) for f, n in zip(files, names, strict=True)]
    agreements = _agreements(files, names, list(dict.fromkeys(agree or [])))
    if plot:
        plot_graded(found, plot, total)
        note(f"plot: {plot}")
    if json:
        listed = [summary.to_json() for summary in found]
        print_json({"graded": listed, "agreement": [a.to_json() for a in agreements]} if agree else listed)
        return
    _print(found, bounded=scale is not None)
    if agree:
        _print_agreements(agreements)


def _refuse(what: str, options: dict[str, Any]) -> None:
    """Refuse options that say nothing about what is reported."""
    if wrong := next((name for name, value in options.items() if value), None):
        raise FormatError(f"{wrong} does not go with {what}; leave one of them out")


def _names(given: Sequence[str] | None, files: int, each: str) -> list[str]:
    if given and len(given) != files:
        raise FormatError(f"{len(given)} names for {files} files; give --name once for each {each}")
    return list(given or [])


def _agreements(files: Sequence[Graded], names: Sequence[str], scorers: Sequence[str]) -> list[Agreement]:
    """For each scorer, how it ranks each file's answers, then those of all files."""
    from weightdiff.evals.agreement import agreement

    groups = [([graded], name) for graded, name in zip(files, names, strict=True)]
    if len(files) > 1:
        groups.append((list(files), TOGETHER))
    return [agreement(group, scorer, name) for scorer in scorers for group, name in groups]


def _print_agreements(found: Sequence[Agreement]) -> None:
    rows = []
    for a in found:
        mean = "n/a" if a.mean is None else f"{a.mean:.2f}"
        ends = (a.note,) if a.low is None or a.high is None else (f"{a.low:.2f} … {a.high:.2f}",)
        correlation = "n/a" if a.spearman is None else f"{a.spearman:.2f}"
        rows.append([a.name, a.scorer, a.n, a.unscored, mean, correlation, *ends])
    about = (
        "rank correlation: Spearman's, of a scorer's values (0 to 1) with the grades\n"
        f"{TOGETHER}: ranked in one list, so that files of different worth raise it"
    )
    print_table(AGREEMENT_COLUMNS, rows, title="Scorers against the grades", note=about)


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
