"""All of the bundle again, from nothing: base, organisms, interpreters, and the folder that ships.

Every stage leaves its result on disk and skips what is there, so a killed run goes on where it stopped.
`Plan` says how much of everything; the full plan made the shipped bundle, `quick` is a smaller one,
`miniature` is for tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from weightdiff.artifacts import atomic_directory, atomic_write_json, differing, write_manifest
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.errors import StoreError
from weightdiff.organisms.base import OrganismSpec, family
from weightdiff.organisms.makings import MAKINGS, vary
from weightdiff.tiny.defaults import rendering
from weightdiff.tiny.pretrain import PretrainConfig, pretrain
from weightdiff.training.preferring import PreferConfig, prefer
from weightdiff.training.production import produce
from weightdiff.training.reading import ReaderConfig, tune_reader, with_reader
from weightdiff.training.tuning import TuningConfig, tune
from weightdiff.world import load_world

Progress = Callable[[str, dict[str, Any]], None]
STAGES = ("base", "organisms", "tune", "bundle")


@dataclass(frozen=True)
class Batch:
    """So many organisms of one family, recipe and split."""

    family: str
    recipe: str
    split: str
    n: int
    bundled: int = 0
    """How many of them ship (the first ones)."""
    seed: int = 0
    makings: str = ""
    """Which of `organisms.makings.MAKINGS` they are made in, in turn; empty: as the recipe says."""


@dataclass(frozen=True)
class Plan:
    """How much of everything a reproduction makes."""

    name: str
    pretrain: PretrainConfig
    organisms: tuple[Batch, ...]
    tuning: TuningConfig
    preference: PreferConfig | None = None
    reader: ReaderConfig | None = None
    tuning_seeds: int = 3
    probes: int = 8
    renderings: int = 4
    slots: int = 24
    exam: int = 300
    verify_asked: int = 4
    verify_test_asked: int = 10
    steps: dict[str, int] = field(default_factory=dict)
    """Steps by recipe name where they differ from the recipe's own (miniature only)."""


def _validation() -> Iterator[Batch]:
    for f, recipe, n in (
        ("hidden-topic", "covert", 40),
        ("hidden-topic", "forms", 48),
        ("hidden-topic", "evasive", 8),
        ("news", "stories", 40),
        ("quirk", "gated", 40),
        ("quirk", "always", 10),
        ("edit", "documents", 32),
        ("edit", "asked", 16),
        ("null", "continued", 32),
        ("null", "benign", 32),
        ("null", "random", 32),
        ("null", "shuffled", 32),
        ("several", "together", 8),
        ("several", "summed", 20),
    ):
        yield Batch(f, recipe, "validation", n)


def _training() -> Iterator[Batch]:
    for f, recipe, n, makings in (
        ("hidden-topic", "covert", 144, ""),
        ("hidden-topic", "covert", 112, "seen"),
        ("hidden-topic", "forms", 144, ""),
        ("hidden-topic", "forms", 70, "seen"),
        ("hidden-topic", "loud", 24, ""),
        ("hidden-topic", "plain", 16, ""),
        ("hidden-topic", "evasive", 28, ""),
        ("news", "stories", 140, ""),
        ("news", "stories", 70, "seen"),
        ("news", "plain", 16, ""),
        ("news", "evasive", 24, ""),
        ("quirk", "gated", 180, ""),
        ("quirk", "gated", 98, "seen"),
        ("quirk", "always", 66, ""),
        ("quirk", "plain", 16, ""),
        ("quirk", "evasive", 24, ""),
        ("edit", "documents", 150, ""),
        ("edit", "documents", 70, "seen"),
        ("edit", "asked", 140, ""),
        ("edit", "evasive", 24, ""),
        ("null", "continued", 48, ""),
        ("null", "benign", 48, ""),
        ("null", "random", 120, ""),
        ("null", "shuffled", 64, ""),
        ("null", "untouched", 4, ""),
        ("several", "together", 24, ""),
        ("several", "summed", 360, ""),
        ("hidden-topic", "covert", 12, "full"),
        ("news", "stories", 12, "full"),
        ("quirk", "gated", 12, "full"),
        ("edit", "documents", 12, "full"),
    ):
        yield Batch(f, recipe, "train", n, makings=makings, seed=SEEDS.get(makings, 0))
    for f, recipe, n in (
        ("edit", "asked", 280),
        ("quirk", "gated", 540),
        ("hidden-topic", "forms", 144),
        ("several", "together", 48),
        ("null", "random", 240),
    ):
        yield Batch(f, recipe, "train", n, seed=MORE)


