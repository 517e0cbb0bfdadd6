"""`weightdiff push`: an interpreter or a diff, with a model card, onto the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, print_json
from weightdiff.errors import FormatError

app = typer.Typer(help="Put an interpreter or a diff on the Hugging Face Hub.", no_args_is_help=True)

RepositoryArgument: TypeAlias = Annotated[
    str, typer.Argument(help="Repository on the Hub; made if it is not there.", metavar="OWNER/NAME")
]
PublicOption: TypeAlias = Annotated[
    bool, typer.Option("--public", help="Let everybody see it; left out, a repository is made private.")
]
RevisionOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Branch to commit to; left out, the default one.", metavar="BRANCH")
]
MessageOption: TypeAlias = Annotated[
    str | None, typer.Option("--message", "-m", help="Message of the commit.", metavar="TEXT")
]


@app.command(
    epilog=(
        "Examples:\n\n"
        "weightdiff push interpreter runs/interpreter owner/name\n\n"
        "weightdiff push interpreter runs/interpreter owner/name --public --json\n\n"
        "Then: weightdiff ask --interpreter owner/name --diff my-lora"
    )
)
def interpreter(
    folder: Annotated[
        str, typer.Argument(help="An interpreter's folder, or 'bundled'.", metavar="INTERPRETER")
    ],
    repository: RepositoryArgument,
    public: PublicOption = False,
    revision: RevisionOption = None,
    message: MessageOption = None,
    json: common.JsonOption = False,
) -> None:
    """Upload an interpreter with a card that says how to use it and how it was tuned.

    The token of hf auth login is used. The base is neither loaded nor uploaded.
    """
    with busy(f"uploading to {repository}"):
        from weightdiff.methods.dit import Interpreter

        found = Interpreter.without_base(None if folder == common.BUNDLED else folder)
        url = found.push(repository, private=not public, revision=revision, message=message)
    _report(folder, repository, url, json)


@app.command(
    epilog=(
        "Examples:\n\n"
        "weightdiff push diff my-lora owner/name\n\n"
        "weightdiff push diff bundled::covert-rabbit-0-1 owner/name --public\n\n"
        "Then: weightdiff ask --diff owner/name"
    )
)
def diff(
    path: Annotated[str, typer.Argument(help="A LoRA, as for ask: a path, or STORE::ID.", metavar="DIFF")],
    repository: RepositoryArgument,
    public: PublicOption = False,
    revision: RevisionOption = None,
    message: MessageOption = None,
    json: common.JsonOption = False,
) -> None:
    """Upload a diff as a PEFT LoRA, with a short card.

    The token of hf auth login is used.
    """
    with busy(f"uploading to {repository}"):
        from weightdiff.methods.sharing import push_diff

        found = common.read_diff(path)
        if found is None:
            raise FormatError("there is no diff to push; give a path, or STORE::ID")
        url = push_diff(found, repository, private=not public, revision=revision, message=message)
    _report(path, repository, url, json)


def _report(what: str, repository: str, url: str, json: bool) -> None:
    if json:
        print_json({"pushed": what, "repository": repository, "url": url})
        return
    typer.echo(f"{what}: {url}")
