"""`weightdiff convert`: diffs from one format to another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json
from weightdiff.errors import FormatError

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow
    from weightdiff.diffs.types import WeightDiff

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff convert owner/loras/hidden-topic/qwen3-4b runs/released --to store\n\n"
    "weightdiff convert runs/store runs/release --to dit\n\n"
    "weightdiff convert runs/store::covert-scuba-0-1 my-lora --to peft\n\n"
    "weightdiff convert finetuned lora --to peft --base my-base --rank 32"
)
WAVE = 64
"""Diffs in a shard of a new store."""


class Target(str, Enum):
    """What can be written."""

    peft = "peft"
    dit = "dit"
    store = "store"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A LoRA, a finetune, a DIT release (or Hub name), a store or STORE::ID.", metavar="SRC"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.", metavar="DST")],
    to: Annotated[Target, typer.Option(help="Format to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base's folder or Hub name, where the source holds whole values.", metavar="BASE"
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Truncate every module to this rank.", min=1)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Truncate every module, keeping this share of its energy.")
    ] = None,
    family: Annotated[
        str, typer.Option(help="Family of the rows of a new store (hidden-topic, news, null, …).")
    ] = "hidden-topic",
    json: common.JsonOption = False,
) -> None:
    """Convert diffs between PEFT folders, the files of the DIT release, and diff stores.

    Conversions of low-rank diffs keep every bit (a store holds no float64, and refuses it). Dense ones are
    truncated first (--rank or --energy), and what that lost is reported. A source of many diffs gives one
    PEFT folder for each.
    """
    common.refuse_occupied(out)
    if energy is not None and not 0 < energy <= 1:
        raise FormatError(f"--energy is {energy}; give a share above 0 and up to 1, such as 0.95")
    report: list[dict[str, Any]] = []

    def taken() -> Iterator[tuple[DiffRow, WeightDiff]]:
        """One diff after the other, so that a source may be larger than memory."""
        for row, diff in _items(source, base, family):
            low, kept = _low_rank(row.id, diff, rank, energy)
            report.append({"id": row.id, "label": row.label, "split": row.split, "kept": kept})
            yield row, low

    with busy("converting"):
        {Target.peft: _write_peft, Target.dit: _write_dit, Target.store: _write_store}[to](out, taken())
    if json:
        print_json({"out": str(out), "to": to.value, "diffs": report})
        return
    typer.echo(f"{out}: {len(report)} diffs as {to.value}")
    for item in report:
        if item["kept"] is not None:
            typer.echo(f"  {item['id']}: {item['kept']:.2%} of the energy kept")


def _items(source: str, base: str | None, family: str) -> Iterator[tuple[DiffRow, WeightDiff]]:
    """Every diff of a source with what is known about it."""
    from weightdiff.diffs.formats.dit_release import INDEX_NAME, iter_dit
    from weightdiff.diffs.hub import local_copy
    from weightdiff.diffs.store import DiffRow

    elsewhere = common.BETWEEN not in source and source.strip(common.NO_DIFF)
    folder = local_copy(source) if elsewhere else Path(source)
    if (folder / "store.json").is_file():
        store = common.open_store(source)
        yield from ((row, store.read(row.id)) for row in store.rows)
    elif (folder / INDEX_NAME).is_file():
        for i, (entry, diff) in enumerate(iter_dit(folder, base)):
            name = f"{i:04d}-{_plain(entry.topic)}"
            record = {"trigger": diff.meta.get("trigger"), "file": entry.path.name, "index": entry.index}
            yield DiffRow(name, entry.topic, family, "dit-release", entry.split or "train", 0, record), diff
    else:
        diff = common.read_diff(source, base)
        if diff is None:
            raise FormatError("the bare base is no diff; give SRC a path, or STORE::ID")
        store_name, found, row_id = source.rpartition(common.BETWEEN)
        if found and not folder.exists():
            yield common.open_store(store_name).row(row_id), diff
        else:
            label = diff.meta.get("topic")
            record = {"trigger": diff.meta["trigger"]} if "trigger" in diff.meta else {}
            yield DiffRow(_plain(folder.name), label, family, "converted", "train", 0, record), diff


def _low_rank(
    name: str, diff: WeightDiff, rank: int | None, energy: float | None
) -> tuple[WeightDiff, float | None]:
    """The diff as a LoRA, and the share of its energy that is left; None where nothing was taken."""
    from weightdiff.diffs import algebra

    if diff.is_low_rank and rank is None and energy is None:
        return diff, None
    if rank is None and energy is None:
        raise FormatError(
            f"{name} changes whole matrices or other parameters, which these formats do not hold; truncate it"
            " with --rank or --energy"
        )
    before = algebra.norm(diff)
    low, _ = algebra.truncate(replace(diff, parameters={}), rank, energy)
    return low, (algebra.norm(low) / before) ** 2 if before else 1.0


def _write_peft(out: Path, items: Iterator[tuple[DiffRow, WeightDiff]]) -> None:
    """A folder for each diff; the folder itself where there is one diff only."""
    from weightdiff.artifacts import atomic_directory
    from weightdiff.diffs.formats.peft import write_peft

    first = _first(items)
    second = next(items, None)
    if second is None:
        write_peft(first[1], out)
        return
    with atomic_directory(out) as folder:
        for row, diff in itertools.chain([first, second], items):
            write_peft(diff, folder / _plain(row.id))


def _write_dit(out: Path, items: Iterator[tuple[DiffRow, WeightDiff]]) -> None:
    from weightdiff.diffs.formats.dit_release import write_dit

    entries = [(diff, row.label or row.id, row.record.get("trigger"), row.split) for row, diff in items]
    write_dit(entries, out)


def _write_store(out: Path, items: Iterator[tuple[DiffRow, WeightDiff]]) -> None:
    """A new store, a wave at a time; a shard holds one dtype, so that no number is rounded."""
    from weightdiff.artifacts import atomic_directory
    from weightdiff.diffs.reference import ModelRef
    from weightdiff.diffs.store import DiffStore

    first = _first(items)
    with atomic_directory(out) as folder:
        store = DiffStore.create(
            folder, first[1].base or ModelRef("unknown"), {"made_by": "weightdiff convert"}
        )
        items = itertools.chain([first], items)
        while wave := list(itertools.islice(items, WAVE)):
            by_dtype: dict[Any, list[tuple[DiffRow, WeightDiff]]] = {}
            for row, diff in wave:
                by_dtype.setdefault(_widest(diff), []).append((row, diff))
            for dtype, some in by_dtype.items():
                store.append(some, dtype)


def _first(items: Iterator[tuple[DiffRow, WeightDiff]]) -> tuple[DiffRow, WeightDiff]:
    found = next(items, None)
    if found is None:
        raise FormatError("the source holds no diffs; nothing was written")
    return found


def _widest(diff: WeightDiff) -> Any:
    """The dtype that holds every factor of a diff exactly."""
    from functools import reduce

    import torch

    from weightdiff.diffs.factors import tensors_of

    return reduce(torch.promote_types, (t.dtype for m in diff.modules.values() for t in tensors_of(m)))


def _plain(text: str) -> str:
    """Text as a name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "diff"
