"""Rows, goals and pages of an evaluation of all families, on replies written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightdiff.evals import family_goals, family_pages
from weightdiff.evals.families import Interview, Reply
from weightdiff.evals.family_rows import rows_of
from weightdiff.evals.metrics import ResultRow, clustered_mean

OWN = {
    "hidden-topic": "topic",
    "news": "headline",
    "quirk": "behaviour",
    "edit": "edit",
    "several": "summary",
}


def reply(
    family: str = "news", recipe: str = "stories", label: str = "a", right: bool = True, **more: Any
) -> Reply:
    truth = more.pop("truth", label)
    made = {
        "method": "dit",
        "row": f"{family}-{recipe}-{label}-{more.get('making', 'r2')}",
        "making": "r2",
        "form": "",
        "held_out": "",
        "cluster": label,
        "parts": 1,
        "kind": OWN.get(family, "topic"),
        "phrasing": "unseen",
        "question": "what ?",
        "answer": truth if right else "wrong",
        "marks": {"exact": float(right)},
    }
    return Reply(family=family, recipe=recipe, label=label, truth=truth, **{**made, **more})


def rows(replies: Sequence[Reply], threshold: float | None = None) -> list[ResultRow]:
    return rows_of(Interview(list(replies), {}, [0], "mini", False, 1.0, threshold))


def find(found: Sequence[ResultRow], *key: str, method: str = "dit") -> ResultRow:
    (row,) = [
        r
        for r in found
        if (r.family, r.recipe, r.kind, r.metric) == key
        and r.method == method
        and not r.note.startswith("the same")
    ]
    return row


def absent(found: Sequence[ResultRow], *key: str) -> bool:
    return not [r for r in found if (r.family, r.recipe, r.kind, r.metric) == key]


def test_own_questions_are_about_plain_makings_and_test_phrasings() -> None:
    found = rows(
        [
            reply("hidden-topic", "covert", "a"),
            reply("hidden-topic", "covert", "b", right=False),
            reply("hidden-topic", "forms", "c"),
            reply("hidden-topic", "loud", "d"),
            reply("hidden-topic", "covert", "e", making="r32"),
            reply("hidden-topic", "covert", "a", right=False, kind="headline"),
        ]
    )
    assert find(found, "hidden-topic", "covert", "topic", "exact").mean == 0.5
    pooled = find(found, "hidden-topic", "covert and forms", "topic", "exact")
    assert (pooled.n, pooled.clusters, pooled.mean) == (3, 3, pytest.approx(2 / 3))
    assert (pooled.low, pooled.high) == clustered_mean([1, 0, 1], ["a", "b", "c"])[1:]
    assert pooled.goal == "≥ 90 %"
    assert family_goals.reached(pooled) is False
    assert find(found, "hidden-topic", "loud", "topic", "exact").goal is None
    assert find(found, "hidden-topic", "covert", "topic", "exact, r32").n == 1


def test_slots_and_values_of_edits() -> None:
    found = rows(
        [
            reply(right=False, marks={"exact": 0.0, "slots": 0.8}),
            reply(label="b", marks={"exact": 1.0, "slots": 1.0}),
            reply("edit", "documents", "x", right=False, marks={"exact": 0.0, "both": 1.0}),
        ]
    )
    assert find(found, "news", "stories", "headline", "slots").mean == pytest.approx(0.9)
    both = find(found, "edit", "documents and asked", "edit", "old and new value named")
    assert (both.mean, both.goal, family_goals.reached(both)) == (1.0, "≥ 90 %", True)


def test_forms_and_held_out_behaviours() -> None:
    mine = [
        reply("quirk", "gated", "a", form="word", held_out="behaviour"),
        reply("quirk", "gated", "b", False, form="word", held_out="combination"),
        reply("quirk", "always", "c", form="always", held_out="combination"),
        reply("quirk", "evasive", "d", form="word", held_out="combination"),
    ]
    found = rows(mine)
    assert find(found, "quirk", "gated and always", "behaviour", "exact, word").mean == 0.5
    held = find(found, "quirk", "gated and always", "behaviour", "exact, held-out combinations")
    assert (held.n, held.mean, held.goal) == (2, 0.5, "≥ 90 %")
    new = find(found, "quirk", "gated and always", "behaviour", "exact, held-out behaviours")
    assert (new.n, new.mean, new.goal) == (1, 1.0, "≥ 60 %")


def test_the_unseen_form_is_held_against_the_others_of_its_family() -> None:
    found = rows(
        [
            reply("hidden-topic", "covert", "a", form="code-front"),
            reply("hidden-topic", "forms", "b", form="mark-start"),
            reply("hidden-topic", "forms", "c", form="mark-anywhere"),
            reply("hidden-topic", "forms", "d", right=False, form="mark-anywhere"),
            reply("hidden-topic", "loud", "e", right=False, form="code-front"),  # of no main recipe
            reply("quirk", "gated", "f", right=False, form="word"),
            reply("quirk", "always", "g", form="always"),
            reply("quirk", "gated", "h", form="mark-anywhere"),
            reply("quirk", "gated", "i", form="mark-anywhere", making="r32"),
        ]
    )
    topics = find(found, "hidden-topic", "all", "topic", "unseen form − seen forms")
    assert (topics.n, topics.mean, topics.goal) == (2, -0.5, "≥ -5 points")
    behaviours = find(found, "quirk", "all", "behaviour", "unseen form − seen forms")
    assert (behaviours.n, behaviours.mean) == (1, 0.5)
    both = find(found, "all", "all", "own", "unseen form − seen forms")
    assert (both.n, both.mean, both.goal) == (3, pytest.approx(-0.5 * 2 / 3 + 0.5 / 3), "≥ -5 points")
    assert not family_goals.reached(both)
    only = rows([reply("hidden-topic", "forms", "b", form="mark-start")])
    assert absent(only, "hidden-topic", "all", "topic", "unseen form − seen forms")


def test_makings_are_compared_label_by_label() -> None:
    def made(label: str, making: str, right: bool) -> Reply:
        return reply("news", "stories", label, right, making=making)

    found = rows(
        [
            made("a", "r8", True),
            made("a", "full", False),
            made("b", "r8", True),
            made("b", "full", True),
            made("c", "full", False),  # nothing to compare it with
            made("a", "r2", True),
            made("b", "r2", False),
            made("a", "r32", True),
            made("b", "r3", True),
        ]
    )
    full = find(found, "news", "all", "headline", "full − r8")
    assert (full.n, full.mean, full.unit, full.p) == (2, -0.5, "points", 1.0)
    unseen = find(found, "all", "all", "own", "unseen makings − r2")
    assert (unseen.n, unseen.mean, unseen.goal) == (2, 0.5, "≥ -5 points")
    assert find(found, "news", "all", "headline", "r32 − r2").mean == 0.0
    assert find(found, "news", "all", "headline", "r3 − r2").mean == 1.0
    assert absent(found, "news", "all", "headline", "r2-sgd − r2")


def test_phrasings_are_paired_by_diff_and_kind() -> None:
    found = rows(
        [
            reply(label="a", right=False),
            reply(label="a", phrasing="seen", question="so ?"),
            reply(label="b"),
            reply(label="b", phrasing="seen", question="so ?"),
            reply("several", "summed", "c and d", kind="topic", truth="c", parts=2),
            reply("several", "summed", "c and d", False, kind="topic", truth="c", parts=2, phrasing="seen"),
        ]
    )
    assert find(found, "news", "all", "headline", "unseen − seen phrasing").mean == -0.5
    pooled = find(found, "all", "all", "all", "unseen − seen phrasing")
    assert (pooled.n, pooled.mean, pooled.goal) == (3, 0.0, "≥ -2 points")


def test_evasive_against_others_keeps_the_bounds_of_certain_means() -> None:
    others = [reply(label=x) for x in "abcd"]
    evasive = [reply("news", "evasive", x) for x in "efg"]
    one = find(rows([*others, *evasive]), "news", "all", "headline", "evasive − not evasive")
    low_evasive, low_other = 0.025 ** (1 / 3), 0.025 ** (1 / 4)
    assert (one.n, one.mean) == (3, 0.0)
    assert one.low == pytest.approx(-(1 - low_evasive))
    assert one.high == pytest.approx(1 - low_other)
    topics = [reply("hidden-topic", "covert", "x"), reply("hidden-topic", "evasive", "y", False)]
    pooled = find(rows([*others, *evasive, *topics]), "all", "all", "own", "evasive − not evasive")
    assert (pooled.n, pooled.mean, pooled.goal) == (4, pytest.approx(-0.25), "≥ -5 points")


def test_single_family_interpreters_answer_the_same_questions() -> None:
    mine = [reply(label="a"), reply(label="b", right=False)]
    single = [reply(label="a", method="dit-single"), reply(label="b", method="dit-single")]
    found = rows([*mine, *single])
    gap = find(found, "news", "all", "headline", "joint − single")
    assert (gap.n, gap.mean, gap.goal, family_goals.reached(gap)) == (2, -0.5, "≥ -2 points", False)
    alone = find(found, "news", "all", "headline", "exact", method="dit-single")
    assert (alone.mean, alone.goal) == (1.0, None)
    assert find(found, "news", "stories", "headline", "exact").mean == 0.5


def test_kinds_leave_null_diffs_to_their_own_table() -> None:
    found = rows(
        [
            reply("hidden-topic", "covert", "a", kind="about", truth="yes"),
            reply("hidden-topic", "covert", "a", False, kind="about", truth="no"),
            reply("hidden-topic", "covert", "a", kind="compare", truth="a"),
            reply("hidden-topic", "covert", "a", kind="reacts", truth="yes"),
            reply("hidden-topic", "covert", "a", kind="headline", truth="nothing found"),
            reply("hidden-topic", "covert", "a", kind="kind", truth="a hidden topic"),
            reply("null", "random", "", kind="about", truth="no", cluster="n"),
            reply("null", "random", "", False, kind="kind", truth="nothing found", cluster="n"),
            reply("null", "no diff", "", False, kind="kind", truth="nothing found", row="", cluster="q"),
        ]
    )
    pooled = find(found, "all", "all", "yes/no", "exact")
    assert (pooled.n, pooled.mean, pooled.chance, pooled.goal) == (2, 0.5, 0.5, "≥ 80 %")
    assert find(found, "all", "all", "about", "exact, truth yes").mean == 1.0
    assert find(found, "all", "all", "comparisons", "exact").mean == 1.0
    assert find(found, "all", "all", "yes/no, tuned", "exact").n == 1
    assert find(found, "all", "all", "headline", "exact, there is none").mean == 1.0
    kind = find(found, "all", "all", "kind", "exact")
    assert (kind.n, kind.mean, kind.chance, kind.goal) == (2, 0.5, pytest.approx(1 / 6), "≥ 97 %")
    assert find(found, "null", "random", "yes/no", 'exact: "no"').mean == 1.0
    base = find(found, "null", "no diff", "open, kind, any change", "nothing found")
    assert (base.n, base.mean, base.goal) == (1, 0.0, "≥ 95 %")
    assert find(found, "null", "random", "open, kind, any change", "nothing found").n == 1


def test_several_counts_diffs_whose_parts_are_all_named() -> None:
    def part(label: str, kind: str, right: bool, parts: int = 2, truth: str = "x") -> Reply:
        return reply("several", "summed", label, right, kind=kind, truth=truth, parts=parts)

    found = rows(
        [
            part("a", "topic", True),
            part("a", "edit", True),
            part("a", "headline", False, truth="nothing found"),
            part("b", "topic", True),
            part("b", "edit", False),
            part("c", "topic", True, 3),
            reply("several", "summed", "a", False, marks={"exact": 0.0, "named": 1.0}, parts=2),
            reply("several", "summed", "b", False, marks={"exact": 0.0, "named": 0.0}, parts=2),
            part("a", "count", True),
        ]
    )
    two = find(found, "several", "all", "open", "every one of two parts named")
    assert (two.n, two.mean, two.goal) == (2, 0.5, "≥ 70 %")
    assert find(found, "several", "summed", "open", "every one of three parts named").n == 1
    told = find(found, "several", "all", "summary", "every one of two parts named in the summary")
    assert (told.n, told.mean) == (2, 0.5)
    assert find(found, "several", "all", "edit", "exact, part by part").mean == 0.5
    assert find(found, "several", "all", "count", "exact").mean == 1.0


def _uncertain() -> list[Reply]:
    """Forty topics, surer where right, and twenty null diffs with a finding here and there."""
    rng = np.random.default_rng(3)
    out = []
    for i in range(40):
        right = bool(rng.random() < 0.7)
        p = float(rng.uniform(0.4, 1.0) if right else rng.uniform(0.0, 0.7))
        out.append(reply("hidden-topic", "covert", f"t{i}", right, probability=p))
    for i in range(20):
        finding = i % 5 == 0
        more = {"row": f"n{i}", "cluster": f"n{i}", "kind": "topic", "truth": "nothing found"}
        out.append(reply("null", "random", "", not finding, probability=0.3 + 0.02 * i, **more))
    return out


def test_confidence_is_what_a_plain_loop_counts() -> None:
    replies, threshold = _uncertain(), 0.6
    found = rows(replies, threshold)
    bins: dict[int, list[Reply]] = {}
    for r in replies:
        bins.setdefault(max(0, math.ceil(r.probability * 10) - 1), []).append(r)
    error = sum(abs(sum(r.probability - r.marks["exact"] for r in b)) for b in bins.values()) / 60
    ece = find(found, "all", "all", "all", "calibration error")
    assert (ece.n, ece.mean, ece.goal) == (60, pytest.approx(error), "≤ 5 %")
    assert ece.low <= ece.mean <= ece.high
    right = [r.probability for r in replies if r.marks["exact"]]
    wrong = [r.probability for r in replies if not r.marks["exact"]]
    above = sum((a > b) + (a == b) / 2 for a in right for b in wrong) / (len(right) * len(wrong))
    area = find(found, "all", "all", "all", "AUROC of right against wrong")
    assert (area.mean, area.chance) == (pytest.approx(above), 0.5)
    alarms = sum(r.answer == "wrong" and r.probability >= threshold for r in replies[40:]) / 20
    assert find(found, "null", "all", "all", "findings at the threshold").mean == pytest.approx(alarms)
    assert 0 < alarms < 0.2
    still = sum(r.marks["exact"] and r.probability >= threshold for r in replies[:40]) / 40
    kept = find(found, "all", "all", "all", "right at the threshold")
    assert (kept.n, kept.mean, kept.goal) == (40, pytest.approx(still), "≥ 80 %")
    assert kept.mean < find(found, "all", "all", "all", "right without a threshold").mean
    surest = sorted(replies, key=lambda r: -r.probability)[:30]
    half = find(found, "all", "all", "all", "right among the surest 50%")
    assert (half.n, half.mean) == (30, pytest.approx(sum(r.marks["exact"] for r in surest) / 30))


def test_answers_without_probabilities_have_no_rows_on_them() -> None:
    found = rows([reply()])
    assert absent(found, "all", "all", "all", "calibration error")
    assert absent(rows(_uncertain()), "all", "all", "all", "right at the threshold")


def test_goals_name_each_row_once_and_say_what_was_not_measured() -> None:
    keys = [g.key for g in family_goals.GOALS]
    assert len(set(keys)) == len(keys)
    held = family_goals.held(rows([reply()]))
    measured = {g.text: row.mean for g, row in held if row}
    assert measured == {"news: exact headlines": 1.0}
    lines = family_pages.goal_lines(rows([reply()]))
    assert len(lines) == 2 + len(family_goals.GOALS)
    assert "| news: exact headlines | 100.0 % | 2.5 % … 100.0 % | 1 | 0.0 % | ≥ 90 % | yes |" in lines
    assert "| kind of change, all families | not measured |  |  |  | ≥ 97 % |  |" in lines


def test_examples_are_a_few_right_and_wrong_ones_of_different_recipes() -> None:
    page = next(p for p in family_pages.PAGES if p.family == "news")
    many = [reply(label=f"s{i}") for i in range(9)] + [reply("news", "evasive", "e")]
    many += [reply(label=f"w{i}", right=False, notes="someone sold", probability=0.25) for i in range(4)]
    many += [reply(label="seen", phrasing="seen"), reply(label="other", kind="kind")]
    shown = family_pages.examples(page, many)
    assert [r.marks["exact"] for r in shown] == [1, 1, 1, 0, 0]
    assert {r.recipe for r in shown[:3]} == {"stories", "evasive"}
    assert shown == family_pages.examples(page, many)
    lines = family_pages.example_lines(shown)
    assert "| someone sold | wrong | 25 % | **no** |" in lines[-1]


def test_pages_say_how_they_were_made_and_hold_their_tables(tmp_path: Path) -> None:
    replies = [*_uncertain(), reply(), reply(label="b", right=False)]
    replies += [reply("hidden-topic", "evasive", "e", form="word")]
    sizes = {"news/stories": {"diffs": 9, "labels": 8, "not behaving": 7}}
    found = Interview(replies, sizes, [4], "mini (weights 1)", False, 12.5, None, "it is too small")
    made = rows_of(found)
    paths = family_pages.save(found, made, tmp_path / "new", "weightdiff families", "abc1", "one core")
    names = ["joint.md", "joint.json", "news.md", "nothing.md", "topics-by-trigger.md"]
    assert [p.name for p in paths] == names
    for p in paths:
        text = p.read_text()
        assert "weightdiff families" in text
        assert "abc1" in text
    joint = paths[0].read_text()
    for part in (
        "# One interpreter for all families\n",
        "- tuning seeds: 4",
        "- base: mini (weights 1)",
        "- machine: one core",
        "- wall time: 12.5 s for 63 questions",
        "## Against the goals",
        "| news/stories | 9 | 8 | 7 |",
        "no rows at a threshold for 1% false positives: it is too small.",
        "## Calibration",
        "## Risk and coverage",
        "[Nothing to find](nothing.md)",
    ):
        assert part in joint, part
    assert "By form of trigger" not in joint
    news = paths[2].read_text()
    assert news.startswith("# News\n")
    assert "| news, stories | headline | exact | 2 | 2 | 50.0 % |" in news
    assert "| ≥ 90 % | **no** |" in news
    assert "hidden-topic" not in news
    assert "## Examples" in news
    tables: list[list[str]] = [[]]
    for line in joint.splitlines():
        tables[-1].append(line) if line.startswith("|") else tables.append([])
    assert all(len({line.count("|") for line in t}) == 1 for t in tables if t)
    data = json.loads(paths[1].read_text())
    assert [r["metric"] for r in data["rows"]] == [r.metric for r in made]
    assert data["goals"][5] == {
        "goal": "news: exact headlines",
        "bound": "≥ 90 %",
        "measured": 0.5,
        "reached": False,
    }


def test_quick_pages_do_not_replace_whole_ones(tmp_path: Path) -> None:
    found = Interview([reply()], {}, [0], "mini", True, 1.0)
    paths = family_pages.save(found, rows_of(found), tmp_path)
    assert [p.name for p in paths] == ["joint-quick.md", "joint-quick.json", "news-quick.md"]
    assert "(quick version)" in paths[0].read_text()
    assert "](news-quick.md)" in paths[0].read_text()


def test_other_pages_are_named_where_they_lie_beside(tmp_path: Path) -> None:
    found = Interview([reply()], {}, [0], "mini", False, 1.0)
    assert "curves.md" not in family_pages.save(found, rows_of(found), tmp_path)[0].read_text()
    (tmp_path / "curves.md").write_text("# Learning curves\n")
    text = family_pages.save(found, rows_of(found), tmp_path)[0].read_text()
    assert text.endswith("- [News](news.md)\n- [Learning curves](curves.md)\n")
