"""`weightdiff chat`: a conversation about a diff, on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.artifacts import atomic_write_text
from weightdiff.cli import common
from weightdiff.cli.output import EVIDENCE_NOTE, busy, chance_text, evidence_text, print_table
from weightdiff.errors import QuestionError, WeightDiffError, one_line
from weightdiff.methods.naming import read_beside

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.base import Answer
    from weightdiff.methods.dit import Interpreter

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff chat my-lora\n\n"
    "weightdiff chat bundled::covert-rabbit-0-1\n\n"
    'printf "what topic ?\\n/compare -\\n" | weightdiff chat my-lora'
)
PROMPT = "? "
LEAVING = ("/quit", "/exit", "/q")


@dataclass(frozen=True)
class Turn:
    """A question about a diff, and what was answered."""

    diff: str
    question: str
    answer: str
    notes: str
    probability: float | None
    evidence: float | None


@dataclass
class Conversation:
    """What is being talked about, and what was said."""

    interpreter: Interpreter
    read: Callable[[str], WeightDiff | None]
    """Finds a diff by its name."""
    name: str
    """The diff that is asked about."""
    evidence: bool = True
    turns: list[Turn] = field(default_factory=list[Turn])
    _diffs: dict[str, WeightDiff | None] = field(default_factory=dict[str, Any])

    def take(self, line: str) -> bool:
        """Answer a question or do a command; whether the conversation goes on.

        Raises:
            WeightDiffError: the command is wrong, or a diff cannot be read or asked.
        """
        words = line.split(maxsplit=1)
        if not words:
            return True
        if not words[0].startswith("/"):
            self.ask([self.name], line.strip())
            return True
        if words[0] in LEAVING:
            return False
        commands = {
            "/diff": self._diff,
            "/compare": self._compare,
            "/evidence": self._evidence,
            "/history": self._history,
            "/questions": self._questions,
            "/save": self._save,
            "/help": self._help,
        }
        if words[0] not in commands:
            raise QuestionError(f"no command {words[0]!r}: there are {', '.join([*commands, '/quit'])}")
        commands[words[0]](words[1].strip() if len(words) > 1 else "")
        return True

    def ask(self, names: list[str], question: str) -> None:
        """Ask one question about diffs by name, and show the answers."""
        diffs = [self.diff(n) for n in names]
        said: list[Answer] = self.interpreter.answer(diffs, [question] * len(diffs), self.evidence)
        new = [
            Turn(n, question, a.text, a.notes, a.probability, a.evidence)
            for n, a in zip(names, said, strict=True)
        ]
        self.turns += new
        if len(new) > 1:
            self._table(new, ("diff", lambda t: t.diff))
            return
        (turn,) = new
        typer.echo(one_line(turn.answer))
        told = [f"read from: {one_line(turn.notes)}"] if turn.notes else []
        told += [] if turn.probability is None else [f"right: {chance_text(turn.probability)}"]
        told += [] if turn.evidence is None else [f"evidence: {evidence_text(turn.evidence)}"]
        if told:
            typer.secho(f"  {'; '.join(told)}", dim=True)

    def diff(self, name: str) -> WeightDiff | None:
        """A diff by its name, read once."""
        if name not in self._diffs:
            self._diffs[name] = self.read(name)
        return self._diffs[name]

    def _diff(self, name: str) -> None:
        if name:
            self.diff(name)  # one that cannot be read is not gone over to
            self.name = name
        typer.echo(f"about {_called(self.name)}")

    def _compare(self, name: str) -> None:
        if not name:
            raise QuestionError("compare with what? /compare DIFF, or /compare - for the bare base")
        last = next((t.question for t in reversed(self.turns)), None)
        if last is None:
            raise QuestionError("ask something first; /compare then asks the same of another diff")
        self.ask([self.name, name], last)

    def _evidence(self, said: str) -> None:
        if said not in ("", "on", "off"):
            raise QuestionError("/evidence is on or off")
        self.evidence = not self.evidence if not said else said == "on"
        typer.echo(f"evidence is {'on' if self.evidence else 'off'}; {EVIDENCE_NOTE}")

    def _history(self, _: str) -> None:
        self._table(self.turns, ("diff", lambda t: t.diff), ("question", lambda t: t.question))

    def _table(self, turns: list[Turn], *more: tuple[str, Callable[[Turn], str]]) -> None:
        print_table(
            [*(name for name, _ in more), "answer", "right", "evidence"],
            [
                [
                    *(one_line(of(t)) for _, of in more),
                    one_line(t.answer),
                    "" if t.probability is None else chance_text(t.probability),
                    evidence_text(t.evidence),
                ]
                for t in turns
            ],
        )

    def _questions(self, _: str) -> None:
        for question in common.default_questions():
            typer.echo(question)

    def _save(self, name: str) -> None:
        if not name:
            raise QuestionError("save where? /save FILE.json")
        text = json.dumps([asdict(t) for t in self.turns], indent=2, ensure_ascii=False)
        atomic_write_text(Path(name), text + "\n")
        typer.echo(f"wrote {name}: {len(self.turns)} answers")

    def _help(self, _: str) -> None:
        typer.echo(HELP)


HELP = """\
Ask anything, in a line. Commands:
  /diff [DIFF]      talk about another diff (a path, STORE::ID, or - for the bare base)
  /compare DIFF     ask the last question of this diff and of another
  /evidence [on|off]
  /history          all questions and answers so far
  /questions        some that can be asked
  /save FILE        write questions and answers as JSON
  /quit             leave (or end of input)"""


def chat(
    diff: Annotated[
        str,
        typer.Argument(
            help="A LoRA or a finetune, as for ask: a path, Hub name, STORE::ID, or - for the bare base.",
            metavar="DIFF",
        ),
    ],
    base: common.BaseOption = None,
    interpreter: common.InterpreterOption = None,
    evidence: Annotated[
        bool,
        typer.Option("--evidence/--no-evidence", help="Measure how much of each answer is due to the diff."),
    ] = True,
) -> None:
    """Talk about a diff: ask question after question, go over to another, compare, look at the evidence.

    Everything is loaded once. Each question stands alone: what was said before is not known to the model.
    """
    with busy("loading the interpreter"):
        from weightdiff.methods.dit import Interpreter

        made = Interpreter.load(interpreter, common.load_quietly(base))

    def read(name: str) -> WeightDiff | None:
        return read_beside(name, made.base.model)

    talk = Conversation(made, read, diff, evidence)
    talk.diff(diff)
    typed = sys.stdin.isatty()
    if typed:
        _line_editing()
        typer.echo(f"about {_called(diff)}; /help tells what can be done")
    while True:
        try:
            line = input(PROMPT if typed else "")
        except EOFError:
            break
        try:
            if not talk.take(line):
                break
        except (WeightDiffError, OSError) as error:  # the conversation goes on
            typer.echo(f"error: {one_line(str(error))}", err=True)


def _called(name: str) -> str:
    return "the bare base, no diff" if name == common.NO_DIFF else name


def _line_editing() -> None:
    """Lines are edited and called back as in a shell, where Python has that."""
    import contextlib
    import importlib

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
