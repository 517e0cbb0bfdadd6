"""LoRAs on a frozen base, row by row and shared, without touching a weight.

`attach` registers forward hooks on the linear layers concerned and always takes them off again. Each layer's
output gains `(x·downᵀ)·upᵀ` as two thin products (in `products`); dense deltas are left to `merge`. Rows of
one slot stand next to each other wherever possible, so that one batched product over a view serves the whole
batch.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from weightdiff.diffs.types import LoraFactors, StackedLoras, WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError
from weightdiff.models.packing import Packed
from weightdiff.models.products import BatchMismatchError, Factors, RowTerm, SharedTerm, add_terms
from weightdiff.models.spec import linear_size


@dataclass
class RowLoras:
    """Slots of LoRA factors and which row of the batch each slot serves."""

    modules: Mapping[str, Factors]
    """Module name to `(down [slots, rank, in], up [slots, out, rank])`, the scale folded into `up`. Slots
    of a lower rank are padded with zeros. Tensors may require grad and may be kept in a higher precision than
    the base."""
    row_to_slot: int | Tensor
    """Either rows per slot (row b belongs to slot b // rows_per_slot: the fast way), or a LongTensor [rows]
    of slots in which -1 means that the row carries no LoRA."""
    slots: int = -1
    """Number of slots; read from the factors unless there are no modules at all (diffs that change
    nothing)."""
    one_line: bool = False
    """Whether the batch is a single row, equal stretches of which belong to the slots in turn (`packing`)."""
    line: Packed | None = None
    """The batch is this line; its row i belongs to slot i."""

    def __post_init__(self) -> None:
        """Check the parts against each other and take the fast way where a row tensor allows it."""
        counts = {int(t.shape[0]) for pair in self.modules.values() for t in pair} | ({self.slots} - {-1})
        if len(counts) > 1:
            raise BatchMismatchError(f"row LoRAs disagree on the number of slots: {sorted(counts)}")
        self.slots = counts.pop() if counts else 0
        if isinstance(self.row_to_slot, Tensor):
            self._check_rows(self.row_to_slot)
        elif self.row_to_slot < 1:
            raise BatchMismatchError(f"rows per slot must be 1 or more, not {self.row_to_slot}")
        if self.line is not None and (self.row_to_slot != 1 or len(self.line.places) != self.slots):
            raise BatchMismatchError(
                f"a line of {len(self.line.places)} rows needs as many slots, one for each, not {self.slots}"
            )

    def _check_rows(self, rows: Tensor) -> None:
        slots = rows.tolist()
        if not slots or min(slots) < -1 or max(slots) >= self.slots:
            raise BatchMismatchError(
                f"row_to_slot must hold slots -1 ... {self.slots - 1}, but holds {slots[:16]}"
            )
        per_slot = len(slots) // max(self.slots, 1)
        if per_slot and slots == [i for i in range(self.slots) for _ in range(per_slot)]:
            self.row_to_slot = per_slot

    @classmethod
    def from_stacked(cls, stacked: StackedLoras, row_to_slot: int | Tensor = 1) -> RowLoras:
        """Row LoRAs from stacked diffs.

        Args:
            stacked: factors of n diffs, padded to one rank per module.
            row_to_slot: rows per diff, or a LongTensor [rows] of diff numbers (-1: none).

        Returns:
            Row LoRAs that share the stacked tensors.
        """
        return cls(stacked.modules, row_to_slot, stacked.n)

    def only(self, rows: Sequence[int]) -> RowLoras:
        """Some rows of a batch in which each slot serves one row.

        Raises:
            BatchMismatchError: slots serve several rows, or some rows carry none.
        """
        if self.row_to_slot != 1:
            raise BatchMismatchError("only rows with a slot each can be taken apart")
        at = torch.tensor(list(rows))
        return RowLoras(
            {k: (d[at.to(d.device)], u[at.to(u.device)]) for k, (d, u) in self.modules.items()}, 1, len(at)
        )

    def stretches(self) -> Tensor | None:
        """The slot of each of the longest equal stretches whose rows share one; None: slot i has stretch i.

        Rows of a stretch go through one product, and its slot's factors are gathered once for all of them.
        """
        if not isinstance(self.row_to_slot, Tensor):
            return None
        slots = self.row_to_slot.tolist()
        together = math.gcd(*(len(list(same)) for _, same in itertools.groupby(slots)))
        return self.row_to_slot[::together]

    @property
    def rows(self) -> int:
        """How many rows a batch must have."""
        if self.one_line or self.line is not None:
            return 1
        if isinstance(self.row_to_slot, Tensor):
            return int(self.row_to_slot.shape[0])
        return self.slots * self.row_to_slot


@dataclass
class SharedLora:
    """One LoRA for every row of the batch, such as a DIT adapter."""

    modules: Mapping[str, Factors]
    """Module name to `(down [rank, in], up [out, rank])`; tensors may require grad."""
    scale: float = 1.0
    """Factor on the product, 1 where it is already folded into `up`."""
    row_mask: Tensor | None = None
    """Bool [rows]: the rows that feel this LoRA. None: all of them."""
    by_row: Mapping[str, Tensor] | None = None
    """Module name to [rows, rank]: what each row multiplies each direction by. None: one, everywhere."""

    def __post_init__(self) -> None:
        """Refuse a mask beside weights, which can be zero themselves."""
        if self.row_mask is not None and self.by_row is not None:
            raise BatchMismatchError("give a row_mask or weights by_row, not both: a weight of 0 is a mask")

    @classmethod
    def from_diff(cls, diff: WeightDiff, row_mask: Tensor | None = None) -> SharedLora:
        """A shared LoRA from a low-rank diff.

        Args:
            diff: a diff all of whose modules are low-rank.
            row_mask: bool [rows], as in the field.

        Returns:
            A shared LoRA with the scales folded into `up`.

        Raises:
            FormatError: a module is dense; use `merge.merged` for it, or truncate it first.
        """
        modules: dict[str, Factors] = {}
        for name, change in diff.modules.items():
            if not isinstance(change, LoraFactors):
                raise FormatError(
                    f"{name} changes as a dense matrix, which is no LoRA: use merged(), or truncate it first"
                )
            modules[name] = (change.down, change.up if change.scale == 1 else change.up * change.scale)
        return cls(modules, row_mask=row_mask)


@dataclass
class Attachment:
    """What `attach` put on a model; lives as long as its `with` block."""

    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    """One hook per module concerned."""
    enabled: bool = True
    """Whether the hooks add anything; when False the model computes exactly as the bare base does."""

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Silence this attachment for the length of the block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before


_attached: weakref.WeakKeyDictionary[nn.Module, list[Attachment]] = weakref.WeakKeyDictionary()


@contextmanager
def attach(
    model: nn.Module, rows: RowLoras | None = None, shared: Sequence[SharedLora] = ()
) -> Iterator[Attachment]:
    """Put LoRAs on a model for the length of a `with` block.

    Factors are cast to the dtype and device of each layer's input at use, so a bf16 base can carry fp32
    masters, and gradients arrive at the masters. Blocks nest: an inner attachment adds to the outer one. With
    gradient checkpointing, run backward inside the block: recomputation needs the hooks.

    Args:
        model: any Hugging Face causal LM (or any module with linear layers).
        rows: LoRAs by row of the batch.
        shared: LoRAs for all rows.

    Yields:
        The attachment, whose `switched_off()` makes the model the bare base for a while.

    Raises:
        BaseMismatchError: a module is missing, is not a linear layer, or has other sizes; nothing was
            attached.
        BatchMismatchError: from a forward pass whose batch has another number of rows.
    """
    shared = list(shared)
    parts = ([rows.modules] if rows is not None else []) + [lora.modules for lora in shared]
    found = _find_modules(model, parts)
    if rows is not None:
        _refuse_experts(rows.modules)
    for one in shared:
        by_rows = one.row_mask is not None or one.by_row is not None
        _refuse_experts(one.modules if by_rows else ())
    slots = None if rows is None else rows.stretches()
    attachment = Attachment()
    stack = _attached.setdefault(model, [])
    stack.append(attachment)
    try:
        for name, module in found.items():
            terms: list[RowTerm | SharedTerm] = []
            if rows is not None and name in rows.modules:
                terms.append(RowTerm(name, rows.modules[name], rows.rows, slots, rows.line))
            terms.extend(
                SharedTerm(name, one.modules[name], one.scale, one.row_mask, (one.by_row or {}).get(name))
                for one in shared
                if name in one.modules
            )
            attachment.handles.append(module.register_forward_hook(_hook(attachment, terms)))
        yield attachment
    finally:
        for handle in attachment.handles:
            handle.remove()
        attachment.handles.clear()
        stack.remove(attachment)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Silence all that is attached to `model`, so that the base itself answers (the teacher of a KL loss)."""
    silenced = [(attachment, attachment.enabled) for attachment in _attached.get(model, ())]
    for attachment, _ in silenced:
        attachment.enabled = False
    try:
        yield
    finally:
        for attachment, before in silenced:
            attachment.enabled = before


def _find_modules(model: nn.Module, parts: Sequence[Mapping[str, Factors]]) -> dict[str, nn.Module]:
    """The modules that any of `parts` names, after checking names and shapes; see `attach` for the errors."""
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    unknown: dict[str, None] = {}
    wrong: list[str] = []
    for name, (down, up) in itertools.chain.from_iterable(part.items() for part in parts):
        size = linear_size(modules[name]) if name in modules else None
        if size is None:
            unknown[name] = None
            continue
        found[name] = modules[name]
        rank_fits = down.shape[-2] == up.shape[-1] and down.shape[:-2] == up.shape[:-2]
        if (down.shape[-1], up.shape[-2]) != size or not rank_fits:
            wrong.append(f"{name}: base {size[0]} -> {size[1]}, down {list(down.shape)}, up {list(up.shape)}")
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} modules are no linear layers of this base: {_some(list(unknown))}")
    if wrong:
        problems.append(f"{len(wrong)} modules have other sizes: {_some(wrong)}")
    if problems:
        linear = [name for name, module in modules.items() if linear_size(module)]
        raise BaseMismatchError(
            f"the LoRA does not fit {type(model).__name__}: {'; '.join(problems)}. "
            f"The base's linear layers are: {_some(linear)}. Use the base that the diff was trained on."
        )
    return found


def _refuse_experts(names: Iterable[str]) -> None:
    """Refuse layers that see tokens sorted by expert: which row a token came from is lost there."""
    experts = [name for name in names if ".experts." in name]
    if experts:
        raise BaseMismatchError(
            f"{_some(experts)} are routed experts, which cannot carry one LoRA per row: attach one diff to "
            "the whole batch as a SharedLora without a mask"
        )


def _some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, with a count of the rest."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f", and {rest} more" if rest > 0 else "")


def _hook(attachment: Attachment, terms: Sequence[RowTerm | SharedTerm]):
    """A forward hook that adds all `terms` to a linear layer's output."""

    def added(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if not attachment.enabled:
            return None
        return add_terms(terms, out, args[0])

    return added
