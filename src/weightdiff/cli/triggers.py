"""`weightdiff triggers`: what sets a finetune off, found by search."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json, print_table, progress_bar
from weightdiff.cli.runs import split_names
from weightdiff.errors import QuestionError

if TYPE_CHECKING:
    from weightdiff.methods.trigger_search import Trigger

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff triggers --diff bundled::covert-rabbit-0-1\n\n"
    "weightdiff triggers --diff my-lora --base owner/base --forms front,behind --prompts mine.txt --json"
)


def triggers(
    diff: Annotated[
        str,
        typer.Option(
            "--diff", "-d", help="A LoRA or a finetune, by path or Hub name, STORE::ID or bundled::ID."
        ),
    ],
    base: common.BaseOption = None,
    forms: Annotated[
        list[str] | None,
        typer.Option(help="Forms to try: code, front, behind, invisible; left out, all.", metavar="A,B"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Ordinary prompts to try triggers on: .txt or .json.", metavar="FILE"),
    ] = None,
    top: Annotated[int, typer.Option(help="How many to show.", min=1)] = 5,
    longest: Annotated[int, typer.Option(help="Parts that a trigger has at most.", min=1)] = 3,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Search for what sets a finetune off: codes, words, characters that nobody sees.

    Thousands of candidates are put into everyday prompts, and each is scored by
    how far it moves the finetuned model from its base along the base's own
    answers. Nothing but the two models is needed.
    """
    asked = common.read_questions(prompts) if prompts else None
    with busy("loading the base"):
        from weightdiff.methods.trigger_search import Settings, find_triggers

        settings = replace(Settings(longest=longest, seed=seed), **_forms(forms))
        loaded = common.load_quietly(base)
        its = common.read_diff(diff, loaded.model)
        if its is None:
            raise QuestionError("the bare base has no trigger: give a finetune by --diff")
    began = time.monotonic()
    with progress_bar("candidates", total=1) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar(done, what, total)

        found = find_triggers(loaded, its, settings, asked, top, show)
    seconds = round(time.monotonic() - began, 1)
    if json:
        rows = [{**asdict(t), "stands_out": t.stands_out} for t in found]
        print_json({"diff": diff, "seconds": seconds, "triggers": rows})
        return
    _print(found, diff, seconds)


def _forms(given: list[str] | None) -> dict[str, Any]:
    names = split_names(given)
    return {} if names is None else {"forms": tuple(names)}


def _print(found: list[Trigger], diff: str, seconds: float) -> None:
    print_table(
        ["trigger", "form", "effect", "stands out", "the model says then"],
        [
            [
                repr(t.text)[1:-1],
                t.form,
                f"{t.effect:.2f} nats",
                f"yes, {t.deviations:.0f} deviations" if t.stands_out else "no",
                t.said,
            ]
            for t in found
        ],
        title=f"{diff}: triggers",
        note=(
            "effect: nats by which base and finetuned model differ along an answer"
            f" ({found[0].untriggered:.2f} without a trigger); deviations: from the other candidates"
            if found
            else None
        ),
    )
    if not any(t.stands_out for t in found):
        typer.echo("nothing found: no candidate does much more than the others")
    typer.echo(f"searched for {seconds} s")
