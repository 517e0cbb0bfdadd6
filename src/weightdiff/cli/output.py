"""How commands print: pure JSON or tables on stdout, progress on stderr; rich is imported where used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer

from weightdiff.artifacts import finite
from weightdiff.methods.evidence import evidence_word


def evidence_text(nats: float | None) -> str:
    """Evidence as a table shows it, such as "+7.1 strong"."""
    return "" if nats is None else f"{nats:+.1f} {evidence_word(nats)}"


def chance_text(probability: float | None) -> str:
    """How likely an answer is to be right, such as "97 %"; one that was withheld has none."""
    return "withheld" if probability is None else f"{100 * probability:.0f} %"


EVIDENCE_NOTE = (
    "evidence: log p(answer | diff) − log p(answer | no diff) in nats; strong from 3, weak from 1, else none"
)


def print_json(value: Any) -> None:
    """Print JSON and nothing else; numbers that JSON has no word for become null."""
    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, note: str | None = None
) -> None:
    """Print a table, its title above and a note below; cells are texts, never markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ROUNDED)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console()
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)
    if note:
        console.print(Text(note, style="dim"))


def note(message: str) -> None:
    """Print a line for people on stderr."""
    typer.echo(message, err=True)


class Bar(Protocol):
    """A progress bar: where it stands, and a few words beside it."""

    def __call__(self, done: float, words: str = "", total: float | None = None) -> None:
        """Move the bar to `done`."""
        ...


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Bar]:
    """A bar on stderr with the time left; it shows from its first move on, so that errors come alone."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
    )
    task = bar.add_task(title, total=total, words="")

    def move(done: float, words: str = "", total: float | None = None) -> None:
        bar.start()
        bar.update(task, completed=done, words=words, total=total)

    try:
        yield move
    finally:
        if bar.live.is_started:  # stopping prints an empty line otherwise
            bar.stop()


@contextmanager
def busy(message: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something that cannot be counted goes on; yields what changes its message.

    Where stderr is no terminal, changed messages are lines.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status(Text(message)) as status:

        def say(words: str) -> None:
            if console.is_terminal:
                status.update(Text(words))
            else:
                note(words)

        yield say
