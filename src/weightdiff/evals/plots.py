"""Figures of diffs and graded answers, drawn by matplotlib (extra `eval`), imported only for drawing."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdiff.errors import FormatError, MissingDependencyError

if TYPE_CHECKING:
    from weightdiff.diffs.inspection import Inspection
    from weightdiff.evals.graded import GradedSummary

SUFFIXES = (".png", ".svg")
OUTSIDE = "–"
"""How the row of modules outside layers is called."""
DIVISOR = re.compile(r"(?:(.*)/)?divisor-([1-9][0-9]{0,8})\.graded", re.DOTALL)
"""Names of graded answers in a data scaling: a folder perhaps, and by what the data were divided."""
BESIDE = 1.02
"""Where the means stand, in widths of a figure."""
LEGEND_MOST = 10
"""More different scores than these get a colour bar in place of a legend."""


def check_plot(path: Path) -> None:
    """Check that a figure can be drawn and that its file's name is usable, before any work is done.

    Raises:
        FormatError: the name does not end in .png or .svg.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise FormatError(f"{path}: a plot is written as .png or .svg; give a name that ends so")
    _matplotlib("figure")


def plot_inspection(found: Inspection, path: Path) -> None:
    """Draw an inspection: Frobenius norms by layer and kind on the left, spectra on the right.

    Modules of one layer and kind (experts) share a cell: the root of their squares' sum. Cells of modules
    that are zero, not finite or absent stay empty.

    Raises:
        FormatError: the name does not end in .png or .svg.
        MissingDependencyError: matplotlib is not installed.
    """
    check_plot(path)
    figure = new_figure(13, 6)
    left, right = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(r.kind for r in found.modules))
    _heat_map(figure, left, found, kinds)
    _spectra(right, found, kinds)
    save_figure(figure, path)


def plot_graded(found: Sequence[GradedSummary], path: Path, total: int | None = None) -> None:
    """Draw how the scores of graded answers are distributed, a bar for each file, its mean beside it.

    Where all are named `divisor-N.graded`, mean scores against N stand beside it, a line for each folder.

    Args:
        found: what the files come to.
        path: the figure's file.
        total: size of the data that N divides: means are drawn against total / N, rounded down.

    Raises:
        FormatError: the name does not end in .png or .svg, or there is a total for other names or for an N
            above it.
        MissingDependencyError: matplotlib is not installed.
    """
    check_plot(path)
    lines = scaling_lines(found)
    _check_total(lines, total)
    figure = new_figure(16 if lines else 10, min(60.0, 2 + 0.4 * len(found)) if not lines else 6)
    axes = list(figure.subplots(1, 2 if lines else 1, squeeze=False)[0])
    _distributions(figure, axes[0], found, [_size_name(summary.name, total) for summary in found])
    if lines:
        axes[0].set_ylabel("" if total is None else f"how many of {total}")
        _scaling(axes[1], lines, total)
    save_figure(figure, path)


def scaling_lines(found: Sequence[GradedSummary]) -> dict[str, list[tuple[int, GradedSummary]]]:
    """Folder → (N, summary) by rising N where all names are `divisor-N.graded`, else nothing.

    Summaries without a mean are left out.
    """
    lines: dict[str, list[tuple[int, GradedSummary]]] = {}
    for summary in found:
        name = DIVISOR.fullmatch(summary.name)
        if not name:
            return {}
        if summary.mean is not None:
            lines.setdefault(name[1] or "", []).append((int(name[2]), summary))
    return {folder: sorted(line, key=lambda point: point[0]) for folder, line in lines.items()}


def norms_by_place(found: Inspection, kinds: list[str]) -> tuple[list[str], list[list[float]]]:
    """Names of the layers, and for each a row of Frobenius norms by kind; NaN where there is none."""
    squares: dict[tuple[int | None, str], float] = {}
    for r in found.modules:
        if r.finite and r.frobenius > 0:
            squares[r.layer, r.kind] = squares.get((r.layer, r.kind), 0.0) + r.frobenius**2
    layers = sorted({r.layer for r in found.modules}, key=lambda n: math.inf if n is None else n)
    rows = [[math.sqrt(squares.get((layer, kind), math.nan)) for kind in kinds] for layer in layers]
    return [OUTSIDE if layer is None else str(layer) for layer in layers], rows


