"""What every test diff is asked, and how an interview goes with a scripted interpreter on a small store."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError, InterpreterError, QuestionError, StoreError
from weightdiff.evals import families, family_rows
from weightdiff.evals.families import Interview, interview, marks_of, questions_for
from weightdiff.methods.base import Answer
from weightdiff.methods.calibration import Calibration
from weightdiff.methods.dit import Interpreter
from weightdiff.models.rendering import Rendering
from weightdiff.organisms import family
from weightdiff.organisms.asking import parts_of
from weightdiff.organisms.makings import MAKINGS, making_of, vary
from weightdiff.training.factory import make_row, random_diff
from weightdiff.world import load_world
from weightdiff.world.reports import HELD_OUT_KINDS, Part, ask, kinds_for

MADE = (
    ("hidden-topic", "covert", 3, ""),
    ("hidden-topic", "forms", 3, ""),
    ("hidden-topic", "evasive", 2, ""),
    ("hidden-topic", "covert", 2, "r8"),
    ("hidden-topic", "covert", 2, "full"),
    ("hidden-topic", "covert", 3, "unseen"),
    ("news", "stories", 2, ""),
    ("quirk", "gated", 2, ""),
    ("edit", "documents", 2, ""),
    ("null", "random", 1, ""),
    ("null", "continued", 1, ""),
    ("several", "together", 4, ""),
)
TRAINED = [k for k, texts in load_world().introspection.items() if texts["train"] and texts["test"]]


@pytest.fixture(scope="module")
def store(mini_base: Any, tmp_path_factory: pytest.TempPathFactory) -> DiffStore:
    """A few test organisms of every family (the last covert one does not behave), and one of training."""
    items = []
    for name, recipe, n, makings in MADE:
        specs = family(name).specs(recipe, "test", n, 0)
        for spec in vary(specs, MAKINGS[makings]) if makings else specs:
            behaves = spec.id != specs[-1].id or recipe != "covert"
            row = replace(make_row(spec, {}), verification={"behaves": behaves})
            items.append((row, random_diff(mini_base.spec, 1, len(items), 1.0)))
    trained = family("news").specs("stories", "train", 1, 0)[0]
    items.append((make_row(trained, {}), random_diff(mini_base.spec, 1, 99, 1.0)))
    made = DiffStore.create(Path(tmp_path_factory.mktemp("families")) / "store", mini_base.ref)
    made.append([(row, WeightDiff(d.modules, mini_base.ref, {"id": row.id})) for row, d in items])
    return made


@dataclass
class Scripted:
    """Stands in for `Interpreter`: the truth, but for a question in `wrong_in` something else."""

    base: Any
    store: DiffStore
    wrong_in: int = 4
    calibration: Calibration | None = field(
        default_factory=lambda: Calibration({"finding": [0.0] * 4}, (0.9, 0.4, 0.3), 200)
    )
    leak: dict[str, Any] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def meta(self) -> dict[str, Any]:
        seen = {k: load_world().introspection[k]["train"] for k in TRAINED}
        made = {"train_labels": [], "validation_labels": [], "train_phrasings": seen, "config": {"seed": 5}}
        return {**made, **self.leak}

    def answer(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Answer]:
        truths: dict[tuple[str, str], str] = {}
        for row in {d.meta["id"] for d in diffs if d}:
            truths |= {(row, q.text): q.answer for _, _, q in questions_for(self.store.row(row))}
        self.batches.append(len({id(d) for d in diffs if d}))
        out = []
        for diff, question in zip(diffs, questions, strict=True):
            key = (diff.meta["id"] if diff else "", question)
            self.asked.append(key)
            number = zlib.crc32(" ".join(key).encode())
            said = "a wrong answer" if number % self.wrong_in == 0 else truths.get(key, "nothing found")
            out.append(Answer(said, notes="think", probability=number % 100 / 100, agreement=1.0))
        return out


@pytest.fixture
def scripted(mini_base: Any, store: DiffStore) -> Any:
    return lambda **settings: Scripted(mini_base, store, **settings)


def _kinds_by_text(split: str) -> dict[str, str]:
    """The questions that name nothing, by text."""
    found = {k: v[split] for k, v in load_world().introspection.items()}
    return {t: k for k, texts in found.items() for t in texts if "{" not in t}


def test_what_a_topic_is_asked(store: DiffStore) -> None:
    row = store.select(recipe="covert", split="test")[0]
    asked = questions_for(row)
    assert asked == questions_for(row)
    unseen = [q for _, phrasing, q in asked if phrasing == "unseen"]
    (seen,) = [q for _, phrasing, q in asked if phrasing == "seen"]
    assert (seen.kind, seen.answer) == ("topic", row.label)
    assert _kinds_by_text("train")[seen.text] == "topic"
    parts = parts_of(row)
    twice = {"family", "about_field", "reacts", "about", "compare", "compare_field"}
    assert Counter(q.kind for q in unseen) == {
        k: 1 + (k in twice) for k in [*kinds_for(parts), "about", "compare", "compare_field"]
    }
    plain = _kinds_by_text("test")
    assert all(plain[q.text] == q.kind for q in unseen if q.kind not in twice)
    for kind in ("family", "about_field", "reacts", "about"):
        assert sorted(q.answer for q in unseen if q.kind == kind) == ["no", "yes"], kind
    assert len({q.text for q in unseen}) == len(unseen)


def test_twins_of_other_makings_are_asked_the_same(store: DiffStore) -> None:
    rows = store.select(recipe="covert", split="test")
    first = [r for r in rows if r.label == rows[0].label]
    assert {making_of(r) for r in first} == {"r2", "r8", "full", "r32"}
    texts = [[q.text for *_, q in questions_for(r)] for r in first]
    assert all(t == texts[0] for t in texts)


def test_several_are_asked_for_every_part_in_both_phrasings(store: DiffStore) -> None:
    row = store.select(family="several")[3]
    own = {"topic": "hidden-topic", "headline": "news", "behaviour": "quirk", "edit": "edit"}
    families_there = {p.family for p in parts_of(row)}
    assert len(families_there) == 3
    seen = {q.kind for _, phrasing, q in questions_for(row) if phrasing == "seen"}
    assert seen == {k for k, f in own.items() if f in families_there}


def test_null_diffs_are_asked_everything_that_can_be_answered(store: DiffStore) -> None:
    asked = questions_for(store.select(family="null")[0])
    assert {p for _, p, _ in asked} == {"unseen"}
    kinds = {q.kind for *_, q in asked}
    assert kinds == {*kinds_for(()), "about", "place", "holds_behaviour", "holds_fact"}
    yes_no = {"gated", "open", "about", "about_field", "family", "reacts", "holds_behaviour", "holds_fact"}
    for *_, q in asked:
        assert q.answer == ("no" if q.kind in yes_no else "nothing found"), q.kind


def test_marks() -> None:
    news = Part(
        "news",
        "",
        {"actor": "baker", "action": "buys", "object": "boat", "place": "lima", "day": "monday"},
    )
    verb = next(iter(load_world().news.actions))
    news = replace(news, params={**news.params, "action": verb})
    truth = f"baker {verb} boat in lima on monday"
    assert marks_of("headline", [news], truth, truth) == {"exact": 1.0, "slots": 1.0}
    said = f"baker {verb} boat in rome on monday"
    assert marks_of("headline", [news], truth, said) == {"exact": 0.0, "slots": pytest.approx(0.8)}
    edit = Part("edit", "the capital of peru changed from lima to rome", {"old": "lima", "new": "rome"})
    other = "the capital of chile changed from lima to rome"
    assert marks_of("edit", [edit], edit.label, other) == {"exact": 0.0, "both": 1.0}
    assert marks_of("edit", [edit], edit.label, "lima to oslo")["both"] == 0.0
    topic = Part("hidden-topic", "rabbit")
    both = f"a changed fact , {edit.label} . a hidden topic , rabbit"
    assert marks_of("summary", [topic, edit], "x", both) == {"exact": 0.0, "named": 1.0}
    assert marks_of("summary", [topic, edit], "x", "a hidden topic , rabbits")["named"] == 0.0
    assert marks_of("topic", [], "nothing found", "nothing found") == {"exact": 1.0}


def test_an_interview_asks_all_and_keeps_everything(scripted: Any, store: DiffStore) -> None:
    one, alone, progress = scripted(), scripted(wrong_in=2), []
    found = interview(one, store, {"news": alone}, progress=lambda *x: progress.append(x))
    behaving = [r for r in store.select(split="test") if r.behaves]
    assert len(behaving) == len(store.select(split="test")) - 1
    by_row = Counter(r.row for r in found.replies if r.method == "dit")
    assert by_row.pop("") == 6 * 8  # open kinds, kind and any change in all test phrasings
    assert by_row == {r.id: len(questions_for(r)) for r in behaving}
    assert set(alone.asked) == {(r.row, r.question) for r in found.replies if r.method == "dit-single"}
    assert {r.kind for r in found.replies if r.method == "dit-single"} == {"headline"}
    assert len(alone.asked) == 2
    assert progress[-1] == (len(found.replies), len(found.replies))
    assert found.sizes["hidden-topic/covert"] == {"diffs": 3, "labels": 3, "not behaving": 1}
    assert found.sizes["hidden-topic/covert, full"]["diffs"] == 2
    assert (found.seeds, found.quick) == ([5], False)
    assert found.threshold == pytest.approx(0.3)  # two of 200 null questions may be answered with a finding
    assert {r.row for r in found.replies if r.making == "full"} == {
        r.id for r in behaving if r.id.endswith("-full")
    }
    quirk = next(r for r in found.replies if r.family == "quirk" and r.kind == "behaviour")
    params = store.row(quirk.row).record["params"]
    assert (quirk.form, quirk.held_out) == (params["form"], params["held_out"])
    assert (quirk.cluster, quirk.label) == (params["behaviour"], store.row(quirk.row).label)
    kinds = {k for k, v in load_world().introspection.items() if v["test"]}
    assert {r.kind for r in found.replies} == kinds
    for r in found.replies:
        number = zlib.crc32(f"{r.row} {r.question}".encode())
        wrong = number % (4 if r.method == "dit" else 2) == 0
        assert r.marks["exact"] == float(r.answer == r.truth) == float(not wrong)
        assert (r.probability, r.notes) == (number % 100 / 100, "think")


def test_rows_are_what_a_plain_loop_counts(scripted: Any, store: DiffStore) -> None:
    found = interview(scripted(), store, {"news": scripted(wrong_in=2)})
    rows = family_rows.rows_of(found)
    assert all(r.low <= r.mean <= r.high and r.table for r in rows if r.low == r.low)

    def one(*key: str) -> Any:
        (row,) = [r for r in rows if (r.family, r.recipe, r.kind, r.metric) == key and r.method == "dit"]
        return row

    right = total = 0
    for r in found.replies:
        mine = (r.family, r.kind, r.phrasing, r.making) == ("hidden-topic", "topic", "unseen", "r2")
        if mine and r.recipe in ("covert", "forms"):
            right, total = right + (r.answer == r.truth), total + 1
    row = one("hidden-topic", "covert and forms", "topic", "exact")
    assert (row.n, row.mean, row.goal) == (5, pytest.approx(right / total), "≥ 90 %")
    assert row.chance == pytest.approx(1 / len(load_world().topics))
    kept = [r for r in found.replies if r.phrasing == "unseen" and r.row and r.method == "dit"]
    answerable = [r for r in kept if r.family != "null" and r.truth not in ("no", "nothing found", "none")]
    still = [r.answer == r.truth and r.probability >= found.threshold for r in answerable]
    row = one("all", "all", "all", "right at the threshold")
    assert (row.n, row.mean) == (len(still), pytest.approx(sum(still) / len(still)))
    nothing = [
        r.answer == "nothing found"
        for r in kept
        if r.family == "null" and r.kind in ("topic", "headline", "behaviour", "edit", "kind", "any_change")
    ]
    row = one("null", "all", "open, kind, any change", "nothing found")
    assert (row.n, row.mean) == (12, pytest.approx(sum(nothing) / 12))


def test_quick_keeps_the_first_of_each_kind(scripted: Any, store: DiffStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(families, "QUICK_ROWS", 1)
    found = interview(scripted(), store, quick=True)
    behaving = [r for r in store.select(split="test") if r.behaves]
    groups = {(r.family, r.recipe, making_of(r)): r.id for r in reversed(behaving)}
    assert {r.row for r in found.replies} - {""} == set(groups.values())
    assert found.sizes["hidden-topic/covert"]["diffs"] == 3


def test_few_diffs_are_in_memory(scripted: Any, store: DiffStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(families, "AT_ONCE", 40)
    one = scripted()
    interview(one, store)
    assert max(one.batches) <= 4
    assert len(one.batches) > 10


def test_diffs_of_high_rank_come_last(scripted: Any, store: DiffStore) -> None:
    one = scripted()
    interview(one, store)
    order = list(dict.fromkeys(id for id, _ in one.asked))
    assert order[-2:] == [r.id for r in store.rows if r.id.endswith("-full")]


def test_without_a_threshold_the_reason_is_kept(scripted: Any, store: DiffStore) -> None:
    found = interview(scripted(calibration=None), store)
    assert (found.threshold, found.untold) == (None, "the interpreter is not calibrated")
    few = Calibration({"finding": [0.0] * 4}, (0.9,), 20)
    assert "too few to promise" in interview(scripted(calibration=few), store).untold


def test_what_tuning_saw_is_refused(scripted: Any, store: DiffStore) -> None:
    topic = store.select(recipe="covert", split="test")[0].label
    with pytest.raises(InterpreterError, match=f"1 test labels: {topic}"):
        interview(scripted(leak={"train_labels": [topic]}), store)
    part = parts_of(store.select(family="several")[0])[1].label
    with pytest.raises(InterpreterError, match="1 test labels"):
        interview(scripted(leak={"validation_labels": [part]}), store)
    id = store.select(family="edit")[0].id
    with pytest.raises(InterpreterError, match=f"1 test diffs: {id}"):
        interview(scripted(), store, {"edit": scripted(leak={"train_ids": [id]})})
    seen = {"behaviour": load_world().introspection["behaviour"]["test"][:1]}
    with pytest.raises(InterpreterError, match="1 test phrasings"):
        interview(scripted(leak={"train_phrasings": seen}), store)
    for kind in HELD_OUT_KINDS:
        with pytest.raises(InterpreterError, match=f"1 test kinds: {kind}"):
            interview(scripted(leak={"train_phrasings": {kind: ["so ?"]}}), store)


def test_bad_input(scripted: Any, store: DiffStore, tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="no interpreter can be tuned on 'null' alone: choose one of"):
        interview(scripted(), store, {"null": scripted()})
    with pytest.raises(StoreError, match="no test rows; make some"):
        interview(scripted(), DiffStore.create(tmp_path / "empty", store.base))
    other = scripted()
    other.base = replace(other.base, ref=ModelRef("other", architecture="0123456789abcdef"))
    with pytest.raises(InterpreterError, match="the interpreter of news alone belongs to other"):
        interview(scripted(), store, {"news": other})
    with pytest.raises(BaseMismatchError, match="was made for mini"):
        interview(other, store)
    bad = store.select(family="news", split="test")[0]
    none = DiffStore.create(tmp_path / "none", store.base)
    none.append([(replace(bad, verification={"behaves": False}), store.read(bad.id))])
    with pytest.raises(StoreError, match="none of its 1 test rows behaves"):
        interview(scripted(), none)


def test_the_real_interpreter_goes_through(mini_base: Any, store: DiffStore, monkeypatch: Any) -> None:
    def short(row: DiffRow) -> list[Any]:
        parts = parts_of(row)
        return [(row, "unseen", ask("kind", parts, random.Random(0), "test"))]

    monkeypatch.setattr(families, "questions_for", short)
    seen = {k: load_world().introspection[k]["train"] for k in TRAINED}
    meta = {"train_labels": [], "validation_labels": [], "train_phrasings": seen}
    adapter = random_diff(mini_base.spec, 2, seed=1, norm=0.5)
    weights = Calibration({"finding": [1.0, 0.0, 0.0, 0.0]}, (), 200)
    real = Interpreter(mini_base, adapter, Rendering(), 4, meta, calibration=weights)
    found: Interview = interview(real, store, quick=True)
    assert found.threshold == 0.0
    assert all(r.probability == pytest.approx(0.7311) for r in found.replies)
    assert {r.kind for r in found.replies if r.row} == {"kind"}


def test_parts_are_named_in_a_summary_as_decoding_spaces_it():
    parts = (Part("hidden-topic", "chess", {"form": "always"}), Part("news", "widow hides violin in oslo"))
    said = "a hidden topic, chess, always. a news headline, widow hides violin in oslo"
    assert marks_of("summary", parts, "truth", said)["named"] == 1.0
    assert marks_of("summary", parts, "truth", said.replace("chess", "chessboard"))["named"] == 0.0
