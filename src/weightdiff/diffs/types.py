"""What a weight diff is: `WeightDiff` for one, `StackedLoras` for a batch.

The one convention for matrices is in `factors`; which base a diff belongs to is in `reference`; both are
offered from here too. Files are the readers' business.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weightdiff.diffs.factors import (
    DenseDelta,
    LoraFactors,
    ModuleDelta,
    all_finite,
    fold_scale,
    is_finite,
    moved,
    stacked,
    tensors_of,
)
from weightdiff.diffs.reference import ModelRef
from weightdiff.errors import BaseMismatchError, FormatError, NonFiniteError

__all__ = ["DenseDelta", "LoraFactors", "ModelRef", "ModuleDelta", "StackedLoras", "WeightDiff"]

_NAMED = 5


@dataclass(frozen=True, eq=False)
class WeightDiff:
    """What a finetune added to a base model, module by module.

    Attributes:
        modules: dotted module name, as in the base ("model.layers.0.self_attn.q_proj") → its change.
        base: the base it belongs to, where known.
        meta: anything JSON can carry that readers or training want to remember.
        parameters: name of any other parameter, as in the base ("model.norm.weight", "….q_proj.bias") → what
            it gains, in its own shape: biases, norms, convolutions, stacked experts.

    `modules` holds changes of matrices that belong to a module with a `weight`: linear layers, and embeddings
    (in: width of the model, out: size of the vocabulary, so that the weight [out, in] gains `dense()`).
    """

    modules: dict[str, ModuleDelta]
    base: ModelRef | None = None
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    parameters: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> WeightDiff:
        """Read a diff from a file, folder or Hub repository, whichever known format it is in.

        Args:
            path: a local file or folder, or a Hub name ("owner/name", "owner/name/folder@revision"), whose
                diff keeps it with the commit in `meta["source"]`; see `hub.find_copy` for what is downloaded.
            revision: branch, tag or commit on the Hub.
            subfolder: a folder or .pt file in the repository on the Hub.
            options: handed to the format's reader; most take none.

        Raises:
            FormatError: if there is nothing at `path`, the Hub refuses it or cannot be reached, no format
                fits, or the one that fits is damaged or unsupported.
            NonFiniteError: if weights are NaN or infinite.
        """
        from weightdiff.diffs.formats import sniff  # the readers import this module
        from weightdiff.diffs.hub import find_copy

        copy = find_copy(path, revision, subfolder)
        diff = sniff(copy.path).read(copy.path, **options)
        return replace(diff, meta={**diff.meta, "source": copy.source}) if copy.source else diff

    @property
    def max_rank(self) -> int:
        """The largest rank among the low-rank modules; 0 if there are none."""
        return max((m.rank for m in self.modules.values() if isinstance(m, LoraFactors)), default=0)

    @property
    def num_parameters(self) -> int:
        """How many numbers the diff holds: both factors of low-rank modules, every entry of all else."""
        matrices = sum(tensor.numel() for m in self.modules.values() for tensor in tensors_of(m))
        return matrices + sum(p.numel() for p in self.parameters.values())

    @property
    def is_low_rank(self) -> bool:
        """Whether the diff is a LoRA and nothing else, as batches of diffs and PEFT's folders need it."""
        return not self.parameters and all(isinstance(m, LoraFactors) for m in self.modules.values())

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> WeightDiff:
        """Return a copy with tensors of another dtype or on another device."""
        modules = {name: m.to(dtype, device) for name, m in self.modules.items()}
        parameters = {name: moved(p, dtype, device) for name, p in self.parameters.items()}
        return replace(self, modules=modules, parameters=parameters)

    def check_finite(self, where: str = "the weight diff") -> None:
        """Check that every number is finite; found once, it is not looked for again while no tensor changes.

        Args:
            where: what to call it in the message.

        Raises:
            NonFiniteError: naming up to five modules or parameters that hold NaN or infinity.
        """
        state = self._state()
        if _known_finite.get(self) == state:
            return
        bad = [name for name, m in self.modules.items() if not is_finite(m)]
        bad += [name for name, p in self.parameters.items() if not all_finite(p)]
        if bad:
            raise NonFiniteError(
                f"{where} holds NaN or infinity in {named(bad)}; the finetune diverged or was cast to"
                " too small a dtype, so make it again"
            )
        _known_finite[self] = state

    def _state(self) -> int:
        """Changes whenever a tensor or a scale is another, or a tensor was written to."""
        every = [t for m in self.modules.values() for t in tensors_of(m)] + list(self.parameters.values())
        scales = [m.scale for m in self.modules.values() if isinstance(m, LoraFactors)]
        return hash((*scales, *((id(t), 0 if t.is_inference() else t._version) for t in every)))

    def check_against(self, spec: Mapping[str, tuple[int, int]]) -> None:
        """Check that every module of the diff is one of the base's and has its shape.

        Args:
            spec: the base's dotted module name → (in_features, out_features).

        Raises:
            BaseMismatchError: naming up to five unknown and five misshapen modules, with both shapes.
        """
        unknown = [name for name in self.modules if name not in spec]
        misshapen = [
            f"{name} (in {m.in_features}, out {m.out_features};"
            f" the base has in {spec[name][0]}, out {spec[name][1]})"
            for name, m in self.modules.items()
            if name in spec and (m.in_features, m.out_features) != tuple(spec[name])
        ]
        if not unknown and not misshapen:
            return
        faults: list[str] = []
        if unknown:
            there = sorted(spec)
            faults.append(f"modules the base does not have: {named(unknown)} (it has {named(there, 2)})")
        if misshapen:
            faults.append(f"modules of another shape: {named(misshapen)}")
        made_for = f", it was made for {self.base.describe()}" if self.base else ""
        raise BaseMismatchError(
            f"the weight diff does not fit this base: {'; '.join(faults)}; load the base that it was trained"
            f" on{made_for}"
        )

    def check_base(self, ref: ModelRef) -> None:
        """Check that `ref` is the base that the diff was made for, as far as fingerprints are known.

        Raises:
            BaseMismatchError: naming both bases.
        """
        differs = self.base.difference(ref) if self.base else None
        if self.base and differs:
            raise BaseMismatchError(
                f"the weight diff was made for {self.base.describe()}, and this base is {ref.describe()}:"
                f" their {differs} differ; load the base that it was trained on"
            )


