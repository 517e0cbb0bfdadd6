"""Scans: what is found, what is odd, what fails alone; a journal that is taken up; reports that escape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.errors import FormatError, QuestionError
from weightdiff.evals import scan_page
from weightdiff.evals.audit import AuditQuestion, default_text, parse_audit, read_audit
from weightdiff.evals.scan import CLEAN, FOUND, ODD, UNREADABLE, Journal, Scan, Scanned, find_adapters
from weightdiff.methods.base import Answer
from weightdiff.methods.dit import Interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.training.factory import random_diff

QUESTIONS = [
    AuditQuestion("change", "is there any change ?", ("yes",)),
    AuditQuestion("topic", "what topic ?", ("something",)),
    AuditQuestion("when", "when does it show ?"),
]


class Saying(Interpreter):
    """An interpreter whose answers are known: by the norm of a diff, in the order of questions."""

    def answer(self, diffs, questions, evidence=False):
        out = []
        for diff, question in zip(diffs, questions, strict=True):
            loud = max(float(m.up.abs().max()) for m in diff.modules.values()) > 2
            text = {"is": "yes" if loud else "no", "what": "chess" if loud else "nothing found"}
            said = text.get(question.split()[0], "<b>always</b>")
            out.append(Answer(said, evidence=1.5, probability=0.9 if loud else 0.8))
        self.meta.setdefault("asked", []).append(len(diffs))
        return out


@pytest.fixture
def saying(embedded_base):
    return Saying(embedded_base, random_diff(embedded_base.spec, 2, 5, 0.5), Rendering(), 6, {})


@pytest.fixture
def adapters(embedded_base, tmp_path):
    """A loud one, a quiet one, one with a zero up, one of another base, a torn one, a store of two."""
    ref = embedded_base.ref

    def made(seed, size):
        diff = random_diff(embedded_base.spec, 2, seed, 1.0)
        scaled = {
            k: LoraFactors(m.down, m.up / m.up.abs().max() * size, m.scale) for k, m in diff.modules.items()
        }
        return WeightDiff(scaled, base=ref)

    root = tmp_path / "adapters"
    write_peft(made(1, 3.0), root / "loud")
    write_peft(made(2, 1.0), root / "deep" / "quiet")
    odd = made(3, 1.0)
    name, m = next(iter(odd.modules.items()))
    odd = replace(odd, modules={**odd.modules, name: LoraFactors(m.down, torch.zeros_like(m.up), m.scale)})
    write_peft(odd, root / "odd")
    wrong = WeightDiff({k: LoraFactors(torch.ones(2, 7), torch.ones(9, 2)) for k in odd.modules})
    write_peft(wrong, root / "other-base")
    write_peft(made(4, 3.0), root / "torn")
    file = root / "torn" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    (root / "notes.txt").write_text("not an adapter")
    return root


def test_adapters_are_found_in_folders_stores_and_by_name(adapters, random_store, tmp_path):
    found = find_adapters([str(adapters)])
    assert found == [str(adapters / x) for x in ("deep/quiet", "loud", "odd", "other-base", "torn")]
    rows = find_adapters([str(random_store.path), f"{random_store.path}::{random_store.ids[0]}"])
    assert rows == [f"{random_store.path}::{i}" for i in random_store.ids]
    for path, told in (
        (tmp_path / "none", "does not exist"),
        (adapters.parent / "empty", "no adapters there"),
    ):
        if told == "no adapters there":
            path.mkdir()
        with pytest.raises(FormatError, match=told):
            find_adapters([str(path)])


def test_a_link_to_a_folder_is_not_followed(adapters, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (adapters / "loop").symlink_to(adapters)
    assert len(find_adapters([str(adapters)])) == 5


@pytest.mark.parametrize("at_once", [1, 2, 32])
def test_verdicts_with_those_of_most_concern_first(saying, adapters, at_once):
    names = find_adapters([str(adapters)])
    found = Scan(saying, QUESTIONS, at_once=at_once).run(names)
    assert [(s.name.rsplit("/", 1)[1], s.verdict) for s in found] == [
        ("loud", FOUND),
        ("other-base", UNREADABLE),
        ("torn", UNREADABLE),
        ("odd", ODD),
        ("quiet", CLEAN),
    ]
    loud, other, torn, odd, quiet = found
    assert [t.question for t in loud.findings] == ["change", "topic"]
    assert loud.concern == 0.9
    assert "other base" in other.error or "shape" in other.error
    assert torn.error
    assert [x["code"] for x in odd.signs] == ["zero-up"]
    assert quiet.findings == []
    assert len(quiet.answers) == 3
    assert max(saying.meta["asked"]) <= at_once * len(QUESTIONS)


def test_an_answer_that_is_not_likely_is_no_finding(saying, adapters):
    (found,) = Scan(saying, QUESTIONS, likely=0.95).run([str(adapters / "loud")])
    assert found.verdict == CLEAN


def test_a_failure_spoils_no_other(saying, adapters, monkeypatch):
    real = Saying.answer

    def fails(self, diffs, questions, evidence=False):
        if any(float(max(m.up.abs().max() for m in d.modules.values())) > 2 for d in diffs):
            raise QuestionError("no")
        return real(self, diffs, questions, evidence)

    monkeypatch.setattr(Saying, "answer", fails)
    names = [str(adapters / "deep/quiet"), str(adapters / "loud")]
    found = {s.name: s for s in Scan(saying, QUESTIONS).run(names)}
    assert found[names[0]].verdict == CLEAN
    assert (found[names[1]].verdict, found[names[1]].error) == (UNREADABLE, "no")


def test_known_diffs_that_are_near_are_named(saying, embedded_base, random_store, tmp_path):
    near = random_store.read(random_store.ids[0])
    write_peft(near, tmp_path / "near")
    (found,) = Scan(saying, QUESTIONS, random_store).run([str(tmp_path / "near")])
    assert found.nearest[0][0] == random_store.ids[0]
    assert found.nearest[0][2] == pytest.approx(1, abs=1e-3)


def test_a_scan_goes_on_from_its_journal(saying, adapters, tmp_path):
    names, journal = find_adapters([str(adapters)]), tmp_path / "journal"
    first = Scan(saying, QUESTIONS, at_once=1).run(names, journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3  # those that could not be read are tried again
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while it wrote the second
    saying.meta["asked"].clear()
    assert Scan(saying, QUESTIONS, at_once=1).run(names, journal) == first
    assert len(saying.meta["asked"]) == 2
    assert len(journal.read_bytes().splitlines()) == 4
    write_peft(random_diff(saying.base.spec, 2, 9, 1.0), adapters / "loud", overwrite=True)
    saying.meta["asked"].clear()
    again = Scan(saying, QUESTIONS, at_once=1).run(names, journal)
    assert len(saying.meta["asked"]) == 1
    assert again != first


def test_a_journal_of_other_questions_is_begun_anew(saying, adapters, tmp_path):
    names, journal = [str(adapters / "loud")], tmp_path / "journal"
    Scan(saying, QUESTIONS).run(names, journal)
    Scan(saying, QUESTIONS[:1]).run(names, journal)
    assert len(json.loads(journal.read_text().splitlines()[1])["answers"]) == 1
    journal.write_bytes(b"\x00\xff{")
    Scan(saying, QUESTIONS).run(names, journal)
    assert len(journal.read_text().splitlines()) == 2


def test_a_journal_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal", "s")


def test_reports_escape_what_adapters_say(saying, adapters):
    evil = adapters / '<img src=x onerror="alert(1)">'
    (adapters / "loud").rename(evil)
    found = Scan(saying, QUESTIONS).run(find_adapters([str(adapters)]))
    page = scan_page.to_html(found, {"command": "<script>"}).decode()
    assert "<img" not in page
    assert "<b>always" not in page
    assert page.count("<script>") == 1
    assert "&lt;b&gt;always&lt;/b&gt;" in page
    assert page.count("<li data-verdict=") == 5
    assert "script-src 'sha256-" in page


def test_sarif_has_a_rule_for_every_result(saying, adapters):
    found = Scan(saying, QUESTIONS).run(find_adapters([str(adapters)]))
    sarif = scan_page.to_sarif(found, QUESTIONS)
    (run,) = sarif["runs"]
    rules = {r["id"] for r in run["tool"]["driver"]["rules"]}
    assert {r["ruleId"] for r in run["results"]} <= rules
    assert {r["level"] for r in run["results"]} == {"error", "warning"}
    assert [r["ruleId"] for r in run["results"][:2]] == ["answer/change", "answer/topic"]
    assert run["results"][0]["properties"] == {"probability": 0.9, "evidence": 1.5}
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.endswith("/adapters/loud")
    json.dumps(scan_page.to_json(found, {}), allow_nan=False)
    assert scan_page.counts(found) == {FOUND: 1, UNREADABLE: 2, ODD: 1, CLEAN: 1}


def test_results_travel_as_json(saying, adapters):
    for s in Scan(saying, QUESTIONS).run(find_adapters([str(adapters)])):
        assert Scanned.from_json(json.loads(json.dumps(s.to_json()))) == s
    with pytest.raises(ValueError, match="a verdict"):
        Scanned.from_json({**s.to_json(), "verdict": "fine"})


def test_the_questions_that_ship_are_read():
    asked = read_audit()
    assert [q.name for q in asked][:3] == ["any-change", "summary", "topic"]
    assert asked[0].concerns("Yes.")
    assert not asked[0].concerns("no")
    assert asked[2].concerns("chess")
    assert not asked[2].concerns("nothing found")
    assert not asked[-1].concerns("the code 123")
    assert parse_audit(json.dumps({"questions": [{"name": "a", "ask": "b"}]}), "x") == [
        AuditQuestion("a", "b")
    ]
    assert "#" in default_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it has no list of questions"),
        ("[", "no YAML"),
        ("questions: []", "0 questions; give 1 to 1000"),
        ("version: 2\nquestions: [{name: a, ask: b}]", "version 2, and this weightdiff reads 1"),
        ("questions: [a]", "question 1 is no mapping"),
        ("questions: [{name: a b, ask: c}]", "needs a name of letters"),
        ("questions: [{name: a, ask: ' '}]", r"question 1 \(a\) asks nothing"),
        ("questions: [{name: a, ask: b, finding: maybe}]", "finding is 'something' or a list"),
        ("questions: [{name: a, ask: b, finding: [{}]}]", "finding is 'something' or a list"),
        ("questions: [{name: a, ask: b, tone: c}]", "has 'tone', which means nothing here"),
        ("questions: [{name: a, ask: b}, {name: a, ask: c}]", "two questions are named 'a'"),
        ("a: &x [1]\nquestions: *x", "aliases and tags are not read"),
        ("questions: !!python/object/apply:os.system ['true']", "aliases and tags are not read"),
    ],
)
def test_files_of_questions_that_are_refused(text, told, tmp_path):
    file = tmp_path / "audit.yaml"
    file.write_text(text)
    with pytest.raises(QuestionError, match=told):
        read_audit(file)


def test_a_file_of_questions_that_is_not_there(tmp_path):
    with pytest.raises(QuestionError, match="there is no such file"):
        read_audit(tmp_path / "none.yaml")


def test_an_empty_store_beside_a_full_one(random_store, embedded_base, tmp_path):
    DiffStore.create(tmp_path / "empty", embedded_base.ref)
    with pytest.raises(FormatError, match="no adapters there"):
        find_adapters([str(tmp_path / "empty")])
