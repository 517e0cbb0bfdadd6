"""`weightdiff organisms`: make labelled weight diffs, look at them, check them, hand them out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, print_table, progress_bar
from weightdiff.errors import FormatError, QuestionError, StoreError

if TYPE_CHECKING:
    from weightdiff.organisms.base import OrganismSpec
    from weightdiff.training.production import Production

app = typer.Typer(
    help="Make organisms (labelled weight diffs), list, verify and export them.", no_args_is_help=True
)
SPLITS = ("train", "validation", "test")
DTYPES = ("float32", "bfloat16")


@app.command(
    epilog=(
        "Examples:\n\n"
        "weightdiff organisms train --family hidden-topic --recipe covert --n 96 --out runs/store\n\n"
        "weightdiff organisms train --family news --n 48 --split validation --out runs/store --slots 24\n\n"
        "Stopped? The same command goes on where it was."
    )
)
def train(
    family: Annotated[
        str, typer.Option(help="Family: hidden-topic, news, quirk, edit, null, several, or yours.")
    ],
    n: Annotated[int, typer.Option("--n", help="How many organisms.", min=1)],
    out: Annotated[Path, typer.Option("--out", help="Store to add to; made if absent.", metavar="STORE")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe of the family; left out, its first (covert, stories, gated, …)."),
    ] = None,
    split: Annotated[str, typer.Option(help="Labels of which split: train, validation or test.")] = "train",
    seed: common.SeedOption = 0,
    makings: Annotated[
        str | None,
        typer.Option(
            help=(
                "Ranks, optimisers and rates in turn: seen (as in the bundle's training), unseen,"
                " r8, or full (all weights of the linear layers)."
            )
        ),
    ] = None,
    base: common.BaseOption = None,
    slots: Annotated[int, typer.Option(help="Organisms trained at once.", min=1)] = 48,
    dtype: Annotated[
        str, typer.Option(help="Precision of the frozen base: float32 or bfloat16.")
    ] = "float32",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check that each behaves before it is stored.")
    ] = True,
    both: Annotated[bool, typer.Option("--both", help="Verify greedily as well as sampled.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps of each organism.", min=0, hidden=True)] = None,
    json: common.JsonOption = False,
) -> None:
    """Train organisms, many at once, verify each, and add them to a store in shards."""
    _one_of("split", split, SPLITS)
    _one_of("dtype", dtype, DTYPES)
    specs = _specs(family, recipe, split, n, seed, steps, makings)
    with busy("loading the base"):
        from weightdiff.diffs.store import DiffStore
        from weightdiff.training.production import produce

        loaded = common.load_quietly(base, dtype)
        there = (out / "store.json").is_file()
        store = DiffStore.open(out) if there else DiffStore.create(out, loaded.ref)
    start = time.monotonic()
    with progress_bar("organism steps", total=1) as bar:

        def show(state: Production) -> None:
            seconds = max(time.monotonic() - start, 1e-9)
            each = state.steps_wanted / max(1, state.wanted)
            rate = state.steps / max(each, 1e-9) / seconds * 60
            words = f"stored {state.stored}/{state.wanted}  loss {state.loss:.2f}  {rate:.0f} organisms/min"
            bar(state.steps, words, total=max(1, state.steps_wanted))

        done = produce(
            loaded.model, loaded.tokenizer, loaded.ref, specs, store, slots, 6 if verify else 0, both, show
        )
    seconds = round(time.monotonic() - start, 1)
    if json:
        print_json({"store": str(out), "seconds": seconds, "in_store": len(store), **done.to_json()})
        return
    typer.echo(f"{out}: stored {done.stored} in {seconds} s, {done.skipped} were there, {len(store)} in all")
    if done.verified:
        typer.echo(f"behaving: {done.behaving} of {done.verified}")
    if done.misbehaving:
        typer.echo(f"not behaving (left out of tuning): {common.listed(done.misbehaving)}")


@app.command(
    "list",
    epilog=(
        "Examples:\n\nweightdiff organisms list bundled\n\n"
        "weightdiff organisms list runs/store --family news --json"
    ),
)
def list_(
    store: common.StoreArgument,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    json: common.JsonOption = False,
) -> None:
    """List the diffs of a store with what was hidden in each."""
    found = common.open_store(store)
    rows = found.select(family=family, split=split)
    if json:
        print_json([row.to_json() for row in rows])
        return
    print_table(
        ["id", "family", "recipe", "split", "label", "behaves"],
        [[r.id, r.family, r.recipe, r.split, r.label, _verdict(r.verification)] for r in rows],
        title=f"{store}: {len(rows)} of {len(found)} diffs of {found.base.describe()}",
    )


@app.command(
    epilog=(
        "Examples:\n\nweightdiff organisms verify bundled --n 8\n\n"
        "weightdiff organisms verify runs/store --both --json"
    )
)
def verify(
    store: common.StoreArgument,
    n: Annotated[int | None, typer.Option("--n", help="Only the first so many.", min=1)] = None,
    asked: Annotated[int, typer.Option(help="Prompts for each condition.", min=1)] = 6,
    both: Annotated[bool, typer.Option("--both", help="Decode greedily as well as sampled.")] = False,
    base: common.BaseOption = None,
    json: common.JsonOption = False,
) -> None:
    """Check again that organisms behave: what they were taught shows where it shall, and only there.

    Leaves with exit code 1 if some do not.
    """
    found = common.open_store(store)
    rows = found.rows[:n]
    if not rows:
        raise StoreError(f"{store} is an empty diff store; make some: weightdiff organisms train")
    with busy("loading the base"):
        from weightdiff.diffs.types import WeightDiff
        from weightdiff.organisms.verify import check_known
        from weightdiff.organisms.verify import verify as check

        check_known(rows)  # all of them, before any is asked
        loaded = common.load_quietly(base)
        WeightDiff({}, found.base).check_base(loaded.ref)
    results: list[dict[str, Any]] = []
    with progress_bar("verifying", total=len(rows)) as bar:
        for at in range(0, len(rows), 48):
            items = [(row, found.read(row.id)) for row in rows[at : at + 48]]
            records = check(loaded.model, loaded.tokenizer, items, asked, both)
            for (row, _), record in zip(items, records, strict=True):
                results.append({"id": row.id, "family": row.family, "label": row.label, **record})
            bar(len(results))
    bad = [r["id"] for r in results if not r["behaves"]]
    if json:
        print_json(results)
    else:
        print_table(
            ["id", "label", "sampled", *(["greedy"] if both else []), "behaves"],
            [
                [
                    r["id"],
                    r["label"],
                    _numbers(r.get("sampled")),
                    *([_numbers(r.get("greedy"))] if both else []),
                    _verdict(r),
                ]
                for r in results
            ],
            note="right, wrong, none: answers that show it after such a sign; denied: those that deny",
        )
        typer.echo(f"behaving: {len(results) - len(bad)} of {len(results)}")
    if bad:
        note(f"do not behave: {common.listed(bad)}")
        raise typer.Exit(1)


@app.command(
    epilog="Example:\n\nweightdiff organisms export bundled ID my-lora\n\nThen: weightdiff ask --diff my-lora"
)
def export(
    store: common.StoreArgument,
    id: Annotated[str, typer.Argument(help="A diff's id, as `organisms list` shows it.", metavar="ID")],
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
) -> None:
    """Write one diff as an ordinary PEFT LoRA folder, which any PEFT-reading program takes."""
    diff = common.open_store(store).read(id)
    from weightdiff.diffs.formats.peft import write_peft

    write_peft(diff, out, overwrite=overwrite)
    typer.echo(f"{out}: PEFT LoRA of {id}, {len(diff.modules)} modules, rank {diff.max_rank}")


def _specs(
    family: str, recipe: str | None, split: str, n: int, seed: int, steps: int | None, makings: str | None
) -> list[OrganismSpec]:
    from dataclasses import replace

    from weightdiff.organisms import base
    from weightdiff.organisms.makings import MAKINGS, vary

    known = base.family(family)
    name = recipe or next(iter(known.recipes))
    base.find_recipe(known, name)
    if n > 1_000_000:
        raise QuestionError(f"{n} organisms are more than a store is made for; ask for a million at most")
    if makings is not None:
        _one_of("makings", makings, tuple(MAKINGS))
    specs = known.specs(name, split, n, seed)
    specs = vary(specs, MAKINGS[makings]) if makings else specs
    if steps is None:
        return specs
    return [replace(s, recipe=replace(s.recipe, steps=min(steps, s.recipe.steps))) for s in specs]


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise FormatError(f"{what} cannot be {given!r}: choose one of {', '.join(known)}")


def _verdict(record: dict[str, Any]) -> str:
    return {True: "✓", False: "✗"}.get(record.get("behaves"), "")  # type: ignore[arg-type]


def _numbers(result: dict[str, Any] | None) -> str:
    """Shares by name; of several parts, one after the other."""
    shares = dict(result or {})
    parts = [_numbers(p) for p in shares.pop("parts", [])]
    own = ", ".join(f"{k} {v:.2f}" for k, v in shares.items())
    return "; ".join(x for x in (*parts, own) if x)
