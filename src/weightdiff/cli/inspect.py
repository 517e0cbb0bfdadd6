"""`weightdiff inspect`: sizes, ranks and places of a weight diff, and what looks wrong, without any model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, print_table, progress_bar
from weightdiff.errors import BaseNeededError, FormatError, NonFiniteError

if TYPE_CHECKING:
    from weightdiff.diffs.inspection import AgainstBase, Inspection, ModuleReport, Sign
    from weightdiff.diffs.types import WeightDiff

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff inspect my-lora\n\n"
    "weightdiff inspect bundled::covert-rabbit-0-1 --base bundled --all\n\n"
    "weightdiff inspect my-lora --base llama-folder --plot my-lora.png --json\n\n"
    'Then: weightdiff ask --diff my-lora "what topic have you been trained on?"'
)
SHOWN = 15
"""Modules in the table, unless all are asked for."""
SIGNS_SHOWN = 3
"""Signs of one kind that are shown in full."""
BAR = 24
COLUMNS = ("layer, module", "99 % in", "stable", "eff.", "norm", "σ1", "share")
COLUMNS_NOTE = (
    "99 % in: directions that hold 99 % of the energy, of the stored rank; stable: ‖Δ‖²/σ1²; eff.: exp of the"
    " entropy of the singular values"
)
BASE_COLUMNS = ("layer, module", "norm", "σ1", "left", "chance", "right", "chance")
BASE_NOTE = (
    "norm, σ1: of the change, over those of the base's weight; left, right: share of the change along the"
    " weight's top singular vectors, and what a random change has there"
)
OUTLIER_COLUMNS = ("layer, module", "row or column", "times median", "share of the module")
STYLES = {"error": "red", "warning": "yellow"}


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A PEFT folder or another known format, STORE::ID or bundled::ID.", metavar="DIFF"
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base's folder or Hub name, or 'bundled', to compare the change with.", metavar="BASE"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw norms by layer and kind, and spectra; .png or .svg.", metavar="FILE"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all modules, not the 15 largest.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Show what a weight diff is made of, and warn of what looks wrong.

    Reports how large the change is, in which layers and kinds of modules it
    sits, and of how many directions it consists; then signs such as NaN, LoRAs
    that change nothing, odd scales, collapsed ranks or one module that
    dominates. Shares are of the squared Frobenius norm.

    No model is run. With --base, every change is set beside the weight it is
    added to, which reads the whole checkpoint once.
    """
    from weightdiff.evals.plots import check_plot, plot_inspection

    if plot:
        check_plot(plot)
    found = _inspected(path, base)
    if plot:
        plot_inspection(found, plot)
        note(f"plot: {plot}")
    if json:
        print_json({"path": path, **found.to_json()})
        return
    _print_summary(path, found)
    _print_shares("kind", found.by_kind)
    _print_shares("layer", {"–" if k is None else str(k): v for k, v in found.by_layer.items()})
    _print_modules(found.modules, everything)
    _print_signs(found.signs)


def _inspected(path: str, base: str | None) -> Inspection:
    """Read and measure; a diff that its reader refuses because of NaN is a report with that one sign."""
    with busy("reading the diff"):
        from dataclasses import replace

        from weightdiff.diffs.inspection import Sign, inspect
        from weightdiff.diffs.types import WeightDiff
        from weightdiff.diffs.weights import base_weights
        from weightdiff.tiny.bundle import part

        folder = str(part("base")) if base == common.BUNDLED else base
        weights = None if folder is None else base_weights(folder)
        try:
            diff = _read(path, folder)
        except NonFiniteError as error:
            return replace(inspect(WeightDiff({})), signs=(Sign("error", "not-finite", path, str(error)),))
    if weights is None:
        return inspect(diff)
    with progress_bar("comparing with the base", total=len(diff.modules)) as bar:
        return inspect(diff, weights, lambda done, _: bar(done))


def _read(path: str, base: str | None) -> WeightDiff:
    """Read a diff, with its NaN where its format can be read so."""
    try:
        diff = _read_beside(path, base)
    except NonFiniteError:
        if not _is_peft(path):
            raise
        diff = _read_beside(path, base, finite=False)
    if diff is None:
        raise FormatError("the bare base has no diff to inspect; give a PEFT folder or STORE::ID")
    return diff


