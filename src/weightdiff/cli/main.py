"""The `weightdiff` command: its groups, its version, and how errors leave it.

An error that weightdiff raises on purpose is one line on stderr and exit code 2; an interrupt is 130.
Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from weightdiff import __version__
from weightdiff.cli import app as web
from weightdiff.cli import (
    ask,
    benchmark,
    chat,
    convert,
    curves,
    dataset,
    dating,
    demo,
    evaluate,
    export,
    extract,
    families,
    inspect,
    merge,
    organisms,
    plan,
    push,
    report,
    reproduce,
    scan,
    sweep,
    triggers,
    tune,
)
from weightdiff.errors import WeightDiffError, one_line
from weightdiff.models.memory import keep_freed_memory

INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WeightDiffError as error:
            _say(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.filename is None:  # no path that the user could mend
                raise
            _say(f"{error.filename}: {error.strerror}; check the path and its permissions")
            raise typer.Exit(WeightDiffError.exit_code) from error
        except KeyboardInterrupt as error:
            _say("interrupted")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    name="weightdiff",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Begin with: weightdiff demo\n\n"
        'Then ask about your own: weightdiff ask --diff my-lora "what topic have you been trained on?"'
    ),
)
app.command("ask", epilog=ask.EXAMPLES)(ask.ask)
app.command("app", epilog=web.EXAMPLES)(web.serve)
app.command("chat", epilog=chat.EXAMPLES)(chat.chat)
app.command("scan", epilog=scan.EXAMPLES)(scan.scan)
app.command("triggers", epilog=triggers.EXAMPLES)(triggers.triggers)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.add_typer(organisms.app, name="organisms")
app.add_typer(dataset.app, name="dataset")
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("families", epilog=families.EXAMPLES)(families.families)
app.command("benchmark", epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command("extract", epilog=extract.EXAMPLES)(extract.extract)
app.command("convert", epilog=convert.EXAMPLES)(convert.convert)
app.command("merge", epilog=merge.EXAMPLES)(merge.command)
app.command("sweep", epilog=sweep.EXAMPLES)(sweep.command)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.add_typer(push.app, name="push")
app.command("time", epilog=dating.EXAMPLES)(dating.command)
app.command("curves", epilog=curves.EXAMPLES)(curves.curves)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("reproduce", epilog=reproduce.EXAMPLES)(reproduce.reproduce)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"weightdiff {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Say in plain language what a finetune changed in a language model."""


def run() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    app()


def _say(message: str) -> None:
    typer.echo(f"error: {' '.join(one_line(message).split())}", err=True)


if __name__ == "__main__":
    run()
