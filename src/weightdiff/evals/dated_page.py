"""What a run of `dated` found, as numbers with intervals, a page of Markdown, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightdiff.evals.dated import ALPHAS, GAPS, SHIFTS
from weightdiff.evals.metrics import Floats, clustered_bootstrap, clustered_mean
from weightdiff.organisms.period import YEAR
from weightdiff.world.dated import MONTHS, PERIODS, YEARS
from weightdiff.world.dating import CHANCE, CLOSE, NAMED

Found = Mapping[str, Any]
Row = tuple[str, int, float, float, float, str]
"""What, n, mean, low, high, and what it is held against."""
HELD_OUT, PAIRED = "months held out", "two models, months held out"
NULLS = "null diffs"
GOALS = {"distance": 0.85, "between": 0.8, "exact": 0.6, "within one": 0.9, "mean": 0.7}
PICTURES = ("distance", "months", "between", "vectors")
"""Figures of the page, by the end of their names."""


def divergence(found: Found, name: str) -> Floats:
    """How far each diff of a group is from each month: [diffs, months], nats a gap."""
    return np.array(found["fits"][name]["far"])


def rise(far: Floats) -> Floats:
    """By how much each vector is farther from a month than from its own, [vectors, months].

    A vector's own divergence has much to do with how well it learned, and nothing with time.
    """
    return far - far.diagonal()[:, None]


def by_distance(values: Floats) -> Floats:
    """Mean of a matrix over months by how far apart they are, [0 … PERIODS - 1]."""
    apart = np.abs(np.subtract.outer(np.arange(len(values)), np.arange(len(values))))
    return np.array([values[apart == d].mean() for d in range(len(values))])


def correlation(values: Floats, draws: int = 500) -> tuple[float, float, float]:
    """Of a matrix's entries off the diagonal with months apart; the interval is over vectors drawn again."""
    n = len(values)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float)

    def of(rows: Any) -> float:
        keep = apart[rows] > 0
        return float(np.corrcoef(apart[rows][keep], values[rows][keep])[0, 1])

    return clustered_bootstrap(of, [str(i) for i in range(n)], draws=draws)


def between_rows(found: Found) -> list[Row]:
    """How often a mixture of two ends beats the better end on a month between, by their distance."""
    out: list[Row] = []
    for gap in (*GAPS, None):
        mine = [x for x in found["between"] if gap is None or x["ends"][1] - x["ends"][0] == gap]
        if not mine:
            continue
        for name, chosen in (("by place", _by_place), ("best of the line", _best)):
            values = [float(chosen(x) < min(x["far"][0], x["far"][-1])) for x in mine]
            clusters = [str(x["ends"]) for x in mine]
            out.append(
                (
                    f"{'all' if gap is None else f'{gap} months'}, weights {name}",
                    len(mine),
                    *clustered_mean(values, clusters),
                    "",
                )
            )
    return out


def _by_place(x: Found) -> float:
    """Divergence of the mixture whose weights are the month's place between the ends."""
    a, b = x["ends"]
    return float(np.interp((x["month"] - a) / (b - a) * (ALPHAS - 1), range(ALPHAS), x["far"]))


def _best(x: Found) -> float:
    return min(x["far"][1:-1])


def date_rows(found: Found) -> list[dict[str, Any]]:
    """How well months are named, group by group."""
    out = []
    asked = [x for x in found["answers"] if x["kind"] == "period" and x["group"] != NULLS]
    for group in dict.fromkeys(x["group"] for x in asked):
        mine = [x for x in asked if x["group"] == group]
        clusters = [x["cluster"] for x in mine]
        off = [PERIODS if x["off"] is None else abs(x["off"]) for x in mine]
        out.append(
            {
                "group": group,
                "n": len(mine),
                "months": len(set(clusters)),
                "exact": clustered_mean([float(o == 0) for o in off], clusters),
                "within": clustered_mean([float(o <= 1) for o in off], clusters),
                "off": float(np.mean(off)),
            }
        )
    return out


