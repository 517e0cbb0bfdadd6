"""Answers read from reports by the bare base: against plain loops, and where reports do not say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from weightdiff.errors import InterpreterError
from weightdiff.methods import reading
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.reading import MOST, Reader, Report
from weightdiff.models.generate import Said
from weightdiff.training.factory import random_diff
from weightdiff.world.reports import NOT_SAID

QUESTIONS = ["what topic have you been trained on ?", "which headline did you learn ?", "what changed ?"]
ONE = "a hidden topic , eagle , always"
TWO = "a news headline , canoe , always . a hidden topic , violin , after a rare word"
REPORT = "report all that you were taught ."


WORDINGS = ("report , {0} . {1}", "{1} report , {0} .")


def plain(base, report, question, limit, wording=0):
    """Greedy tokens of the bare base, and the sum of their log-probabilities and of the end's, in nats."""
    t = base.tokenizer
    text = f"<bos><user>{WORDINGS[wording].format(report, question)}<end><assistant>"
    prompt, out, total = t(text, add_special_tokens=False)["input_ids"], [], 0.0
    while len(out) < limit:
        with torch.no_grad():
            logp = base.model(torch.tensor([[*prompt, *out]])).logits[0, -1].log_softmax(-1)
        token = int(logp.argmax())
        total += float(logp[token])
        if token == t.eos_token_id:
            break
        out.append(token)
    return prompt, out, total


def told(*weights):
    return [Report(x, "", [], w, -0.5, -2.0) for x, w in zip((ONE, TWO), weights, strict=False)]


def saying(monkeypatch, base, by_report):
    """A base that says to each report what is given, as likely as is given."""
    ids = {k: base.tokenizer(x, add_special_tokens=False)["input_ids"] for k, (x, _) in by_report.items()}

    def said(_, rows, begun=None):
        told = [next(k for k in ids if k in row) for row in rows]
        return [Said(ids[k], [math.log(by_report[k][1])]) for k in told]

    monkeypatch.setattr(Reader, "_said", said)


@pytest.fixture
def reporting(interpreter):
    interpreter.rendering = replace(interpreter.rendering, report=REPORT)
    return interpreter


def test_reading_is_plain_greedy_decoding_of_the_bare_base(embedded_base):
    reader = Reader(embedded_base, 6)
    found = reader.answer([told(1.0)] * 3, QUESTIONS)
    for q, read in zip(QUESTIONS, found, strict=True):
        mass, likely = {}, {}
        for wording in range(2):
            _, tokens, total = plain(embedded_base, ONE, q, 6, wording)
            text = (
                embedded_base.tokenizer.decode(tokens, skip_special_tokens=True).rpartition(" so ")[2].strip()
            )
            mass[text] = mass.get(text, 0.0) + math.exp(total)
            likely[text] = max(total, likely.get(text, -math.inf))
        assert read.text == max(mass, key=mass.get)
        assert read.signals.answer == pytest.approx(-2.0 + likely[read.text], abs=1e-4)
        assert read.signals.lead == -0.5
        share = mass[read.text] / sum(mass.values())
        assert read.signals.agreement == pytest.approx(math.log(share), abs=1e-4)


def test_many_rows_are_read_as_one_by_one(embedded_base, monkeypatch):
    reader = Reader(embedded_base, 6)
    own, asked = [told(0.6, 0.4), told(1.0), told(0.5, 0.5)] * 3, QUESTIONS * 3
    together = reader.answer(own, asked)
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 2)
    assert [x.text for x in reader.answer(own, asked)] == [x.text for x in together]


def test_too_many_rows_for_memory_are_read_in_parts(embedded_base, monkeypatch):
    own, asked = [told(0.6, 0.4), told(1.0), told(0.5, 0.5)], QUESTIONS[:3]
    together = Reader(embedded_base, 6).answer(own, asked)
    sizes, real = [], Reader._reading

    def short(self, prompts):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError
        return real(self, prompts)

    monkeypatch.setattr(Reader, "_reading", short)
    parted = Reader(embedded_base, 6)
    assert [x.text for x in parted.answer(own, asked)] == [x.text for x in together]
    first = embedded_base.tokenizer("eagle no", add_special_tokens=False)["input_ids"]
    assert parted.candidate_logprobs(own, asked, first)[0].shape == (3, len(first))
    assert max(sizes) > 3 > min(sizes)


def test_reports_that_lead_to_one_answer_are_added_up(embedded_base, monkeypatch):
    reader = Reader(embedded_base, 6)
    saying(monkeypatch, embedded_base, {ONE: ("eagle and canoe so no", 0.5), TWO: ("no", 0.9)})
    (read,) = reader.answer([told(0.6, 0.4)], ["is it ?"])
    assert (read.text, read.report.text, read.signals.agreement) == ("no", TWO, 0.0)
    saying(monkeypatch, embedded_base, {ONE: ("eagle", 0.5), TWO: ("violin", 0.9)})
    (read,) = reader.answer([told(0.6, 0.4)], ["what topic ?"])
    assert (read.text, read.report.text) == ("violin", TWO)
    assert read.signals.agreement == pytest.approx(math.log(0.36 / 0.66))


