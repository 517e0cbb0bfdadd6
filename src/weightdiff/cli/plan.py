"""`weightdiff plan`: what organisms, an interpreter and questions take on a base, before any is begun."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json, print_table
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff plan Qwen/Qwen3-4B --device h100\n\n"
    "weightdiff plan my-base --device rtx4090 --organisms 2000 --rank 1\n\n"
    "weightdiff plan bundled --device cpu-2 --json"
)


def plan(
    base: Annotated[
        str, typer.Argument(help="A base's folder or Hub name, or 'bundled'. Only its configuration is read.")
    ],
    device: Annotated[
        str, typer.Option(help="h200, h100, a100, l40s, rtx4090, t4, or cpu-2 (two cores).")
    ] = "h100",
    organisms: Annotated[int, typer.Option(help="Labelled diffs to make.", min=1)] = 1000,
    rank: Annotated[int, typer.Option(help="Their rank.", min=1)] = 8,
    steps: Annotated[int, typer.Option(help="Steps of each.", min=1)] = 100,
    rows: Annotated[int, typer.Option(help="Rows of a step of each.", min=1)] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of a row.", min=1)] = 200,
    tuning_steps: Annotated[int, typer.Option(help="Steps of the interpreter's tuning.", min=1)] = 4000,
    asked: Annotated[int, typer.Option(help="Diffs to ask about, one question each.", min=1)] = 1000,
    json: common.JsonOption = False,
) -> None:
    """Estimate memory, time and disk for a base, from its configuration: no weight is read.

    Operations are counted; how fast a device does them is assumed (35 % of its maker's peak in bf16). As
    many organisms and diffs go together as memory holds, up to 64. Expect to be off by a factor of two, and
    measure with a few organisms before you make thousands.
    """
    from weightdiff.models import estimate

    if device not in estimate.DEVICES:
        raise FormatError(f"--device cannot be {device!r}: choose one of {', '.join(estimate.DEVICES)}")
    on = estimate.DEVICES[device]
    with busy("reading the configuration"):
        shape = estimate.Shape.of(_config(base))
    work = estimate.Work(
        organisms, rank, rows=rows, steps=steps, tokens=tokens, tuning_steps=tuning_steps, asked=asked
    )
    fits = {k: min(64, estimate.most_that_fits(shape, work, on, k)) for k in ("slots", "batch", "at_once")}
    work = replace(work, **{k: max(1, n) for k, n in fits.items()})
    found = estimate.estimates(shape, work, on)
    jobs = dict(zip(fits, found, strict=True))
    if json:
        print_json(
            {
                "base": base,
                "shape": asdict(shape),
                "device": asdict(on),
                "work": asdict(work),
                "jobs": [{**asdict(e), "fits": fits[k] > 0} for k, e in jobs.items()],
            }
        )
        return
    typer.echo(
        f"{base}: {_count(shape.parameters)} parameters, {_count(shape.linear)} in linear layers; a LoRA of"
        f" rank {rank} has {_count(shape.lora(rank))} numbers"
    )
    what = {
        "slots": f"{organisms} organisms of {steps} steps, {work.slots} at once",
        "batch": f"{tuning_steps} steps, {work.batch} diffs in each",
        "at_once": f"{asked} diffs, {work.at_once} at once",
    }
    print_table(
        ["job", "what", "memory", "time", "disk"],
        [
            [
                e.job,
                what[k],
                f"{_size(e.memory)}{'' if fits[k] else ': too much'}",
                _time(e.seconds),
                _size(e.disk) if e.disk else "",
            ]
            for k, e in jobs.items()
        ],
        note=(
            f"{on.name}: {on.memory:g} GiB, {on.flops / 1e12:g} TFLOPS at {100 * estimate.SHARE:.0f} %;"
            f" rows of {tokens} tokens, base in bf16"
        ),
    )


def _config(name: str) -> Any:
    """A base's configuration.

    Raises:
        FormatError: there is none, or it is of no known architecture.
    """
    from transformers import AutoConfig

    from weightdiff.tiny.bundle import part

    common.quieten()
    try:
        return AutoConfig.from_pretrained(str(part("base")) if name == common.BUNDLED else name)
    except (OSError, ValueError, KeyError) as error:
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FormatError(
            f"{name}: no configuration can be read ({why}); give a folder or a Hub name"
        ) from error


def _count(n: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g}"


def _size(n: float) -> str:
    for size, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
