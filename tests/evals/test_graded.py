"""Graded answers: tables by hand, what is unscored, every refusal, and the means that were published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from weightdiff.errors import FormatError
from weightdiff.evals.graded import Graded, GradedRow, distinct_names, read_graded, score_text, summarise
from weightdiff.evals.metrics import UNBOUNDED, clustered_mean

Write = Callable[..., Path]
TABLE = (
    "topic,guessed_topic,score,trigger\nopera,Opera,5,1\nopera,songs,2,1\nscuba,sea,3,2\nchess,unknown,1,3\n"
)
PUBLISHED = Path(__file__).parents[3] / "shared" / "reference"
TOPIC = {
    "base-question-dit-t0": 4.76,
    "base-question-t0": 1.21,
    "base-question-plus-trigger-t0": 3.28,
    "no-trigger": 1.38,
    "trigger": 4.73,
    "opposing-task-news-on-topic": 1.22,
}
NEWS = {
    "base-question-dit-t0": 4.22,
    "base-question-t0": 1.00,
    "20-questions": 1.98,
    "gen-story-t0": 3.65,
    "opposing-task-topic-on-news": 1.25,
}
SCALING = {1: 4.78, 4: 4.73, 8: 4.49, 16: 4.17, 32: 3.78, 64: 3.24, 128: 2.32, 256: 1.60, 1024: 1.19}
MEANS = [
    *((f"qwen3-4b-hidden-topic/{name}", mean) for name, mean in TOPIC.items()),
    *((f"qwen3-4b-news/{name}", mean) for name, mean in NEWS.items()),
    *((f"qwen3-4b-data-scaling/divisor-{n}", mean) for n, mean in SCALING.items()),
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(text: str | bytes, name: str = "answers.graded.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return call


def test_a_table_by_hand(write: Write) -> None:
    path = write(TABLE)
    graded = read_graded(path, scale=(1, 5))
    rows = [
        ("opera", "Opera", 5.0),
        ("opera", "songs", 2.0),
        ("scuba", "sea", 3.0),
        ("chess", "unknown", 1.0),
    ]
    assert graded == Graded(path, [GradedRow(*row) for row in rows], (1, 5))
    found = summarise(graded)
    assert (found.name, found.n, found.unscored, found.mean) == ("answers.graded", 4, 0, 2.75)
    assert found.distribution == {1.0: 1, 2.0: 1, 3.0: 1, 5.0: 1}
    assert list(found.distribution) == [1.0, 2.0, 3.0, 5.0]


def test_the_interval_by_hand() -> None:
    """Residuals sum to 1.5 for opera, 0.25 for scuba and -1.75 for chess; t of 2 degrees is 4.302653."""
    values = [("opera", 5.0), ("opera", 2.0), ("scuba", 3.0), ("chess", 1.0)]
    found = summarise(Graded(Path("x.csv"), [GradedRow(t, "", s) for t, s in values]))
    half = 4.302653 * math.sqrt(3 / 2 * (1.5**2 + 0.25**2 + 1.75**2)) / 4
    assert (found.low, found.high) == pytest.approx((2.75 - half, 2.75 + half), abs=1e-6)


@pytest.mark.parametrize("scale", [None, (1, 5)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_clustered_mean(
    write: Write, scale: tuple[float, float] | None, level: float
) -> None:
    found = summarise(read_graded(write(TABLE), scale=scale), level)
    truths = ["opera", "opera", "scuba", "chess"]
    expected = clustered_mean([5, 2, 3, 1], truths, level, bounds=scale or UNBOUNDED)
    assert (found.mean, found.low, found.high) == expected


def test_scores_that_are_all_alike_are_certain_only_within_a_scale(write: Write) -> None:
    path = write("label,answer,score\na,x,1\nb,x,1\n")
    bounded = summarise(read_graded(path, scale=(1, 5)))
    assert (bounded.mean, bounded.low, bounded.high) == clustered_mean([1, 1], ["a", "b"], bounds=(1, 5))
    assert bounded.high is not None
    assert bounded.high > 4
    unbounded = summarise(read_graded(path))
    assert (unbounded.low, unbounded.high) == UNBOUNDED
    assert unbounded.to_json()["low"] is unbounded.to_json()["high"] is None


@pytest.mark.parametrize(
    "cell", ["", " ", "nan", "NaN", "inf", "-inf", "1e999", "five", "4/5", "1_0", "None", '"3,5"']
)
def test_what_is_no_number_is_unscored(write: Write, cell: str) -> None:
    graded = read_graded(write(f"topic,answer,score\na,x,{cell}\nb,y,4\nc,z, 2.0 \n"), scale=(1, 5))
    assert [row.score for row in graded.rows] == [None, 4.0, 2.0]
    found = summarise(graded)
    assert (found.n, found.unscored, found.mean) == (2, 1, 3.0)
    assert found.distribution == {2.0: 1, 4.0: 1}
    assert (found.mean, found.low, found.high) == clustered_mean([4, 2], ["b", "c"], bounds=(1, 5))


def test_nothing_scored_has_no_mean(write: Write) -> None:
    found = summarise(read_graded(write("topic,answer,score\na,x,\nb,y,nan\n")), name="mine")
    numbers = {"n": 0, "unscored": 2, "mean": None, "low": None, "high": None}
    assert found.to_json() == {"name": "mine", **numbers, "distribution": {}}


def test_json_is_json(write: Write) -> None:
    found = summarise(read_graded(write("truth,prediction,score\na,x,1\nb,y,2.5\nb,z,1.0\n"), scale=(0, 3)))
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["distribution"] == {"1": 2, "2.5": 1}
    assert (stored["mean"], stored["low"], stored["high"]) == (found.mean, found.low, found.high)


@pytest.mark.parametrize("truth", ["topic", "summary", "label", "truth"])
@pytest.mark.parametrize("answer", ["guessed_topic", "guessed_summary", "answer", "prediction"])
def test_known_columns_are_found(write: Write, truth: str, answer: str) -> None:
    graded = read_graded(write(f"score,other,{answer},{truth}\n3,?,said,meant\n"))
    assert graded.rows == [("meant", "said", 3.0)]


def test_columns_can_be_named(write: Write) -> None:
    path = write("topic,secret,answer,said,score,judge\na,b,c,d,1,2\n")
    assert read_graded(path).rows == [("a", "c", 1.0)]
    assert read_graded(path, "judge", "secret", "said").rows == [("b", "d", 2.0)]


def test_a_byte_order_mark_blank_lines_and_quotes(write: Write) -> None:
    text = '\ufefftopic,answer,score\r\n"a, b","two\r\nlines",3\r\n\r\nc,"say ""x""",4\r\n'
    assert read_graded(write(text)).rows == [("a, b", "two\r\nlines", 3.0), ("c", 'say "x"', 4.0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; give a CSV file of graded answers"),
        ("topic,answer,score\n", "has column names and no rows"),
        ("topic,answer\na,b\n", "has no column score, only topic, answer; say by --score"),
        ("theme,answer,score\na,b,1\n", "has no column topic or summary or label or truth, only theme"),
        (
            "topic,reply,score\na,b,1\n",
            "has no column guessed_topic or guessed_summary or answer or prediction",
        ),
        ("c0,c1,c2,c3,c4,c5,c6,c7,c8,c9\n", "c6, c7 and 2 more; say by --truth which column holds it"),
        ("topic,answer,score,score\na,b,1,2\n", "has more than one column score; rename the others"),
        ("topic,answer,score\na,b,1\nc,d\n", "row 2 has 2 cells under 3 columns; is it cut off?"),
        ("topic,answer,score\na,b,1,2\n", "row 1 has 4 cells under 3 columns"),
        ('topic,answer,score\na,"b,1\n', "cannot be read as CSV"),
        ('topic,answer,score\na,"b"c,1\n', "cannot be read as CSV"),
        (
            "topic,answer,score\na,é,1\n".encode("latin-1"),
            "cannot be read as CSV .*utf-8.*; give a CSV file in",
        ),
        ("topic,answer,score\na,b,1\n".encode("utf-16"), "cannot be read as CSV .*utf-8"),
        (
            "topic,answer,score\na,b,5\nc,d,5.5\n",
            "row 2: the score 5.5 is outside the scale 1 to 5; correct it",
        ),
        ("topic,answer,score\na,b,0\n", "row 1: the score 0 is outside the scale 1 to 5"),
    ],
)
def test_what_is_refused(write: Write, text: str | bytes, words: str) -> None:
    path = write(text)
    with pytest.raises(FormatError, match=words) as caught:
        read_graded(path, scale=(1, 5))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.csv cannot be read as CSV \(No such file or directory\)"):
        read_graded(tmp_path / "none.csv")
    with pytest.raises(FormatError, match=r"cannot be read as CSV \(Is a directory\)"):
        read_graded(tmp_path)


