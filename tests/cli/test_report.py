"""`weightdiff report`: its table, its JSON, its figures, and one line for every bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from weightdiff.evals.graded import GradedSummary, read_graded, summarise

HEAD = "topic,guessed_topic,score"
FIRST = f"{HEAD}\nopera,Opera,5\nopera,songs,2\nscuba,sea,3\nchess,unknown,1\n"
SECOND = f"{HEAD}\nopera,?,\nscuba,scuba,5\nchess,chess,5\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with first.csv and second.csv in it, from which the command is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "first.csv").write_text(FIRST)
    (tmp_path / "second.csv").write_text(SECOND)
    return tmp_path


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│\n").split("│")]


def _table(output: str) -> list[list[str]]:
    return [_cells(line) for line in output.splitlines() if line.startswith("│")]


def test_the_table_by_hand(cli, files):
    result = cli("report", "--graded", "second.csv", "--graded", "first.csv", "--scale", 1, 5)
    assert result.exit_code == 0, result.output
    head, *rows = _table(result.stdout)
    assert head == ["answers", "n", "unscored", "mean", "95 %", "1", "2", "3", "5"]
    assert rows == [
        ["second", "2", "1", "5.00", "1.63 … 5.00", "0", "0", "0", "2"],  # 5 - 4 × (1 - √0.025)
        ["first", "4", "0", "2.75", "1.00 … 5.00", "1", "1", "1", "1"],
    ]
    assert result.stdout.endswith("under each score, how many answers got it\n")


def test_the_table_without_a_scale(cli, files):
    (files / "none.csv").write_text(f"{HEAD}\na,b,x\n")
    result = cli("report", "--graded", "second.csv", "--graded", "none.csv")
    assert _table(result.stdout)[1:] == [
        ["second", "2", "1", "5.00", "−∞ … ∞", "2"],
        ["none", "0", "1", "n/a", "n/a", "0"],
    ]
    assert "intervals know no scale; give it by --scale LOW HIGH" in result.stdout


def test_many_scores_have_no_columns(cli, files):
    (files / "fine.csv").write_text(HEAD + "".join(f"\nt{i},a,{i / 10}" for i in range(8)) + "\n")
    result = cli("report", "--graded", "fine.csv", "--scale", 0, 1)
    assert _table(result.stdout)[0][-1] == "95 %"
    assert "8 different scores; --json has how often each was given" in result.stdout


def test_json_is_a_list_of_summaries(cli_json, files):
    found = cli_json("report", "--graded", "first.csv", "--graded", "second.csv", "--scale", 1, 5, "--json")
    paths = [files / "first.csv", files / "second.csv"]
    assert found == [summarise(read_graded(path, scale=(1, 5))).to_json() for path in paths]
    assert found[1]["unscored"] == 1
    assert found[1]["distribution"] == {"5": 2}


def test_columns_can_be_named(cli_json, files):
    (files / "own.csv").write_text("secret,said,judge\na,b,-2\nc,d,-4\n")
    columns = ("--truth", "secret", "--answer", "said", "--score", "judge")
    (found,) = cli_json("report", "--graded", "own.csv", *columns, "--scale", -5, 0, "--json")
    assert (found["mean"], found["low"], found["high"]) == (-3, -5, 0)


def test_files_of_one_name_are_told_apart_by_their_folders(cli_json, files):
    for folder in ("one", "two"):
        (files / folder).mkdir()
        (files / folder / "first.csv").write_text(FIRST)
    given = ("--graded", "one/first.csv", "--graded", "second.csv", "--graded", "two/first.csv")
    names = [summary["name"] for summary in cli_json("report", *given, "--json")]
    assert names == ["one/first", "second", "two/first"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--graded", "nowhere.csv"), "nowhere.csv cannot be read as CSV (No such file or directory)"),
        (
            ("--graded", "first.csv", "--score", "judge"),
            "first.csv has no column judge, only topic, guessed_",
        ),
        (("--graded", "first.csv", "--truth", "secret"), "first.csv has no column secret"),
        (("--graded", "first.csv", "--answer", "said"), "say by --answer which column holds it"),
        (
            ("--graded", "second.csv", "--graded", "first.csv", "--scale", "2", "5"),
            "first.csv, row 4: the score 1",
        ),
        (("--graded", "first.csv", "--scale", "5", "1"), "a scale of 5 to 1 is none"),
        (("--graded", "first.csv", "--plot", "figure.pdf"), "figure.pdf: a plot is written as .png or .svg"),
    ],
)
def test_bad_input_is_one_line(cli, files, arguments, words):
    result = cli("report", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_without_matplotlib_the_install_line_is_named(cli, files, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = cli("report", "--graded", "first.csv", "--plot", "figure.png")
    assert result.exit_code == 2
    assert result.stderr == 'error: matplotlib is not installed: run pip install "weightdiff[eval]"\n'
    assert not (files / "figure.png").exists()


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("names", [("first", "second"), ("divisor-1.graded", "divisor-16.graded")])
def test_the_plot(cli_json, files, suffix, names):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    for old, new in zip(("first", "second"), names, strict=True):
        (files / f"{old}.csv").rename(files / f"{new}.csv")
    given = [part for name in names for part in ("--graded", f"{name}.csv")]
    path = files / "figures" / f"figure.{suffix}"
    assert len(cli_json("report", *given, "--plot", path, "--json")) == 2
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert list(path.parent.iterdir()) == [path]


def test_the_plot_holds_the_shares_and_the_means(files, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    from weightdiff.cli import plots

    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, _path: figures.append(figure))
    found = [
        summarise(read_graded(files / "second.csv", scale=(1, 5)), name="divisor-16.graded"),
        summarise(read_graded(files / "first.csv", scale=(1, 5)), name="divisor-2.graded"),
    ]
    plots.plot_graded(found, files / "figure.png")
    bars, curve = figures[0].axes
    assert [text.get_text() for text in bars.get_yticklabels()] == [s.name for s in found]
    shares = {c.get_label(): [round(p.get_width(), 3) for p in c] for c in bars.containers}
    assert shares == {
        "1": [0, 0.25],
        "2": [0, 0.25],
        "3": [0, 0.25],
        "5": [0.667, 0.25],
        "unscored": [0.333, 0],
    }
    assert curve.get_xscale() == "log"
    assert curve.lines[0].get_xydata().tolist() == [[2, 2.75], [16, 5]]


@pytest.mark.parametrize(
    "found", [["divisor-1.graded"], ["a$b$^_"], ["a/divisor-1.graded", "b$/divisor-1.graded"]]
)
@pytest.mark.parametrize("scores", [[], [1.0], [i / 10 for i in range(20)]])
def test_a_plot_of_odd_things(tmp_path, found, scores):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    from weightdiff.cli.plots import plot_graded

    ends = (1.0, float("-inf"), float("inf")) if scores else (None, None, None)
    counts = dict.fromkeys(scores, 1)
    summaries = [GradedSummary(name, len(scores), 1, *ends, counts) for name in found]
    plot_graded(summaries, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").is_file()


def test_scaling_needs_every_name():
    from weightdiff.cli.plots import scaling_lines

    def named(*names: str) -> dict[str, list[int]]:
        found = [GradedSummary(name, 1, 0, 2.0, 1.0, 3.0, {2.0: 1}) for name in names]
        return {folder: [n for n, _ in line] for folder, line in scaling_lines(found).items()}

    assert named("divisor-8.graded", "divisor-1.graded") == {"": [1, 8]}
    assert named("b/divisor-8.graded", "a/divisor-8.graded", "b/divisor-2.graded") == {"b": [2, 8], "a": [8]}
    assert named("divisor-8.graded", "dit.graded") == {}
    assert named("divisor-0.graded") == named("divisor-8") == named("my-divisor-8.graded") == {}


def test_help_teaches_with_examples(cli):
    result = cli("report", "--help")
    assert result.exit_code == 0
    assert "weightdiff report --graded" in result.output
    assert "--scale 1 5" in result.output
