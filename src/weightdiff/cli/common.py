"""What the commands share: their options, how diffs and questions are read, how models are loaded quietly."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from weightdiff.errors import FormatError, QuestionError
from weightdiff.methods.naming import BETWEEN, BUNDLED, NO_DIFF, open_store, read_diff

if TYPE_CHECKING:
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.loading import Base
    from weightdiff.models.rendering import Rendering

__all__ = ["BETWEEN", "BUNDLED", "NO_DIFF", "open_store", "read_diff"]  # commands find them here

BaseOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--base", help="Base: a folder or Hub name; left out, the bundled one.", metavar="BASE"),
]
InterpreterOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Interpreter: a folder or Hub name; left out, the bundled one.", metavar="INTERPRETER"),
]
JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print pure JSON on stdout; progress stays on stderr.")
]
StoreArgument: TypeAlias = Annotated[
    str, typer.Argument(help="A diff store's folder, or 'bundled'.", metavar="STORE")
]
SeedOption: TypeAlias = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


def read_questions(path: Path, what: str = "questions") -> list[str]:
    """Questions from a file: `.json` is a list of strings, everything else has one a line.

    Args:
        path: the file.
        what: what messages call them.

    Raises:
        QuestionError: the file cannot be read, or holds no questions.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise QuestionError(
            f"{path}: {what} cannot be read ({why}); give a .txt with one a line, or a .json list"
        ) from error
    if path.suffix == ".json":
        try:
            found: Any = json.loads(text)
        except ValueError as error:
            raise QuestionError(f"{path}: not JSON ({error}); give a list of strings") from error
        if not isinstance(found, list) or not all(isinstance(q, str) for q in found):
            raise QuestionError(f'{path}: {what} must be a JSON list of strings, such as ["what changed?"]')
        questions = [q for q in found if q.strip()]
    else:
        questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise QuestionError(f"{path}: it holds no {what}; write one a line")
    return questions


def read_changes(names: Sequence[str], base: str | None = None) -> list[WeightDiff]:
    """Diffs by name, each of which must be one; see `read_diff`.

    Raises:
        FormatError: one is the bare base.
    """
    found = [read_diff(name, base) for name in names]
    changes = [diff for diff in found if diff is not None]
    if len(changes) < len(found):
        raise FormatError("the bare base is no diff, and a weight of 0 is the same; give paths, or STORE::ID")
    return changes


def default_questions() -> list[str]:
    """The first phrasing of each kind of question."""
    from weightdiff.organisms.questions import KINDS, phrasings

    return [phrasings(kind)[0] for kind in KINDS]


def load_quietly(name: str | None, dtype: str = "float32") -> Base:
    """A base by name, without the progress bars and advice of its library."""
    from weightdiff.methods.loading import load_base

    quieten()
    return load_base(None if name == BUNDLED else name, dtype)


def quieten() -> None:
    """Keep the model library's progress bars and advice off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def rendering_for(tokenizer: Any, probes: int | None = None, renderings: int | None = None) -> Rendering:
    """How tuning words questions: behind probes on bases like the embedded one, plainly elsewhere.

    Args:
        tokenizer: of the base, known by its chat template.
        probes: how many; None for the bundled interpreter's number, 0 for plain questions.
        renderings: how many are averaged when answering; None for the bundled interpreter's number.
    """
    from weightdiff.models.rendering import Rendering
    from weightdiff.tiny.defaults import rendering
    from weightdiff.tiny.tokenizer import is_embedded

    if probes == 0 or not is_embedded(tokenizer):
        return Rendering()
    return rendering(**picked({"per_question": probes, "renderings": renderings}))


def code_commit() -> str:
    """The commit of the code that runs, where it runs from its git checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def command_line() -> str:
    """The command that runs, as a shell takes it."""
    return shlex.join(["weightdiff", *sys.argv[1:]])


def machine() -> str:
    """What it runs on, in words."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def refuse_occupied(path: Path) -> None:
    """Refuse an output folder that holds something, before hours of work go into it.

    Raises:
        FormatError: it is a file or not empty.
    """
    if path.is_file():
        raise FormatError(f"{path} is a file, and a folder should be written there; choose another path")
    if path.is_dir() and any(path.iterdir()):
        raise FormatError(f"{path} exists and is not empty; choose another path")


def picked(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given (those that are not None)."""
    return {k: v for k, v in config.items() if v is not None}


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, with how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