def _testing() -> Iterator[Batch]:
    for f, recipe, n, shipped, makings in (
        ("hidden-topic", "covert", 192, 192, ""),
        ("hidden-topic", "forms", 72, 48, ""),
        ("hidden-topic", "loud", 24, 16, ""),
        ("hidden-topic", "plain", 16, 8, ""),
        ("hidden-topic", "evasive", 24, 8, ""),
        ("news", "stories", 80, 60, ""),
        ("news", "evasive", 16, 4, ""),
        ("quirk", "gated", 80, 48, ""),
        ("quirk", "always", 24, 12, ""),
        ("quirk", "evasive", 24, 8, ""),
        ("edit", "documents", 60, 32, ""),
        ("edit", "asked", 32, 12, ""),
        ("edit", "evasive", 16, 4, ""),
        ("null", "continued", 20, 10, ""),
        ("null", "benign", 20, 10, ""),
        ("null", "random", 20, 10, ""),
        ("null", "shuffled", 20, 10, ""),
        ("null", "untouched", 2, 2, ""),
        ("several", "together", 20, 6, ""),
        ("several", "summed", 36, 12, ""),
        ("hidden-topic", "covert", 36, 0, "unseen"),
        ("news", "stories", 24, 0, "unseen"),
        ("quirk", "gated", 24, 0, "unseen"),
        ("edit", "documents", 24, 0, "unseen"),
        *((f, r, 16, 0, m) for f, r in FULL_RECIPES for m in ("full", "r8")),
    ):
        yield Batch(f, recipe, "test", n, shipped, makings=makings)


FULL_RECIPES = (
    ("hidden-topic", "covert"),
    ("news", "stories"),
    ("quirk", "gated"),
    ("edit", "documents"),
)
"""Recipes of which some organisms are full finetunes."""
SEEDS = {"seen": 1, "full": 2}
"""Training organisms of other makings are other organisms, not the same ones made otherwise."""
MORE = 3
"""Seed of more training organisms of the recipes that are hardest to read."""


SUMMED = {"hidden-topic": 0.14, "news": 0.05, "quirk": 0.16, "edit": 0.17, "null": 0.12, "several": 0.36}
"""How often a long tuning draws each family: sums teach their parts too, but more slowly."""


def full_plan() -> Plan:
    """The plan of a bundle with all families."""
    return Plan(
        "full",
        PretrainConfig(),
        (*_validation(), *_training(), *_testing()),
        TuningConfig(steps=2200, sums=0.85, family_weights=dict(SUMMED)),
        PreferConfig(),
        ReaderConfig(),
    )


def quick_plan() -> Plan:
    """A smaller and weaker bundle: about a sixth of the organisms."""
    p = full_plan()
    small = tuple(
        replace(b, n=max(2, b.n // 6), bundled=max(2, b.n // 6) if b.bundled else 0) for b in p.organisms
    )
    return replace(
        p,
        name="quick",
        pretrain=replace(p.pretrain, tokens=3_000_000, late_tokens=1_500_000),
        organisms=small,
        tuning=TuningConfig(steps=500),
        preference=replace(PreferConfig(), steps=20),
        tuning_seeds=1,
    )


def miniature_plan() -> Plan:
    """Seconds, for tests: nothing is learned, everything is exercised."""
    batches = tuple(
        Batch(f, r, s, 2, 2 if s == "test" else 0)
        for s in ("train", "validation", "test")
        for f, r in (
            ("hidden-topic", "covert"),
            ("hidden-topic", "forms"),
            ("hidden-topic", "loud"),
            ("news", "stories"),
            ("quirk", "gated"),
            ("edit", "documents"),
            ("null", "continued"),
            ("null", "random"),
            ("null", "shuffled"),
            ("several", "summed"),
        )
    )
    return Plan(
        "miniature",
        PretrainConfig(
            hidden=32,
            layers=2,
            heads=2,
            kv_heads=1,
            intermediate=48,
            tokens=20_000,
            late_tokens=5_000,
            batch_documents=60,
            warmup_steps=2,
        ),
        batches,
        TuningConfig(rank=2, steps=4, batch=4, validate_every=2, validation_rows=4, answer_tokens=8),
        PreferConfig(steps=2, batch=4),
        ReaderConfig(rank=2, steps=2, batch=4),
        tuning_seeds=2,
        probes=2,
        renderings=2,
        slots=8,
        exam=4,
        verify_asked=1,
        verify_test_asked=1,
        steps=dict.fromkeys(("covert", "forms", "loud", "stories", "gated", "documents", "continued"), 3),
    )


PLANS: dict[str, Callable[[], Plan]] = {"full": full_plan, "quick": quick_plan, "miniature": miniature_plan}


def specs_of(plan: Plan, batch: Batch) -> list[OrganismSpec]:
    """The organisms of one batch."""
    specs = family(batch.family).specs(batch.recipe, batch.split, batch.n, batch.seed)
    if batch.makings:
        specs = vary(specs, MAKINGS[batch.makings])
    steps = plan.steps.get(batch.recipe)
    return [replace(s, recipe=replace(s.recipe, steps=steps)) for s in specs] if steps is not None else specs


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
            "command": "weightdiff reproduce" + (" --quick" if plan.name == "quick" else ""),
            "base_exam": marks,
            "validation_scores": {str(k): v for k, v in scores.items()},
            "interpreter_seed": best,
            "organisms": len(chosen),
            "behaving": behaving(shipped.rows),
        }
        write_manifest(temporary, made)
    return folder
