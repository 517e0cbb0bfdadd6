"""`weightdiff tune`: make an interpreter over a store of organisms."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightdiff.cli import common
from weightdiff.cli.output import busy, note, print_json, progress_bar
from weightdiff.errors import QuestionError

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffRow, DiffStore
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.loading import Base
    from weightdiff.models.rendering import Rendering
    from weightdiff.training.drawing import TuningConfig
    from weightdiff.training.tuning import TuningResult

EXAMPLES = (
    "Examples:\n\n"
    "weightdiff tune --store runs/store --out runs/interpreter\n\n"
    "weightdiff tune --store runs/store --out runs/small --steps 200 --rank 4 --probes 0\n\n"
    "Then: weightdiff ask --interpreter runs/interpreter --diff my-lora"
)

SPLITS = ("train", "validation")


def tune(
    store: Annotated[str, typer.Option(help="Store with train and validation rows.", metavar="STORE")],
    out: Annotated[Path, typer.Option(help="Interpreter folder to write, new or empty.", metavar="DIR")],
    base: common.BaseOption = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.", min=1)] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch: Annotated[int | None, typer.Option(help="Diffs in a step.", min=1)] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between validations.", min=1)] = None,
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help=(
                "Only diffs of this family; repeat for more. Null diffs always stay in. With period alone, an"
                " interpreter of times is made."
            ),
            metavar="NAME",
        ),
    ] = None,
    seed: common.SeedOption = 0,
    probes: Annotated[
        int | None,
        typer.Option(help="Decoy codes shown before a question; 0 for none (and on other bases).", min=0),
    ] = None,
    renderings: Annotated[
        int | None, typer.Option(help="Renderings of a question that are averaged when answering.", min=1)
    ] = None,
    preference_steps: Annotated[
        int,
        typer.Option(
            help="Steps of a second stage on the adapter's own wrong answers (DPO), kept if it helps.",
            min=0,
        ),
    ] = 0,
    reader_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the reader, with which the base answers from reports; 0: it reads without.", min=0
        ),
    ] = None,
    json: common.JsonOption = False,
) -> None:
    """Tune an interpreter: one LoRA that makes a finetuned model say what was trained into it.

    Options left out keep the values that the bundled interpreter was made with.
    """
    common.refuse_occupied(out)
    diffs = common.open_store(store)
    with busy("loading the base"):
        from weightdiff.diffs.types import WeightDiff
        from weightdiff.methods import calibrating
        from weightdiff.methods.dit import Interpreter
        from weightdiff.training import tuning
        from weightdiff.training.dating import DatedLessons, dated_config, dated_rendering
        from weightdiff.training.reading import with_reader

        loaded = common.load_quietly(base)
        WeightDiff({}, diffs.base).check_base(loaded.ref)
    dated = _dated(families, probes, renderings, preference_steps, reader_steps)
    given = {"steps": steps, "rank": rank, "lr": lr, "batch": batch, "validate_every": validate_every}
    config = dated_config(seed=seed, **common.picked(given)) if dated else _config(given, seed, families)
    rendering = dated_rendering() if dated else common.rendering_for(loaded.tokenizer, probes, renderings)
    _warn_of_ignored([r for r in diffs.rows if r.split in SPLITS], config.family_weights)
    start, score = time.monotonic(), ""
    with progress_bar("tuning", total=config.steps) as bar:

        def show(line: dict[str, float]) -> None:
            nonlocal score
            if "score" in line:
                score = f"  validation {line['score']:.3f}"
            bar(line["step"], f"loss {line['loss']:.3f}{score}")

        lessons = (
            DatedLessons(loaded.model, loaded.tokenizer, diffs, config, rendering)
            if dated
            else tuning.StoredLessons(loaded.model, loaded.tokenizer, diffs, config, rendering)
        )
        result = tuning.tune_on(loaded.model, loaded.tokenizer, lessons, config, rendering, show)
    if preference_steps:
        result = _preferring(loaded, diffs, result, config, rendering, preference_steps)
    reader, meta = None, result.manifest
    if rendering.report and reader_steps != 0:
        reader, read = _reading(loaded, diffs, seed, reader_steps)
        meta = with_reader(meta, read)
    made = Interpreter(loaded, result.adapter, rendering, config.answer_tokens, meta, reader=reader)
    if calibrating.rows_of(diffs) and not dated:
        with busy("calibrating"):
            made = calibrating.calibrate(made, diffs)
    made.save(out)
    found: dict[str, Any] = {
        "interpreter": str(out),
        "seconds": round(time.monotonic() - start, 1),
        "validation_score": result.manifest["validation_score"],
        "history": result.history,
        "preference": result.manifest.get("preference"),
        "calibration": None if made.calibration is None else made.calibration.meta,
    }
    if json:
        print_json(found)
        return
    last = result.history[-1]
    typer.echo(f"{out}: {last['step']:.0f} steps in {found['seconds']} s, loss {last['loss']:.3f}")
    typer.echo(f"best validation score: {found['validation_score']:.3f}")
    if dated:
        note("an interpreter of times has no calibration: answers come without a probability of being right")
    elif made.calibration is None:
        note(
            "warning: the store has no validation rows, so answers come without a probability of being right"
        )
    else:
        fit = made.calibration.meta
        typer.echo(f"calibrated on {fit['questions']} validation questions, Brier score {fit['brier']:.3f}")


def _dated(
    families: Sequence[str] | None,
    probes: int | None,
    renderings: int | None,
    preference_steps: int,
    reader_steps: int | None,
) -> bool:
    """Whether an interpreter of times is asked for, which is tuned alone and answers at once."""
    from weightdiff.world.dating import PERIOD

    if PERIOD not in (families or ()):
        return False
    if others := [f for f in families or () if f not in (PERIOD, "null")]:
        raise QuestionError(
            f"an interpreter of times is tuned on its own: leave out --family {others[0]}, or {PERIOD}"
        )
    if probes or renderings or preference_steps or reader_steps:
        raise QuestionError(
            "an interpreter of times answers at once: leave out --probes, --renderings, --preference-steps"
            " and --reader-steps"
        )
    return True


def _config(given: dict[str, Any], seed: int, families: Sequence[str] | None) -> TuningConfig:
    """Settings as given; of some families alone, where these are named."""
    from weightdiff.training.drawing import TuningConfig

    config = TuningConfig(seed=seed, **common.picked(given))
    return _only(config, families) if families else config


def _only(config: TuningConfig, families: Sequence[str]) -> TuningConfig:
    """Settings that draw some families alone, and null diffs."""
    known = config.family_weights
    if unknown := [f for f in families if f not in known]:
        raise QuestionError(f"tuning draws no family {unknown[0]!r}: choose of {', '.join(known)}")
    kept = {f: w for f, w in known.items() if f in families or f == "null"}
    return replace(config, family_weights=kept)


def _reading(
    loaded: Base, diffs: DiffStore, seed: int, steps: int | None
) -> tuple[WeightDiff, dict[str, Any]]:
    """The reader, with its progress."""
    from weightdiff.training.reading import ReaderConfig, tune_reader

    config = ReaderConfig(seed=seed, **common.picked({"steps": steps}))
    with progress_bar("reading", total=config.steps) as bar:
        return tune_reader(
            loaded.model,
            loaded.tokenizer,
            diffs,
            config,
            lambda line: bar(line["step"], f"loss {line['loss']:.3f}"),
        )


def _preferring(
    loaded: Base,
    diffs: DiffStore,
    result: TuningResult,
    config: TuningConfig,
    rendering: Rendering,
    steps: int,
) -> TuningResult:
    """The second stage, with its progress."""
    from weightdiff.training.preferring import PreferConfig, prefer

    second = PreferConfig(steps=steps, seed=config.seed)
    with progress_bar("preferring", total=steps) as bar:
        return prefer(
            loaded.model,
            loaded.tokenizer,
            diffs,
            result,
            config,
            rendering,
            second,
            lambda line: bar(line["step"], f"{line['pairs']:.0f} pairs"),
        )


def _warn_of_ignored(rows: Sequence[DiffRow], drawn: Collection[str]) -> None:
    """Say which rows tuning ignores for their family; where that is all of them, tuning itself refuses."""
    ignored = Counter(r.family for r in rows if r.family not in drawn)
    if ignored and any(r.family in drawn for r in rows if r.split == "train"):
        found = common.listed([f"{name} ({n})" for name, n in sorted(ignored.items())])
        note(f"warning: rows of other families than {', '.join(sorted(drawn))} are ignored: {found}")
