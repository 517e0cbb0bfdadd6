"""`weightdiff scan`: the same questions about many adapters, and a report."""

from __future__ import annotations

import json as jsonlib
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightdiff.artifacts import atomic_write_bytes, atomic_write_json
from weightdiff.cli import common
from weightdiff.cli.output import busy, chance_text, note, print_json, print_table, progress_bar
from weightdiff.errors import FormatError

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.evals.scan import Scanned

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff scan adapters/ --out report.html\n\n"
    "weightdiff scan a b runs/store --out report.html --out report.sarif --fail-on found\n\n"
    "weightdiff scan --show-questions > audit.yaml   # then: scan adapters/ --questions audit.yaml\n\n"
    "Stopped? The same command goes on where it was."
)
SHOWN = 20
"""Adapters in the table on the terminal."""
FORMATS = (".html", ".json", ".sarif")


class FailOn(str, Enum):
    """Verdicts that make the command leave with exit code 1."""

    found = "found"
    unreadable = "unreadable"
    odd = "odd"


def scan(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Adapters, stores, or folders of them; also STORE::ID and bundled::ID.", metavar="PATH..."
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            help="Report to write: .html, .json or .sarif; may be given several times.",
            metavar="FILE",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="What is asked, as YAML; left out, the questions that ship.", metavar="FILE"),
    ] = None,
    show_questions: Annotated[
        bool, typer.Option("--show-questions", help="Print the questions that ship, as a file, and leave.")
    ] = False,
    base: common.BaseOption = None,
    interpreter: common.InterpreterOption = None,
    known: Annotated[
        str | None,
        typer.Option(
            help="Labelled diffs to set adapters beside: a store, 'bundled', or 'none'.", metavar="STORE"
        ),
    ] = None,
    max_fpr: Annotated[
        float | None,
        typer.Option(
            "--max-fpr",
            help="Withhold findings so that at most this share of questions about unchanged models has one.",
            metavar="SHARE",
        ),
    ] = None,
    likely: Annotated[
        float, typer.Option(help="Least probability with which an answer is a finding.", min=0, max=1)
    ] = 0.5,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(help="Leave with exit code 1 if an adapter has this verdict; repeat for more."),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Scan many adapters: what an interpreter finds in each, what is odd about it, what it resembles.

    found: an answer of concern is likely to be right

    unreadable: it could not be read, or belongs to another base

    odd: nothing was found, but its structure is suspicious (see weightdiff inspect)

    clean: none of these, which is no proof

    Adapters are read in batches, so that memory does not grow with their number. What is done is kept in
    FILE.journal beside the first report, from which the same command goes on.
    """
    from weightdiff.evals import audit

    if show_questions:
        typer.echo(audit.default_text(), nl=False)
        return
    if not paths:
        raise FormatError("nothing to scan: give adapters, stores, or folders of them")
    reports = list(out or [])
    for report in reports:
        if report.suffix not in FORMATS:
            raise FormatError(f"{report}: a report ends in {', '.join(FORMATS)}")
        if report.is_dir():
            raise FormatError(f"{report} is a folder; name a file for the report")
    asked = audit.read_audit(questions)
    from weightdiff.evals import scan as scanning
    from weightdiff.evals import scan_page

    names = scanning.find_adapters(paths)
    with busy("loading the interpreter"):
        from weightdiff.methods.dit import Interpreter

        made = Interpreter.load(interpreter, common.load_quietly(base))
        made = made if max_fpr is None else made.within(max_fpr)
        beside = _known(known, interpreter)
        if beside is not None and made.base.ref.difference(beside.base):
            raise FormatError(
                f"the diffs of {beside.path} are of another base; give another --known, or none"
            )
    start = time.monotonic()
    journal = Path(f"{reports[0]}.journal") if reports else None
    with progress_bar("scanning", total=len(names)) as bar:
        found = scanning.Scan(made, asked, beside, likely).run(
            names, journal, lambda done, total: bar(done, total=max(1, total))
        )
    seconds = time.monotonic() - start
    facts = {
        "command": common.command_line(),
        "base": made.base.ref.describe(),
        "interpreter": interpreter or common.BUNDLED,
        "questions": str(questions or "those that ship"),
    }
    for report in reports:
        if report.suffix == ".html":
            atomic_write_bytes(report, scan_page.to_html(found, facts))
        elif report.suffix == ".json":
            atomic_write_json(report, scan_page.to_json(found, facts))
        else:
            text = jsonlib.dumps(scan_page.to_sarif(found, asked), indent=2)
            atomic_write_bytes(report, text.encode())
        note(f"wrote {report}")
    counts = scan_page.counts(found)
    if json:
        print_json(scan_page.to_json(found, facts))
    else:
        print_table(
            ["verdict", "adapter", "what", "right"],
            [[s.verdict, s.name, _brief(s), _right(s)] for s in found[:SHOWN]],
            note=f"{len(found) - SHOWN} more" if len(found) > SHOWN else None,
        )
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        typer.echo(f"{len(found)} adapters in {seconds:.0f} s: {told}")
    if any(counts[v.value] for v in fail_on or []):
        raise typer.Exit(1)


def _known(name: str | None, interpreter: str | None) -> DiffStore | None:
    """The store that is compared with: the bundled one beside the bundled interpreter, else none."""
    if name == "none" or (name is None and interpreter is not None):
        return None
    return common.open_store(name or common.BUNDLED)


def _brief(s: Scanned) -> str:
    """What is shown of an adapter in one cell."""
    if s.error:
        return s.error
    if s.findings:
        return "; ".join(dict.fromkeys(t.answer for t in s.findings))
    return ", ".join(sorted({x["code"] for x in s.signs}))


def _right(s: Scanned) -> str:
    """How likely the likeliest finding is to be right, if there is one."""
    found = [t.probability for t in s.findings if t.probability is not None]
    return chance_text(max(found)) if found else ""
