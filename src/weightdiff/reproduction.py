"""All of the bundle again, from nothing: base, organisms, interpreters, and the folder that ships.

Every stage leaves its result on disk and skips what is there, so a killed run goes on where it stopped.
What is made, and how much of it, is a plan's affair (`plans`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_directory, atomic_write_json, differing, write_manifest
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.errors import StoreError
from weightdiff.plans import Plan, full_plan, quick_plan, specs_of
from weightdiff.tiny.defaults import rendering
from weightdiff.tiny.pretrain import pretrain
from weightdiff.training.preferring import prefer
from weightdiff.training.production import produce
from weightdiff.training.reading import tune_reader, with_reader
from weightdiff.training.tuning import tune
from weightdiff.world import load_world

Progress = Callable[[str, dict[str, Any]], None]
STAGES = ("base", "organisms", "tune", "bundle")
OPTIONS = {"full": "", "quick": " --quick"}
"""How a plan is asked for where it is not by its name."""


def reproduce(
    out: Path,
    quick: bool = False,
    progress: Progress | None = None,
    plan: Plan | None = None,
    until: str = "bundle",
) -> Path:
    """Make everything below `out` and return the bundle's folder.

    Args:
        out: folder for all stages; run again with the same one to go on after a kill.
        quick: the quick plan instead of the full one.
        progress: called with a stage's name and its numbers.
        plan: another plan altogether.
        until: last stage to do, one of `STAGES`.

    Raises:
        StoreError: `out` holds a run of another plan, or a base or interpreter made with other settings.
    """
    plan = plan or (quick_plan() if quick else full_plan())
    tell = progress or (lambda _stage, _numbers: None)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, plan)
    last = STAGES.index(until)
    model, tokenizer, ref, marks = make_base(out, plan, tell)
    if last < 1:
        return out / "base"
    store = make_organisms(out, plan, model, tokenizer, ref, tell)
    if last < 2:
        return store.path
    scores = make_interpreters(out, plan, model, tokenizer, ref, store, tell)
    if last < 3:
        return out / "interpreters"
    return make_bundle(out, plan, store, marks, scores)


def _claim(out: Path, plan: Plan) -> None:
    """Write the plan into `out`; refuse a folder of another plan, or one that made something otherwise."""
    file, mine = out / "plan.json", json.loads(json.dumps(asdict(plan)))
    if file.exists() and json.loads(file.read_text())["name"] != plan.name:
        raise StoreError(
            f"{out} holds a run of another plan ({json.loads(file.read_text())['name']}); give another --out"
        )
    for folder, stored, wanted in _settings_on_disk(out, mine):
        if other := differing(stored, wanted):
            raise StoreError(f"{folder} was made with other settings ({other}); give another --out")
    atomic_write_json(file, mine)


def _settings_on_disk(
    out: Path, plan: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Base and interpreters that are there: (folder, settings it was made with, settings of the plan).

    Organisms are compared one by one when they are produced, so that a plan can add some.
    """
    base = out / "base"
    if (base / "exam.json").exists():
        made = json.loads((base / "exam.json").read_text())["config"]
        yield base, {"pretrain": made}, {"pretrain": plan["pretrain"]}
    for seed in range(plan["tuning_seeds"]):
        folder = out / "interpreters" / f"seed-{seed}"
        if (folder / "interpreter.json").exists():
            found = json.loads((folder / "interpreter.json").read_text())
            wording = found["rendering"]
            yield (
                folder,
                {
                    "tuning": found["meta"].get("config", {}),
                    "probes": wording["per_question"],
                    "renderings": wording["renderings"],
                },
                {
                    "tuning": {**plan["tuning"], "seed": seed},
                    "probes": plan["probes"],
                    "renderings": plan["renderings"],
                },
            )


