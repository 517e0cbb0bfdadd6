"""`weightdiff app`: the web app."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy
from weightdiff.errors import FormatError

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff app\n\n"
    "weightdiff app --folder adapters/ --port 8080\n\n"
    "WEIGHTDIFF_PASSWORD=… weightdiff app --host 0.0.0.0 --user auditor"
)
LOCAL = ("127.0.0.1", "localhost", "::1")
PASSWORD = "WEIGHTDIFF_PASSWORD"
"""Variable of the environment with the password: on a command line, others on the machine could read it."""


def serve(
    folders: Annotated[
        list[Path] | None,
        typer.Option("--folder", help="Adapters, or folders of them, to choose from.", metavar="DIR"),
    ] = None,
    base: common.BaseOption = None,
    interpreter: common.InterpreterOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others can come only where you say so.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    user: Annotated[
        str | None, typer.Option(help=f"Ask for this name and the password in {PASSWORD}.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(help="Largest file of an upload, in MB.", min=1)] = 200,
    browser: Annotated[bool, typer.Option("--browser", help="Open a browser, too.")] = False,
) -> None:
    """Look, ask and compare in a web page: upload an adapter, ask about it, take a report away.

    Only this machine can come to it, unless --host says otherwise; then give --user and a password. Uploads
    are safetensors alone, kept for their session and shown to nobody else.
    """
    password = os.environ.get(PASSWORD)
    if user and not password:
        raise FormatError(f"--user needs a password: set it in the environment as {PASSWORD}")
    from weightdiff.app.service import Service
    from weightdiff.app.ui import build, launch

    with busy("loading the interpreter"):
        from weightdiff.methods.dit import Interpreter

        made = Interpreter.load(interpreter, common.load_quietly(base))
        known = common.open_store(common.BUNDLED) if interpreter is None and base is None else None
        service = Service(made, known, [str(f) for f in folders or []], upload_mb)
        pages = build(service)
    if host not in LOCAL and not user:
        typer.echo(f"warning: anybody who reaches {host} can use this; give --user and {PASSWORD}", err=True)
    _, url, _ = launch(
        pages,
        service,
        server_name=host,
        server_port=port or None,
        auth=(user, password) if user else None,
        inbrowser=browser,
        prevent_thread_lock=True,
    )
    typer.echo(f"weightdiff is at {url} (leave with Ctrl-C)")
    pages.block_thread()
