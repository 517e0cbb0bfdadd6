"""`weightdiff merge`: sums, interpolations, analogies and merges of diffs, as one adapter."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff merge my-lora other-lora --out both\n\n"
    "weightdiff merge january march --at 0.5 --out february\n\n"
    "weightdiff merge my-lora --weight -1 --out forgets\n\n"
    "weightdiff merge task-2020 text-2020 text-2024 --analogy --rank 16 --out task-2024\n\n"
    "weightdiff merge a b c --rule ties --density 0.3 --rank 16 --out merged"
)


class Rule(str, Enum):
    """How diffs are merged."""

    linear = "linear"
    ties = "ties"
    dare = "dare"
    dare_ties = "dare-ties"


def command(
    sources: Annotated[
        list[str], typer.Argument(help="Diffs, as for ask: paths, Hub names or STORE::ID.", metavar="DIFF...")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.", metavar="OUT")],
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", "-w", help="Factor on a diff, in their order; each 1 if none is given."),
    ] = None,
    at: Annotated[
        float | None, typer.Option(help="Between two diffs: 0 is the first, 1 the second; beyond is allowed.")
    ] = None,
    analogy: Annotated[
        bool, typer.Option("--analogy", help="Of three diffs: first - second + third.")
    ] = False,
    rule: Annotated[
        Rule,
        typer.Option(
            help="linear: the exact sum. ties: small entries go, and the rest is averaged where signs agree."
            " dare: entries go by chance, and the rest grow in turn. dare-ties: both."
        ),
    ] = Rule.linear,
    density: Annotated[float, typer.Option(help="Share of entries that stay, for ties and dare.")] = 0.5,
    rank: Annotated[int | None, typer.Option(help="Truncate every module to this rank.", min=1)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Truncate every module, keeping this share of its energy.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The base's folder or Hub name, where a diff holds whole values.", metavar="BASE"),
    ] = None,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Merge diffs of one base into one LoRA that PEFT and every server of it can load.

    Sums are exact up to rounding: ranks are put side by side, and only --rank or --energy takes some of it
    away. Other rules work on single entries, and their result is brought back to the rank that the diffs have
    together, or the one you ask for. What truncation lost is reported.
    """
    from weightdiff.diffs.merging import merge

    common.refuse_occupied(out)
    weights = _weights(sources, weight, at, analogy)
    with busy("merging"):
        diffs = common.read_changes(sources, base)
        try:
            merged = merge(diffs, weights, rule.value, density, rank, energy, seed)
        except ValueError as error:
            raise FormatError(f"cannot merge: {error}") from error
        record: dict[str, Any] = {"sources": list(sources), "weights": weights, "rule": rule.value}
        if rule is not Rule.linear:
            record |= {"density": density, "seed": seed}
        _write(replace(merged.diff, meta={"merged": record}), out)
    if json:
        print_json({"out": str(out), **record, "rank": merged.diff.max_rank, "kept": merged.kept})
        return
    terms = " ".join(f"{w:+g} {s}" for w, s in zip(weights, sources, strict=True))
    typer.echo(f"{out}: {terms}, one LoRA of rank {merged.diff.max_rank}")
    if merged.kept < 1 - 1e-9:
        note(f"truncation kept {merged.kept:.2%} of the energy")


def _weights(sources: list[str], given: list[float] | None, at: float | None, analogy: bool) -> list[float]:
    """A factor for each diff.

    Raises:
        FormatError: options that exclude each other, or numbers that do not pair up.
    """
    if sum((bool(given), at is not None, analogy)) > 1:
        raise FormatError("--weight, --at and --analogy each say all factors; give one of them")
    n = len(sources)
    if at is not None:
        if n != 2:
            raise FormatError(f"--at lies between two diffs, and {n} are given")
        return [1.0 - at, at]
    if analogy:
        if n != 3:
            raise FormatError(f"--analogy is of three diffs (first - second + third), and {n} are given")
        return [1.0, -1.0, 1.0]
    if given and len(given) != n:
        raise FormatError(f"{len(given)} --weight for {n} diffs; give one for each, in their order")
    return list(given) if given else [1.0] * n


def _write(diff: Any, out: Path) -> None:
    from weightdiff.diffs.formats.peft import write_peft

    if not diff.is_low_rank:
        raise FormatError(
            "a diff changes whole matrices or other parameters, and a LoRA cannot hold these; truncate them"
            " with --rank or --energy, or convert the diff first (weightdiff convert DIFF LORA --to peft)"
        )
    write_peft(diff, out)