def make_base(out: Path, plan: Plan, tell: Progress) -> tuple[Any, Any, Any, dict[str, float]]:
    """Pretrain the base, or load it; returns (model in bf16, tokenizer, fingerprints, exam marks)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from weightdiff.diffs.reference import ModelRef
    from weightdiff.tiny.exam import exam
    from weightdiff.tiny.tokenizer import build_tokenizer
    from weightdiff.world.corpus import Corpus

    folder = out / "base"
    if not (folder / "exam.json").exists():
        world = load_world()
        tokenizer = build_tokenizer(world)
        start = time.time()
        model: Any = pretrain(
            Corpus(world),
            tokenizer,
            plan.pretrain,
            out / "pretraining",
            lambda x: tell("base", x),
        )
        model.to(torch.bfloat16)
        marks = exam(model, tokenizer, world, plan.exam)
        tell("base", dict(marks))
        with atomic_directory(folder, overwrite=True) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            seconds = round(time.time() - start)
            atomic_write_json(
                temporary / "exam.json", {"marks": marks, "config": asdict(plan.pretrain), "seconds": seconds}
            )
    marks = json.loads((folder / "exam.json").read_text())["marks"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    return model, tokenizer, ModelRef.of(model, name="weightdiff-tiny"), marks


def make_organisms(out: Path, plan: Plan, model: Any, tokenizer: Any, ref: Any, tell: Progress) -> DiffStore:
    """Train and verify the plan's organisms into one store."""
    path = out / "organisms"
    store = DiffStore.open(path) if path.exists() else DiffStore.create(path, ref, {"plan": plan.name})
    for b in plan.organisms:
        held_out = b.split == "test"
        produce(
            model,
            tokenizer,
            ref,
            specs_of(plan, b),
            store,
            plan.slots,
            plan.verify_test_asked if held_out else plan.verify_asked,
            held_out,
            lambda p, b=b: tell(f"organisms {b.recipe} {b.split}", p.to_json()),
        )
    return store


def make_interpreters(
    out: Path, plan: Plan, model: Any, tokenizer: Any, ref: Any, store: DiffStore, tell: Progress
) -> dict[int, float]:
    """Tune one interpreter for each seed; returns validation scores by seed."""
    import torch

    from weightdiff.methods.calibrating import calibrate
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.loading import Base
    from weightdiff.models.spec import model_spec

    wording = rendering(plan.probes, plan.renderings)
    scores = {}
    for seed in range(plan.tuning_seeds):
        folder = out / "interpreters" / f"seed-{seed}"
        if not folder.exists():
            start = time.time()
            config = replace(plan.tuning, seed=seed)
            result = tune(
                model, tokenizer, store, config, wording, lambda x, s=seed: tell(f"tune seed {s}", x)
            )
            if plan.preference is not None:
                second = replace(plan.preference, seed=seed)
                result = prefer(
                    model,
                    tokenizer,
                    store,
                    result,
                    config,
                    wording,
                    second,
                    lambda x, s=seed: tell(f"preference seed {s}", x),
                )
            meta, reader = result.manifest, None
            if plan.reader is not None:
                reading = replace(plan.reader, seed=seed)
                reader, read = tune_reader(
                    model, tokenizer, store, reading, lambda x, s=seed: tell(f"reader seed {s}", x)
                )
                meta = with_reader(meta, read)
            meta = {**meta, "seconds": round(time.time() - start), "plan": plan.name}
            base = Base(model, tokenizer, ref, model_spec(model))
            half = torch.float16  # enough for what ships, and calibrated as it ships
            reader = reader and reader.to(half)
            made = Interpreter(
                base, result.adapter.to(half), wording, config.answer_tokens, meta, reader=reader
            )
            calibrate(made, store).save(folder)
        scores[seed] = json.loads((folder / "interpreter.json").read_text())["meta"]["validation_score"]
    return scores


def behaving(rows: Sequence[DiffRow]) -> dict[str, list[int]]:
    """For each "family/recipe": how many organisms behaved when verified, and how many there are."""
    out: dict[str, list[int]] = {}
    for row in rows:
        counts = out.setdefault(f"{row.family}/{row.recipe}", [0, 0])
        counts[0] += row.verification.get("behaves") is True
        counts[1] += 1
    return out


def make_bundle(
    out: Path, plan: Plan, store: DiffStore, marks: dict[str, float], scores: dict[int, float]
) -> Path:
    """Assemble what ships: base, best-validated interpreter, the first held-out organisms of each kind."""
    import shutil

    import torch

    best = max(scores, key=lambda s: (scores[s], -s))
    folder = out / "bundle"
    with atomic_directory(folder, overwrite=True) as temporary:
        shutil.copytree(out / "base", temporary / "base")
        shutil.copytree(out / "interpreters" / f"seed-{best}", temporary / "interpreter")
        shipped = DiffStore.create(temporary / "organisms", store.base, {"plan": plan.name, "split": "test"})
        chosen = [s.id for b in plan.organisms for s in specs_of(plan, b)[: b.bundled]]
        items = [(store.row(i), store.read(i)) for i in chosen]
        for rank in sorted({diff.max_rank for _, diff in items}):  # a shard is padded to its highest rank
            shipped.append([x for x in items if x[1].max_rank == rank], torch.float16)
        made = {
            "plan": asdict(plan),
            "command": "weightdiff reproduce" + OPTIONS.get(plan.name, f" --plan {plan.name}"),
            "base_exam": marks,
            "validation_scores": {str(k): v for k, v in scores.items()},
            "interpreter_seed": best,
            "organisms": len(chosen),
            "behaving": behaving(shipped.rows),
        }
        write_manifest(temporary, made)
    return folder