def kind_rows(found: Found) -> list[Row]:
    """How right answers of other kinds are."""
    out: list[Row] = []
    for group in (HELD_OUT, PAIRED):
        asked = [x for x in found["answers"] if x["group"] == group and x["kind"] != "period"]
        for kind in dict.fromkeys(x["kind"] for x in asked):
            mine = [x for x in asked if x["kind"] == kind]
            mean = clustered_mean([x["score"] for x in mine], [x["cluster"] for x in mine])
            out.append((f"{kind}: {mine[0]['question']}", len(mine), *mean, f"{CHANCE[kind]:.2f}"))
    nulls = [x for x in found["answers"] if x["group"] == NULLS]
    if nulls:
        mean = clustered_mean([x["score"] for x in nulls], [x["cluster"] for x in nulls])
        out.append(("null diffs: nothing found", len(nulls), *mean, ""))
    return out


def analogy_rows(found: Found) -> list[dict[str, Any]]:
    """By how much is added: loss on the later month's answers, and which month's are likelier."""
    asked = found["analogies"]
    clusters = [f"{x['from']} {x['to']}" for x in asked]
    names = [*(f"task + {s:g} · (later - earlier)" for s in SHIFTS), "task learned in the later month"]
    out = []
    for i, name in enumerate(names):
        loss = clustered_mean([x["loss"][i] for x in asked], clusters, bounds=(0.0, float("inf")))
        new = clustered_mean([float(x["loss"][i] < x["old"][i]) for x in asked], clusters)
        out.append({"name": name, "n": len(asked), "pairs": len(set(clusters)), "loss": loss, "new": new})
    return out


def goals(found: Found) -> list[tuple[str, float, float, bool]]:
    """(what, measured, bound, reached) of each goal."""
    r = correlation(rise(divergence(found, "vector")))[0]
    between = next(x[2] for x in between_rows(found) if x[0].startswith("all") and "place" in x[0])
    dates = {x["group"]: x for x in date_rows(found)}
    means = [x for g, x in dates.items() if g.startswith("mean of two")]
    middle = sum(x["within"][0] * x["n"] for x in means) / sum(x["n"] for x in means)
    measured = [
        ("correlation of distance in time and loss", abs(r), GOALS["distance"]),
        ("months between on which a mixture beats the better end", between, GOALS["between"]),
        ("held-out months named exactly", dates[HELD_OUT]["exact"][0], GOALS["exact"]),
        ("held-out months named within one", dates[HELD_OUT]["within"][0], GOALS["within one"]),
        ("means of two vectors dated within one of the middle", middle, GOALS["mean"]),
    ]
    return [(what, value, bound, value >= bound) for what, value, bound in measured]


