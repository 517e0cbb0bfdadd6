"""What a finetuned model adds to its base, tensor by tensor in memory that does not grow with the model.

Which tensors belong together is settled by `pairing`; what is kept of the differences is up to `extraction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from weightdiff.diffs.pairing import Kind, Pair, Tally, chunks, pairs, same_bits
from weightdiff.diffs.weights import Weights
from weightdiff.errors import FormatError, NonFiniteError

Progress: TypeAlias = Callable[[int, int, str], None]
"""Told before each tensor and at the end: tensors done, tensors in all, the one that comes ("" at last)."""

_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Change:
    """What one tensor gains.

    Attributes:
        name: the parameter's name in the loaded base.
        kind: what it is; see `pairing.Kind`.
        delta: in the base's shape, float32 or wider; a linear layer's is [out, in], whatever the file has.
        squared_norm: sum of its squares.
    """

    name: str
    kind: Kind
    delta: Tensor
    squared_norm: float

    @property
    def module(self) -> str:
        """The module that a weight belongs to."""
        return self.name.removesuffix(".weight")


def difference(
    base: Weights,
    finetuned: Weights,
    tally: Tally | None = None,
    progress: Progress | None = None,
    *,
    complete: bool = False,
) -> Iterator[Change]:
    """Subtract two models, tensor by tensor in the base's order; equal ones are counted and left out.

    Names and shapes are checked at once, values as they are read. In memory lies one difference and a few
    mebibytes of either file; a caller that keeps a `Change` while it takes the next one holds two.

    Args:
        base: before the finetune.
        finetuned: after it.
        tally: counts what was found; complete once the iterator is.
        progress: told how far it is.
        complete: refuse tensors that one side alone has; see `pairing.pairs`.

    Raises:
        BaseMismatchError: the two share no names, or disagree on shapes other than a vocabulary's size.
        FormatError: changed tensors are no floating-point numbers, or a file is damaged.
        NonFiniteError: a difference is NaN or infinite.
    """
    counts = tally if tally is not None else Tally()
    return _changes(base, finetuned, pairs(base, finetuned, counts, complete=complete), counts, progress)


def _changes(
    base: Weights, finetuned: Weights, found: list[Pair], tally: Tally, progress: Progress | None
) -> Iterator[Change]:
    for i, pair in enumerate(found):
        if progress:
            progress(i, len(found), pair.name)
        yield from _change(base, finetuned, pair, tally)
    if progress:
        progress(len(found), len(found), "")


def _change(base: Weights, finetuned: Weights, pair: Pair, tally: Tally) -> Iterator[Change]:
    """Yield the pair's change, if there is one; a generator, so that nothing holds the change afterwards."""
    delta, squared = _subtracted(base, finetuned, pair)
    if delta is None:
        tally.untouched += 1
        return
    tally.changed += 1
    yield Change(pair.name, pair.kind, delta.T.contiguous() if pair.turned else delta, squared)


def _subtracted(base: Weights, finetuned: Weights, pair: Pair) -> tuple[Tensor | None, float]:
    """The difference in the base's shape, None where all of it is zero, and the sum of its squares."""
    shape, dtypes = base.shape(pair.base), (base.dtype(pair.base), finetuned.dtype(pair.finetuned))
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    delta = torch.empty(shape, dtype=dtype)  # takes no memory until it is written to
    rows, squared = delta.reshape(shape or 1), 0.0
    for start, stop in chunks(shape, pair.rows):
        before, after = base.rows(pair.base, start, stop), finetuned.rows(pair.finetuned, start, stop)
        if same_bits(before, after):
            if squared > 0:
                rows[start:stop].zero_()
            continue
        _check_floats(base, finetuned, pair)
        piece = torch.sub(after.to(dtype), before.to(dtype), out=rows[start:stop])
        flat = piece.reshape(-1).double()
        gained = float(torch.dot(flat, flat))
        if not math.isfinite(gained):
            raise NonFiniteError(
                f"{finetuned.where}: {pair.finetuned} differs from {pair.base} by NaN or infinity; the"
                " finetune diverged or was cast to too small a dtype, so make it again"
            )
        if gained > 0 and squared == 0:
            rows[:start].zero_()
        squared += gained
    rows[pair.rows :].zero_()
    return (delta if squared > 0 else None), squared


def _check_floats(base: Weights, finetuned: Weights, pair: Pair) -> None:
    for weights, name in ((finetuned, pair.finetuned), (base, pair.base)):
        dtype = weights.dtype(name)
        if dtype not in _FLOATS:
            kind = str(dtype).removeprefix("torch.")
            raise FormatError(
                f"{name} in {weights.where} is {kind} and changed, which is no difference that can be added;"
                " save the model unquantized, or leave out what is no weight"
            )
