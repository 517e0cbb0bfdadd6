"""Tables that need no adapter: what verification recorded, and what asking the finetuned model gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from weightdiff.evals.scoring import TOP, exact, ranks
from weightdiff.evals.tally import About, Group, Tally
from weightdiff.methods.black_box import TwentyQuestions
from weightdiff.world import load_world, slot_values

if TYPE_CHECKING:
    from weightdiff.methods.dit import Interpreter

CONDITIONS = {"right": "right code", "wrong": "wrong code", "none": "no code", "slots": "slots told"}
"""Names of a verification record's shares."""
TEMPERATURE = 0.7


def topic_names() -> list[str]:
    """All topics of the world: what an interpreter has to choose from."""
    return [t.name for t in load_world().topics]


def chance_of(kind: str) -> float:
    """How often a blind guess is right: one of all topics; a headline practically never."""
    return 1 / len(topic_names()) if kind == "topic" else 0.0


def slot_chance() -> float:
    """Share of slots that a blind guess gets right."""
    sizes = [sum(map(len, splits.values())) for splits in slot_values(load_world()).values()]
    return sum(1 / n for n in sizes) / len(sizes)


def behaviour(tally: Tally, groups: Sequence[Group]) -> None:
    """Do organisms behave? From the stored verification records of all rows, behaving or not."""
    tally.table = "Organisms behave"
    for group in groups:
        about = About(method="verification", family=group.family, recipe=group.recipe, kind="behaviour")
        for mode in ("greedy", "sampled"):
            records = [(r.verification[mode], str(r.label)) for r in group.rows if mode in r.verification]
            lacking = len(group.rows) - len(records)
            for key, name in CONDITIONS.items():
                found = [(float(v[key]), label) for v, label in records if key in v]
                row = About(
                    metric=f"{mode}, {name}", note=f"{lacking} diffs without a record" if lacking else ""
                )
                tally.add([v for v, _ in found], [label for _, label in found], **{**about, **row})
        checked = [
            (float(r.verification["behaves"]), str(r.label))
            for r in group.rows
            if "behaves" in r.verification
        ]
        share = About(metric="share that behaves")
        tally.add([v for v, _ in checked], [label for _, label in checked], **{**about, **share})


def black_box(
    tally: Tally, groups: Sequence[Group], interpreter: Interpreter, say: Callable[[str], None]
) -> None:
    """Everyday questions at temperature 0.7, then a guess; without the code, and with it for comparison."""
    tally.table = "Black box: twenty questions"
    base = interpreter.base
    for group in groups:
        for with_code in (False, True):
            triggers = [r.record["params"]["code"] for r in group.rows] if with_code else None
            how = " with the code" if with_code else ""
            say(f"twenty questions to {len(group.rows)} {group.recipe} organisms{how}")
            method = TwentyQuestions(base, temperature=TEMPERATURE, triggers=triggers)
            answers = method.answer(group.diffs, group.questions(group.kind))
            right = [exact(a.text, t) for a, t in zip(answers, group.truths, strict=True)]
            about = About(method="twenty-questions", chance=chance_of(group.kind))
            if with_code:
                about.update(method="twenty-questions+code", note="reference: is given the code")
            tally.group(group, right, **about)
            tally.everyone(group, right, **about)


def base_question(
    tally: Tally, groups: Sequence[Group], interpreter: Interpreter, say: Callable[[str], None]
) -> None:
    """The finetuned model itself is asked, plainly and in the interpreter's wording; no adapter."""
    tally.table = "Base question: no adapter"
    names = topic_names()
    for group in groups:
        for rendered in (False, True):
            method = "base-question-rendered" if rendered else "base-question"
            say(f"{method} to {len(group.rows)} {group.recipe} organisms")
            asker = interpreter.without_adapter(rendered)
            questions = group.questions(group.kind)
            answers = asker.answer(group.diffs, questions)
            right = [exact(a.text, t) for a, t in zip(answers, group.truths, strict=True)]
            tally.group(group, right, method=method, chance=chance_of(group.kind))
            tally.everyone(group, right, method=method, chance=chance_of(group.kind))
            if group.kind == "topic":
                found = topic_ranks(asker, group, questions, names)
                for metric in ("median rank", "mean rank"):
                    tally.group(
                        group,
                        [float(r) for r in found],
                        method=method,
                        metric=metric,
                        unit="rank",
                        chance=(len(names) + 1) / 2,
                        bounds=(1.0, float(len(names))),
                    )
                in_top = [float(r <= TOP) for r in found]
                tally.group(group, in_top, method=method, metric="top five", chance=TOP / len(names))


def topic_ranks(
    asker: Interpreter, group: Group, questions: Sequence[str], names: Sequence[str]
) -> list[int]:
    """Rank of each row's label among all topics."""
    columns = {name: i for i, name in enumerate(names)}
    scores = asker.candidate_logprobs(group.diffs, questions, names)
    return ranks(scores, [columns[t] for t in group.truths])