def _heat_map(figure: Any, axes: Any, found: Inspection, kinds: list[str]) -> None:
    layers, rows = norms_by_place(found, kinds)
    axes.set_title("Frobenius norm of the change")
    axes.set_ylabel("layer")
    axes.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right")
    step = max(1, len(layers) // 16)
    axes.set_yticks(range(0, len(layers), step), layers[::step])
    there = [value for row in rows for value in row if math.isfinite(value)]
    if not there:
        return
    low, high = min(there), max(there)
    # A colour scale needs two ends, also where all norms are the same.
    scale = _matplotlib("colors").LogNorm(low, high if high > low else low * 1.01)
    image = axes.imshow(rows, aspect="auto", norm=scale, cmap="viridis")
    figure.colorbar(image, ax=axes)


def _spectra(axes: Any, found: Inspection, kinds: list[str]) -> None:
    axes.set_title("Singular values of each module")
    axes.set_xlabel("number")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    named: set[str] = set()
    for r in found.modules:
        values = [value for value in r.singular_values if value > 1e-9 * r.spectral]
        if values:
            label = "" if r.kind in named else r.kind
            named.add(r.kind)
            numbers = range(1, len(values) + 1)
            colour = f"C{kinds.index(r.kind) % 10}"
            axes.plot(numbers, values, color=colour, alpha=0.5, linewidth=1, marker=".", label=label)
    if named:
        axes.legend()


def _check_total(lines: dict[str, list[tuple[int, GradedSummary]]], total: int | None) -> None:
    if total is None:
        return
    if not lines:
        raise FormatError(
            "a total is what the N of files named divisor-N.graded.csv divides; give only such files"
        )
    most = max(n for line in lines.values() for n, _ in line)
    if most > total:
        raise FormatError(
            f"a total of {total} divided by {most} leaves nothing; give the size of all the data"
        )


def _size_name(name: str, total: int | None) -> str:
    """The name of a bar: with a total, how much of it there was."""
    parts = DIVISOR.fullmatch(name)
    if total is None or not parts:
        return name
    return f"{parts[1]}/{total // int(parts[2])}" if parts[1] else str(total // int(parts[2]))


def _distributions(figure: Any, axes: Any, found: Sequence[GradedSummary], names: Sequence[str]) -> None:
    """Stacked shares of each score, what is unscored in grey at the end; the first file on top."""
    scores = sorted({score for summary in found for score in summary.distribution})
    colours = _score_colours(scores)
    totals = [summary.n + summary.unscored for summary in found]
    ends = [0.0] * len(found)
    parts = [(f"{s:g}", colours.to_rgba(s), [f.distribution.get(s, 0) for f in found]) for s in scores]
    if any(f.unscored for f in found):
        parts.append(("unscored", "lightgrey", [f.unscored for f in found]))
    for label, colour, counts in parts:
        shares = [count / total for count, total in zip(counts, totals, strict=True)]
        axes.barh(range(len(found)), shares, left=ends, color=colour, label=label)
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.set_title("Distribution of scores")
    axes.set_xlabel("share of the answers")
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(found)), names, parse_math=False)
    axes.invert_yaxis()
    beside = axes.get_yaxis_transform()
    axes.text(BESIDE, 1.01, "mean (95 % interval)", transform=axes.transAxes, va="bottom")
    for place, summary in enumerate(found):
        axes.text(BESIDE, place, _mean_text(summary), transform=beside, va="center")
    if len(scores) > LEGEND_MOST:
        figure.colorbar(colours, ax=axes, label="score", location="bottom")
    else:
        figure.legend(title="score", loc="outside lower center", ncols=max(1, len(parts)))


def _mean_text(summary: GradedSummary) -> str:
    if summary.mean is None or summary.low is None or summary.high is None:
        return "n/a"
    ends = [f"{end:.2f}" if math.isfinite(end) else "?" for end in (summary.low, summary.high)]
    return f"{summary.mean:.2f} ({' … '.join(ends)})"


def _score_colours(scores: Sequence[float]) -> Any:
    low, high = (scores[0], scores[-1]) if scores else (0.0, 1.0)
    # A colour scale needs two ends, also where all scores are the same.
    scale = _matplotlib("colors").Normalize(low, high if high > low else low + 1)
    return _matplotlib("cm").ScalarMappable(scale, "viridis")


def _scaling(axes: Any, lines: dict[str, list[tuple[int, GradedSummary]]], total: int | None) -> None:
    """Means with their intervals; an end that is not finite is not drawn."""
    for folder, line in lines.items():
        places = [n if total is None else total // n for n, _ in line]
        means = [s.mean for _, s in line]
        lengths = [[_length(s.mean, s.low) for _, s in line], [_length(s.mean, s.high) for _, s in line]]
        axes.errorbar(places, means, yerr=lengths, marker="o", capsize=3, label=folder or "no folder")
    axes.set_xscale("log")
    by = "how much the data were divided" if total is None else "amount of data"
    axes.set_title(f"Mean score by {by}")
    axes.set_xlabel("N: one Nth of the data" if total is None else f"how many of {total}")
    axes.set_ylabel("mean score, 95 % interval")
    if len(lines) > 1:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)


def _length(mean: float | None, end: float | None) -> float:
    if mean is None or end is None or not math.isfinite(end):
        return 0.0
    return abs(end - mean)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, which needs no screen.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure: Any = _matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
    _matplotlib("backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; as SVG, the same figure gives the same bytes."""
    from weightdiff.artifacts import atomic_file

    svg = path.suffix.lower() == ".svg"
    settings = {"svg.hashsalt": "weightdiff", "svg.fonttype": "none"}
    with atomic_file(path) as temporary, importlib.import_module("matplotlib").rc_context(settings):
        figure.savefig(temporary, dpi=150, metadata={"Date": None, "Creator": None} if svg else None)


def _matplotlib(part: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{part}")
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "eval") from error
