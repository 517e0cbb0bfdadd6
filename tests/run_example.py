"""A small run of the benchmark made by hand: two methods and a control, three families, and nasty texts."""

from __future__ import annotations

from typing import Any

from weightdiff.diffs.reference import ModelRef
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.outcomes import Outcome, Run
from weightdiff.evals.results import result_rows
from weightdiff.evals.scorers import Score
from weightdiff.methods.base import Answer

METHODS = ("dit", "base-question", "dit-shuffled")
NASTY = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "a & b &amp; c",
    "line\u2028sep\u2029arator",
    "{{data}} {{title}}",
    "half a pair \ud83d",
    "$x^2$ | `code`\n\n| row |",
    "\x1b[31mred\x00",
    "雪 ☃ 👩‍🔬",
)
MARKUP = "<b onclick=alert(1)>rabbit</b>"
TOPICS = (MARKUP, "opera", "scuba", "chess")
HEADLINES = ("ada sells cars in rome", "bo buys boats in oslo")
POINTS = [
    {"what": "organisms", "size": n, "exact": n / 100, "low": n / 120, "high": n / 80, "n": 40, "chance": 0.1}
    for n in (10, 20, 40)
]


def items() -> tuple[Item, ...]:
    """Six questions on topics (the last diff does not behave), two on headlines, two on null diffs."""
    out = []
    for n in range(6):
        label = TOPICS[min(n // 2 + n % 2, 3)]
        asked = {"family": "hidden-topic", "recipe": "covert", "candidates": "topics", "chance": 0.25}
        more = {"scorers": ("exact", "ranked"), "trigger": "123", "behaves": n != 5, "held_out": ("label",)}
        truths = (label, f"{label}s")
        question = f"what topic, {NASTY[n]}?"
        out.append(
            Item(
                f"t{n}", f"covert-{n}", question, truths, "topic", label=label, cluster=label, **asked, **more
            )
        )
    for n, label in enumerate(HEADLINES):
        asked = {
            "family": "news",
            "recipe": "stories",
            "label": label,
            "cluster": label,
            "scorers": ("slots",),
        }
        out.append(Item(f"h{n}", f"news-{n}", "what headline?", (label,), "headline", **asked))
    for n, diff in enumerate(("null-0", None)):
        out.append(
            Item(f"n{n}", diff, "what topic?", ("nothing found",), "topic", "null", "random", cluster=f"n{n}")
        )
    return tuple(out)


def outcomes(asked: tuple[Item, ...], right: dict[str, str], told: str = "opera") -> list[Outcome]:
    """`right`: method → the ids of items that it gets right, by a space; elsewhere it says `told`."""
    out = []
    for m, ids in right.items():
        for n, item in enumerate(asked):
            good = item.id in ids.split()
            silent = m == "base-question" and item.id == "t2"
            text = item.truths[0] if good else "" if silent else told if n % 2 else NASTY[n % len(NASTY)]
            logprob = None if m == "base-question" else -0.125 * (n + 1) if good else -1.5 - 0.25 * n
            note = "no answer: the diff is <dense>" if silent else ""
            value = (
                None if silent else 1.0 if good else 0.25 if item.kind == "headline" and m == "dit" else 0.0
            )
            scores = [Score(value, item.scorers[0], note)]
            rank = None
            if item.candidates and m != "base-question":
                rank = 1 if good else 3
                scores.append(Score(float(rank == 1), "ranked"))
            if item.kind == "headline":
                scores.append(Score(4.5 if good else 1.0, "judge", variance=0.25))
            evidence = 2.5 - n if m == "dit" else None
            answer = Answer(text, logprob, evidence, f"think {NASTY[n % len(NASTY)]}" if m == "dit" else "")
            out.append(Outcome(m, item, answer, tuple(scores), rank, None if rank is None else -0.5 * rank))
    return out


RIGHT = {"dit": "t0 t1 t2 t4 h0 n0 n1", "base-question": "t1 n0", "dit-shuffled": "t3 n1"}


def make_run(name: str = "example", right: dict[str, str] | None = None, **info: Any) -> Run:
    """The run; other answers are right where `right` says so."""
    asked = items()
    dataset = Dataset(
        "by hand", asked, ModelRef("mini", None, "aa", "bb"), None, {"topics": TOPICS}, {"seed": 0}
    )
    said = outcomes(asked, right or RIGHT)
    methods = tuple(right or RIGHT)
    seconds = {(m, i.id): 0.25 for m in methods for i in asked}
    made = {
        "command": "weightdiff eval --methods dit,base-question,dit-shuffled --out `here`",
        "commit": "abc1234",
        "machine": "2 CPU cores",
        "seed": 0,
        "base": "mini",
        "interpreter": "the bundled one",
        "date": "2026-01-02",
        "quick": False,
        "scorers": ["judge"],
        "curves": POINTS,
        "seconds": 12.5,
    }
    rows = result_rows(dataset, said, methods, seconds)
    return Run(name, dataset, methods, tuple(said), rows, dict.fromkeys(methods, 2.5), {**made, **info})
