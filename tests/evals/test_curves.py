"""Learning curves in miniature: what is drawn, what is tuned on, and what a stop or another store does."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.errors import BaseMismatchError, FormatError, InterpreterError, StoreError
from weightdiff.evals import curves, dit_tables
from weightdiff.evals.report import Report, read_curves, to_markdown
from weightdiff.evals.tally import Group, Tally
from weightdiff.models.rendering import Rendering
from weightdiff.organisms import family
from weightdiff.organisms.questions import phrasings
from weightdiff.training import drawing
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.factory import make_row, random_diff
from weightdiff.world import load_world

CONFIG = TuningConfig(rank=2, steps=2, batch=4, validate_every=2, validation_rows=2, answer_tokens=8)
OTHERS = (("hidden-topic", "loud"), ("news", "stories"), ("null", "random"))


def rows_of(split: str) -> list[DiffRow]:
    """Four topics at three seeds (one organism does not behave) and one diff of each other kind."""
    covert = [s for seed in range(3) for s in family("hidden-topic").specs("covert", split, 4, seed)]
    others = [family(name).specs(recipe, split, 1, 0)[0] for name, recipe in OTHERS]
    rows = [make_row(s, {}) for s in (*covert, *others)]
    return [replace(r, verification={"behaves": i != 5}) for i, r in enumerate(rows)]


def make_store(path: Path, base: Any, rows: list[DiffRow]) -> DiffStore:
    store = DiffStore.create(path, base.ref)
    store.append([(r, random_diff(base.spec, 1, i, 1.0)) for i, r in enumerate(rows)])
    return store


@pytest.fixture(scope="module")
def setup(mini_base: Any, tmp_path_factory: pytest.TempPathFactory) -> curves.Setup:
    rows = [*rows_of("train"), *rows_of("validation")[:2], *rows_of("test")[:6]]
    store = make_store(tmp_path_factory.mktemp("curves") / "store", mini_base, rows)
    return curves.Setup(mini_base, store, CONFIG, Rendering())


@dataclass
class Done:
    """A whole run: its file, its points, what tuning was given, wrote down and drew, what was stacked."""

    file: Path
    points: list[dict[str, Any]]
    tunings: list[tuple[list[str], list[str]]] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    drawn: list[DiffRow] = field(default_factory=list)
    stacked: list[list[str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def done(setup: curves.Setup, tmp_path_factory: pytest.TempPathFactory) -> Done:
    found = Done(tmp_path_factory.mktemp("done") / "curves.json", [])
    tune, draw, stack = curves.tune, drawing.Sampler.draw, DiffStore.stack

    def spy_tune(*arguments: Any, train_ids: list[str]) -> Any:
        result = tune(*arguments, train_ids=train_ids)
        found.tunings.append((train_ids, result.manifest["train_ids"]))
        found.ranks.append(result.adapter.max_rank)
        return result

    def spy_draw(self: Any, rng: random.Random) -> Any:
        row = draw(self, rng)
        found.drawn += row[0]
        return row

    def spy_stack(self: DiffStore, ids: list[str], *rest: Any) -> Any:
        found.stacked.append(ids)
        return stack(self, ids, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "tune", spy_tune)
        patch.setattr(drawing.Sampler, "draw", spy_draw)
        patch.setattr(DiffStore, "stack", spy_stack)
        found.points = curves.run(setup, found.file, commit="abc")
    return found


def test_subsets_are_nested_and_drawn_by_the_seed() -> None:
    rows = [
        DiffRow(f"{t}-{i}", f"t{t}", "hidden-topic", "covert", "train", 0)
        for t in range(16)
        for i in range(5)
    ]
    plan = curves.subsets(rows, 0)
    sizes = {w: [s.size for s in plan if s.what == w] for w in dict.fromkeys(s.what for s in plan)}
    assert sizes == {
        "organisms": [10, 20, 40, 80],
        "topics": [2, 4, 8, 16],
        "organisms per topic": [1, 2, 4, 5],
    }
    for what in sizes:
        found = [s.ids for s in plan if s.what == what]
        assert all(a < b for a, b in pairwise(found))
        assert found[-1] == {r.id for r in rows}
    assert [len(s.ids) for s in plan] == [10, 20, 40, 80, 10, 20, 40, 80, 16, 32, 64, 80]
    assert [s.topics for s in plan][4:] == [2, 4, 8, 16, 16, 16, 16, 16]
    assert curves.subsets(rows[::-1], 0) == plan
    other = curves.subsets(rows, 1)
    assert [s.size for s in other] == [s.size for s in plan]
    assert all(a.ids != b.ids for a, b in zip(plan, other, strict=True) if len(a.ids) < 80)


def test_only_training_diffs_are_tuned_on(setup: curves.Setup, done: Done) -> None:
    row = setup.store.row
    train = {r.id for r in setup.store.select(split="train") if r.verification["behaves"]}
    others = {i for i in train if row(i).recipe != "covert"}
    assert len(train) == 14
    assert len(others) == 3
    for given, used in done.tunings:
        assert set(given) == set(used)
        assert len(used) == len(set(used))
        assert set(used) <= train
    assert [others < set(used) for _, used in done.tunings] == [True] * 8 + [False] * 2 + [True] * 2
    assert {r.id for r in done.drawn} <= train
    assert any(set(ids) == train for ids in done.stacked)
    assert {row(i).split for ids in done.stacked for i in ids} == {"train", "validation"}


def test_families_are_added_one_by_one_and_ranks_vary(setup: curves.Setup, done: Done) -> None:
    assert [(p["what"], p["size"]) for p in done.points[-11:]] == [
        *(("families", n) for n in (1, 2, 3)),
        *(("adapter rank", r) for r in (1, 2, 4)),
        *(("all organisms", n) for n in (4, 5, 8, 14)),
        ("base parameters", setup.base.model.num_parameters()),
    ]
    families = [{setup.store.row(i).family for i in used} for _, used in done.tunings]
    every = {"hidden-topic", "news", "null"}
    assert families == [every] * 8 + [{"hidden-topic"}, {"hidden-topic", "news"}] + [every] * 2
    assert done.ranks == [2] * 10 + [1, 4]


def test_one_curve_alone_can_be_done(setup: curves.Setup, done: Done, tmp_path: Path) -> None:
    found = curves.run(setup, tmp_path / "curves.json", only=["adapter rank"])
    whole = [p for p in found if p["what"] == "adapter rank"]
    assert [p["exact"] for p in whole] == [p["exact"] for p in done.points[-8:-5]]
    assert found == whole == read_curves(tmp_path / "curves.json")


def test_a_second_curve_is_added_to_the_first(setup: curves.Setup, tmp_path: Path, monkeypatch: Any) -> None:
    """What they share is not tuned again, and a curve whose points are all there is shown with them."""
    out, tuned = tmp_path / "curves.json", []
    tune = curves.tune
    monkeypatch.setattr(curves, "tune", lambda *a, **k: tuned.append(k["train_ids"]) or tune(*a, **k))
    first = curves.run(setup, out, only=["adapter rank"])
    assert len(tuned) == len(first)
    both = curves.run(setup, out, only=["base parameters"])
    assert len(tuned) == len(first)
    assert [p["what"] for p in both] == ["adapter rank"] * len(first) + ["base parameters"]
    assert read_curves(out) == both
    assert json.loads(out.read_text())["curves"] == ["adapter rank", "base parameters"]


def test_a_part_of_all_is_the_same_part_of_every_kind(setup: curves.Setup) -> None:
    covert = [DiffRow(f"c{i}", f"t{i % 4}", "hidden-topic", "covert", "train", 0) for i in range(16)]
    others = [DiffRow(f"{r}{i}", r, f, r, "train", 0) for f, r in OTHERS for i in range(8)]
    plan = [s for s in curves.subsets(covert, 0, others=others) if s.what == "all organisms"]
    assert [(s.size, len(s.ids)) for s in plan] == [(5, 2), (10, 4), (20, 8), (40, 16)]
    assert [Counter(i[:-1] for i in s.others or ()) for s in plan[:3]] == [
        Counter({r: n for _, r in OTHERS}) for n in (1, 2, 4)
    ]
    assert all(a.others < b.others and a.ids < b.ids for a, b in pairwise(plan[:3]))  # type: ignore[operator]
    assert (plan[3].others, plan[3].key) == (None, curves.subsets(covert, 0)[3].key)
    assert len({s.key for s in plan}) == 4


def test_other_families_are_asked_what_their_labels_answer(setup: curves.Setup, monkeypatch: Any) -> None:
    """An interpreter that says the first headline whatever is asked; rows that do not behave are left out."""
    headlines = family("news").specs("stories", "test", 3, 0)
    made = [replace(make_row(s, {}), verification={"behaves": i < 2}) for i, s in enumerate(headlines)]
    store = make_store(setup.store.path.parent / "others", setup.base, made)
    asked = list[str]()

    class One:
        def answer(self, diffs: list[Any], questions: list[str]) -> list[Any]:
            asked.extend(questions)
            return [SimpleNamespace(text=headlines[0].label) for _ in diffs]

    one: Any = One()
    assert curves.measure_others(one, store) == {"news": 0.5}
    assert len(asked) == 2
    assert all(q in phrasings("headline", "test") for q in asked)


def test_a_page_has_a_table_for_each_curve_in_the_order_of_size(done: Done) -> None:
    larger = [{**p, "size": 10 * p["size"]} for p in done.points if p["what"] == "base parameters"]
    lines = curves.to_page([*larger, *done.points], {"command": "`x`", "seed": "0"}).splitlines()
    assert lines[:4] == ["# Learning curves", "", "- command: `x`", "- seed: 0"]
    heads = [line for line in lines if line.startswith("## ")]
    assert heads == [f"## By {what}" for what in ("base parameters", *curves.CURVES[:-1])]
    sizes = [line.split(" | ")[1] for line in lines if line.startswith("| base parameters")]
    assert [int(x) for x in sizes] == [done.points[-1]["size"], larger[0]["size"]]


def test_a_page_shows_curves_of_other_names_too(done: Done) -> None:
    text = curves.to_page([{**done.points[0], "what": "labels"}], {})
    assert "## By labels\n\n| what | size |" in text


def test_no_sums_are_made_before_several_at_once_come_in(setup: curves.Setup, monkeypatch: Any) -> None:
    sums = []

    def spy(*arguments: Any, **_: Any) -> Any:
        sums.append(arguments[3].sums)
        raise StopIteration

    monkeypatch.setattr(curves, "tune", spy)
    for without in ({"several", "news"}, {"news"}, set[str]()):
        subset = curves.Subset("families", 1, frozenset(), 0, frozenset(without))
        with pytest.raises(StopIteration):
            curves._point(setup, subset, [], curves._asked(setup.store), lambda *_: None)
    assert sums == [0.0, CONFIG.sums, CONFIG.sums]


def test_the_reader_is_part_of_what_has_to_agree(setup: curves.Setup, done: Done) -> None:
    lent = random_diff(setup.base.spec, 1, 0, 1.0)
    with pytest.raises(FormatError, match=r"other settings \(reader none, not [0-9a-f]{16}\)"):
        curves.run(replace(setup, reader=lent), done.file)


def test_points_shared_by_curves_are_tuned_once(done: Done) -> None:
    sizes = [(p["what"], p["size"], p["organisms"], p["topics"]) for p in done.points]
    assert [s for s in sizes if s[0].startswith("organisms")] == [
        ("organisms", 1, 1, 1),
        ("organisms", 2, 2, sizes[1][3]),
        ("organisms", 5, 5, sizes[2][3]),
        ("organisms", 11, 11, 4),
        ("organisms per topic", 1, 4, 4),
        ("organisms per topic", 2, 8, 4),
        ("organisms per topic", 3, 11, 4),
    ]
    assert [(s[1], s[3]) for s in sizes if s[0] == "topics"] == [(1, 1), (2, 2), (4, 4)]
    assert len(done.tunings) == 12
    whole = [p for p in done.points if p["subset"] == done.points[3]["subset"]]
    assert [(p["what"], p["size"]) for p in whole] == [
        ("organisms", 11),
        ("topics", 4),
        ("organisms per topic", 3),
        ("families", 3),
        ("adapter rank", 2),
        ("all organisms", 14),
        ("base parameters", whole[-1]["size"]),
    ]
    assert len({(p["subset"], p["exact"], p["seconds"]) for p in whole}) == 1
    assert read_curves(done.file) == done.points
    assert {p["commit"] for p in done.points} == {"abc"}
    assert {p["steps"] for p in done.points} == {2}


def test_a_point_is_measured_as_in_the_main_job(knowing: Any, mini_store: DiffStore) -> None:
    group = Group.read(mini_store, "hidden-topic", "covert")
    found = curves.measure(knowing(), group)
    tally = Tally([0])
    dit_tables.answers(tally, group, [dit_tables.interview(knowing(), group, lambda _: None)])
    told, top = (next(r for r in tally.rows if r.metric == m).to_json() for m in ("exact", "top five"))
    assert [found[k] for k in ("n", "labels", "exact", "low", "high", "chance")] == [
        told[k] for k in ("n", "clusters", "mean", "low", "high", "chance")
    ]
    assert [found[k] for k in ("top_five", "top_five_low", "top_five_high", "top_five_chance")] == [
        top[k] for k in ("mean", "low", "high", "chance")
    ]
    assert (found["n"], found["exact"], found["top_five"]) == (1, 1.0, 1.0)
    assert found["chance"] == pytest.approx(1 / len(load_world().topics), abs=1e-6)


def test_points_count_the_behaving_test_organisms(done: Done) -> None:
    assert {(p["n"], p["labels"]) for p in done.points} == {(5, 4)}
    assert all(0 <= p["low"] <= p["exact"] <= p["high"] <= 1 for p in done.points)


def test_a_stopped_run_goes_on(setup: curves.Setup, done: Done, tmp_path: Path, monkeypatch: Any) -> None:
    out, tuned = tmp_path / "curves.json", []
    tune = curves.tune
    monkeypatch.setattr(curves, "tune", lambda *a, **k: tuned.append(k["train_ids"]) or tune(*a, **k))

    def killed(steps: float, words: str, total: float) -> None:
        assert total == 24
        if steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curves.run(setup, out, killed)
    assert len(tuned) == 3
    assert [p["size"] for p in read_curves(out) if p["what"] == "organisms"] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["curves.json"]
    moves: list[tuple[float, float]] = []
    points = curves.run(setup, out, lambda steps, _, total: moves.append((steps, total)))
    assert len(tuned) == 3 + 10
    assert (moves[0], moves[-1]) == ((1, 20), (20, 20))
    own = ("seconds", "commit")
    assert [{k: v for k, v in p.items() if k not in own} for p in points] == [
        {k: v for k, v in p.items() if k not in own} for p in done.points
    ]
    assert curves.run(setup, out) == points
    assert len(tuned) == 13


def test_what_others_made_is_refused(setup: curves.Setup, done: Done, mini_base: Any, tmp_path: Path) -> None:
    before = done.file.read_bytes()
    other = make_store(tmp_path / "other", mini_base, [*rows_of("train"), *rows_of("test")[:5]])
    for changes, words in (
        ({"store": other}, "store 23 rows [0-9a-f]{16}, not 20 rows [0-9a-f]{16}"),
        ({"config": replace(CONFIG, steps=3, seed=1)}, "tuning.steps 2, not 3; tuning.seed 0, not 1"),
        ({"rendering": Rendering(("a",), (), 1)}, "rendering"),
    ):
        with pytest.raises(FormatError, match=rf"curves.json was made with other settings \({words}.*--out"):
            curves.run(replace(setup, **changes), done.file)
    foreign = replace(mini_base, ref=ModelRef("other", architecture="0123456789abcdef"))
    with pytest.raises(BaseMismatchError, match="was made for mini"):
        curves.run(replace(setup, base=foreign), done.file)
    assert done.file.read_bytes() == before


def test_files_that_are_no_curves_are_left_alone(setup: curves.Setup, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a folder"):
        curves.run(setup, tmp_path)
    file = tmp_path / "mine.json"
    point = {"what": "labels", "size": 1, "exact": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    for text, words in (("no", "cannot be read"), (json.dumps([point]), "can continue; choose")):
        file.write_text(text)
        with pytest.raises(FormatError, match=words):
            curves.run(setup, file)
        assert file.read_text() == text


def test_a_store_that_is_not_enough(setup: curves.Setup, mini_base: Any, tmp_path: Path) -> None:
    def run(name: str, rows: list[DiffRow]) -> None:
        store = make_store(tmp_path / name, mini_base, rows)
        curves.run(replace(setup, store=store), tmp_path / f"{name}.json")

    train, test = rows_of("train"), rows_of("test")
    with pytest.raises(StoreError, match="no covert training organisms that behave"):
        run("untrained", [*train[12:], *test[:2]])
    with pytest.raises(StoreError, match=r"no covert test organisms that behave; .* --split test"):
        run("untested", [*train[:2], test[5]])
    alone = make_store(tmp_path / "alone", mini_base, [*train[:2], *test[:2]])
    with pytest.raises(StoreError, match="no training diffs for a curve of families"):
        curves.run(replace(setup, store=alone), tmp_path / "alone.json", only=["families"])
    with pytest.raises(InterpreterError, match=f"1 test labels: {train[0].label}"):
        run("leaking", [train[0], replace(train[0], id="leak", split="test")])
    assert not list(tmp_path.glob("*.json"))


def test_the_report_shows_every_point(done: Done) -> None:
    lines = to_markdown(Report([]), curves=done.file).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| what | size | n | exact |"))
    assert lines[head].endswith(
        "| labels | tuned on diffs | covert ones among them | of topics | tuning steps |"
    )
    assert len(lines[head + 2 :]) == len(done.points)
    assert lines[-1].startswith(f"| base parameters | {done.points[-1]['size']} | 5 | ")
    assert lines[-1].endswith(f" | 4 | 14 | 11 | 4 | {done.points[-1]['steps']} |")
