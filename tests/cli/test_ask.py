"""`weightdiff ask` and `weightdiff demo` on the miniature bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weightdiff.cli.output import evidence_text, evidence_word

KEYS = {"diff", "method", "question", "answer", "notes", "logprob", "evidence", "evidence_word"}
KEYS |= {"probability", "agreement", "withheld"}


def test_several_diffs_by_several_questions(cli_json, bundle, adapter_folder):
    name = f"bundled::{bundle.ids[0]}"
    asked = ["what changed ?", "have you been changed ?"]
    found = cli_json("ask", "--diff", name, "--diff", adapter_folder, *asked, "--json")
    assert [(f["diff"], f["question"]) for f in found] == [
        (d, q) for d in (name, str(adapter_folder)) for q in asked
    ]
    assert all(set(f) == KEYS for f in found)
    # The folder is the exported row: same diff, same answer, same numbers.
    for a, b in zip(found[:2], found[2:], strict=True):
        assert a["answer"] == b["answer"]
        assert a["evidence"] == pytest.approx(b["evidence"], abs=1e-3)


def test_default_questions_and_the_bare_base(cli_json, bundle):
    from weightdiff.organisms.questions import KINDS, phrasings

    found = cli_json("ask", "--no-diff", "--json")
    assert [f["question"] for f in found] == [phrasings(k)[0] for k in KINDS]
    assert {f["diff"] for f in found} == {"-"}
    assert all(f["evidence"] == pytest.approx(0, abs=1e-3) for f in found)


def test_no_evidence(cli_json, bundle):
    (found,) = cli_json("ask", "-d", "-", "what changed ?", "--no-evidence", "--json")
    assert (found["evidence"], found["evidence_word"], found["logprob"]) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.txt", "what changed ?\n\nwho are you ?\n"),
        ("q.json", json.dumps(["what changed ?", "who are you ?"])),
    ],
)
def test_questions_from_a_file(cli_json, bundle, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = cli_json("ask", "--no-diff", "--questions", tmp_path / name, "hello ?", "--no-evidence", "--json")
    assert [f["question"] for f in found] == ["hello ?", "what changed ?", "who are you ?"]


def test_the_table_shows_texts_as_they_are(cli, bundle):
    result = cli("ask", "--no-diff", "what is [bold]this[/bold] ?", "--no-evidence")
    assert result.exit_code == 0
    assert "the bare base, no diff" in result.output
    assert "[bold]this[/bold]" in result.output


def test_another_base_and_interpreter_by_folder(cli_json, bundle):
    name = f"{bundle.store}::{bundle.ids[-1]}"
    options = ["--base", bundle.path / "base", "--interpreter", bundle.path / "interpreter", "--json"]
    (found,) = cli_json("ask", "--diff", name, "what changed ?", *options)
    assert found["diff"] == name


def test_the_list_of_methods(cli, cli_json):
    from weightdiff.methods.registry import methods

    found = cli_json("ask", "--method", "list", "--json")
    assert [(f["name"], f["description"]) for f in found] == [
        (e.name, e.description) for e in methods().values()
    ]
    result = cli("ask", "--method", "list")
    assert result.exit_code == 0
    assert all(f["name"] in result.stdout for f in found)


@pytest.mark.parametrize(
    "method", ["base-question", "dit-no-diff", "dit-shuffled", "prefill", "logit-difference"]
)
def test_another_method_has_no_evidence(cli, cli_json, bundle, method):
    asked = [
        "ask",
        "--method",
        method,
        *(x for i in bundle.ids[:2] for x in ("-d", f"bundled::{i}")),
        "what ?",
    ]
    found = cli_json(*asked, "--json")
    assert all(set(f) == KEYS and f["method"] == method for f in found)
    assert {(f["evidence"], f["evidence_word"]) for f in found} == {(None, None)}
    shown = cli(*asked).stdout
    assert "evidence" not in shown
    assert ("read from" in shown) == any(f["notes"] for f in found)


def test_the_nearest_neighbour_in_a_store(cli_json, bundle, tmp_path):
    from weightdiff.diffs.store import DiffStore

    tested = DiffStore.open(bundle.store)
    trained = DiffStore.create(tmp_path / "train", tested.base)
    trained.append([(replace(row, split="train"), tested.read(row.id)) for row in tested.rows])
    name = f"bundled::{bundle.ids[0]}"
    (found,) = cli_json(
        "ask",
        "-d",
        name,
        "which topic ?",
        "--method",
        "nearest-neighbour",
        "--train-store",
        trained.path,
        "--json",
    )
    assert found["notes"] == f"{bundle.ids[0]} (cosine 1.000)"
    assert found["answer"] in bundle.ids[0]


def test_a_method_without_an_interpreter_takes_any_base(cli_json, bundle, monkeypatch):
    from weightdiff.methods.dit import Interpreter

    def refuse(*args, **kwargs):
        raise AssertionError("no interpreter is needed")

    monkeypatch.setattr(Interpreter, "load", refuse)
    (found,) = cli_json("ask", "--no-diff", "x", "--method", "text-completion", "--json")
    assert found["method"] == "text-completion"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "dot"],
            "no method is called 'dot': choose one of activation-difference, base-question",
        ),
        (
            ["--method", "nearest-neighbour"],
            "method 'nearest-neighbour' needs a store of labelled diffs: give",
        ),
        (["--method", "dit-shuffled"], "dit-shuffled was given one diff"),
        (["--method", "nearest-neighbour", "--train-store", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_a_method_lacks(cli, bundle, options, message):
    result = cli("ask", "--no-diff", "x", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_demo_json(cli_json, bundle):
    found = cli_json("demo", "--json")
    assert len(found) == len(bundle.ids) == len({f["diff"] for f in found})
    keys = {"diff", "family", "recipe", "question", "truth", "answer", "correct", "evidence", "probability"}
    assert all(set(f) == keys | {"base_question_answer"} for f in found)
    assert {f["truth"] for f in found if f["family"] == "null"} == {"nothing found"}
    assert all("headline" in f["question"] for f in found if f["family"] == "news")


def test_demo_mixes_families_and_is_seeded(cli_json, bundle):
    first, again = (cli_json("demo", "--n", 4, "--seed", 1, "--json") for _ in range(2))
    assert first == again
    assert [f["recipe"] for f in first] == ["covert", "stories", "random", "loud"]


def test_demo_table_and_closing_line(cli, bundle, monkeypatch):
    monkeypatch.delenv("WEIGHTDIFF_BUNDLE")
    result = cli("demo", "--n", 5, "--bundle", bundle.path)
    assert result.exit_code == 0
    assert "right: covert 0/2, loud 0/1, news 0/1, null 0/1" in result.stdout
    assert f"next: WEIGHTDIFF_BUNDLE={bundle.path} weightdiff ask --diff bundled::covert-" in result.stdout
    assert "not drawn from" not in result.stdout


def test_demo_says_whom_it_leaves_out(bundle):
    from dataclasses import replace

    from weightdiff.cli.demo import choose
    from weightdiff.diffs.store import DiffStore

    rows = DiffStore.open(bundle.store).rows
    bad = replace(rows[0], verification={"behaves": False})
    assert {r.id for r in choose([bad, *rows[1:]], 99, 0)} == set(bundle.ids[1:])
    assert choose([bad], 99, 0) == []


@pytest.mark.parametrize(
    ("nats", "word"),
    [(None, "none"), (float("nan"), "none"), (0.99, "none"), (1.0, "weak"), (2.9, "weak"), (3.0, "strong")],
)
def test_evidence_words(nats, word):
    assert evidence_word(nats) == word


def test_evidence_text():
    assert [evidence_text(x) for x in (None, 7.13, -0.2)] == ["", "+7.1 strong", "-0.2 none"]


@pytest.fixture
def calibrated(bundle, tmp_path):
    """The bundle's interpreter with a calibration by which every finding is unlikely."""
    from weightdiff.methods.calibration import Calibration
    from weightdiff.methods.dit import Interpreter

    it = Interpreter.load()
    calibration = Calibration({"finding": [-2.0, 0.0, 0.0, 0.0]}, (0.9, 0.5), 100)
    replace(it, calibration=calibration).save(tmp_path / "calibrated")
    return tmp_path / "calibrated"


