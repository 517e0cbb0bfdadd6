"""A weight diff out of two whole models: `extract`, and the `Report` of what it kept.

Matrices are truncated one by one as their differences stream by; the streaming itself is in `differences`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from weightdiff.diffs.algebra import check_target, truncated
from weightdiff.diffs.differences import Change, Progress, difference
from weightdiff.diffs.factors import DenseDelta, LoraFactors, ModuleDelta
from weightdiff.diffs.pairing import Kind, Tally
from weightdiff.diffs.types import WeightDiff
from weightdiff.diffs.weights import Weights


@dataclass(frozen=True)
class Kept:
    """What the diff holds of one module or parameter.

    Attributes:
        kind: "linear", "embedding" or "parameter".
        shape: of the change; [out, in] for modules.
        rank: of its factors; None where it is kept whole.
        squared_norm: sum of the squares of the whole difference.
        energy: share of `squared_norm` that is kept, 0 … 1.
    """

    kind: Kind
    shape: tuple[int, ...]
    rank: int | None
    squared_norm: float
    energy: float


@dataclass(frozen=True)
class Report:
    """What came of two models.

    Attributes:
        kept: module or parameter → what the diff holds of it.
        dropped: parameter that changed and is not in the diff → its share of the energy of all changes.
        energy: share of the energy of all changes that is in the diff; 1 where nothing changed.
        bytes_read: from the files of both.
        changed: tensors with a difference, dropped ones included.
        untouched: tensors without one.
        missing: names that the base alone has.
        unexpected: names that the finetune alone has.
        moved: notes on name prefixes that differ.
        vocabulary: notes on rows added to a table of tokens or removed from it.
        tied: notes on heads that share the embeddings.
    """

    kept: dict[str, Kept]
    dropped: dict[str, float]
    energy: float
    bytes_read: int
    changed: int
    untouched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        fields = asdict(self)
        for name in ("missing", "unexpected", "moved", "vocabulary", "tied"):
            fields[name] = list(fields[name])
        return fields


def extract(
    base: Weights,
    finetuned: Weights,
    rank: int | None = None,
    energy: float | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    *,
    linear_only: bool = False,
    complete: bool = False,
) -> tuple[WeightDiff, Report]:
    """Take the weight diff out of two models, tensor by tensor.

    Weights of linear layers are truncated to `rank` or `energy` as they are read, so that only one of them is
    in memory as a whole; with neither, every difference is kept as it is, and the diff is as large as the
    model. Embeddings and the head become dense modules, everything else `parameters`.

    Args:
        base: before the finetune.
        finetuned: after it.
        rank: most directions to keep of a matrix.
        energy: share of a matrix's squared norm to keep, above 0 and up to 1; with `rank`, at most that many
            directions.
        progress: told before each tensor.
        seed: of the randomized SVD of large matrices.
        linear_only: leave out all but linear layers, and say what that loses.
        complete: refuse tensors that one side alone has, rather than report them.

    Raises:
        BaseMismatchError: the finetune is of another base.
        FormatError: a file is damaged, or weights that changed are quantized.
        NonFiniteError: a difference is NaN or infinite.
        ValueError: a senseless `rank` or `energy`.
    """
    whole = rank is None and energy is None
    if not whole:
        check_target(rank, energy)  # before anything is read
    tally, read = Tally(), base.bytes_read + finetuned.bytes_read
    modules: dict[str, ModuleDelta] = {}
    parameters: dict[str, Tensor] = {}
    kept: dict[str, Kept] = {}
    lost: dict[str, float] = {}
    for change in difference(base, finetuned, tally, progress, complete=complete):
        if change.kind == "untied" or (linear_only and change.kind != "linear"):
            lost[change.name] = change.squared_norm
        elif change.kind == "parameter":
            parameters[change.name] = change.delta
            kept[change.name] = _kept(change, None, 1.0)
        else:
            m, share = DenseDelta(change.delta), 1.0
            if change.kind == "linear" and not whole:
                m, share = truncated(m, rank, energy, seed)
            modules[change.module] = m
            kept[change.module] = _kept(change, m.rank if isinstance(m, LoraFactors) else None, share)
            del m
        del change  # or the difference would stay in memory while the next one is read
    report = _report(tally, kept, lost, base.bytes_read + finetuned.bytes_read - read)
    meta = {
        "extracted_from": finetuned.where,
        "rank": rank,
        "energy": energy,
        "energy_kept": report.energy,
    }
    return WeightDiff(modules, base.ref, meta, parameters), report


def _kept(change: Change, rank: int | None, share: float) -> Kept:
    return Kept(change.kind, tuple(change.delta.shape), rank, change.squared_norm, min(1.0, share))


def _report(tally: Tally, kept: dict[str, Kept], lost: dict[str, float], bytes_read: int) -> Report:
    total = sum(k.squared_norm for k in kept.values()) + sum(lost.values())
    held = sum(k.squared_norm * k.energy for k in kept.values())
    return Report(
        kept,
        {name: squared / total for name, squared in lost.items()},
        held / total if total > 0 else 1.0,
        bytes_read,
        tally.changed,
        tally.untouched,
        tuple(tally.missing),
        tuple(tally.unexpected),
        tuple(tally.moved),
        tuple(tally.vocabulary),
        tuple(tally.tied),
    )