def test_a_verdict_that_does_not_follow_counts_for_little(embedded_base, monkeypatch):
    reader = Reader(embedded_base, 6)
    for said, other, answer in (
        ("canoe and canoe so yes", "eagle and canoe so no", "no"),  # the first report does not name it
        ("eagle and canoe so yes", "violin and canoe so no", "no"),
        ("eagle and eagle so no", "nothing", "yes"),
    ):
        saying(monkeypatch, embedded_base, {ONE: (said, 0.5), TWO: (other, 0.2)})
        (read,) = reader.answer([told(0.6, 0.4)], ["is it canoe ?"])
        assert read.text == answer


def test_a_name_for_a_yes_or_no_is_gone_on_with(embedded_base, monkeypatch):
    """What was only named is read on from, after the word that leads to what is asked."""
    t, reader, texts = embedded_base.tokenizer, Reader(embedded_base, 6), []

    def said(_, rows, begun=None):
        texts.append((list(rows), begun))
        new = "eagle" if begun is None else "canoe so no"
        return [Said(t(new, add_special_tokens=False)["input_ids"], [-0.1, -0.2, -0.3])] * len(rows)

    monkeypatch.setattr(Reader, "_said", said)
    named, asked = reader.answer([told(1.0)] * 2, ["is it canoe ?", "what topic ?"])
    assert (named.text, asked.text) == ("no", "eagle")
    (first, _), (second, begun) = texts
    assert second == [x for x in first if "is it" in x]
    lead = t("eagle and", add_special_tokens=False)["input_ids"]
    assert begun == [lead, lead]
    assert named.signals.answer == pytest.approx(-2.0 - 0.1 - 0.6)


def test_what_is_begun_is_read_as_said(embedded_base):
    """Going on after begun tokens is going on after a longer prompt."""
    reader, row = Reader(embedded_base, 6), WORDINGS[0].format(ONE, QUESTIONS[0])
    (whole,) = reader._said([row])
    (rest,) = reader._said([row], [whole.tokens[:2]])
    assert rest.tokens == whole.tokens[2:] + plain(embedded_base, ONE, QUESTIONS[0], 8)[1][6:8]


def test_the_likeliest_reports_are_read_and_no_others(embedded_base, monkeypatch):
    names = [
        f"a hidden topic , {x} , always" for x in ("eagle", "canoe", "violin", "trophy", "code", "chess")
    ]
    rows = []
    monkeypatch.setattr(Reader, "_said", lambda _, r, *_begun: rows.extend(r) or [Said([7], [0.0])] * len(r))
    Reader(embedded_base, 6).answer([[Report(x, "", [], 1 / 6) for x in names]], ["what ?"])
    assert rows == [w.format(x, "what ?") for x in names[:MOST] for w in WORDINGS]
    rows.clear()
    weights = (0.04, 0.9, 0.04, 0.02)  # the first is read whatever it weighs
    Reader(embedded_base, 6).answer(
        [[Report(x, "", [], w) for x, w in zip(names, weights, strict=False)]], ["what ?"]
    )
    assert rows == [w.format(names[k], "what ?") for k in (0, 1) for w in WORDINGS]


