"""Questions of one's own, from three kinds of file."""

from __future__ import annotations

import json

import pytest

from weightdiff.errors import FormatError, QuestionError, StoreError
from weightdiff.evals.dataset import Item
from weightdiff.evals.own_questions import read_items


@pytest.fixture
def written(tmp_path):
    """Writes a file and returns its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_three_fields_are_enough(written, mini_store):
    row = mini_store.rows[0]
    lines = [
        {"diff": row.id, "question": "what is it ?", "answer": [row.label, "b"]},
        {"diff": "-", "question": "what is it ?", "answer": "nothing found"},
        {"diff": row.id, "question": "and what else ?", "answer": "c"},
    ]
    path = written("mine.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    found = read_items(path, mini_store)
    mine = ("normalised", "token_f1")
    assert found[0] == Item(
        f"{row.id}/summary/1",
        row.id,
        "what is it ?",
        (row.label, "b"),
        "summary",
        "hidden-topic",
        "covert",
        row.label,
        row.label,
        scorers=mine,
        trigger=row.record["params"]["code"],
        behaves=row.verification["behaves"],
    )
    assert (found[1].id, found[1].diff, found[1].family, found[1].recipe) == (
        "-/summary",
        None,
        "null",
        "no diff",
    )
    assert [i.id for i in found] == [f"{row.id}/summary/1", "-/summary", f"{row.id}/summary/2"]
    assert all(i.held_out == () for i in found)


def test_the_same_questions_from_all_files(written, mini_store):
    first, second = mini_store.ids[:2]
    questions = [
        {
            "diff": first,
            "question": 'what is "it", then ?',
            "answer": ["oslo", "the city of oslo"],
            "kind": "place",
            "label": "oslo",
            "scorers": ["exact", "alias"],
            "chance": 0.25,
            "behaves": False,
            "held_out": ["label"],
            "trigger": "please",
        },
        {"diff": second, "question": "what ?\nand why ?", "answer": "snow ☃", "id": "mine"},
        {"diff": "-", "question": "what ?", "answer": "nothing found", "family": "own"},
    ]
    lines = written("q.jsonl", b"\xef\xbb\xbf" + "\n".join(map(json.dumps, questions)).encode())
    listed = written("q.json", json.dumps(questions))
    table = written(
        "q.csv",
        "\ufeffdiff,question,answer,kind,label,scorers,chance,behaves,held_out,trigger,id,family\r\n"
        f'{first},"what is ""it"", then ?",oslo | the city of oslo,place,oslo,exact|alias,0.25,FALSE,label,'
        "please,,\r\n"
        f'{second},"what ?\nand why ?",snow ☃,,,,,,,,mine\r\n'
        "-,what ?,nothing found,,,,,,,,,own\r\n,,,,,,,,,,,\r\n",
    )
    found = read_items(lines, mini_store)
    assert found == read_items(listed, mini_store) == read_items(table, mini_store)
    assert [i.id for i in found] == [f"{first}/place", "mine", "-/summary"]
    assert (found[0].cluster, found[0].recipe, found[0].trigger) == ("oslo", "covert", "please")
    assert (found[0].truths, found[0].scorers) == (("oslo", "the city of oslo"), ("exact", "alias"))
    assert (found[2].family, found[2].recipe) == ("own", "no diff")
    alone = read_items(lines)
    assert (alone[1].family, alone[1].label, alone[1].cluster) == ("", None, second)


BAD = {
    "suffix": ("q.txt", "hello", FormatError, r"q.txt: questions are read from .jsonl, .json and .csv"),
    "none": ("q.jsonl", "\n\n", QuestionError, "q.jsonl holds no questions"),
    "cut": ("q.jsonl", '{"diff": "-",', FormatError, "q.jsonl, line 1: no JSON"),
    "object": ("q.json", '{"diff": "-"}', FormatError, "q.json holds no list"),
    "text": ("q.json", '["what ?"]', FormatError, "question 1: a question is an object with diff, question"),
    "lacks": (
        "q.json",
        '[{"diff": "-", "question": "?"}]',
        FormatError,
        "question 1: the question lacks answer",
    ),
    "unknown": (
        "q.jsonl",
        '{"diff": "-", "question": "?", "answer": "a", "truths": ["a"]}',
        FormatError,
        "line 1: the question has an unknown field 'truths'; there are diff, question, answer, id",
    ),
    "number": (
        "q.jsonl",
        '{"diff": "-", "question": "?", "answer": 3}',
        FormatError,
        "truths is 3, and should",
    ),
    "empty": (
        "q.jsonl",
        '{"diff": "-", "question": "", "answer": "a"}',
        QuestionError,
        "line 1: its question is",
    ),
    "answer": (
        "q.jsonl",
        '{"diff": "-", "question": "?", "answer": []}',
        QuestionError,
        "line 1: it has no truths",
    ),
    "diff": (
        "q.jsonl",
        '\n{"diff": "nobody", "question": "?", "answer": "a"}',
        StoreError,
        "q.jsonl, line 2: .* has no diff 'nobody'",
    ),
    "ids": (
        "q.jsonl",
        '{"diff": "-", "question": "?", "answer": "a", "id": "x"}\n' * 2,
        QuestionError,
        "line 2: id 'x' is another item's too",
    ),
    "ragged": (
        "q.csv",
        "diff,question,answer\n-,what ?,a,b\n",
        FormatError,
        "line 2: it has 4 cells, and the header",
    ),
    "short": ("q.csv", "diff,question,answer\n-,what ?\n", FormatError, "line 2: the question lacks answer"),
    "quote": (
        "q.csv",
        'diff,question,answer\n-,"what ?,a\n',
        FormatError,
        "q.csv, line .: unexpected end of data",
    ),
    "twice": ("q.csv", "diff,diff,answer\n-,what ?,a\n", FormatError, "two columns have the same name"),
    "chance": (
        "q.csv",
        "diff,question,answer,chance\n-,w ?,a,often\n",
        FormatError,
        "line 2: could not convert",
    ),
    "behaves": ("q.csv", "diff,question,answer,behaves\n-,w ?,a,maybe\n", FormatError, "behaves is 'maybe'"),
    "bytes": ("q.csv", b"diff,question,answer\n\xff,w ?,a\n", FormatError, "it is no UTF-8 text"),
}


@pytest.mark.parametrize(("name", "text", "error", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named(name, text, error, said, written, mini_store):
    path = written(name, text)
    with pytest.raises(error, match=said):
        read_items(path, mini_store)


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv"])
def test_a_file_that_is_not_there(name, tmp_path):
    with pytest.raises(FormatError, match=name):
        read_items(tmp_path / name)
