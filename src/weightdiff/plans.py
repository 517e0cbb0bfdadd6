"""Plans: how many organisms of what a reproduction makes, and with which settings everything is trained.

`full` made the shipped bundle, `quick` is a smaller one, `miniature` is for tests; `half-width` and
`whole-width` are two bases to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from weightdiff.organisms.base import OrganismSpec, family
from weightdiff.organisms.makings import MAKINGS, vary
from weightdiff.tiny.pretrain import PretrainConfig
from weightdiff.training.drawing import TuningConfig
from weightdiff.training.preferring import PreferConfig
from weightdiff.training.reading import ReaderConfig


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
        TuningConfig(
            steps=4400,
            sums=0.85,
            family_weights=dict(SUMMED),
            validate_every=200,
            validation_rows=192,
            patience=10,
        ),
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


HALF, WHOLE = "half-width", "whole-width"


def sized_plan(name: str) -> Plan:
    """A base of half the width, or of the bundle's, and organisms enough to compare what is read on them."""
    p = full_plan()
    batches = tuple(
        Batch(f, recipe, split, n, 8 if split == "test" else 0)
        for f, recipe, *numbers in (
            ("hidden-topic", "covert", 144, 40, 96),
            ("news", "stories", 140, 32, 40),
            ("null", "continued", 48, 16, 0),
            ("null", "benign", 48, 16, 0),
            ("null", "random", 60, 16, 0),
        )
        for split, n in zip(("train", "validation", "test"), numbers, strict=True)
    )
    narrow = replace(p.pretrain, hidden=96, heads=2, kv_heads=2, intermediate=256)
    return replace(
        p,
        name=name,
        pretrain=narrow if name == HALF else p.pretrain,
        organisms=tuple(b for b in batches if b.n),
        tuning=TuningConfig(steps=600),
        preference=None,
        tuning_seeds=1,
    )


PLANS: dict[str, Callable[[], Plan]] = {
    "full": full_plan,
    "quick": quick_plan,
    "miniature": miniature_plan,
    HALF: lambda: sized_plan(HALF),
    WHOLE: lambda: sized_plan(WHOLE),
}


def specs_of(plan: Plan, batch: Batch) -> list[OrganismSpec]:
    """The organisms of one batch."""
    specs = family(batch.family).specs(batch.recipe, batch.split, batch.n, batch.seed)
    if batch.makings:
        specs = vary(specs, MAKINGS[batch.makings])
    steps = plan.steps.get(batch.recipe)
    return [replace(s, recipe=replace(s.recipe, steps=steps)) for s in specs] if steps is not None else specs
