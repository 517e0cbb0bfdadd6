"""Figures of a run as SVG for its page: verdicts, grades, learning curves, coverage, calibration, a heat map.

Drawn by matplotlib (extra `eval`), which is imported only for drawing. The same run gives the same bytes.
Texts and axes take the colour and the font of the page around them.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightdiff.errors import MissingDependencyError, one_line
from weightdiff.evals import comparison
from weightdiff.evals.confidence import stated_probability
from weightdiff.evals.metrics import Floats
from weightdiff.evals.outcomes import Run
from weightdiff.evals.results import BOUNDS, UNITS
from weightdiff.evals.run_tables import VERDICTS, first_share, overview_of, verdicts

BINS = 10
"""Of equal width, in the calibration figure."""
POINTS = 200
"""Most points of a coverage curve that are drawn."""
COLOURS = {"right": "#2f7fb8", "partly": "#e3b341", "wrong": "#cc5a3b", "unscored": "#9aa0a6"}
INK = "#010203"
"""Stands for the page's colour of text until the SVG is written."""
EVEN = 0.179
"""Luminance on which white and black contrast alike."""
_LONGEST = 32
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Picture:
    """A figure of a page."""

    title: str
    svg: str
    text: str
    """What it shows, for those who do not see it."""


def pictures(run: Run) -> list[Picture]:
    """All figures that the run has something for.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    _matplotlib("figure")
    drawn = []
    for draw in (_verdicts, *_grades(run), _curves, _coverage, _calibration, _map):
        salt = f"weightdiff {len(drawn)}"
        with _matplotlib("").rc_context(_SETTINGS | {"svg.hashsalt": salt}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the page has its own fonts
            found = draw(run)
            if found is not None:
                figure, title, text = found
                drawn.append(Picture(title, _svg(figure, f"f{len(drawn)}", f"{title}. {text}"), text))
    return drawn


_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}
Drawn = tuple[Any, str, str] | None
"""Figure, title, and what it shows in words; None where there is nothing to draw."""


def bins(correct: Sequence[float], stated: Sequence[float]) -> list[tuple[float, float, int]]:
    """Mean stated probability, accuracy and number of the answers in each of `BINS` that has some.

    The bins are those of `comparison.expected_calibration_error`.
    """
    which = np.searchsorted(np.arange(1, BINS) / BINS, np.asarray(stated))
    right, said = np.asarray(correct, dtype=np.float64), np.asarray(stated, dtype=np.float64)
    found = [which == b for b in range(BINS)]
    return [(float(said[at].mean()), float(right[at].mean()), int(at.sum())) for at in found if at.any()]


def confident(run: Run) -> dict[str, tuple[list[float], list[float]]]:
    """Method → (share right, stated probability) of its scored answers that state one, of behaving diffs."""
    out: dict[str, tuple[list[float], list[float]]] = {}
    for o in run.outcomes:
        share, stated = first_share(o), stated_probability(o)
        if o.item.behaves and share is not None and stated is not None and not math.isnan(stated):
            right, said = out.setdefault(o.method, ([], []))
            right.append(share)
            said.append(stated)
    return out


def _verdicts(run: Run) -> Drawn:
    """A bar for each method."""
    counts = {m: verdicts(o for o in run.outcomes if o.method == m and o.item.behaves) for m in run.methods}
    parts = [(v, COLOURS[v]) for v in VERDICTS]
    return _bars(counts, parts, "Answers by their first score", "all kinds of question, diffs that behave")


def _grades(run: Run) -> list[Callable[[Run], Drawn]]:
    """For each scorer of grades, what draws how often each was given."""

    def of(scorer: str) -> Callable[[Run], Drawn]:
        low, high = (round(end) for end in BOUNDS[scorer])
        levels = [str(level) for level in range(low, high + 1)]

        def draw(run: Run) -> Drawn:
            counts = {}
            for m in run.methods:
                given = [
                    s.value for o in run.outcomes if o.method == m for s in o.scores if s.scorer == scorer
                ]
                named = [
                    "unscored" if v is None else str(min(high, max(low, math.floor(v + 0.5)))) for v in given
                ]
                counts[m] = {level: named.count(level) for level in (*levels, "unscored")}
            colours = _matplotlib("").colormaps["viridis"](np.linspace(0, 1, len(levels)))
            parts = [*zip(levels, colours, strict=True), ("unscored", COLOURS["unscored"])]
            about = "means of several gradings rounded" if len(levels) > 2 else ""
            return _bars(counts, parts, f"Grades by {scorer}", about)

        return draw

    there = {s.scorer for o in run.outcomes for s in o.scores}
    return [of(s) for s, unit in UNITS.items() if unit == "grade" and s in there]


def _bars(counts: Any, parts: Sequence[tuple[str, Any]], title: str, about: str) -> Drawn:
    """Stacked shares, a bar for each method that has any; the first on top."""
    counts = {m: c for m, c in counts.items() if sum(c.values())}
    if not counts:
        return None
    figure, axes = _figure(8.5, 1.6 + 0.32 * len(counts))
    totals = [sum(c.values()) for c in counts.values()]
    ends = [0.0] * len(counts)
    for name, colour in parts:
        shares = [100 * c[name] / total for c, total in zip(counts.values(), totals, strict=True)]
        if any(shares):
            axes.barh(range(len(counts)), shares, left=ends, color=colour, label=name, height=0.75)
        for place, (share, end) in enumerate(zip(shares, ends, strict=True)):
            if share >= 7:
                axes.text(end + share / 2, place, f"{share:.0f}", **_number_style(colour))
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.set_xlabel(f"answers in % ({about})" if about else "answers in %")
    axes.set_xlim(0, 100)
    axes.set_yticks(range(len(counts)), [_short(m) for m in counts], parse_math=False)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    figure.legend(loc="outside upper center", ncols=len(parts))
    told = []
    for (m, c), total in zip(counts.items(), totals, strict=True):
        told.append(f"{_short(m)}: " + ", ".join(f"{100 * c[n] / total:.0f} % {n}" for n, _ in parts if c[n]))
    return figure, title, "; ".join(told) + "."


def _curves(run: Run) -> Drawn:
    """Learning curves, one panel for each `what`."""
    points = run.info.get("curves") or []
    names = list(dict.fromkeys(str(p["what"]) for p in points))
    if not names:
        return None
    figure, first = _figure(max(4.5, 3.2 * len(names)), 3.4, len(names))
    panels = first if len(names) > 1 else [first]
    told = []
    for axes, name in zip(panels, names, strict=True):
        line = sorted((p for p in points if str(p["what"]) == name), key=lambda p: p["size"])
        sizes, means = [p["size"] for p in line], [p["exact"] for p in line]
        lengths = [
            [max(0.0, p["exact"] - p["low"]) for p in line],
            [max(0.0, p["high"] - p["exact"]) for p in line],
        ]
        axes.errorbar(sizes, means, yerr=lengths, marker="o", capsize=3, color=COLOURS["right"])
        if min(sizes) > 0:
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{s:g}" for s in sizes])
            axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.set_xlabel(_short(name), parse_math=False)
        told.append(
            f"{_short(name)}: "
            + ", ".join(f"{s:g} {100 * m:.0f} %" for s, m in zip(sizes, means, strict=True))
        )
    panels[0].set_ylabel("share exactly right, 95 %")
    return figure, "Learning curves", "; ".join(told) + "."


def _coverage(run: Run) -> Drawn:
    """Accuracy of the surest answers, for each share of them that is kept."""
    found = confident(run)
    if not found:
        return None
    figure, axes = _figure(8.5, 4.2)
    told = []
    for number, (m, (right, stated)) in enumerate(found.items()):
        coverage, accuracy = comparison.coverage_curve(right, stated)
        axes.plot(*_thinned(coverage, accuracy), label=_short(m), **_line(number))
        half = float(accuracy[np.searchsorted(coverage, 0.5)])
        told.append(f"{_short(m)}: all {100 * accuracy[-1]:.0f} %, the surest half {100 * half:.0f} %")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share of answers kept, the surest first", ylabel="accuracy")
    _legend(figure)
    return figure, "Accuracy and coverage", "; ".join(told) + "."


def _calibration(run: Run) -> Drawn:
    """Accuracy against stated probability, in bins."""
    found = confident(run)
    if not found:
        return None
    figure, axes = _figure(8.5, 4.2)
    axes.plot([0, 1], [0, 1], color="#9aa0a6", linewidth=1, linestyle=(0, (2, 3)), label="as stated")
    told = []
    for number, (m, (right, stated)) in enumerate(found.items()):
        points = bins(right, stated)
        xs, ys, _ = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", markersize=4, clip_on=False, label=_short(m), **_line(number))
        error = comparison.expected_calibration_error(right, stated, BINS)
        told.append(f"{_short(m)}: expected calibration error {error:.2f} over {len(right)} answers")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        xlabel=f"stated probability, mean in each of {BINS} bins",
        ylabel="accuracy",
    )
    _legend(figure)
    return figure, "Calibration", "; ".join(told) + "."


def _map(run: Run) -> Drawn:
    """Means of every method in every cell of the overview, shares alone."""
    found = overview_of(run)
    rows = {at: r for at, r in found.rows.items() if r.unit == "share" and math.isfinite(r.mean)}
    cells = [c for c in found.cells if any((m, c) in rows for m in found.methods)]
    methods = [m for m in found.methods if any((m, c) in rows for c in cells)]
    if not rows:
        return None
    values = np.array([[rows[m, c].mean if (m, c) in rows else math.nan for m in methods] for c in cells])
    figure, axes = _figure(max(5.0, 2.6 + 0.5 * len(methods)), 1.9 + 0.3 * len(cells))
    # Cells are drawn as shapes: an image would be a picture within the picture, which the page does not load.
    edges = [np.arange(n + 1) - 0.5 for n in (len(methods), len(cells))]
    image = axes.pcolormesh(*edges, np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis")
    axes.invert_yaxis()
    axes.set_xticks(
        range(len(methods)), [_short(m) for m in methods], rotation=45, ha="left", parse_math=False
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(cells)), [_short(found.names[c]) for c in cells], parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            axes.text(j, i, f"{100 * value:.0f}", **_number_style(image.cmap(value)))
    text = "Rows are families with kinds of question, columns methods; the overview has the numbers."
    return figure, "Means in %, by the first scorer", text


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """A figure and its axes (a row of them for several panels), never on pyplot's list."""
    figure: Any = _matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
    _matplotlib("backends.backend_svg").FigureCanvasSVG(figure)
    return figure, figure.subplots(1, panels)


