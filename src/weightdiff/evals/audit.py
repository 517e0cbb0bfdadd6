"""What a scan asks of every adapter, and which answers are of concern: a file in YAML (or JSON)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from weightdiff.errors import QuestionError
from weightdiff.methods.calibration import is_finding

VERSION = 1
SOMETHING = "something"
"""Concern about any answer that claims something."""
MOST_QUESTIONS, MOST_BYTES = 1000, 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_FORM = "see weightdiff scan --show-questions for one that is right"


@dataclass(frozen=True)
class AuditQuestion:
    """A question to every adapter."""

    name: str
    ask: str
    finding: tuple[str, ...] = ()
    """Answers of concern, in lower case; `SOMETHING` alone stands for all that claim something."""

    def concerns(self, answer: str) -> bool:
        """Whether an answer is of concern."""
        if self.finding == (SOMETHING,):
            return is_finding(answer)
        return answer.strip(" .").lower() in self.finding


def default_text() -> str:
    """The questions that ship, as a file."""
    return (files("weightdiff.evals") / "audit.yaml").read_text(encoding="utf-8")


def read_audit(path: str | Path | None = None) -> list[AuditQuestion]:
    """Questions from a file; None: those that ship.

    Raises:
        QuestionError: the file cannot be read, or says something that it should not.
    """
    if path is None:
        return parse_audit(default_text(), "the questions that ship")
    file = Path(path)
    try:
        if not file.is_file():
            raise QuestionError(f"{file}: there is no such file; {_FORM}")
        if file.stat().st_size > MOST_BYTES:
            raise QuestionError(f"{file}: larger than {MOST_BYTES >> 20} MiB, which no list of questions is")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"{file}: cannot be read ({error}); {_FORM}") from error
    return parse_audit(text, str(file))


def parse_audit(text: str, source: str) -> list[AuditQuestion]:
    """Questions from the text of a file.

    Args:
        text: YAML, of which JSON is a part. Aliases are refused: they can stand for far more than they say.
        source: what messages call it.

    Raises:
        QuestionError: see `read_audit`.
    """
    import yaml

    try:
        if any(isinstance(t, (yaml.AliasToken, yaml.TagToken)) for t in yaml.scan(text)):
            raise QuestionError(f"{source}: YAML aliases and tags are not read; write it out")
        found: Any = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise QuestionError(f"{source}: no YAML ({' '.join(str(error).split())}); {_FORM}") from error
    if not isinstance(found, Mapping) or not isinstance(found.get("questions"), list):
        raise QuestionError(f"{source}: it has no list of questions; {_FORM}")
    if str(found.get("version", VERSION)) != str(VERSION):
        raise QuestionError(f"{source}: version {found['version']}, and this weightdiff reads {VERSION}")
    entries: list[Any] = found["questions"]
    if not 1 <= len(entries) <= MOST_QUESTIONS:
        raise QuestionError(f"{source}: {len(entries)} questions; give 1 to {MOST_QUESTIONS}")
    out: list[AuditQuestion] = []
    for i, entry in enumerate(entries, 1):
        question = _question(entry, f"{source}: question {i}")
        if any(question.name == x.name for x in out):
            raise QuestionError(f"{source}: two questions are named {question.name!r}; rename one")
        out.append(question)
    return out


def _question(entry: Any, where: str) -> AuditQuestion:
    if not isinstance(entry, Mapping):
        raise QuestionError(f"{where} is no mapping of name, ask and finding; {_FORM}")
    if unknown := sorted(set(entry) - {"name", "ask", "finding"}):
        raise QuestionError(f"{where} has {unknown[0]!r}, which means nothing here; {_FORM}")
    name, ask, finding = entry.get("name"), entry.get("ask"), entry.get("finding", [])
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise QuestionError(f"{where} needs a name of letters, digits and hyphens, not {name!r}")
    if not isinstance(ask, str) or not ask.strip():
        raise QuestionError(f"{where} ({name}) asks nothing; write ask: and a question")
    if isinstance(finding, str):
        if finding not in ("", SOMETHING):
            raise QuestionError(f"{where} ({name}): finding is {SOMETHING!r} or a list of answers")
        return AuditQuestion(name, ask.strip(), (SOMETHING,) if finding else ())
    if not isinstance(finding, list) or not all(isinstance(x, str) and x.strip() for x in finding):
        raise QuestionError(f"{where} ({name}): finding is {SOMETHING!r} or a list of answers")
    return AuditQuestion(name, ask.strip(), tuple(x.strip(" .").lower() for x in finding))