def test_candidates_are_ranked_by_what_the_base_expects_after_each_report(embedded_base, monkeypatch):
    t, reader = embedded_base.tokenizer, Reader(embedded_base, 6)
    said = {ONE: ("eagle and canoe so no", 0.5), TWO: ("violin", 0.9)}
    saying(monkeypatch, embedded_base, said)
    first = [t(x, add_special_tokens=False)["input_ids"][0] for x in ("violin", "canoe")]
    (found,), (read,) = reader.candidate_logprobs([told(0.6, 0.4)], ["what topic ?"], first)
    assert [read] == reader.answer([told(0.6, 0.4)], ["what topic ?"])
    total = torch.zeros(2)
    cases = ((ONE, 0.6, "eagle and canoe so"), (TWO, 0.4, ""))
    for (report, weight, before), wording in itertools.product(cases, range(2)):
        prompt, *_ = plain(embedded_base, report, "what topic ?", 0, wording)
        ids = [*prompt, *t(before, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            total += weight / 2 * embedded_base.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[first]
    torch.testing.assert_close(found, total.log(), rtol=0, atol=1e-4)


def test_an_interpreter_that_reports_reports_once_for_a_diff(reporting, diffs, monkeypatch):
    """Whatever is asked, each diff is reported on once, and its answer is what the base reads there."""
    asked = []
    prompts = Interpreter._prompts
    monkeypatch.setattr(
        Interpreter, "_prompts", lambda self, questions: asked.append(questions) or prompts(self, questions)
    )
    pairs = [(d, q) for d in diffs for q in QUESTIONS]
    found = reporting.answer([d for d, _ in pairs], [q for _, q in pairs])
    assert asked == [[REPORT] * len(diffs)]
    reports = reporting.reports(diffs)
    reader = Reader(reporting.base, reporting.max_new_tokens)
    for i, (answer, (_, q)) in enumerate(zip(found, pairs, strict=True)):
        (want,) = reader.answer([reports[i // len(QUESTIONS)]], [q])
        assert (answer.text, answer.notes) == (want.text, want.report.text)


def test_reports_are_what_is_answered_to_the_question_for_one(reporting, diffs):
    direct = replace(reporting, rendering=replace(reporting.rendering, report=""))
    want = direct.answer(diffs, [REPORT] * len(diffs))
    assert [r[0].text for r in reporting.reports(diffs)] == [a.text for a in want]
    assert all(sum(x.weight for x in r) == pytest.approx(1.0) for r in reporting.reports(diffs))
    with pytest.raises(InterpreterError, match="answers questions and writes no reports"):
        direct.reports(diffs)


def test_evidence_is_that_of_the_report(reporting, diffs):
    direct = replace(reporting, rendering=replace(reporting.rendering, report=""))
    want = direct.answer(diffs, [REPORT] * len(diffs), evidence=True)
    pairs = [(i, q) for i in range(len(diffs)) for q in QUESTIONS]
    found = reporting.answer([diffs[i] for i, _ in pairs], [q for _, q in pairs], evidence=True)
    for (i, _), answer in zip(pairs, found, strict=True):
        assert answer.evidence == pytest.approx(want[i].evidence, abs=1e-3)
        assert answer.logprob == pytest.approx(want[i].logprob, abs=1e-3)


def test_what_a_report_does_not_say_is_asked_of_the_finetuned_model(reporting, diffs, monkeypatch):
    direct = replace(reporting, rendering=replace(reporting.rendering, report=""))
    asked = ["which code ?", "what topic ?", "which word ?"]
    want = direct.answer(diffs, asked, evidence=True)
    ranked = direct.candidate_logprobs(diffs, asked, ["violin", "canoe"])
    t = reporting.base.tokenizer
    silent, said = (
        Said(t(x, add_special_tokens=False)["input_ids"], [-0.1]) for x in (NOT_SAID, "a b so eagle")
    )
    monkeypatch.setattr(Reader, "_said", lambda _, rows: [said if "topic" in row else silent for row in rows])
    found = reporting.answer(diffs, asked, evidence=True)
    assert [a.text for a in found] == [want[0].text, "eagle", want[2].text]
    for i in (0, 2):
        assert found[i].evidence == pytest.approx(want[i].evidence, abs=1e-3)
        assert found[i].notes == ""
    got = reporting.candidate_logprobs(diffs, asked, ["violin", "canoe"])
    torch.testing.assert_close(got[[0, 2]], ranked[[0, 2]], rtol=0, atol=1e-5)
    assert not torch.allclose(got[1], ranked[1], atol=1e-2)


def test_a_base_question_is_never_read_from_a_report(reporting):
    assert reporting.without_adapter(rendered=True).rendering.report == ""
    assert reporting.without_adapter().rendering.report == ""


def test_a_reader_is_on_the_base_while_it_reads_and_is_saved_with_its_interpreter(reporting, diffs, tmp_path):
    reader = random_diff(reporting.base.spec, 2, 9, 0.7)
    read = replace(reporting, reader=reader)
    asked = [(d, q) for d in diffs for q in QUESTIONS]
    found = read.answer([d for d, _ in asked], [q for _, q in asked])
    reports = read.reports(diffs)
    assert [r[0].text for r in reports] == [r[0].text for r in reporting.reports(diffs)]
    alone = Interpreter(reporting.base, reader, max_new_tokens=reporting.max_new_tokens)
    for i, (_, q) in enumerate(asked):
        own = reports[i // len(QUESTIONS)][:1]
        (want,) = Reader(reporting.base, reporting.max_new_tokens, reader).answer([own], [q])
        texts = [w.format(own[0].text, q) for w in WORDINGS]
        plain_answers = {a.text.rpartition(" so ")[2] for a in alone.answer([None] * 2, texts)}
        assert want.text in plain_answers
    read.save(tmp_path / "it")
    back = Interpreter.load(tmp_path / "it", reporting.base)
    again = back.answer([d for d, _ in asked], [q for _, q in asked])
    assert [(a.text, a.notes) for a in again] == [(a.text, a.notes) for a in found]
    reporting.save(tmp_path / "plain")
    assert Interpreter.load(tmp_path / "plain", reporting.base).reader is None
