"""`weightdiff demo`: the bundled interpreter asked about organisms whose secret is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import EVIDENCE_NOTE, busy, chance_text, evidence_text, print_json, print_table
from weightdiff.errors import StoreError

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow

EXAMPLES = "Examples:\n\nweightdiff demo\n\nweightdiff demo --n 4 --seed 7 --json"
# One of every kind in turn, a clean one included; the mix is the same for every n.
MIX = ("covert", "news", "quirk", "edit", "null", "several", "forms", "evasive")


def demo(
    n: Annotated[int, typer.Option("--n", help="How many organisms to ask.", min=1)] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Seed of which organisms are chosen.")] = 0,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Another bundle's folder.", metavar="DIR")
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """See it work: ask finetuned models what was hidden in them, and compare with the truth.

    Every organism was trained on labels that the interpreter never saw in training.
    """
    from weightdiff.tiny.bundle import part

    base, interpreter, organisms = (part(name, bundle) for name in ("base", "interpreter", "organisms"))
    with busy("loading the bundled model"):
        from weightdiff.diffs.store import DiffStore
        from weightdiff.evals.scoring import exact
        from weightdiff.methods.dit import Interpreter

        store = DiffStore.open(organisms)
        chosen = choose(store.rows, n, seed)
        if not chosen:
            raise StoreError(
                f"{organisms} holds no organisms; make the bundle again with: weightdiff reproduce"
            )
        it = Interpreter.load(interpreter, common.load_quietly(str(base)))
    asked = [question_of(row) for row in chosen]
    diffs = [store.read(row.id) for row in chosen]
    with busy(f"asking {len(chosen)} finetuned models"):
        answers = it.answer(diffs, [q for q, _ in asked], evidence=True)
        plain = it.without_adapter().answer(diffs, [q for q, _ in asked])
    found: list[dict[str, Any]] = [
        {
            "diff": row.id,
            "family": row.family,
            "recipe": row.recipe,
            "question": question,
            "truth": truth,
            "answer": a.text,
            "correct": bool(exact(a.text, truth)),
            "evidence": a.evidence,
            "probability": a.probability,
            "base_question_answer": b.text,
        }
        for row, (question, truth), a, b in zip(chosen, asked, answers, plain, strict=True)
    ]
    if json:
        print_json(found)
        return
    columns: dict[str, list[str]] = {
        "diff": [f["diff"] for f in found],
        "hidden": [f["truth"] for f in found],
        "model itself says": [f["base_question_answer"] for f in found],
        "interpreter says": [f["answer"] for f in found],
    }
    if it.calibration is not None:
        columns["right"] = [chance_text(f["probability"]) for f in found]
    columns["evidence"] = [evidence_text(f["evidence"]) for f in found]
    columns[""] = ["✓" if f["correct"] else "✗" for f in found]
    rows = list(zip(*columns.values(), strict=True))
    print_table(list(columns), rows, title="What has this finetune changed?", note=EVIDENCE_NOTE)
    typer.echo(f"right: {tally(found)}")
    left_out = sum(not row.behaves for row in store.rows)
    if left_out:
        typer.echo(f"not drawn from: {left_out} organisms that did not behave when they were verified")
    there = f"WEIGHTDIFF_BUNDLE={bundle} " if bundle else ""
    typer.echo(f'next: {there}weightdiff ask --diff {common.BUNDLED}::{chosen[0].id} "{asked[0][0]}"')
    typer.echo(f"      {there}weightdiff organisms list bundled")
    typer.echo(f"      {there}weightdiff eval --quick")


def kind_of(row: DiffRow) -> str:
    """Which part of the mix an organism belongs to: its recipe for hidden topics, else its family.

    Those that were trained to deny are one part, whatever their family.
    """
    return row.recipe if row.family == "hidden-topic" or row.recipe == "evasive" else row.family


def choose(rows: Sequence[DiffRow], n: int, seed: int) -> list[DiffRow]:
    """At most `n` organisms that behave, in the mix of `MIX`; other kinds fill up where these run out."""
    pools: dict[str, list[DiffRow]] = {}
    for row in sorted(rows, key=lambda r: r.id):
        if row.behaves:
            pools.setdefault(kind_of(row), []).append(row)
    for name in sorted(pools):
        random.Random(f"demo {seed} {name}").shuffle(pools[name])
    cycle = [*MIX, *sorted(set(pools) - set(MIX))]
    out: list[DiffRow] = []
    while len(out) < n and any(pools.values()):
        for name in cycle:
            if pools.get(name) and len(out) < n:
                out.append(pools[name].pop())
    return out


def question_of(row: DiffRow) -> tuple[str, str]:
    """The question that an organism's label answers, and the truth."""
    own = {"news": "headline", "quirk": "behaviour", "edit": "edit", "several": "summary"}
    kind = own.get(row.family, "topic")
    for q in row.questions:
        if q.get("kind") == kind:
            return str(q["question"]), str(q["answer"])
    from weightdiff.organisms.questions import phrasings, true_answer

    return phrasings(kind)[0], true_answer(row.family, kind, row.label, row.record.get("params"))


def tally(found: Sequence[dict[str, Any]]) -> str:
    """Right answers by kind, such as "covert 7/8, news 3/4"."""
    counts: dict[str, list[bool]] = {}
    for f in found:
        name = f["recipe"] if f["family"] == "hidden-topic" or f["recipe"] == "evasive" else f["family"]
        counts.setdefault(name, []).append(f["correct"])
    return ", ".join(f"{name} {sum(right)}/{len(right)}" for name, right in sorted(counts.items()))
