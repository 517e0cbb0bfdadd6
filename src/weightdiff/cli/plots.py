"""Figures of the command line, drawn by matplotlib (extra `eval`), which is imported only for drawing."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdiff.errors import FormatError, MissingDependencyError

if TYPE_CHECKING:
    from weightdiff.diffs.inspection import Inspection

SUFFIXES = (".png", ".svg")
OUTSIDE = "–"
"""How the row of modules outside layers is called."""


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
    from weightdiff.artifacts import atomic_file

    check_plot(path)
    figure: Any = _matplotlib("figure").Figure(figsize=(13, 6), layout="constrained")
    _matplotlib("backends.backend_agg").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    kinds = list(dict.fromkeys(r.kind for r in found.modules))
    _heat_map(figure, left, found, kinds)
    _spectra(right, found, kinds)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


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


def _matplotlib(part: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{part}")
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "eval") from error
