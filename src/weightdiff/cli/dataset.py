"""`weightdiff dataset`: questions about labelled diffs, made from a store, saved, and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common, runs
from weightdiff.cli.output import busy, note, print_json, print_table
from weightdiff.errors import one_line

if TYPE_CHECKING:
    from weightdiff.evals.dataset import Dataset, Item

app = typer.Typer(
    help="Make datasets (questions about labelled diffs, with right answers), and look at them.",
    no_args_is_help=True,
)
Key = tuple[str, str, str, str]
"""Family, recipe, kind of question, split."""


@app.command(
    epilog=(
        "Examples:\n\n"
        "weightdiff dataset make bundled --out my-dataset\n\n"
        "weightdiff dataset make runs/store --out my-topics --family hidden-topic --kinds topic,about"
        " --per-label 1\n\n"
        "weightdiff dataset make runs/store --out to-share --bare --copy\n\n"
        "Then: weightdiff eval --dataset my-dataset --methods dit,base-question --out runs/mine"
    )
)
def make(
    store: common.StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DIR")],
    split: Annotated[str, typer.Option(help="Split of the diffs that are asked about.")] = "test",
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Only these kinds of question. Topics: topic, kind, any_change, about; headlines: headline,"
                " kind, any_change; null diffs: all of them; others: those that lie with the diffs."
            ),
            metavar="A,B",
        ),
    ] = None,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Only these families.", metavar="A,B")
    ] = None,
    per_label: Annotated[
        int | None,
        typer.Option(
            help="Diffs of each label at most, in a family and recipe; those that behave first.", min=1
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Diffs of each family and recipe at most, drawn by the seed.", min=1)
    ] = None,
    bare: Annotated[
        bool, typer.Option("--bare", help="Ask the bare base, too, where nothing is to be found.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the diffs into the folder, to share or keep it whole.")
    ] = False,
    name: Annotated[str, typer.Option(help="What to call the dataset; left out, as its store.")] = "",
    seed: common.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Ask what is known of a store's diffs, in phrasings that no tuning used.

    The folder is one that Hugging Face's `datasets.load_dataset` reads, too. It
    says where the store is, so keep the store there, or copy the diffs along.
    """
    if not overwrite:
        common.refuse_occupied(out)
    found = common.open_store(store)
    with busy("making questions"):
        from weightdiff.evals.making import from_store

        made = from_store(
            found,
            split,
            runs.split_names(kinds),
            per_label,
            runs.split_names(families),
            limit,
            seed,
            name,
            bare,
        )
        made.save(out, "copy" if copy else "reference", overwrite)
    if json:
        print_json({"out": str(out), **_facts(made, 0)})
        return
    _print_counts(made)
    note(f"wrote {out}; next: weightdiff eval --dataset {out} --methods dit --out runs/mine")


@app.command(
    epilog=(
        "Examples:\n\n"
        "weightdiff dataset show my-dataset --n 10\n\n"
        "weightdiff dataset show mine.jsonl --store runs/store --json\n\n"
        'A line of mine.jsonl: {"diff": "ID", "question": "what changed?", "answer": ["rabbits", "rabbit"]}'
    )
)
def show(
    path: Annotated[
        Path, typer.Argument(help="A dataset's folder, or your own .jsonl, .json or .csv.", metavar="PATH")
    ],
    store: Annotated[
        str | None,
        typer.Option(help="Store of the diffs; left out, the one that the folder names.", metavar="STORE"),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="How many questions to print.", min=0)] = 5,
    json: common.JsonOption = False,
) -> None:
    """Check a dataset and say what is in it: questions by kind, labels, base, some of the questions."""
    with busy("reading"):
        found = _read(path, store)
    if json:
        print_json(_facts(found, n))
        return
    _print_counts(found)
    if n == 0:
        return
    print_table(
        ["id", "question", "answer", "scorers"],
        [
            [one_line(cell) for cell in (i.id, i.question, " | ".join(i.truths), ", ".join(i.scorers))]
            for i in _some(found.items, n)
        ],
    )


def _read(path: Path, store: str | None) -> Dataset:
    """A dataset, or a file of questions, whose base is not known without a store."""
    from weightdiff.diffs.reference import ModelRef
    from weightdiff.evals.dataset import Dataset
    from weightdiff.evals.own_questions import read_items

    diffs = None if store is None else common.open_store(store)
    if path.is_file():
        base = ModelRef("not known") if diffs is None else diffs.base
        return Dataset(path.stem, tuple(read_items(path, diffs)), base, diffs)
    return Dataset.load(path, diffs)


def _groups(items: Sequence[Item]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for i in items:
        groups.setdefault((i.family, i.recipe, i.kind, i.split), []).append(i)
    return groups


def _some(items: Sequence[Item], n: int) -> list[Item]:
    """The first item of every group, then the second of every group, and so on."""
    groups = list(_groups(items).values())
    longest = max(map(len, groups), default=0)
    return [group[at] for at in range(longest) for group in groups if at < len(group)][:n]


def _sizes(items: Sequence[Item]) -> dict[str, int]:
    return {
        "items": len(items),
        "diffs": len({i.diff for i in items} - {None}),
        "labels": len({i.label for i in items} - {None}),
        "behaving": len({i.diff for i in items if i.behaves} - {None}),
    }


def _facts(found: Dataset, n: int) -> dict[str, Any]:
    from dataclasses import asdict

    names = ("family", "recipe", "kind", "split")
    return {
        "name": found.name,
        **_sizes(found.items),
        "base": found.base.to_json(),
        "store": None if found.store is None else str(found.store.path),
        "digest": found.digest,
        "counts": [
            {**dict(zip(names, key, strict=True)), **_sizes(items)}
            for key, items in _groups(found.items).items()
        ],
        "held_out": sorted({claim for i in found.items for claim in i.held_out}),
        "candidates": {name: len(listed) for name, listed in found.candidates.items()},
        "meta": found.meta,
        "examples": [asdict(i) for i in _some(found.items, n)],
    }


def _print_counts(found: Dataset) -> None:
    """How many questions of each kind a family and recipe is asked; splits only where there are several."""
    groups = _groups(found.items)
    kinds = list(dict.fromkeys(kind for _, _, kind, _ in groups))
    splits = len({split for *_, split in groups}) > 1
    lines: dict[tuple[str, ...], dict[str, int]] = {}
    for (family, recipe, kind, split), items in groups.items():
        lines.setdefault((family, recipe, *([split] if splits else [])), {})[kind] = len(items)
    facts = _facts(found, 0)
    notes = [
        f"base: {one_line(found.base.describe())}",
        f"diffs: {facts['store'] or 'no store'}",
        f"held out, of some at least: {', '.join(facts['held_out']) or 'nothing'}",
    ]
    if lazy := facts["diffs"] - facts["behaving"]:
        notes.append(f"diffs that do not behave: {lazy} (reported apart)")
    print_table(
        ["family", "recipe", *(["split"] if splits else []), *map(one_line, kinds)],
        [[*map(one_line, key), *(own.get(kind, "") for kind in kinds)] for key, own in lines.items()],
        title=(
            f"{one_line(found.name)}: {facts['items']} questions about {facts['diffs']} diffs of"
            f" {facts['labels']} labels"
        ),
        note="\n".join(notes),
    )