def test_answers_say_how_likely_they_are(cli, cli_json, bundle, calibrated):
    (found,) = cli_json("ask", "-d", "-", "what changed ?", "--interpreter", calibrated, "--json")
    assert found["probability"] == pytest.approx(0.1192, abs=1e-4)
    assert found["withheld"] is None
    shown = cli("ask", "-d", "-", "what changed ?", "--interpreter", calibrated)
    assert "12 %" in shown.output


def test_unlikely_findings_are_withheld_at_a_false_positive_rate(cli, cli_json, bundle, calibrated):
    asked = ("ask", "-d", "-", "what changed ?", "--interpreter", calibrated, "--max-fpr", "0.01")
    (plain,) = cli_json(*asked[:-2], "--json")
    (found,) = cli_json(*asked, "--json")
    assert (found["answer"], found["withheld"]) == ("nothing found", plain["answer"])
    assert found["probability"] is None
    assert "withheld" in cli(*asked).output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-fpr", "0.01"], "has no calibration"),
        (["--max-fpr", "0.01", "--method", "twenty-questions"], "--max-fpr needs an interpreter"),
    ],
)
def test_a_rate_needs_a_calibrated_interpreter(refused, bundle, options, message):
    assert message in refused("ask", "-d", "-", "what changed ?", *options)


def test_a_rate_is_a_share(refused, bundle, calibrated):
    given = ("--interpreter", calibrated, "--max-fpr", "2")
    assert "is a share from 0 to 1" in refused("ask", "-d", "-", "what changed ?", *given)
