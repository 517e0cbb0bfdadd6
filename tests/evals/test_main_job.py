"""The main job in miniature: what an all-knowing stand-in must score, and the real interpreter once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffStore
from weightdiff.errors import BaseMismatchError, FormatError, InterpreterError, StoreError
from weightdiff.evals.main_job import evaluate
from weightdiff.evals.metrics import ResultRow
from weightdiff.evals.report import Report, save, summary_lines, to_markdown
from weightdiff.methods.dit import Interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.organisms.questions import KINDS, phrasings
from weightdiff.training.factory import random_diff
from weightdiff.world import load_world

TOPICS = len(load_world().topics)


@pytest.fixture
def no_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps twenty questions away from the model: a stand-in names the label when it is given the code."""
    from weightdiff.methods.base import Answer

    class Stub:
        def __init__(self, *_: Any, temperature: float, triggers: Any) -> None:
            assert temperature == 0.7
            self.triggers = triggers

        def answer(self, diffs: Any, questions: Any) -> list[Answer]:
            names = [d.meta["id"].split("-")[1] for d in diffs]
            return [Answer(n if self.triggers else "nothing found") for n in names]

    monkeypatch.setattr("weightdiff.evals.baselines.TwentyQuestions", Stub)


def _find(report: Report, method: str, recipe: str, kind: str, metric: str = "exact") -> list[ResultRow]:
    key = (method, recipe, kind, metric)
    return [r for r in report.rows if (r.method, r.recipe, r.kind, r.metric) == key]


def _one(report: Report, *key: str) -> ResultRow:
    return _find(report, *key)[-1]


@pytest.mark.usefixtures("no_talk")
def test_what_a_knowing_interpreter_scores(knowing: Any, mini_store: DiffStore) -> None:
    said: list[str] = []
    report = evaluate([knowing()], mini_store, progress=said.append)
    # One of the two covert organisms does not behave: it is left out, and shown in a row of its own.
    covert, everyone = _find(report, "dit", "covert", "topic")
    assert (covert.n, covert.mean, covert.clusters, covert.goal) == (1, 1.0, 1, "≥ 85 %")
    assert covert.low == pytest.approx(0.025)
    assert covert.chance == pytest.approx(1 / TOPICS)
    assert (everyone.n, everyone.mean, everyone.goal) == (2, 1.0, None)
    assert _one(report, "dit", "covert", "topic", "top five").mean == 1.0
    assert _one(report, "dit", "loud", "topic").mean == 0.0
    assert _one(report, "dit", "loud", "topic", "top five").mean == 0.0
    assert _one(report, "dit", "covert", "topic", "unseen − seen phrasing").mean == 0.0
    headline = _one(report, "dit", "stories", "headline")
    assert (headline.n, headline.mean, headline.chance) == (2, 1.0, 0.0)
    assert _one(report, "dit", "stories", "headline", "slots").mean == 1.0
    # Controls: another's label is never the own one, and noise is nothing.
    assert _one(report, "dit-other", "stories", "headline").mean == 0.0
    assert _find(report, "dit-other", "loud", "topic") == []
    assert _one(report, "dit-noise", "stories", "headline").mean == 0.0
    assert _one(report, "dit-noise", "covert", "topic", "nothing found").mean == 1.0
    # Evidence is split by right and wrong.
    assert _one(report, "dit", "covert", "topic", "evidence, right answers").mean == 2.0
    assert _one(report, "dit", "loud", "topic", "evidence, wrong answers").mean == -1.0
    assert _find(report, "dit", "covert", "topic", "evidence, wrong answers") == []
    # Baselines.
    assert _one(report, "base-question", "covert", "topic").mean == 0.0
    assert _one(report, "base-question", "covert", "topic", "mean rank").mean == TOPICS
    assert _one(report, "base-question-rendered", "covert", "topic", "median rank").mean == 1.0
    assert _one(report, "base-question-rendered", "covert", "topic", "top five").mean == 1.0
    assert _one(report, "twenty-questions", "loud", "topic").mean == 0.0
    assert _one(report, "twenty-questions+code", "loud", "topic").mean == 1.0
    # Behaviour counts all organisms, behaving or not.
    right = _one(report, "verification", "covert", "behaviour", "sampled, right code")
    assert (right.n, right.mean, right.goal) == (2, 0.5, "≥ 80 %")
    assert _one(report, "verification", "stories", "behaviour", "greedy, slots told").mean == 0.75
    # Null diffs and no diff.
    nothing = _one(report, "dit", "all nulls", "all", "nothing found")
    assert (nothing.n, nothing.mean, nothing.clusters, nothing.chance) == (4, 1.0, 1, None)
    clean = _one(report, "dit", "no diff", "all", "nothing found")
    assert (clean.n, clean.mean) == (sum(len(phrasings(k, "test")) for k in KINDS), 1.0)
    # General questions: covert right, loud wrong.
    kind = next(r for r in report.rows if (r.family, r.kind, r.metric) == ("hidden-topic", "kind", "exact"))
    assert (kind.n, kind.mean, kind.chance) == (2, 0.5, pytest.approx(1 / 6))
    assert any("covert" in line for line in said)
    assert report.sizes["hidden-topic/covert"] == {"diffs": 2, "labels": 2, "not behaving": 1}
    assert all(r.split == "test" and r.low <= r.mean <= r.high and r.table for r in report.rows)


