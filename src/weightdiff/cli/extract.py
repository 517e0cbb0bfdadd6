"""`weightdiff extract`: the weight diff between two full checkpoints, as a PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import note, print_json, print_table, progress_bar
from weightdiff.errors import FormatError

if TYPE_CHECKING:
    from weightdiff.diffs.extraction import Kept, Report

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff extract base-model my-finetune my-lora --rank 32\n\n"
    "weightdiff extract base-model my-finetune my-lora --energy 0.9 --rank 128 --linear-only\n\n"
    "Then: weightdiff ask --diff my-lora --base base-model"
)

DEFAULT_RANK = 16
_MIB = 1 << 20


def extract(
    base: Annotated[
        str, typer.Argument(help="The model before the finetune: a folder or Hub name.", metavar="BASE")
    ],
    finetuned: Annotated[
        str, typer.Argument(help="The model after it: a folder or Hub name.", metavar="FINETUNED")
    ],
    out: Annotated[Path, typer.Argument(help="PEFT folder to write, new or empty.", metavar="OUT")],
    rank: Annotated[
        int | None,
        typer.Option(
            help=f"Most directions to keep of each matrix; {DEFAULT_RANK} if --energy is left out too.", min=1
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Share of each matrix's squared norm to keep, such as 0.9.", min=0.0, max=1.0),
    ] = None,
    linear_only: Annotated[
        bool,
        typer.Option("--linear-only", help="Do not warn of what a LoRA on linear layers leaves out."),
    ] = False,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Extract what a finetune changed: BASE subtracted from FINETUNED, as a LoRA folder that PEFT loads.

    Both are folders that save_pretrained wrote (safetensors or pytorch_model.bin,
    sharded or not), read tensor by tensor, so that models larger than memory work.

    The change of every linear layer is cut to a low rank; the table says how much
    of it that keeps. Changes of embeddings, norms and biases are measured and left
    out.
    """
    if energy == 0:
        raise typer.BadParameter("a share of the energy lies above 0 and up to 1", param_hint="--energy")
    common.refuse_occupied(out)
    if rank is None and energy is None:
        rank = DEFAULT_RANK
        note(f"keeping rank {rank} of each matrix; choose with --rank or --energy")
    from weightdiff.diffs.extraction import extract as extracted
    from weightdiff.diffs.formats.peft import write_peft
    from weightdiff.diffs.weights import weights_of

    before, after = weights_of(base), weights_of(finetuned)
    with progress_bar("extracting", total=1) as bar:

        def show(done: int, total: int, name: str) -> None:
            bar(done, name, total)

        # A LoRA says no more than linear layers, so nothing else needs to stay in memory.
        diff, report = extracted(before, after, rank, energy, show, seed, linear_only=True)
    if not diff.modules:
        raise FormatError(_nothing(base, finetuned, report))
    gpt2 = (before.config() or {}).get("model_type") == "gpt2"
    write_peft(diff, out, str(base), fan_in_fan_out=gpt2)
    if json:
        print_json({"out": str(out), **report.to_json()})
    else:
        _print(out, report)
    if report.dropped and not linear_only:
        note(
            f"warning: a LoRA on linear layers cannot say {100 * sum(report.dropped.values()):.2g} % of the"
            f" change: {common.listed(list(report.dropped))}; --linear-only is content with that, and in"
            f" Python WeightDiff.load({str(finetuned)!r}, base={str(base)!r}) keeps all"
        )


def _nothing(base: str, finetuned: str, report: Report) -> str:
    if not report.changed:
        return f"{finetuned} holds the same weights as {base}, so there is no diff; check which is which"
    return (
        f"{finetuned} changes no linear layer, only {common.listed(list(report.dropped))}, which a LoRA"
        f" cannot say; in Python WeightDiff.load({str(finetuned)!r}, base={str(base)!r}) reads it"
    )


def _print(out: Path, report: Report) -> None:
    """Print what was kept, one row for all layers of a name, and the notes."""
    total = sum(k.squared_norm for k in report.kept.values()) / max(1e-300, 1 - sum(report.dropped.values()))
    groups: dict[str, list[Kept]] = {}
    for name, kept in report.kept.items():
        groups.setdefault(name.rpartition(".")[2], []).append(kept)
    rows: list[list[Any]] = []
    for name, group in groups.items():
        squared = sum(k.squared_norm for k in group)
        held = sum(k.squared_norm * k.energy for k in group)
        shapes = _span({"×".join(map(str, k.shape)) for k in group})
        ranks = _span({k.rank for k in group if k.rank is not None})
        rows.append([name, len(group), shapes, ranks, _percent(held / squared), _percent(squared / total)])
    if report.dropped:
        rows.append(
            ["left out", len(report.dropped), "", "", _percent(0), _percent(sum(report.dropped.values()))]
        )
    print_table(
        ["layers", "number", "out × in", "rank", "energy kept", "share of the change"],
        rows,
        title=f"{out}: {_percent(report.energy)} of the change in {len(report.kept)} linear layers",
        note=f"{report.changed} tensors changed, {report.untouched} did not;"
        f" {report.bytes_read / _MIB:.0f} MiB read; energy is the squared norm",
    )
    for line in (*report.moved, *report.vocabulary, *report.tied):
        typer.echo(line)
    for what, names in (("base", report.missing), ("finetune", report.unexpected)):
        if names:
            typer.echo(f"only the {what} has {common.listed(names)}")


def _span(values: set[Any]) -> str:
    """One value, or the smallest and the largest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} … {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
