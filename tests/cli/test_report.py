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
    from weightdiff.evals import plots

    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _path: figures.append(figure))
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
    from weightdiff.evals.plots import plot_graded

    ends = (1.0, float("-inf"), float("inf")) if scores else (None, None, None)
    counts = dict.fromkeys(scores, 1)
    summaries = [GradedSummary(name, len(scores), 1, *ends, counts) for name in found]
    plot_graded(summaries, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").is_file()


def test_scaling_needs_every_name():
    from weightdiff.evals.plots import scaling_lines

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


def test_scorers_against_the_grades(cli, files):
    """Grades 5, 2, 3, 1 and values 1, 0, 0, 0: ranks 4, 2, 3, 1 against 4, 2, 2, 2."""
    given = ("--graded", "first.csv", "--graded", "second.csv", "--agree", "token_f1", "--agree", "yes_no")
    assert "yes_no needs truths that say yes or no" in cli("report", *given).stderr
    result = cli("report", *given[:-2], *("--name", "mine", "--name", "yours"))
    assert result.exit_code == 0, result.output
    head, mine, yours, together = _table(result.stdout)[-4:]
    assert head == ["answers", "scorer", "n", "unscored", "scorer's mean", "rank correlation", "95 %"]
    assert mine[:-1] == ["mine", "token_f1", "4", "0", "0.25", "0.77"]
    assert yours == ["yours", "token_f1", "2", "1", "1.00", "n/a", "all grades are 5"]
    assert together[:-1] == ["all together", "token_f1", "6", "1", "0.50", "0.93"]
    assert "so that files of different worth raise it" in result.stdout


def test_scorers_against_the_grades_as_json(cli_json, files):
    from weightdiff.evals.agreement import agreement

    given = ("--graded", "first.csv", "--scale", 1, 5, "--json")
    found = cli_json("report", *given, "--agree", "char_f1", "--agree", "exact", "--agree", "char_f1")
    graded = read_graded(files / "first.csv", scale=(1, 5))
    wanted = [agreement([graded], scorer, "first").to_json() for scorer in ("char_f1", "exact")]
    assert found == {"graded": cli_json("report", *given), "agreement": wanted}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--agree", "bleu"), "first.csv: no scorer is called 'bleu': choose one of alias, char_f1"),
        (("--agree", "slots"), "first.csv: slots needs a truth of the form"),
        (("--name", "a", "--name", "b"), "2 names for 1 files; give --name once for each --graded"),
        (("--total", 100), "--total is for the axis of a figure; give --plot FILE too"),
        (("--total", 100, "--plot", "f.svg"), "files named divisor-N.graded.csv divides; give only such"),
        (
            ("--total", 100, "--plot", "f.svg", "--name", "divisor-128.graded"),
            "a total of 100 divided by 128 leaves nothing; give the size of all the data",
        ),
    ],
)
def test_what_agreement_and_figures_refuse(refused, files, arguments, words):
    assert words in refused("report", "--graded", "first.csv", *arguments)
    assert not (files / "f.svg").exists()


def _drawn(monkeypatch, found, **options):
    """Axes of the figure that is drawn of some summaries."""
    from weightdiff.evals import plots

    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _path: figures.append(figure))
    plots.plot_graded(found, Path("figure.svg"), **options)
    return figures[0].axes


