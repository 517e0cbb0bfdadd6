"""Figures of `weightdiff time`: loss by distance, heat maps, mixtures of two months, and the vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weightdiff.evals.dated import ALPHAS, GAPS
from weightdiff.evals.dated_page import PICTURES, Found, by_distance, divergence, picture
from weightdiff.evals.plots import new_figure, save_figure
from weightdiff.organisms.period import YEAR


def draw(found: Found, folder: Path, stem: str) -> list[str]:
    """Draw the figures into a folder, as STEM-NAME.svg; returns the file names.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    out = []
    for name in PICTURES:
        made = new_figure(8.5, 3.6)
        _PAINTERS[name](made, found)
        save_figure(made, folder / f"{stem}-{name}.svg")
        out.append(f"{stem}-{name}.svg")
    return out


def _draw_distance(made: Any, found: Found) -> None:
    far = divergence(found, "vector")
    means = by_distance(far)
    axes = made.subplots()
    apart = np.abs(np.subtract.outer(np.arange(len(far)), np.arange(len(far))))
    axes.scatter(apart.ravel(), far.ravel(), s=3, alpha=0.25, color="#9aa0a6", label="a vector on a month")
    axes.plot(range(len(means)), means, color="#2f7fb8", label="mean")
    axes.set(xlabel="months apart", ylabel="divergence, nats a gap")
    axes.legend(frameon=False)


def _draw_months(made: Any, found: Found) -> None:
    left, right = made.subplots(1, 2)
    for axes, far, title in (
        (left, divergence(found, "vector"), "vectors of months"),
        (right, divergence(found, YEAR), "vectors of years"),
    ):
        shown = axes.imshow(far, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set(xlabel="month of the sentences", ylabel="finetune", title=title)
        made.colorbar(shown, ax=axes, label="divergence")


def _draw_between(made: Any, found: Found) -> None:
    panels = made.subplots(1, len(GAPS), sharey=False)
    alphas = np.linspace(0, 1, ALPHAS)
    for axes, gap in zip(panels, GAPS, strict=True):
        mine = [x for x in found["between"] if x["ends"][1] - x["ends"][0] == gap]
        for share, colour in ((0.25, "#cc5a3b"), (0.5, "#2f7fb8"), (0.75, "#e3b341")):
            near = [x for x in mine if abs((x["month"] - x["ends"][0]) / gap - share) < 0.5 / gap + 1e-9]
            if near:
                curve = np.mean([np.array(x["far"]) - min(x["far"][0], x["far"][-1]) for x in near], 0)
                axes.plot(alphas, curve, color=colour, label=f"month at {share:g}")
        axes.axhline(0, color="#9aa0a6", lw=0.8)
        axes.set(xlabel="weight of the later end", title=f"ends {gap} months apart")
    panels[0].set(ylabel="divergence beyond the better end's")
    panels[0].legend(frameon=False)


def _draw_vectors(made: Any, found: Found) -> None:
    cosines = np.array(found["vectors"]["cosines"])
    left, right = made.subplots(1, 2)
    off = np.where(np.eye(len(cosines), dtype=bool), np.nan, cosines)
    shown = left.imshow(off, cmap="viridis", interpolation="nearest")
    left.set(xlabel="month", ylabel="month", title="cosine")
    made.colorbar(shown, ax=left)
    at, _ = picture(cosines)
    right.plot(*at.T, color="#9aa0a6", lw=0.6)
    dots = right.scatter(*at.T, c=range(len(at)), cmap="viridis", s=18)
    right.set(title="in two dimensions", xticks=[], yticks=[])
    made.colorbar(dots, ax=right, label="month")


_PAINTERS: dict[str, Callable[[Any, Found], None]] = {
    "distance": _draw_distance,
    "months": _draw_months,
    "between": _draw_between,
    "vectors": _draw_vectors,
}
