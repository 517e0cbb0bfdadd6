"""The page of a run, parsed: only its own script runs, texts stay texts, and its data are the answers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from weightdiff.evals import run_figures
from weightdiff.evals.page_data import embedded, page_data
from weightdiff.evals.run_html import tables_html, to_html
from weightdiff.evals.run_tables import Table, verdict

KNOWN = """
html head meta title style body header main section h1 h2 h3 p ul li ol dl dt dd div table thead tbody tr
th td details summary figure figcaption form label input select button nav span noscript script
svg g defs path use clippath rect text tspan circle
"""
ALLOWED = set(KNOWN.split())
VOID = {"meta", "input"}


class Parsed(HTMLParser):
    """Tags with their attributes, the texts of elements by tag, and whether all that opens closes."""

    def __init__(self, data):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], {}, []
        self.feed(data.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def all(self, tag):
        return [attrs for t, attrs in self.tags if t == tag]


@pytest.fixture(scope="module")
def run(run_example):
    return run_example.make_run(name="<i>example</i> & more")


@pytest.fixture(scope="module")
def parsed(run):
    return Parsed(to_html(run))


def test_the_page_has_known_elements_that_close(parsed):
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} <= ALLOWED
    assert parsed.texts["title"] == parsed.texts["h1"] == ["<i>example</i> & more"]


def test_only_its_own_script_may_run_and_nothing_is_fetched(parsed):
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    data, script = parsed.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert parsed.all("script") == [{"type": "application/json", "id": "data"}, {}]
    assert json.loads(data)
    for _, attrs in parsed.tags:
        assert not {"src", "onclick", "onerror", "onload", "action", "srcset"} & set(attrs)
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")
        assert "url(" not in attrs.get("style", "") or "url(#" in attrs["style"]
    (style,) = parsed.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_the_script_puts_in_no_markup(parsed):
    script = parsed.texts["script"][1]
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch",
    ):
        assert word not in script
    assert "textContent" in script


def test_light_dark_and_narrow(parsed):
    (style,) = parsed.texts["style"]
    assert "prefers-color-scheme: dark" in style
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    wide = [attrs for attrs in parsed.all("div") if attrs.get("class") == "wide"]
    assert len(wide) == len(parsed.all("table")) + len(parsed.all("svg"))
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in wide)  # can be scrolled by keys


def test_the_filters(parsed):
    assert {s["data-filter"] for s in parsed.all("select")} == {
        "method",
        "family",
        "recipe",
        "kind",
        "split",
        "verdict",
    }
    assert [i["type"] for i in parsed.all("input")] == ["search"]


def _decoded(data):
    """What page.js makes of the data: one dictionary an answer."""

    def text(number):
        return None if number is None else data["strings"][number]

    out = []
    for method, at, verdict_at, answer, notes, logprob, evidence, rank, truth_logprob, scores in data[
        "answers"
    ]:
        diff, question, truths, kind, family, recipe, label, split, trigger, behaves = data["items"][at]
        out.append(
            {
                **{"method": text(method), "verdict": data["verdicts"][verdict_at], "answer": text(answer)},
                **{"notes": text(notes), "logprob": logprob, "evidence": evidence, "rank": rank},
                **{"truth_logprob": truth_logprob, "diff": text(diff), "question": text(question)},
                **{"truths": tuple(map(text, truths)), "kind": text(kind), "family": text(family)},
                **{"recipe": text(recipe), "label": text(label), "split": text(split)},
                **{"trigger": text(trigger), "behaves": bool(behaves)},
                "scores": [(text(s), v, text(n), w) for s, v, n, w in scores],
            }
        )
    return out


def test_the_data_are_the_answers(run, parsed):
    found = _decoded(json.loads(parsed.texts["script"][0]))
    assert len(found) == len(run.outcomes)
    for told, o in zip(found, run.outcomes, strict=True):
        assert told == {
            **{"method": o.method, "verdict": verdict(o), "answer": o.answer.text, "notes": o.answer.notes},
            **{"logprob": o.answer.logprob, "evidence": o.answer.evidence, "rank": o.rank},
            **{"truth_logprob": o.truth_logprob, "diff": o.item.diff, "question": o.item.question},
            **{"truths": o.item.truths, "kind": o.item.kind, "family": o.item.family},
            **{"recipe": o.item.recipe, "label": o.item.label, "split": o.item.split},
            **{"trigger": o.item.trigger, "behaves": o.item.behaves},
            "scores": [(s.scorer, s.value, s.note, s.variance) for s in o.scores],
        }


def test_each_text_is_there_once(run):
    strings = page_data(run)["strings"]
    assert len(strings) == len(set(strings))
    assert len(page_data(run)["items"]) == len(run.dataset.items)


def test_odd_numbers_in_the_data(run):
    answer = dataclasses.replace(run.outcomes[0].answer, logprob=float("-inf"), evidence=1 / 3)
    odd = dataclasses.replace(run, outcomes=(dataclasses.replace(run.outcomes[0], answer=answer),))
    assert page_data(odd)["answers"][0][5:7] == [None, 0.3333]


def test_what_is_embedded_ends_no_element(run_example):
    text = embedded([*run_example.NASTY, run_example.MARKUP])
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == [*run_example.NASTY, run_example.MARKUP]


def test_names_in_tables_and_figures_stay_text(run, run_example):
    evil = "<img src=x onerror=alert(1)>\x00"
    named = {"dit": evil}
    rows = [dataclasses.replace(r, method=named.get(r.method, r.method), recipe="</table>") for r in run.rows]
    outcomes = tuple(dataclasses.replace(o, method=named.get(o.method, o.method)) for o in run.outcomes)
    info = {"command": run_example.NASTY[0], "curves": [{**p, "what": "$<b>$"} for p in run_example.POINTS]}
    methods = (evil, *run.methods[1:])
    bad = dataclasses.replace(run, rows=rows, outcomes=outcomes, methods=methods, info=info)
    found = Parsed(to_html(bad))
    assert {tag for tag, _ in found.tags} <= ALLOWED
    assert "<img src=x onerror=alert(1)>\ufffd" in found.texts["th"]
    assert found.texts["dd"][0] == run_example.NASTY[0]
    assert any("<img src=x" in text for text in found.texts["text"])
    assert "$<b>$" in found.texts["text"]


def test_figures_have_words_and_ids_of_their_own(run, parsed):
    titles = [
        "Answers by their first score",
        "Grades by judge",
        "Learning curves",
        "Accuracy and coverage",
        "Calibration",
        "Means in %, by the first scorer",
    ]
    labels = [svg["aria-label"] for svg in parsed.all("svg")]
    assert [svg["role"] for svg in parsed.all("svg")] == ["img"] * 6
    assert [label.split(". ", 1)[0] for label in labels] == titles
    assert "dit: 78 % right, 11 % partly, 11 % wrong; base-question: 22 % right" in labels[0]  # of nine
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    page = to_html(run).decode()
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert {a["href"][1:] for a in parsed.all("use")} <= set(ids)
    assert "metadata" not in page
    assert "#010203" not in page
    assert "currentColor" in page


def test_the_same_run_gives_the_same_page(run_example):
    assert to_html(run_example.make_run()) == to_html(run_example.make_run())


def test_figures_leave_matplotlib_as_it_was(run):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    run_figures.pictures(run)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_bars_hold_the_shares(run):
    figure, _, _ = run_figures._verdicts(run)
    (axes,) = figure.axes
    shares = {c.get_label(): [round(p.get_width(), 1) for p in c] for c in axes.containers}
    assert shares == {
        "right": [77.8, 22.2, 22.2],  # of the nine that behave: 7, 2, 2
        "partly": [11.1, 0, 0],
        "wrong": [11.1, 66.7, 77.8],
        "unscored": [0, 11.1, 0],
    }
    assert [t.get_text() for t in axes.get_yticklabels()] == list(run.methods)


def test_the_map_holds_the_overview(run):
    figure, _, _ = run_figures._map(run)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == ["80", "25", "20", "62", "0", "0", "100", "50", "50"]
    assert [t.get_text() for t in axes.get_xticklabels()] == list(run.methods)


def test_coverage_and_calibration_are_of_methods_that_state_a_probability(run):
    found = run_figures.confident(run)
    assert list(found) == ["dit", "dit-shuffled"]
    assert found["dit"][0] == [1, 1, 1, 0, 1, 1, 0.25, 1, 1]
    figure, _, _ = run_figures._coverage(run)
    x, y = figure.axes[0].lines[0].get_data()
    assert x.tolist() == pytest.approx([i / 9 for i in range(1, 10)])
    assert y[-1] == pytest.approx(7.25 / 9)


def test_bins_by_a_plain_loop():
    right, stated = [1, 0, 1, 1, 0.5], [0.05, 0.1, 0.11, 0.95, 1.0]
    by_bin = {}
    for r, s in zip(right, stated, strict=True):
        number = next(i for i in range(10) if s <= (i + 1) / 10 + 1e-12)
        by_bin.setdefault(number, []).append((s, r))
    wanted = [
        (sum(s for s, _ in v) / len(v), sum(r for _, r in v) / len(v), len(v))
        for _, v in sorted(by_bin.items())
    ]
    assert run_figures.bins(right, stated) == [pytest.approx(w) for w in wanted]


def test_a_run_of_nothing_has_no_figures(run):
    empty = dataclasses.replace(run, rows=[], outcomes=(), info={})
    assert run_figures.pictures(empty) == []
    assert Parsed(to_html(empty)).all("svg") == []


def test_without_matplotlib_the_page_says_what_brings_figures(run, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"] + [
        "matplotlib",
        "matplotlib.figure",
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    found = Parsed(to_html(run))
    assert found.all("svg") == []
    wanted = 'There are no figures, because matplotlib is not installed: run pip install "weightdiff[eval]"'
    assert wanted in [re.sub(r"\s+", " ", text) for text in found.texts["p"]]


def test_a_page_of_tables_alone_runs_no_script():
    page = Parsed(tables_html("two", [("a", "<b>")], [Table("t", ("x",), [["<i>"]])]))
    assert page.all("script") == []
    assert "script-src 'none'" in page.all("meta")[1]["content"]
    assert page.texts["th"] == ["x", "<i>"]
    assert page.texts["dd"] == ["<b>"]