def test_means_stand_beside_their_bars(monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    ends = [(2.0, 1.5, 2.5), (2.0, float("-inf"), float("inf")), (None, None, None)]
    found = [GradedSummary(f"f{i}", 1, 1, *end, {2.0: 1}) for i, end in enumerate(ends)]
    (axes,) = _drawn(monkeypatch, found)
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert list(texts) == ["mean (95 % interval)", "2.00 (1.50 … 2.50)", "2.00 (? … ?)", "n/a"]
    assert [y for _, y in texts.values()][1:] == [0, 1, 2]
    assert all(x > 1 for x, _ in texts.values())


def test_a_total_makes_sizes_of_divisors(monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    names = ["a/divisor-1.graded", "a/divisor-16.graded", "b/divisor-1024.graded"]
    found = [GradedSummary(name, 1, 0, 2.0 + i, 1.0, 5.0, {2.0 + i: 1}) for i, name in enumerate(names)]
    bars, curve = _drawn(monkeypatch, found, total=4660)
    assert [text.get_text() for text in bars.get_yticklabels()] == ["a/4660", "a/291", "b/4"]
    assert [line.get_xydata().tolist() for line in curve.lines if line.get_marker() == "o"] == [
        [[4660, 2], [291, 3]],
        [[4, 4]],
    ]
    assert curve.get_xlabel() == bars.get_ylabel() == "how many of 4660"
    assert curve.get_xscale() == "log"


def test_the_same_figure_is_the_same_svg(cli_json, files):
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    for name in ("one", "two"):
        cli_json("report", "--graded", "first.csv", "--plot", f"{name}.svg", "--json")
    text = (files / "one.svg").read_text(encoding="utf-8")
    assert text == (files / "two.svg").read_text(encoding="utf-8")
    assert "dc:date" not in text
    assert ">2.75 (" in text  # letters, not outlines


@pytest.fixture
def runs(tmp_path, monkeypatch, run_example):
    """A folder with the runs first and second in it, from which the command is run."""
    from weightdiff.evals.run_files import save

    monkeypatch.chdir(tmp_path)
    save(run_example.make_run("one name"), tmp_path / "first", html=False)
    save(run_example.make_run("one name", {"dit": "t0 t1 n0"}), tmp_path / "second", html=False)
    return tmp_path


def test_one_run_is_shown_again(cli, runs):
    result = cli("report", "first", "--name", "one name")
    assert result.exit_code == 0, result.output
    assert result.stdout == (runs / "first" / "report.md").read_text(encoding="utf-8")


def test_one_run_as_json(cli_json, runs):
    found = cli_json("report", "first", "--json")
    assert (found["name"], found["commit"]) == ("first", "abc1234")
    assert found["rows"][0]["scorer"] == "exact"


def test_runs_are_compared(cli, runs):
    result = cli("report", "first", "second", "--out", "compared/two.md")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# Runs compared: first, second\n")
    assert "| 80.0 % | 40.0 % | -40.0 points |" in result.stdout
    assert (runs / "compared" / "two.md").read_text(encoding="utf-8") == result.stdout
    assert "wrote compared/two.md" in result.stderr


def test_a_comparison_as_json(cli_json, runs):
    found = cli_json("report", "first", "second", "--name", "a", "--name", "b", "--json")
    assert found["runs"] == ["a", "b"]
    row = found["rows"][0]
    assert row["runs"]["a"]["mean"] == 0.8
    assert row["differences"][0]["run"] == "b"
    assert row["differences"][0]["n"] == 5


@pytest.mark.parametrize("folders", [("first",), ("first", "second")])
def test_pages_of_runs(cli, runs, folders):
    result = cli("report", *folders, "--out", "page.html")
    assert result.exit_code == 0, result.output
    assert (runs / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_folders_of_one_name_are_told_apart_by_their_parents(runs):
    from weightdiff.cli.report_runs import folder_names

    paths = [Path(p) for p in ("a/run", "b/run", "first", "./", "c/a/x", "d/a/x")]
    assert folder_names(paths) == ["a/run", "b/run", "first", runs.name, "c/a/x", "d/a/x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to report: give folders of runs, or graded answers by --graded FILE"),
        (("nowhere",), "nowhere is no folder of a run; make one: weightdiff eval --methods … --out nowhere"),
        (
            ("first", "half"),
            "half holds a run that is not finished: run the same `weightdiff eval … --out half`",
        ),
        (("first", "first"), "runs called first, first cannot be compared: give two or more, each once"),
        (
            ("first", "--graded", "first.csv"),
            "--graded does not go with folders of runs; leave one of them out",
        ),
        (("first", "--plot", "x.png"), "--plot does not go with folders of runs"),
        (("--graded", "first.csv", "--out", "x.md"), "--out does not go with --graded"),
        (("first", "--name", "a", "--name", "b"), "2 names for 1 files; give --name once for each DIR"),
        (("first", "--out", "x.pdf"), "x.pdf: a report is written as .md or .html"),
    ],
)
def test_bad_runs_are_one_line(refused, runs, arguments, words):
    (runs / "half" / "answers").mkdir(parents=True)
    assert words in refused("report", *arguments)


def test_a_damaged_run_is_one_line(refused, runs):
    path = runs / "first" / "outcomes.jsonl"
    path.write_bytes(path.read_bytes()[:1000])
    assert "first/outcomes.jsonl, line " in refused("report", "first")
