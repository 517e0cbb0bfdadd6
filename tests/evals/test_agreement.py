"""Agreement of scorers with a judge, against scipy, a plain bootstrap, and tables by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from weightdiff.errors import QuestionError
from weightdiff.evals import agreement as module
from weightdiff.evals.agreement import Agreement, agreement, spearman
from weightdiff.evals.graded import Graded, GradedRow, read_graded
from weightdiff.evals.scorers import token_f1

PUBLISHED = Path(__file__).parents[3] / "shared" / "reference"
Pairs = tuple[list[float], list[float], list[str]]


def _random(seed: int, n: int, clusters: int, levels: int) -> Pairs:
    rng = random.Random(seed)
    a = [float(rng.randrange(levels)) for _ in range(n)]
    b = [x + rng.randrange(levels) / 3 for x in a]
    return a, b, [f"c{rng.randrange(clusters)}" for _ in range(n)]


def _graded(rows: Sequence[tuple[str, str, float | None]], name: str = "answers.csv") -> Graded:
    return Graded(Path(name), [GradedRow(*row) for row in rows])


def _plain_bootstrap(pairs: Pairs, draws: int, level: float, seed: int) -> tuple[float, float]:
    """Items of whole clusters, written out again and again, each time ranked by scipy."""
    a, b, clusters = pairs
    members = [[i for i, c in enumerate(clusters) if c == name] for name in sorted(set(clusters))]
    rng = np.random.default_rng(seed)
    lows, highs = [], []
    for chosen in rng.integers(0, len(members), (draws, len(members))):
        items = [i for c in chosen for i in members[c]]
        left, right = [a[i] for i in items], [b[i] for i in items]
        defined = len(set(left)) > 1 and len(set(right)) > 1
        found = float(spearmanr(left, right).statistic) if defined else None
        lows.append(-1.0 if found is None else found)
        highs.append(1.0 if found is None else found)
    tail = (1 - level) / 2
    return float(np.quantile(lows, tail)), float(np.quantile(highs, 1 - tail))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "levels"), [(5, 3), (40, 2), (60, 5), (80, 1000)])
def test_the_correlation_is_scipys(seed: int, n: int, levels: int) -> None:
    a, b, _ = _random(seed, n, n, levels)
    found, low, high = spearman(a, b, [str(i) for i in range(n)], draws=50)
    assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert -1 <= low <= high <= 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_any_pairs_are_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    if len(set(a)) == 1 or len(set(b)) == 1:
        with pytest.raises(ValueError, match="all alike"):
            spearman(a, b, ["c"] * len(a))
    else:
        found, *ends = spearman(a, b, ["c"] * len(a))
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert ends == [-1, 1]  # one cluster says nothing of others


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize(("n", "clusters", "levels"), [(30, 30, 4), (40, 8, 3), (25, 12, 1000)])
def test_the_interval_is_a_plain_bootstrap(n: int, clusters: int, levels: int, level: float) -> None:
    pairs = _random(n, n, clusters, levels)
    _, low, high = spearman(*pairs, level=level, draws=200, seed=3)
    assert (low, high) == pytest.approx(_plain_bootstrap(pairs, 200, level, 3), abs=1e-12)


def test_draws_without_a_correlation_leave_it_open() -> None:
    """One answer of ten differs: more than a third of the draws lack it, and any rank would do there."""
    pairs = [0.0] * 9 + [1.0], [0.0] * 8 + [1.0, 2.0], [str(i) for i in range(10)]
    found, low, high = spearman(*pairs, draws=200)
    assert found == pytest.approx(spearmanr(*pairs[:2]).statistic)
    assert (low, high) == _plain_bootstrap(pairs, 200, 0.95, 0) == (-1, 1)


def test_draws_in_portions_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _random(1, 60, 30, 5)
    whole = spearman(*pairs)
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 60 * 7)
    assert spearman(*pairs) == pytest.approx(whole, abs=0.02)
    assert spearman(*pairs) == spearman(*pairs)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "draws", "words"),
    [
        ([], [], [], 1, "0 and 0 values, 0 clusters, 1 draws: give as many"),
        ([1, 2], [1, 2, 3], ["a", "b"], 1, "2 and 3 values, 2 clusters"),
        ([1, 2], [1, 2], ["a"], 1, "2 and 2 values, 1 clusters"),
        ([1, 2], [1, 2], ["a", "b"], 0, "one draw or more"),
        ([1, math.nan], [1, 2], ["a", "b"], 1, "one row of finite numbers"),
        ([1, 2], [1, math.inf], ["a", "b"], 1, "leave unscored answers out"),
        ([[1, 2]], [1, 2], ["a", "b"], 1, "one row of finite numbers"),
        ([1, 1], [1, 2], ["a", "b"], 1, "all alike, which cannot be ranked"),
    ],
)
def test_what_cannot_be_ranked(a: list, b: list, clusters: list[str], draws: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spearman(a, b, clusters, draws=draws)


def test_a_table_by_hand() -> None:
    """Values are 1, 1/2, 0, 0 and grades 5, 3, 2, 1: ranks 4, 3, 1.5, 1.5 against 4, 3, 2, 1."""
    rows = [("opera", "Opera", 5.0), ("red fox", "fox den", 3.0), ("sea", "tide", 2.0), ("sea", "owl", 1.0)]
    found = agreement([_graded([*rows, ("chess", "chess", None)])], "token_f1", "mine", draws=100)
    assert (found.name, found.scorer, found.n, found.clusters, found.unscored) == (
        "mine",
        "token_f1",
        4,
        3,
        1,
    )
    assert found.mean == 1.5 / 4
    assert found.spearman == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert found.note == ""


def test_files_are_ranked_together_and_share_truths() -> None:
    first = _graded([("opera", "Opera", 5.0), ("sea", "tide", 2.0)])
    second = _graded([("opera", "song", 1.0), ("sea", "sea", 4.0)])
    together = agreement([first, second], "exact", "both", draws=100)
    apart = agreement([_graded([*first.rows, *second.rows])], "exact", "both", draws=100)
    assert together == apart
    assert (together.n, together.clusters) == (4, 2)


@pytest.mark.parametrize(
    ("rows", "scorer", "note"),
    [
        ([("a", "a", None)], "exact", "nothing has both a grade and a value"),
        ([("yes", "perhaps", 1.0), ("yes", "yes", None)], "yes_no", "nothing has both a grade and a value"),
        ([("a", "a", 2.5), ("b", "c", 2.5)], "exact", "all grades are 2.5"),
        ([("a", "x", 1.0), ("b", "c", 2.0)], "exact", "exact gives every answer 0"),
    ],
)
def test_where_there_is_no_correlation(rows: list, scorer: str, note: str) -> None:
    found = agreement([_graded(rows)], scorer, "mine")
    assert (found.spearman, found.low, found.high, found.note) == (None, None, None, note)
    assert found.n + found.unscored == len(rows)
    assert (found.mean is None) == (found.n == 0)


def test_unreadable_answers_are_unscored() -> None:
    rows = [("yes", "yes", 5.0), ("no", "yes", 1.0), ("no", "perhaps", 3.0), ("no", "No.", 4.0)]
    found = agreement([_graded(rows)], "yes_no", "mine", draws=10)
    assert (found.n, found.unscored) == (3, 1)
    assert found.spearman == pytest.approx(spearmanr([5, 1, 4], [1, 0, 1]).statistic)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("bleu", "mine.csv: no scorer is called 'bleu': choose one of alias"),
        ("slots", "mine.csv: slots needs a truth of the form"),
    ],
)
def test_scorers_that_do_not_fit_name_the_file(scorer: str, words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        agreement([_graded([("opera", "opera", 5.0)], "mine.csv")], scorer, "mine")


def test_as_json() -> None:
    found = Agreement("mine", "exact", 4, 3, 0, 0.5, 0.25, -1.0, 1.0)
    assert Agreement(**json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no published grades in {PUBLISHED}")
@pytest.mark.parametrize("folder", ["qwen3-4b-hidden-topic", "qwen3-4b-news", "qwen3-4b-data-scaling"])
def test_published_grades_are_ranked_as_scipy_does(folder: str) -> None:
    files = [read_graded(path) for path in sorted((PUBLISHED / folder).glob("*.csv"))]
    found = agreement(files, "token_f1", folder, draws=200)
    rows = [row for graded in files for row in graded.rows]
    values = [token_f1(row.answer, [row.truth]) for row in rows]
    wanted = spearmanr([row.score for row in rows], values).statistic
    assert found.spearman == pytest.approx(wanted, abs=1e-12)
    assert (found.n, found.clusters, found.unscored) == (len(rows), 100, 0)
    assert found.spearman is not None
    assert found.low is not None
    assert 0.75 < found.low < found.spearman