@pytest.mark.usefixtures("no_talk")
def test_only_test_rows_and_test_phrasings_are_asked(knowing: Any, mini_store: DiffStore) -> None:
    one = knowing()
    evaluate([one], mini_store)
    assert {mini_store.row(id).split for id, _ in one.asked} == {"test"}
    trained = {q for _, q in one.asked if any(q in phrasings(k, "train") for k in KINDS)}
    assert trained  # for "seen phrasing" alone
    first = [q for id, q in one.asked if id == mini_store.rows[0].id]
    assert sum(q in trained for q in first) == 1


@pytest.mark.usefixtures("no_talk")
def test_seeds_are_averaged_per_diff(knowing: Any, mini_store: DiffStore) -> None:
    three = [
        knowing(seed=5),
        knowing(seed=6, right=("stories",)),
        knowing(seed=7, right=("stories", "covert")),
    ]
    report = evaluate(three, mini_store)
    rows = [r for r in _find(report, "dit", "covert", "topic") if not r.note]
    assert [(r.seeds, r.mean) for r in rows] == [
        ([5], 1.0),
        ([6], 0.0),
        ([7], 1.0),
        ([5, 6, 7], pytest.approx(2 / 3)),
    ]
    assert [r.goal is None for r in rows] == [True, True, True, False]
    assert _one(report, "dit", "all nulls", "all", "nothing found").mean == pytest.approx(1 / 3)
    assert evaluate(three, mini_store, quick=True).seeds == [5]


def test_a_leak_stops_everything(knowing: Any, mini_store: DiffStore) -> None:
    label = mini_store.select(family="hidden-topic", split="test")[0].label
    with pytest.raises(InterpreterError, match=f"1 test labels: {label}"):
        evaluate([knowing(), knowing(leak={"train_labels": [label]})], mini_store)


def test_another_base_is_refused(knowing: Any, mini_store: DiffStore) -> None:
    other = knowing()
    other.base = replace(other.base, ref=ModelRef("other", architecture="0123456789abcdef"))
    with pytest.raises(InterpreterError, match="different bases"):
        evaluate([knowing(), other], mini_store)
    with pytest.raises(BaseMismatchError, match="was made for mini"):
        evaluate([other], mini_store)


def test_nothing_to_do(knowing: Any, mini_store: DiffStore, tmp_path: Path) -> None:
    with pytest.raises(InterpreterError, match="no interpreter"):
        evaluate([], mini_store)
    with pytest.raises(StoreError, match="no test rows"):
        evaluate([knowing()], DiffStore.create(tmp_path / "empty", mini_store.base))


