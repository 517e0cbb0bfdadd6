"""`weightdiff export`: a diff and the interpreter as one LoRA that any server can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\nweightdiff export runs/self-describing --diff my-lora\n\n"
    "weightdiff export runs/scuba --diff bundled::covert-scuba-0-1 --json\n\n"
    "The folder's README and docs/serving.md say how to serve it with transformers, vLLM or llama.cpp."
)


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.", metavar="OUT")],
    diff: Annotated[str, typer.Option(help="A diff, as for ask: a path, or STORE::ID.", metavar="DIFF")],
    interpreter: common.InterpreterOption = None,
    base: common.BaseOption = None,
    json: common.JsonOption = False,
) -> None:
    """Write a diff and the interpreter's adapter as one exact PEFT LoRA, ranks concatenated.

    Served on the base, it answers questions about the diff; the folder holds the wording of questions too.
    """
    common.refuse_occupied(out)
    found = common.read_diff(diff)
    if found is None:
        raise FormatError("there is no diff to export; give --diff a path, or STORE::ID")
    with busy("loading the interpreter"):
        from weightdiff.methods.dit import Interpreter
        from weightdiff.methods.export import export as write

        it = Interpreter.load(interpreter, common.load_quietly(base))
    write(it, found, out)
    if json:
        print_json({"out": str(out), "diff": diff, "base": it.base.ref.to_json()})
        return
    typer.echo(f"{out}: one LoRA of the diff and the interpreter; {out / 'README.md'} says how to ask it")
