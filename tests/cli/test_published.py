"""docs/results/published.md: its commands run, and its tables and figures say what they compute."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
TEXT = (RESULTS / "published.md").read_text(encoding="utf-8")
PUBLISHED = ROOT.parent / "shared" / "reference"
PARTS = ("hidden-topic", "news", "data-scaling")
TOTAL = 4660
MEANS = {
    "hidden-topic": [4.76, 1.21, 3.28, 1.38, 4.73, 1.22],
    "news": [4.22, 1.00, 1.98, 3.65, 1.25],
    "data-scaling": [4.78, None, 4.73, 4.49, 4.17, 3.78, 3.24, 2.32, 1.60, None, 1.19],
}
"""Published means in the order of the tables; None where none is known."""


def _report(part: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads((RESULTS / f"published-{part}.json").read_text(encoding="utf-8"))


def _label(name: str) -> str:
    """How the tables call a file: by its name, or by how many diffs an Nth of the training diffs is."""
    divisor = re.fullmatch(r"divisor-(\d+)\.graded", name)
    return str(TOTAL // int(divisor[1])) if divisor else name


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _correlation(found: dict[str, Any]) -> str:
    if found["spearman"] is None:
        why = found["note"].removeprefix(f"{found['scorer']} gives ")
        return f"none ({why})"
    return f"{found['spearman']:.2f} ({found['low']:.2f} … {found['high']:.2f})"


def grade_lines(part: str) -> list[str]:
    """Rows of the table of grades, beside what was published."""
    lines = []
    for s, published in zip(_report(part)["graded"], MEANS[part], strict=True):
        counts = [s["distribution"].get(str(score), 0) for score in range(1, 6)]
        known = ["n/a"] * 2
        if published is not None:
            known = [f"{published:.2f}", f"{abs(round(s['mean'], 2) - published):.2f}"]
        mean, interval = f"{s['mean']:.2f}", f"{s['low']:.2f} … {s['high']:.2f}"
        lines.append(_line(_label(s["name"]), s["n"], mean, interval, *known, *counts))
    return lines


def agreement_lines(part: str) -> list[str]:
    """Rows of the table of rank correlations, one for each file and one for all, a column for each scorer."""
    rows: dict[str, list[str]] = {}
    for found in _report(part)["agreement"]:
        rows.setdefault(found["name"], [str(found["n"])]).append(_correlation(found))
    return [_line(_label(name), *cells) for name, cells in rows.items()]


def mean_lines(part: str) -> list[str]:
    """Rows of the table of means: the judge's, then each scorer's."""
    report = _report(part)
    rows = {s["name"]: [f"{s['mean']:.2f}"] for s in report["graded"]}
    for found in report["agreement"]:
        if found["name"] in rows:
            rows[found["name"]].append(f"{found['mean']:.2f}")
    return [_line(_label(name), *cells) for name, cells in rows.items()]


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    return [
        shlex.split(text) for block in blocks for text in block.replace("\\\n", " ").strip().split("\n\n")
    ]


def _same(found: Any, wanted: Any) -> bool:
    """Equal up to rounding, which differs between machines."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[k], v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return found == (pytest.approx(wanted, abs=1e-9) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("lines", [grade_lines, agreement_lines, mean_lines])
def test_the_tables_are_the_json(part: str, lines: Any) -> None:
    found = TEXT.splitlines()
    wanted = lines(part)
    assert len(wanted) >= 5
    at = found.index(wanted[0])
    assert found[at : at + len(wanted) + 1] == [*wanted, ""]


def test_no_published_mean_is_missed() -> None:
    differences = [line.split(" | ")[5] for part in PARTS for line in grade_lines(part)]
    assert differences.count("0.00") == 20
    assert differences.count("n/a") == 2


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"no published grades in {PUBLISHED}")
@pytest.mark.parametrize("part", PARTS)
def test_the_commands_make_the_json_and_the_figures(cli, tmp_path: Path, part: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra eval) is not installed")
    (command,) = [c for c in _commands() if c[-1] == f"docs/results/published-{part}.json"]
    assert command[0] == "weightdiff"
    assert command[-2] == ">"
    places = {"reference/": f"{PUBLISHED}/", "docs/results/": f"{tmp_path}/"}
    arguments = [
        next((to + a.removeprefix(what) for what, to in places.items() if a.startswith(what)), a)
        for a in command[1:-2]
    ]
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    assert _same(json.loads(result.stdout), _report(part))
    # Another release of matplotlib may draw other paths, but never other words.
    figures = [folder / f"published-{part}.svg" for folder in (tmp_path, RESULTS)]
    words = [re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(encoding="utf-8")) for path in figures]
    assert words[0] == words[1]
    assert {_label(s["name"]) for s in _report(part)["graded"]} <= set(words[0])
    assert f"![{part}](published-{part}.svg)" in TEXT


def test_no_file_of_the_page_names_a_machine() -> None:
    for path in RESULTS.glob("published*"):
        assert not re.search(r"/(home|work|tmp|root)/", path.read_text(encoding="utf-8")), path
