"""`weightdiff ask`: questions about weight diffs, answered by an interpreter or another method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import (
    EVIDENCE_NOTE,
    busy,
    chance_text,
    evidence_text,
    evidence_word,
    print_json,
    print_table,
)
from weightdiff.errors import BaseNeededError, QuestionError

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.base import Answer, Method

LIST = "list"
EXAMPLES = (
    "Examples:\n\n"
    'weightdiff ask --diff my-lora "what topic have you been trained on?"\n\n'
    "weightdiff ask --diff bundled::covert-rabbit-0-1 --diff other-lora --questions mine.txt --json\n\n"
    'weightdiff ask --no-diff --max-fpr 0.01 "have you been changed?"\n\n'
    "weightdiff ask --diff my-lora --method logit-difference"
)


def ask(
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="Your questions; left out, four standard ones.", metavar="QUESTION..."),
    ] = None,
    diffs: Annotated[
        list[str] | None,
        typer.Option(
            "--diff",
            "-d",
            help=(
                "A LoRA or a finetune, by path or Hub name (owner/name), STORE::ID or bundled::ID, or - for"
                " the bare base. Repeat for more."
            ),
            metavar="DIFF",
        ),
    ] = None,
    no_diff: Annotated[bool, typer.Option("--no-diff", help="Ask about the bare base too.")] = False,
    base: common.BaseOption = None,
    interpreter: common.InterpreterOption = None,
    file: Annotated[
        Path | None,
        typer.Option("--questions", help="A .txt with one question a line, or a .json list.", metavar="FILE"),
    ] = None,
    evidence: Annotated[
        bool,
        typer.Option("--evidence/--no-evidence", help="Measure how much of each answer is due to the diff."),
    ] = True,
    max_fpr: Annotated[
        float | None,
        typer.Option(
            "--max-fpr",
            help=(
                "Answer 'nothing found' unless a finding is so likely that at most this share of questions"
                " about unchanged models would be answered with one, such as 0.01."
            ),
            metavar="SHARE",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="What answers: a method's name, or 'list' to see them all.", metavar="NAME"),
    ] = "dit",
    train_store: Annotated[
        str | None,
        typer.Option(help="Labelled diffs for methods that need some: a diff store.", metavar="STORE"),
    ] = None,
    seed: common.SeedOption = 0,
    json: common.JsonOption = False,
) -> None:
    """Ask a finetuned model what was trained into it: every question about every diff.

    A diff is what a finetune added to its base, such as a LoRA folder that PEFT wrote.
    """
    if method == LIST:
        _list_methods(json)
        return
    named = [*(diffs or []), *([common.NO_DIFF] if no_diff else [])]
    if not named:
        raise QuestionError("nothing to ask about: add --diff FOLDER, or --no-diff for the bare base")
    asked = [*(questions or []), *(common.read_questions(file) if file else [])] or common.default_questions()
    if not all(q.strip() for q in asked):
        raise QuestionError(
            "a question is empty: ask something, such as 'what topic have you been trained on?'"
        )
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.registry import Context, build, find

    needs = find(method).needs  # an unknown one is refused before anything is loaded
    loaded: list[Any] = []
    wanting: list[int] = []
    for i, name in enumerate(named):
        try:
            loaded.append(common.read_diff(name))
        except BaseNeededError:  # such as a full finetune: it is read again beside the base
            loaded.append(None)
            wanting.append(i)
    with busy(f"loading {method}"):
        its_base = common.load_quietly(base)
        needed = "interpreter" in needs or interpreter is not None
        it = Interpreter.load(interpreter, its_base) if needed else None
        if max_fpr is not None:
            if it is None:
                raise QuestionError(f"--max-fpr needs an interpreter's calibration, and {method} has none")
            it = it.within(max_fpr)
        store = common.open_store(train_store) if train_store is not None else None
        asker = build(method, Context(its_base, it, store, seed))
    for i in wanting:
        loaded[i] = common.read_diff(named[i], its_base.model)
    pairs = [(i, q) for i in range(len(named)) for q in asked]
    with busy(f"asking {len(pairs)} questions"):
        answers, measured = _answers(asker, [loaded[i] for i, _ in pairs], [q for _, q in pairs], evidence)
    found: list[dict[str, Any]] = [
        {
            "diff": named[i],
            "method": method,
            "question": q,
            "answer": a.text,
            "notes": a.notes,
            "logprob": a.logprob,
            "evidence": a.evidence,
            "evidence_word": evidence_word(a.evidence) if measured else None,
            "probability": a.probability,
            "agreement": a.agreement,
            "withheld": a.withheld or None,
        }
        for (i, q), a in zip(pairs, answers, strict=True)
    ]
    if json:
        print_json(found)
        return
    for i, name in enumerate(named):
        title = "the bare base, no diff" if name == common.NO_DIFF else name
        last = i == len(named) - 1
        _print_answers(found[i * len(asked) : (i + 1) * len(asked)], title, measured, last)


def _list_methods(json: bool) -> None:
    """Print every method's name and what it does."""
    from weightdiff.methods.registry import methods

    entries = list(methods().values())
    if json:
        print_json([{"name": e.name, "description": e.description, "needs": e.needs} for e in entries])
    else:
        print_table(["method", "what it does"], [[e.name, e.description] for e in entries])


def _answers(
    asker: Method, diffs: list[WeightDiff | None], questions: list[str], evidence: bool
) -> tuple[list[Answer], bool]:
    """A method's answers, and whether their evidence was measured: only an interpreter's can be."""
    from weightdiff.methods.dit import gives_evidence

    if gives_evidence(asker):
        return asker.answer(diffs, questions, evidence), evidence
    return asker.answer(diffs, questions), False


def _print_answers(found: list[dict[str, Any]], title: str, measured: bool, last: bool) -> None:
    """Print the answers about one diff, with a column for what some of them have and no other."""
    columns: dict[str, list[str]] = {"question": [f["question"] for f in found]}
    columns["answer"] = [f["answer"] for f in found]
    if measured or any(f["notes"] for f in found):
        columns["read from"] = [f["notes"] for f in found]
    if any(f["probability"] is not None or f["withheld"] for f in found):
        columns["right"] = [chance_text(f["probability"]) for f in found]
    if measured:
        columns["evidence"] = [evidence_text(f["evidence"]) for f in found]
    rows = list(zip(*columns.values(), strict=True))
    print_table(list(columns), rows, title=title, note=EVIDENCE_NOTE if last and measured else None)