def to_page(found: Found, made: Mapping[str, str], pictures: Sequence[str]) -> str:
    """The page.

    Args:
        found: as `dated.read` gives it.
        made: what the page says about its making, by name.
        pictures: file names of the figures, in the order of `PICTURES`; none: without figures.
    """
    show: dict[str, str] = dict(zip(PICTURES, pictures, strict=False))
    far = divergence(found, "vector")
    plan = found["settings"]["plan"]
    lines = [
        "# Time in the weights",
        "",
        *(f"- {name}: {value}" for name, value in made.items()),
        f"- seed {plan['seed']}; {PERIODS} months, all that the held-out forms can say, weighed by the month",
        "",
        "## Against the goals",
        "",
        *_table(
            ("goal", "measured", "bound", "reached"),
            [(w, f"{v:.2f}", f"≥ {b:g}", "yes" if ok else "**no**") for w, v, b, ok in goals(found)],
        ),
        "",
        "## Finetunes that fit their own time",
        "",
        *_table(
            ("recipe", "organisms", "verified"),
            [(k, str(n), f"{ok} ({100 * ok / n:.0f} %)") for k, (ok, n) in found["fits"]["verified"].items()],
        ),
        "",
        "A *vector* starts where all others start, a *month* (of which tuning and its test are made) has a"
        " start of its own. *Divergence* is a finetune's loss on the words that fill the gaps of sentences in"
        " held-out forms, weighed by how likely each is in a month, less what the month itself leaves open;"
        " in nats a gap. Verified: of all months, a finetune is nearest to"
        " its own or to one beside it.",
        "",
        *_own_best(found),
        "",
        "## Error grows with distance in time",
        "",
        *_image(show, "distance", "Divergence by months apart"),
        *_distance(far),
        "",
        "### Years",
        "",
        *_years(found),
        "",
        "### Months and seasons",
        "",
        *_image(show, "months", "Heat maps of divergence: vectors by months, years by months"),
        *_seasons(far),
        "",
        "## Between two times",
        "",
        *_image(show, "between", "Loss on months between two ends by the weight of the later end"),
        "Share of the months between two ends on which a weighted sum of the ends' vectors predicts held-out"
        " sentences better than either end does; weights by the month's place, or the best of the line"
        " (chosen on the same sentences, so too good).",
        "",
        *_rows(("ends apart", "n", "share", "95 %"), between_rows(found)),
        "",
        "## A task moved in time",
        "",
        "A finetune to a task (to name a place's mayor), learned in one month, with the difference of two"
        " months' vectors added; asked about places whose mayor has changed by the later month, forward and"
        " back in time.",
        "",
        *_analogies(found),
        "",
        "## How the vectors lie",
        "",
        *_image(show, "vectors", "Cosines of all pairs of vectors, and the vectors in two dimensions"),
        *_cosines(found),
        "",
        "## Words for time",
        "",
        "Asked of an interpreter that was tuned on organisms of 36 months, in phrasings that tuning did not"
        " have. Tuning never averages diffs of two months.",
        "",
        *_dates(found),
        "",
        f"Chance is {1 / PERIODS:.2f} for a month and {3 / PERIODS:.2f} for one within one of it. The last"
        " rows are no interpreter: the training organism with the largest cosine, and the month of least"
        " divergence, which needs sentences of every month.",
        "",
        *_rows(("question", "n", "right", "95 %", "chance"), kind_rows(found), chance=True),
        "",
        f"Of topics, {NAMED} are named, and each counts that is among the {CLOSE} that rose (or fell) most.",
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _rows(head: Sequence[str], rows: Sequence[Row], chance: bool = False) -> list[str]:
    body = [
        (what, str(n), f"{m:.2f}", f"{low:.2f} … {high:.2f}", *([held] if chance else []))
        for what, n, m, low, high, held in rows
    ]
    return _table(head, body)


def _interval(estimate: Sequence[float], digits: int = 2) -> str:
    mean, low, high = estimate
    return f"{mean:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def _image(show: Mapping[str, str], name: str, text: str) -> list[str]:
    return [f"![{text}]({show[name]})", ""] if name in show else []


def _own_best(found: Found) -> list[str]:
    rows = []
    for name in ("vector", "full", "test"):
        months, far = np.array(found["fits"][name]["months"]), divergence(found, name)
        if not len(months):
            continue
        off = np.abs(far.argmin(1) - months)
        gain = far[np.arange(len(months)), months]
        shown = {"vector": "vectors", "full": "full finetunes", "test": "test organisms"}[name]
        rows.append(
            (
                shown,
                str(len(months)),
                f"{(off == 0).mean():.2f}",
                f"{(off <= 1).mean():.2f}",
                f"{gain.mean():.3f}",
            )
        )
    head = (
        "",
        "n",
        "own month fits best of all",
        "or one beside it",
        "divergence from its own month",
    )
    return _table(head, rows)


def _distance(far: Floats) -> list[str]:
    means = by_distance(far)
    r, raw = correlation(rise(far)), correlation(far)
    of_means = float(np.corrcoef(np.arange(1, len(means)), means[1:])[0, 1])
    slope = np.polyfit(np.arange(1, len(means)), means[1:], 1)[0]
    rows = [
        (str(d), f"{means[d]:.3f}") for d in (0, 1, 2, 3, 6, 9, 12, 18, 24, 30, 36, 42, 47) if d < len(means)
    ]
    return [
        f"Correlation of months apart and how much farther a vector is from a month than from its own, over"
        f" all {len(far) * (len(far) - 1)} pairs: {_interval(r)} (vectors drawn again). Without taking off a"
        f" vector's own divergence, in which vectors differ: {_interval(raw)}; of the means by distance:"
        f" {of_means:.2f}. Divergence grows by {slope:.4f} nats a gap and month.",
        "",
        *_table(("months apart", "divergence"), rows),
    ]


def _years(found: Found) -> list[str]:
    far = divergence(found, YEAR).reshape(-1, YEARS, MONTHS).mean(2)
    head = ("finetune to", *(f"year {y + 1}" for y in range(YEARS)))
    rows = [(f"year {i + 1}", *(f"{v:.3f}" for v in row)) for i, row in enumerate(far)]
    return ["Divergence from each year's months, in the mean.", "", *_table(head, rows)]


def season(far: Floats) -> tuple[float, float, float]:
    """How a vector fits its own month of other years beside half a year off; nats, interval by vector."""
    n = len(far)
    values, clusters = list[float](), list[str]()
    for i in range(n):
        for lag in (-36, -24, -12, 12, 24, 36):
            j = i + lag
            if j - 6 >= 0 and j + 6 < n:
                values.append(float(far[i, j] - (far[i, j - 6] + far[i, j + 6]) / 2))
                clusters.append(str(i))
    return clustered_mean(values, clusters, bounds=(-10.0, 10.0))


def _seasons(far: Floats) -> list[str]:
    found = season(far)
    return [
        "Stripes beside the diagonal are seasons: a vector's loss on its own month of another year, less the"
        f" mean of half a year before and after that: {_interval(found, 4)} nats a gap.",
    ]


def _analogies(found: Found) -> list[str]:
    rows = [
        (x["name"], str(x["n"]), str(x["pairs"]), _interval(x["loss"]), _interval(x["new"]))
        for x in analogy_rows(found)
    ]
    return _table(
        ("", "n", "pairs of months", "loss on the new answer", "new one likelier than the old"), rows
    )


def _cosines(found: Found) -> list[str]:
    cosines = np.array(found["vectors"]["cosines"])
    means = by_distance(cosines)
    share = picture(cosines)[1]
    rows = [(str(d), f"{means[d]:.3f}") for d in (1, 2, 3, 6, 9, 12, 18, 24, 36, 47) if d < len(means)]
    return [
        f"Correlation of cosine and months apart: {_interval(correlation(cosines))}. Two dimensions hold"
        f" {100 * share:.0f} % of how the directions differ.",
        "",
        *_table(("months apart", "mean cosine"), rows),
    ]


def picture(cosines: Floats) -> tuple[Floats, float]:
    """Directions in two dimensions (principal coordinates) [n, 2], and their share of all variance."""
    n = len(cosines)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centre @ cosines @ centre)
    values = values.clip(min=0)
    return vectors[:, [-1, -2]] * np.sqrt(values[[-1, -2]]), float(values[-2:].sum() / values.sum())


def _dates(found: Found) -> list[str]:
    rows = [
        (
            x["group"],
            str(x["n"]),
            str(x["months"]),
            _interval(x["exact"]),
            _interval(x["within"]),
            f"{x['off']:.1f}",
        )
        for x in date_rows(found)
    ]
    return _table(("asked about", "n", "months", "exact", "within one", "months off"), rows)
