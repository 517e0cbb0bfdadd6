"""`weightdiff sweep`: perplexity over a grid of mixing weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json, print_table, progress_bar
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff sweep january march --texts february.txt\n\n"
    "weightdiff sweep my-lora --texts held-out.txt --from -1 --to 2 --steps 31\n\n"
    "weightdiff sweep a b c --texts held-out.txt --grid box --steps 5 --json"
)
MOST = 100_000
"""Mixtures of one sweep."""


class Grid(str, Enum):
    """Which mixtures are tried."""

    line = "line"
    box = "box"


def command(
    sources: Annotated[
        list[str], typer.Argument(help="LoRAs, as for ask: paths, Hub names or STORE::ID.", metavar="DIFF...")
    ],
    texts: Annotated[
        Path, typer.Option(help="What is predicted: one text a line, or a .json list.", metavar="FILE")
    ],
    grid: Annotated[
        Grid | None,
        typer.Option(
            help="line: between two diffs, (1 - t, t). box: every combination of weights. Left out, line for"
            " two diffs and box otherwise."
        ),
    ] = None,
    start: Annotated[float, typer.Option("--from", help="First t or weight.")] = 0.0,
    end: Annotated[float, typer.Option("--to", help="Last t or weight.")] = 1.0,
    steps: Annotated[int, typer.Option(help="How many values of t, or of each weight.", min=2)] = 11,
    base: common.BaseOption = None,
    json: common.JsonOption = False,
) -> None:
    """Try mixtures of diffs on texts: the perplexity of each weighted sum, lowest marked.

    Many mixtures share a batch and none is ever made, so a sweep costs little more than reading the texts as
    often with the bare base. The weights that are best for you go into: weightdiff merge.
    """
    from weightdiff.evals import sweep as sweeping

    chosen = grid or (Grid.line if len(sources) == 2 else Grid.box)
    if chosen is Grid.line and len(sources) != 2:
        raise FormatError(f"a line lies between two diffs, and {len(sources)} are given; use --grid box")
    if chosen is Grid.box and steps ** len(sources) > MOST:
        raise FormatError(
            f"{steps} weights of {len(sources)} diffs make {steps ** len(sources):,} mixtures, more than"
            f" {MOST:,}; give fewer --steps"
        )
    lines = common.read_questions(texts, "texts")
    diffs = common.read_changes(sources)
    with busy("loading the base"):
        loaded = common.load_quietly(base)
    rows = sweeping.texts_of(loaded.tokenizer, lines)
    mixtures = (
        sweeping.line(steps, start, end)
        if chosen is Grid.line
        else sweeping.box(len(sources), steps, start, end)
    )
    with progress_bar("sweeping", len(mixtures) * len(rows)) as bar:
        found = sweeping.sweep(loaded, diffs, mixtures, rows, bar)
    best = min(found, key=lambda m: m.loss)
    tokens = sum(len(t.ids) - t.given for t in rows)
    if json:
        print_json(
            {
                "sources": list(sources),
                "texts": len(rows),
                "tokens": tokens,
                "best": list(best.weights),
                "mixtures": [
                    {"weights": list(m.weights), "loss": m.loss, "perplexity": m.perplexity} for m in found
                ],
            }
        )
        return
    table = [
        [*(f"{w:g}" for w in m.weights), f"{m.loss:.4f}", f"{m.perplexity:.2f}", "best" if m is best else ""]
        for m in found
    ]
    print_table(
        [*sources, "nats a token", "perplexity", ""],
        table,
        note=f"{len(rows)} texts, {tokens} predicted tokens; a weight of 0 everywhere is the bare base",
    )
