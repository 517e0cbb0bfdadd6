"""Questions of one's own: a file of diffs, questions and answers becomes items of a dataset."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from weightdiff.artifacts import parse_json, read_json
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import named
from weightdiff.errors import FormatError, QuestionError
from weightdiff.evals.dataset import Item
from weightdiff.evals.items import BARE, OWN_KIND, check_items, numbered, row_fields
from weightdiff.evals.typed_json import Mismatch, typed

NEEDED = ("diff", "question", "answer")
FIELDS = (*NEEDED, *(f.name for f in fields(Item) if f.name not in (*NEEDED, "truths", "candidates")))
"""What a question of one's own may say."""
SCORERS = ("normalised", "token_f1")
"""Scorers of one that names none."""
SEPARATOR = "|"
"""Between the answers, scorers and claims in one cell of a .csv."""
_LISTS = ("scorers", "held_out")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LINE_BYTES = 1 << 20


def read_items(path: str | os.PathLike[str], store: DiffStore | None = None) -> list[Item]:
    """Questions from a `.jsonl` file (one a line), a `.json` file (a list) or a `.csv` file (with a header).

    Each has a `diff` (an id of the store, or "-" for the bare base), a `question` and an `answer` (a text, or
    a list of texts that say the same, the reference first), and may have other fields of `Item`. In a `.csv`,
    several answers or scorers stand in one cell with | between them, and an empty cell says nothing. What a
    question does not say is taken from its diff's row in the store; its scorers are `SCORERS`, its kind
    "summary", and nothing of it is claimed to be held out.

    Args:
        path: the file.
        store: of the diffs; without one, nothing is known of them.

    Raises:
        FormatError: the file cannot be read; says which line.
        QuestionError: there are no questions, or one cannot be asked or scored; says which line.
        StoreError: a diff is not in the store.
    """
    items: list[Item] = []
    places: list[str] = []
    for place, value in _records(Path(path)):
        try:
            items.append(_item(value, store))
        except Mismatch as error:
            raise FormatError(f"{place}: {error}") from error
        places.append(place)
    if not items:
        raise QuestionError(f"{path} holds no questions; write one a line, with diff, question and answer")
    items = numbered(items)
    check_items(items, {}, store, places)
    return items


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of every line of a file of JSON lines; empty ones are passed over.

    Raises:
        FormatError: it cannot be read; says which line.
    """
    try:
        if not path.is_file():  # opening a pipe would wait forever
            raise FormatError(f"{path} is no file; check the path")
        with open(path, "rb") as stream:
            number = 0
            while line := stream.readline(_LINE_BYTES + 1):  # not at the other line ends that texts may hold
                number += 1
                try:
                    if len(line) > _LINE_BYTES:
                        raise ValueError(f"it is longer than {_LINE_BYTES >> 20} MiB")
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    found = parse_json(text) if text else None
                except ValueError as error:
                    why = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
                    raise FormatError(
                        f"{path}, line {number}: no JSON ({why}); write one object a line"
                    ) from error
                if text:
                    yield number, found
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each question stands, and what is said there."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from ((f"{path}, line {n}", value) for n, value in json_lines(path))
    elif suffix == ".json":
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise FormatError(f"{path} cannot be read ({why}); give a JSON list of questions") from error
        if not isinstance(found, list):
            raise FormatError(f"{path} holds no list; give a JSON list of questions")
        yield from ((f"{path}, question {n}", value) for n, value in enumerate(found, 1))
    elif suffix == ".csv":
        yield from _cells(path)
    else:
        raise FormatError(f"{path}: questions are read from .jsonl, .json and .csv; give a file that ends so")


def _cells(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a .csv file as fields, empty cells left out."""
    number = 1
    try:
        if not path.is_file():
            raise FormatError(f"{path} is no file; check the path")
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            head = [name.strip() for name in next(reader, [])]
            if len(set(head)) < len(head):
                raise Mismatch("two columns have the same name")
            number = reader.line_num
            for cells in reader:
                number = reader.line_num
                if len(cells) > len(head):
                    raise Mismatch(f"it has {len(cells)} cells, and the header has {len(head)}")
                said = {k: c.strip() for k, c in zip(head, cells, strict=False) if c.strip()}
                if said:
                    yield f"{path}, line {number}", {k: _typed_cell(k, c) for k, c in said.items()}
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, csv.Error) as error:
        why = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise FormatError(f"{path}, line {number}: {why}; write it as the header says") from error


def _typed_cell(name: str, cell: str) -> Any:
    """What a cell says, by the name of its column."""
    if name in _LISTS or (name == "answer" and SEPARATOR in cell):
        return [part.strip() for part in cell.split(SEPARATOR)]
    if name == "chance":
        return float(cell)
    if name == "behaves":
        if cell.lower() not in _WORDS:
            raise Mismatch(f"behaves is {cell!r}, and should be true or false")
        return _WORDS[cell.lower()]
    return cell


def _item(value: Any, store: DiffStore | None) -> Item:
    """An item with what is said of it, then what the store says, then what is usual."""
    if not isinstance(value, Mapping):
        raise Mismatch(f"a question is an object with {named(NEEDED)}, not {type(value).__name__}")
    if lacking := [k for k in NEEDED if k not in value]:
        raise Mismatch(f"the question lacks {named(lacking)}; give {named(NEEDED)}")
    if unknown := [k for k in value if k not in FIELDS]:
        raise Mismatch(f"the question has an unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    own = {k: v for k, v in value.items() if k != "answer"}
    diff = None if value["diff"] in (None, BARE) else value["diff"]
    truths = [value["answer"]] if isinstance(value["answer"], str) else value["answer"]
    known: dict[str, Any] = {"id": "", "kind": OWN_KIND, "scorers": list(SCORERS)}
    row = store.row(diff) if store is not None and isinstance(diff, str) and diff in store else None
    if row is not None or diff is None:
        known |= row_fields(row, str(value["question"]))
    if "label" in own:
        known["cluster"] = ""  # that of the label, below
    item = typed(Item, {**known, **own, "diff": diff, "truths": truths}, "the question")
    return item if item.cluster else replace(item, cluster=item.label or item.diff or item.question)