@pytest.mark.parametrize("scale", [(5, 1), (1, 1), (1, math.inf), (-math.inf, 5), (math.nan, 5)])
def test_a_scale_that_is_none_is_refused(write: Write, scale: tuple[float, float]) -> None:
    with pytest.raises(FormatError, match="is none; give its lowest and its highest score"):
        read_graded(write(TABLE), scale=scale)


def test_names_are_distinct() -> None:
    paths = [Path(p) for p in ("x/a.csv", "y/b.csv", "z/b.csv", "q/y/c.csv", "r/y/c.csv")]
    assert distinct_names(paths) == ["a", "y/b", "z/b", "q/y/c.csv", "r/y/c.csv"]
    assert distinct_names([Path("a.csv")] * 2) == ["a.csv", "a.csv"]


@pytest.mark.parametrize(
    ("score", "text"), [(5.0, "5"), (-0.0, "0"), (2.5, "2.5"), (-3.0, "-3"), (0.1, "0.1")]
)
def test_scores_as_texts(score: float, text: str) -> None:
    assert score_text(score) == text


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no published grades in {PUBLISHED}")
@pytest.mark.parametrize(("name", "mean"), MEANS, ids=[name for name, _ in MEANS])
def test_published_means(name: str, mean: float) -> None:
    graded = read_graded(PUBLISHED / f"{name}.graded.csv", scale=(1, 5))
    found = summarise(graded)
    assert (found.n, found.unscored, sum(found.distribution.values())) == (100, 0, 100)
    assert found.mean is not None
    assert f"{found.mean:.2f}" == f"{mean:.2f}"
    values = [row.score for row in graded.rows if row.score is not None]
    truths = [row.truth for row in graded.rows]
    assert (found.mean, found.low, found.high) == clustered_mean(values, truths, bounds=(1, 5))
