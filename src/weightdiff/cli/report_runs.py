"""What `weightdiff report DIR…` does: the tables of one run, or several runs side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from weightdiff.cli.output import busy, note, print_json
from weightdiff.errors import FormatError

SUFFIXES = (".md", ".html")


def report_runs(
    folders: Sequence[Path],
    names: Sequence[str] = (),
    out: Path | None = None,
    json: bool = False,
    brief: bool = False,
) -> None:
    """Print what finished runs found, and write it where asked.

    Args:
        folders: of the runs, what --out was to those who made them.
        names: what to call the runs; empty for the names of their folders.
        out: a file to write, .md or .html.
        json: print JSON instead of Markdown.
        brief: of one run, the shorter Markdown.

    Raises:
        FormatError: a folder has no finished run, or `out` has another suffix.
    """
    if out and out.suffix.lower() not in SUFFIXES:
        raise FormatError(f"{out}: a report is written as .md or .html; give a name that ends so")
    with busy("reading the runs"):
        from weightdiff.artifacts import atomic_write_bytes
        from weightdiff.evals import run_comparison, run_files, run_html, run_markdown

        called = list(names) or folder_names(folders)
        runs = [run_files.load(folder, name) for folder, name in zip(folders, called, strict=True)]
        page = out is not None and out.suffix.lower() == ".html"
        if len(runs) == 1:
            (run,) = runs
            found = {"name": run.name, **run.info, "rows": [run_files.row_json(r) for r in run.rows]}
            text = run_markdown.to_markdown(run, brief)
            data = run_html.to_html(run) if page else text.encode("utf-8", "backslashreplace")
        else:
            rows = run_comparison.compare(runs)
            found = {"runs": called, "rows": [row.to_json(called) for row in rows]}
            text = run_comparison.comparison_markdown(runs, rows)
            data = run_comparison.comparison_html(runs, rows) if page else text.encode()
        if out:
            note(f"wrote {atomic_write_bytes(out, data)}")
    if json:
        print_json(found)
    else:
        typer.echo(text, nl=False)


def folder_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with its parent's where it is shared, its path where both are."""
    whole = [f.absolute() for f in folders]
    levels = [
        [w.name, f"{w.parent.name}/{w.name}", f.as_posix()] for f, w in zip(folders, whole, strict=True)
    ]
    shared = [Counter(names) for names in zip(*levels, strict=True)]
    return [next((n for n, s in zip(own, shared, strict=True) if s[n] == 1), own[-1]) for own in levels]