_known_finite: weakref.WeakKeyDictionary[WeightDiff, int] = weakref.WeakKeyDictionary()
"""Diffs whose numbers were all finite in this state."""


@dataclass(frozen=True, eq=False)
class StackedLoras:
    """The low-rank diffs of a batch, one row each, ready for batched products.

    Attributes:
        modules: dotted module name → (down [n, rank, in], up [n, out, rank]); scales are folded into `up`,
            ranks are padded with zeros, and a row that does not touch a module has zeros there.
        n: number of rows.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    n: int

    @classmethod
    def from_diffs(cls, diffs: Sequence[WeightDiff], dtype: torch.dtype = torch.float32) -> StackedLoras:
        """Stack diffs in their order, on the device of the first one.

        Raises:
            FormatError: if a diff has dense modules, or two diffs disagree on a module's shape.
        """
        shapes: dict[str, tuple[int, int, int]] = {}
        for diff in diffs:
            for name, m in diff.modules.items():
                if not isinstance(m, LoraFactors):
                    raise FormatError(
                        f"{name} changes as a dense matrix, which cannot be stacked; truncate it first"
                    )
                rank, width, height = shapes.get(name, (0, m.in_features, m.out_features))
                if (width, height) != (m.in_features, m.out_features):
                    raise FormatError(
                        f"{name} has in {m.in_features}, out {m.out_features} in one diff and in {width}, out"
                        f" {height} in another; stack diffs of one base only"
                    )
                shapes[name] = (max(rank, m.rank), width, height)
        device = next(
            (t.device for d in diffs for m in d.modules.values() for t in tensors_of(m)), torch.device("cpu")
        )
        modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, (rank, width, height) in shapes.items():
            own = [m if isinstance(m := d.modules.get(name), LoraFactors) else None for d in diffs]
            down = stacked([m and m.down for m in own], (rank, width), dtype, device)
            up = stacked([m and m.up for m in own], (height, rank), None, device)
            scale = torch.tensor([m.scale if m else 1.0 for m in own], dtype=torch.float64, device=device)
            up = up.to(dtype) if bool((scale == 1).all()) else fold_scale(up, scale[:, None, None], dtype)
            modules[name] = (down, up)
        return cls(modules, len(diffs))

    def index(self, i: int) -> WeightDiff:
        """Return row `i` as a diff of scale one; padding stays, modules that are all zero stay.

        Raises:
            IndexError: if there is no row `i`.
        """
        if not -self.n <= i < self.n:
            raise IndexError(f"row {i} of {self.n} stacked diffs")
        return WeightDiff({name: LoraFactors(down[i], up[i]) for name, (down, up) in self.modules.items()})

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> StackedLoras:
        """Return a copy of another dtype or on another device."""
        modules = {
            k: (moved(a, dtype, device), moved(b, dtype, device)) for k, (a, b) in self.modules.items()
        }
        return StackedLoras(modules, self.n)


def named(names: Sequence[str], limit: int = _NAMED) -> str:
    """Return the first `limit` names for a message, with how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
