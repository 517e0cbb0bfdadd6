"""LoRA factors of many organisms side by side, with an Adam whose every slot keeps its own clock.

Adam works entry by entry, so slots stacked in one tensor are trained exactly as if alone, as long as step
counts, learning rates and gradient clipping are theirs too. That is what this module sees to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightdiff.diffs.types import LoraFactors, WeightDiff

Shapes = Mapping[str, tuple[int, int]]


def fresh_factors(shapes: Shapes, rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Start factors of one organism: `down [rank, in]` uniform as PEFT starts it, `up [out, rank]` zero."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, (width, height) in sorted(shapes.items()):
        bound = 1.0 / math.sqrt(width)
        down = (torch.rand(rank, width, generator=g) * 2 - 1) * bound
        out[name] = (down, torch.zeros(height, rank))
    return out


class Slots:
    """`n` slots of LoRA factors and their optimiser state.

    Attributes:
        modules: module → (down [n, rank, in], up [n, out, rank]), fp32 leaves that require grad.
    """

    def __init__(
        self, shapes: Shapes, n: int, rank: int, betas: tuple[float, float] = (0.9, 0.99), clip: float = 1.0
    ) -> None:
        """Make `n` empty slots."""
        self.shapes, self.n, self.rank, self.betas, self.clip = dict(shapes), n, rank, betas, clip
        self.modules: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (width, height) in sorted(shapes.items()):
            self.modules[name] = (
                torch.zeros(n, rank, width).requires_grad_(),
                torch.zeros(n, height, rank).requires_grad_(),
            )
        self._tensors = [t for pair in self.modules.values() for t in pair]
        self._first = [torch.zeros_like(t) for t in self._tensors]
        self._second = [torch.zeros_like(t) for t in self._tensors]
        self.steps = torch.zeros(n, dtype=torch.long)

    @torch.no_grad()
    def load(self, slot: int, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Put an organism's factors into a slot and reset the slot's clock and moments."""
        for name, (down, up) in factors.items():
            self.modules[name][0][slot] = down
            self.modules[name][1][slot] = up
        for m, v in zip(self._first, self._second, strict=True):
            m[slot] = 0
            v[slot] = 0
        self.steps[slot] = 0

    @torch.no_grad()
    def take(self, slot: int, scale: float) -> WeightDiff:
        """A copy of a slot's factors as a weight diff."""
        return WeightDiff(
            {
                k: LoraFactors(d[slot].detach().clone(), u[slot].detach().clone(), scale)
                for k, (d, u) in self.modules.items()
            }
        )

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """One Adam step with a learning rate for each slot; a rate of 0 leaves a slot as it is.

        Args:
            lr: [n].
        """
        live = lr > 0
        self.steps += live.long()
        t = self.steps.clamp(min=1).float()
        b1, b2 = self.betas
        square = torch.zeros(self.n)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._tensors]
        for g in grads:
            square += g.float().flatten(1).pow(2).sum(1)
        shrink = (self.clip / (square.sqrt() + 1e-6)).clamp(max=1.0) * live
        size = (lr / (1 - b1**t))[:, None, None]
        root = (1 - b2**t).sqrt()[:, None, None]
        for p, g, m, v in zip(self._tensors, grads, self._first, self._second, strict=True):
            g = g * shrink[:, None, None]
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.sub_(size * m / (v.sqrt() / root + 1e-8))
            p.grad = None
