"""`weightdiff triggers`: what sets a finetune off, found by search; and how well triggers are recovered."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, print_table, progress_bar
from weightdiff.cli.runs import split_names
from weightdiff.errors import QuestionError

if TYPE_CHECKING:
    from weightdiff.methods.trigger_search import Findings

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff triggers --diff bundled::covert-rabbit-0-1\n\n"
    "weightdiff triggers --diff my-lora --base owner/base --forms word,mark --prompts mine.txt --json\n\n"
    "weightdiff triggers --evaluate runs/full/organisms --limit 8 --first-found --out docs/results"
)
SHOWN_FROM_GROUPS = 8
"""Prompts that candidates are tried on where prompts come in groups."""


def triggers(
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff", "-d", help="A LoRA or a finetune, by path or Hub name, STORE::ID or bundled::ID."
        ),
    ] = None,
    base: common.BaseOption = None,
    forms: Annotated[
        list[str] | None,
        typer.Option(help="Forms to try: code, word, mark, subject; left out, all.", metavar="A,B"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Ordinary prompts to try triggers on: .txt or .json. With blank lines between groups of a"
                " .txt, the groups (three or more) are compared, too."
            ),
            metavar="FILE",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many to show.", min=1)] = 5,
    longest: Annotated[int, typer.Option(help="Parts that a trigger has at most.", min=1)] = 3,
    first_found: Annotated[
        bool,
        typer.Option(
            "--first-found", help="Stop after the first kind of form of which something stands out."
        ),
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Measure search and asking on the test organisms of a store, in place of one diff.",
            metavar="STORE",
        ),
    ] = None,
    way: Annotated[
        str | None, typer.Option(help="What to measure: search or asking; left out, both.", metavar="WAY")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Organisms of each form that are measured at most.", min=1)
    ] = None,
    interpreter: common.InterpreterOption = None,
    renderings: Annotated[
        int | None,
        typer.Option(help="Renderings of each question asked; left out, the interpreter's own.", min=1),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for triggers.md and triggers.json.", metavar="DIR")
    ] = None,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Search for what sets a finetune off: codes, words, marks that nobody sees, subjects.

    Thousands of candidates are put into everyday prompts, and each is scored by
    how far it moves the finetuned model from its base along the base's own
    answers. Nothing but the two models is needed.

    With --evaluate, search and an interpreter are measured on organisms whose
    triggers are known.
    """
    chosen: dict[str, Any] = {"longest": longest, "first_found": first_found, "seed": seed}
    if forms is not None:
        chosen["forms"] = tuple(split_names(forms) or ())
    if (diff is None) == (evaluate is None):
        raise QuestionError("give either a finetune by --diff, or a store of organisms by --evaluate")
    if evaluate is not None:
        if way not in (None, *WAYS):
            raise QuestionError(f"no way to recover triggers is called {way!r}: choose search or asking")
        _evaluate(evaluate, base, interpreter, way, limit, renderings, out, json, chosen)
        return
    plain, groups = _prompts(prompts) if prompts else (None, None)
    with busy("loading the base"):
        from weightdiff.methods.trigger_forms import forms_called
        from weightdiff.methods.trigger_search import Settings, find_triggers

        settings = Settings(**chosen)
        forms_called(settings.forms)
        loaded = common.load_quietly(base)
        its = common.read_diff(str(diff), loaded.model)
        if its is None:
            raise QuestionError("the bare base has no trigger: give a finetune by --diff")
    began = time.monotonic()
    with progress_bar("candidates", total=1) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar(done, what, total)

        found = find_triggers(loaded, its, settings, plain, top, show, groups)
    seconds = round(time.monotonic() - began, 1)
    if json:
        rows = [{**asdict(t), "ahead": round(t.ahead, 2), "stands_out": t.stands_out} for t in found.triggers]
        told = {"verdict": found.verdict, "plain": found.plain, "plain_said": found.plain_said}
        print_json({"diff": diff, "seconds": seconds, "tried": found.tried, **told, "triggers": rows})
        return
    _print(found, str(diff), seconds)


WAYS = ("search", "asking")


def _prompts(path: Path) -> tuple[list[str], dict[str, list[str]] | None]:
    """The prompts of a file, and its groups by number and first prompt where it has several."""
    everything = common.read_questions(path)
    if path.suffix == ".json":
        return everything, None
    blocks = re.split(r"\n[ \t]*\n", path.read_text(encoding="utf-8"))
    kept = [[x.strip() for x in b.splitlines() if x.strip()] for b in blocks]
    groups = {f"group {i + 1}: {b[0]}": b for i, b in enumerate(b for b in kept if b)}
    if len(groups) < 2:
        return everything, None
    longest = max(map(len, groups.values()))
    in_turn = [b[k] for k in range(longest) for b in groups.values() if k < len(b)]
    return in_turn[:SHOWN_FROM_GROUPS], groups


def _print(found: Findings, diff: str, seconds: float) -> None:
    print_table(
        ["trigger", "form", "effect", "runner-up", "stands out", "the model says then"],
        [
            [
                repr(t.text)[1:-1],
                t.form,
                f"{t.effect:.2f} nats",
                f"{t.runner_up}: {t.runner_up_effect:.2f}",
                f"yes, {t.deviations:.0f} deviations" if t.stands_out else "no",
                t.said,
            ]
            for t in found.triggers
        ],
        title=f"{diff}: triggers",
        note=(
            "effect: nats by which base and finetuned model differ along an answer"
            f" ({found.plain:.2f} without a trigger); deviations: from ordinary candidates of the form"
        ),
    )
    typer.echo(found.verdict)
    typer.echo(f"without a trigger the model says: {found.plain_said}")
    typer.echo(f"{found.tried} candidates in {seconds} s")


def _evaluate(
    store: str,
    base: str | None,
    interpreter: str | None,
    way: str | None,
    limit: int | None,
    renderings: int | None,
    out: Path | None,
    json: bool,
    chosen: dict[str, Any],
) -> None:
    """Measure search, asking, or both, and write or print the page."""
    diffs = common.open_store(store)
    began = time.monotonic()
    with busy("loading the base") as say:
        from weightdiff.evals import trigger_page, trigger_recovery
        from weightdiff.methods.dit import Interpreter
        from weightdiff.methods.trigger_forms import forms_called
        from weightdiff.methods.trigger_search import Settings

        settings, seed = Settings(**chosen), chosen["seed"]
        forms_called(settings.forms)
        cases = trigger_recovery.cases_of(diffs, limit, seed)
        loaded = common.load_quietly(base)
        asked = Interpreter.load(interpreter, loaded) if way != "search" else None
        parts = []
        if asked is not None:
            parts.append(trigger_recovery.by_asking(asked, diffs, cases, renderings, seed, say))
        if way != "asking":
            parts.insert(0, trigger_recovery.by_search(loaded, diffs, cases, settings, say))
    found = trigger_page.together(parts)
    made = {
        "command": common.command_line(),
        "base": loaded.ref.describe(),
        "store": store,
        "interpreter": "none" if asked is None else interpreter or "the bundled one",
        "renderings": "the interpreter's own" if renderings is None else renderings,
        "seed": seed,
        "commit": common.code_commit(),
        "machine": common.machine(),
        "wall time": f"{time.monotonic() - began:.1f} s",
    }
    if out:
        text, rows = trigger_page.save(found, out, made)
        note(f"wrote {text} and {rows}")
    if json:
        print_json({**made, "rows": [r.to_json() for r in found.rows], "missed": found.missed})
    else:
        typer.echo(trigger_page.to_markdown(found, made))