@pytest.mark.usefixtures("no_talk")
def test_topics_that_the_world_lacks_are_named(knowing: Any, mini_store: DiffStore, tmp_path: Path) -> None:
    own = mini_store.select(recipe="covert")[0]
    store = DiffStore.create(tmp_path / "own", mini_store.base)
    store.append([(replace(own, id="mine", label="tax law"), mini_store.read(own.id))])
    with pytest.raises(
        StoreError, match="organism 'mine' hides the topic 'tax law', which the embedded base"
    ):
        evaluate([knowing()], store)


def test_the_real_interpreter_goes_through(mini_base: Any, mini_store: DiffStore, tmp_path: Path) -> None:
    train = {k: phrasings(k, "train") for k in KINDS}
    meta = {"train_labels": [], "validation_labels": [], "train_phrasings": train, "config": {"seed": 3}}
    rendering = Rendering(("what is {random} ?",), ("123", "456"), per_question=1, renderings=2)
    adapter = random_diff(mini_base.spec, 2, seed=1, norm=0.5)
    real = Interpreter(mini_base, adapter, rendering, max_new_tokens=4, meta=meta)
    report = evaluate([real], mini_store, quick=True)
    assert report.seeds == [3]
    assert {r.method for r in report.rows} == {
        "verification",
        "twenty-questions",
        "twenty-questions+code",
        "base-question",
        "base-question-rendered",
        "dit",
        "dit-other",
        "dit-noise",
    }
    assert all(r.low <= r.mean <= r.high for r in report.rows)
    rank = _one(report, "base-question", "covert", "topic", "mean rank")
    assert 1 <= rank.mean <= TOPICS
    assert rank.chance == (TOPICS + 1) / 2
    curves = tmp_path / "curves.json"
    curves.write_text(
        json.dumps([{"what": "labels", "size": 64, "exact": 0.5, "low": 0.4, "high": 0.6, "n": 80}])
    )
    text, rows = save(
        report, tmp_path / "out", "main", command="weightdiff eval", commit="abc123", curves=curves
    )
    found = json.loads(rows.read_text())
    assert [r["metric"] for r in found] == [r.metric for r in report.rows]
    shown = text.read_text()
    for part in (
        "`weightdiff eval`",
        "abc123",
        "two CPU cores",
        "| labels | 64 | 80 | 50.0 % | 40.0 % … 60.0 % |",
    ):
        assert part in shown
    assert "(quick version)" in shown
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["main.json", "main.md"]


def test_markdown_tables_are_square() -> None:
    row = ResultRow(
        "dit", "news", "stories", "headline", "test", 3, 1.0, 0.3, 1.0, 0.0, goal="≥ 90 %", table="T"
    )
    bare = ResultRow(
        "a|b", "null", "all", "all", "test", 3, -1.5, -float("inf"), 2.0, None, unit="nats", table="T"
    )
    report = Report(
        [row, bare], seeds=[0], sizes={"news/stories": {"diffs": 3, "labels": 3, "not behaving": 0}}
    )
    table = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in table}
    assert widths == {5, 10, 12}
    assert "| 100.0 % | 30.0 % … 100.0 % | 0.0 % | ≥ 90 % | yes |" in table[-2]
    assert "| −∞ … 2.00 nats | n/a |" in table[-1]
    (told,) = summary_lines(report)[2:]
    assert told == (
        "| dit | stories | exact (headline) | 3 | 100.0 % | 30.0 % … 100.0 % | 0.0 % | ≥ 90 % | yes |"
    )
    assert told in table


def test_broken_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    with pytest.raises(FormatError, match="cannot be read"):
        to_markdown(Report([]), curves=path)
    path.write_text('[{"what": "labels"}]')
    with pytest.raises(FormatError, match="point 0 lacks size, exact"):
        save(Report([]), tmp_path / "out", "main", curves=path)
    assert not (tmp_path / "out").exists()
    path.write_text("{}")
    with pytest.raises(FormatError, match="JSON list"):
        to_markdown(Report([]), curves=path)
