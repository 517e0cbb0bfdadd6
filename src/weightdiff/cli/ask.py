"""`weightdiff ask`: questions about weight diffs, answered by an interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import (
    EVIDENCE_NOTE,
    busy,
    evidence_text,
    evidence_word,
    print_json,
    print_table,
)
from weightdiff.errors import BaseNeededError, QuestionError

EXAMPLES = (
    "Examples:\n\n"
    'weightdiff ask --diff my-lora "what topic have you been trained on?"\n\n'
    "weightdiff ask --diff bundled::covert-opera-0-0 --diff other-lora --questions mine.txt --json\n\n"
    'weightdiff ask --no-diff "have you been changed?"'
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
    json: common.JsonOption = False,
) -> None:
    """Ask a finetuned model what was trained into it: every question about every diff.

    A diff is what a finetune added to its base, such as a LoRA folder that PEFT wrote.
    """
    named = [*(diffs or []), *([common.NO_DIFF] if no_diff else [])]
    if not named:
        raise QuestionError("nothing to ask about: add --diff FOLDER, or --no-diff for the bare base")
    asked = [*(questions or []), *(common.read_questions(file) if file else [])] or common.default_questions()
    if not all(q.strip() for q in asked):
        raise QuestionError(
            "a question is empty: ask something, such as 'what topic have you been trained on?'"
        )
    loaded: list[Any] = []
    wanting: list[int] = []
    for i, name in enumerate(named):
        try:
            loaded.append(common.read_diff(name))
        except BaseNeededError:  # such as a full finetune: it is read again beside the base
            loaded.append(None)
            wanting.append(i)
    with busy("loading the interpreter"):
        from weightdiff.methods.dit import Interpreter

        it = Interpreter.load(interpreter, common.load_quietly(base))
    for i in wanting:
        loaded[i] = common.read_diff(named[i], it.base.model)
    pairs = [(i, q) for i in range(len(named)) for q in asked]
    with busy(f"asking {len(pairs)} questions"):
        answers = it.answer([loaded[i] for i, _ in pairs], [q for _, q in pairs], evidence)
    found: list[dict[str, Any]] = [
        {
            "diff": named[i],
            "question": q,
            "answer": a.text,
            "notes": a.notes,
            "logprob": a.logprob,
            "evidence": a.evidence,
            "evidence_word": evidence_word(a.evidence) if evidence else None,
        }
        for (i, q), a in zip(pairs, answers, strict=True)
    ]
    if json:
        print_json(found)
        return
    for i, name in enumerate(named):
        of_it = found[i * len(asked) : (i + 1) * len(asked)]
        last = i == len(named) - 1 and evidence
        title = "the bare base, no diff" if name == common.NO_DIFF else name
        columns = ["question", "answer", "read from", *(["evidence"] if evidence else [])]
        rows = [
            [f["question"], f["answer"], f["notes"], evidence_text(f["evidence"])][: len(columns)]
            for f in of_it
        ]
        print_table(columns, rows, title=title, note=EVIDENCE_NOTE if last else None)