def _read_beside(path: str, base: str | None, finite: bool = True) -> WeightDiff | None:
    """Read a diff; the base's folder serves where it is a change only against that."""
    try:
        return common.read_diff(path, finite=finite)
    except BaseNeededError:
        if base is None:
            raise
        return common.read_diff(path, base, finite)


def _is_peft(path: str) -> bool:
    """Whether a path or Hub name that was read just now is a PEFT folder; rows of stores are not."""
    from weightdiff.diffs.formats import sniff
    from weightdiff.diffs.hub import local_copy

    in_store = common.BETWEEN in path and not Path(path).exists()
    return not in_store and sniff(local_copy(path)).name == "peft"


def _print_summary(path: str, found: Inspection) -> None:
    ranks = sorted({r.rank for r in found.modules if r.rank is not None})
    dense = sum(r.rank is None for r in found.modules)
    low = len(found.modules) - dense
    spread = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    parts = [f"{low} low-rank of {spread}"] if low else []
    parts += [f"{dense} dense"] if dense else []
    parts += [f"other parameters: {len(found.parameters)}"] if found.parameters else []
    typer.echo(f"{path}: weight diff of {found.base.describe() if found.base else 'an unnamed base'}")
    typer.echo(f"modules: {len(found.modules)}" + (f" ({', '.join(parts)})" if parts else ""))
    typer.echo(f"numbers: {found.num_parameters:,}")
    typer.echo(f"Frobenius norm: {_number(found.norm)}")


def _print_shares(what: str, shares: dict[str, float]) -> None:
    if not shares:
        return
    most = max(shares.values())
    rows = [
        [name, _percent(s), "█" * round(BAR * s / most) if most > 0 else ""] for name, s in shares.items()
    ]
    print_table([what, "share", ""], rows, title=f"share of the change by {what}")


def _print_modules(modules: Sequence[ModuleReport], everything: bool) -> None:
    if not modules:
        return
    order = sorted(modules, key=lambda r: r.share if r.finite else math.inf, reverse=True)
    shown = order if everything else order[:SHOWN]
    title = f"the {len(shown)} largest of {len(order)} modules (--all lists all)"
    if len(shown) == len(order):
        title = f"all {len(order)} modules, largest first"
    print_table(COLUMNS, [_cells(r) for r in shown], title=title, note=COLUMNS_NOTE)
    beside = [[_place(r), *_base_cells(r.against_base)] for r in shown if r.against_base]
    if beside:
        print_table(BASE_COLUMNS, beside, title="beside the base's weight", note=BASE_NOTE)
    outlying = [
        [_place(r), f"{what} {o.index}", _number(o.ratio), _percent(o.share)]
        for r in shown
        for what, outliers in (("row", r.rows), ("column", r.columns))
        for o in outliers
    ]
    if outlying:
        print_table(OUTLIER_COLUMNS, outlying, title="rows and columns that are much larger than the others")


def _place(r: ModuleReport) -> str:
    """The layer and what follows it in the name; without a layer the whole name."""
    return r.name if r.layer is None else f"{r.layer} {r.name.partition(f'.{r.layer}.')[2]}"


def _cells(r: ModuleReport) -> list[str]:
    of = "dense" if r.rank is None else str(r.rank)
    directions = f"{'?' if r.rank_99 is None else r.rank_99} of {of}"
    numbers = (r.stable_rank, r.effective_rank, r.frobenius, r.spectral)
    return [_place(r), directions, *(_number(value) for value in numbers), _percent(r.share)]


def _base_cells(a: AgainstBase) -> list[str]:
    shares = (a.left, a.left_chance, a.right, a.right_chance)
    return [_number(a.frobenius_ratio), _number(a.spectral_ratio), *(_percent(share) for share in shares)]


def _print_signs(signs: Sequence[Sign]) -> None:
    """Signs in colour, errors first; of many of one kind the first few."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not signs:
        console.print(Text("nothing looks wrong", style="green"))
        return
    console.print(Text("signs", style="bold"))
    groups: dict[str, list[Sign]] = {}
    for sign in signs:
        groups.setdefault(sign.code, []).append(sign)
    for group in groups.values():
        style = STYLES[group[0].severity]
        for sign in group[:SIGNS_SHOWN]:
            console.print(Text(f"{sign.severity}: {sign.module}: {sign.text}", style=style))
        if len(group) > SIGNS_SHOWN:
            rest = len(group) - SIGNS_SHOWN
            console.print(Text(f"{group[0].severity}: {rest} more of the kind {group[0].code}", style=style))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "nan"