def _legend(figure: Any) -> None:
    for text in figure.legend(loc="outside right upper", fontsize=9).get_texts():
        text.set_parse_math(False)


def _line(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": _STYLES[number // 10 % len(_STYLES)], "linewidth": 1.6}


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most `POINTS` points, the first and the last among them."""
    at = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
    return x[at], y[at]


def _number_style(colour: Any) -> dict[str, Any]:
    """How a number stands on a colour: white or black, whichever contrasts more (luminance of WCAG 2)."""
    rgb = np.array(_matplotlib("colors").to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    dark = float(linear @ [0.2126, 0.7152, 0.0722]) < EVEN
    return {"color": "white" if dark else "black", "ha": "center", "va": "center", "fontsize": 8}


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _svg(figure: Any, prefix: str, label: str) -> str:
    """The figure as an element of a page, its ids behind a prefix so that several can stand in one."""
    import io

    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(written.getvalue())  # our own, so no hostile entities
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {_name(k): _mended(k, v, prefix) for k, v in element.attrib.items()}
    width = figure.get_figwidth()
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": label,
        "style": f"max-width: {width:g}in; min-width: {0.7 * width:g}in",  # letters stay of a readable size
    }
    return ET.tostring(root, encoding="unicode")


def _name(attribute: str) -> str:
    return attribute.rpartition("}")[2]


def _mended(attribute: str, value: str, prefix: str) -> str:
    if attribute == "id":
        return f"{prefix}-{value}"
    if _name(attribute) == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{prefix}-", value).replace(INK, "currentColor")
    return (
        re.sub(r"font: (?:\w+ )*?([\d.]+px) [^;]*", r"font-size: \1", value)
        if attribute == "style"
        else value
    )


def _matplotlib(part: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{part}" if part else "matplotlib")
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "eval") from error
