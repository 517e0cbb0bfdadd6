"""`weightdiff families`: one interpreter over all families, held against its goals, a page for each."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from weightdiff.artifacts import atomic_write_text
from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, progress_bar
from weightdiff.errors import QuestionError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff families --quick\n\n"
    "weightdiff families --store runs/full/organisms --base runs/full/base --interpreter runs/joint"
    " --out docs/results\n\n"
    "weightdiff families --interpreter runs/joint --single news=runs/news --single edit=runs/edit"
    " --out-answers runs/answers.jsonl"
)


def families(
    store: Annotated[
        str | None, typer.Option(help="Store of labelled diffs; left out, the bundled one.", metavar="STORE")
    ] = None,
    base: common.BaseOption = None,
    interpreter: common.InterpreterOption = None,
    single: Annotated[
        list[str] | None,
        typer.Option(
            help="An interpreter tuned on one family alone, to compare with; repeat for several.",
            metavar="FAMILY=INTERPRETER",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the pages and joint.json to.", metavar="DIR")
    ] = None,
    out_answers: Annotated[
        Path | None, typer.Option(help="File for all answers, a JSON object a line.", metavar="FILE")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The first diffs of each kind only.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Measure one interpreter on every family, every kind of question, and against its goals.

    All test diffs that behave are asked every kind of question that makes sense
    for them, held-out kinds and phrasings too; null diffs and the bare base are
    asked as well. With --out there is a page for each family.
    """
    named = _named(single)
    diffs = common.open_store(store or common.BUNDLED)
    with busy("loading interpreters"):
        from weightdiff.evals import family_pages
        from weightdiff.evals.families import interview
        from weightdiff.evals.family_rows import rows_of
        from weightdiff.methods.dit import Interpreter

        loaded = common.load_quietly(base)
        joint = Interpreter.load(interpreter, loaded)
        alone = {f: Interpreter.load(path, loaded) for f, path in named.items()}
    with progress_bar("questions", total=1) as bar:
        found = interview(joint, diffs, alone, quick, lambda done, total: bar(done, total=total))
    with busy("counting"):
        rows = rows_of(found)
    made = {"command": common.command_line(), "commit": common.code_commit(), "machine": common.machine()}
    if out_answers:
        lines = [f"{jsonlib.dumps(r.to_json(), ensure_ascii=False)}\n" for r in found.replies]
        note(f"answers: {atomic_write_text(out_answers, ''.join(lines))}")
    if out:
        note(f"pages: {common.listed([str(p) for p in family_pages.save(found, rows, out, **made)], 10)}")
    if json:
        print_json({**made, **family_pages.to_json(found, rows)})
    else:
        head = family_pages.header(found, **made)
        typer.echo(family_pages.joint_page(found, rows, head))


def _named(given: Sequence[str] | None) -> dict[str, str]:
    """Single-family interpreters by family.

    Raises:
        QuestionError: one is not written FAMILY=INTERPRETER, or a family comes twice.
    """
    out: dict[str, str] = {}
    for text in given or ():
        family, sign, path = (x.strip() for x in text.partition("="))
        if not (family and sign and path):
            raise QuestionError(f"--single {text!r} names no interpreter; write such as news=runs/news-alone")
        if family in out:
            raise QuestionError(f"--single names {family!r} twice; give one interpreter for each family")
        out[family] = path
    return out
