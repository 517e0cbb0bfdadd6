"""LoRA factors of many organisms side by side, with an optimiser whose every slot keeps its own clock.

Adam, Lion (arXiv 2302.06675) and SGD with momentum work entry by entry, so slots stacked in one tensor are
trained exactly as if alone, as long as step counts, learning rates and gradient clipping are theirs too. That
is what this module sees to. A full finetune of the linear layers is a LoRA whose `down` is the identity and
stays so: its `up` is then the change of the weight itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightdiff.diffs.algebra import truncate
from weightdiff.diffs.tensorfiles import owned
from weightdiff.diffs.types import LoraFactors, WeightDiff

OPTIMIZERS = ("adam", "sgd", "lion")
MOMENTUM = 0.9
LION_BETAS = (0.9, 0.99)
FULL_ENERGY = 1e-8
"""Share of the energy that a full finetune may lose where its change is written as a product."""
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


def identity_factors(shapes: Shapes) -> dict[str, tuple[Tensor, Tensor]]:
    """Start of a full finetune: `down [in, in]` the identity, `up [out, in]` zero."""
    return {name: (torch.eye(width), torch.zeros(height, width)) for name, (width, height) in shapes.items()}


class Slots:
    """`n` slots of LoRA factors and their optimiser state.

    Attributes:
        modules: module → (down [n, rank, in], up [n, out, rank]), fp32 leaves; what is trained requires grad.
    """

    def __init__(
        self,
        shapes: Shapes,
        n: int,
        rank: int,
        betas: tuple[float, float] = (0.9, 0.99),
        clip: float = 1.0,
        optimizer: str = "adam",
        full: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make `n` empty slots; `full` ones train every linear layer as a whole, whatever `rank` says.

        Raises:
            ValueError: there is no such optimiser.
        """
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"no optimiser {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
        self.shapes, self.n, self.rank, self.betas, self.clip = dict(shapes), n, rank, betas, clip
        self.optimizer, self.full, self.device = optimizer, full, torch.device(device)
        self.modules: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (width, height) in sorted(shapes.items()):
            r = width if full else rank
            down = torch.zeros(n, r, width, device=device)
            up = torch.zeros(n, height, r, device=device)
            self.modules[name] = (down.requires_grad_(not full), up.requires_grad_())
        self._tensors = [t for pair in self.modules.values() for t in pair if t.requires_grad]
        self._first = [torch.zeros_like(t) for t in self._tensors]
        self._second = [torch.zeros_like(t) for t in self._tensors] if optimizer == "adam" else []
        self.steps = torch.zeros(n, dtype=torch.long, device=device)

    def start(self, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Start factors of an organism for such slots."""
        return identity_factors(self.shapes) if self.full else fresh_factors(self.shapes, self.rank, seed)

    @torch.no_grad()
    def load(self, slot: int, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Put an organism's factors into a slot and reset the slot's clock and moments."""
        for name, (down, up) in factors.items():
            self.modules[name][0][slot] = down
            self.modules[name][1][slot] = up
        for state in (*self._first, *self._second):
            state[slot] = 0
        self.steps[slot] = 0

    @torch.no_grad()
    def take(self, slot: int, scale: float) -> WeightDiff:
        """A slot's factors as a weight diff, copied to the CPU.

        Of a full finetune, the shortest product that has it.
        """
        diff = WeightDiff(
            {k: LoraFactors(owned(d[slot]), owned(u[slot]), scale) for k, (d, u) in self.modules.items()}
        )
        return truncate(diff, energy=1 - FULL_ENERGY)[0] if self.full else diff

    @torch.no_grad()
    def narrowed(self, keep: Sequence[int]) -> Slots:
        """The slots `keep` alone, with their state."""
        out = Slots(
            self.shapes, len(keep), self.rank, self.betas, self.clip, self.optimizer, self.full, self.device
        )
        pairs = zip(self.modules.values(), out.modules.values(), strict=True)
        mine = [t for pair, _ in pairs for t in pair]
        theirs = [t for pair in out.modules.values() for t in pair]
        for source, target in zip(
            [*mine, *self._first, *self._second], [*theirs, *out._first, *out._second], strict=True
        ):
            target.copy_(source[list(keep)])
        out.steps.copy_(self.steps[list(keep)])
        return out

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """One optimiser step with a learning rate for each slot; a rate of 0 leaves a slot as it is.

        Args:
            lr: [n], on the slots' device.
        """
        live = lr > 0
        self.steps += live.long()
        square = torch.zeros(self.n, device=self.device)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._tensors]
        for g in grads:
            square += torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float32).square()
        shrink = ((self.clip / (square.sqrt() + 1e-6)).clamp(max=1.0) * live)[:, None, None]
        if not bool((shrink == 1).all()):
            grads = [g.mul_(shrink) for g in grads]
        move = {"adam": self._adam, "sgd": self._sgd, "lion": self._lion}[self.optimizer]
        move(grads, lr)
        self.forget()

    def forget(self) -> None:
        """Drop all gradients."""
        for p in self._tensors:
            p.grad = None

    def _adam(self, grads: Sequence[Tensor], lr: Tensor) -> None:
        t = self.steps.clamp(min=1).float()
        b1, b2 = self.betas
        root = (1 - b2**t).sqrt()[:, None, None]
        size = (-lr / (1 - b1**t))[:, None, None] * root
        for p, g, m, v in zip(self._tensors, grads, self._first, self._second, strict=True):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.addcdiv_(m * size, v.sqrt().add_(1e-8 * root))

    def _sgd(self, grads: Sequence[Tensor], lr: Tensor) -> None:
        for p, g, m in zip(self._tensors, grads, self._first, strict=True):
            m.mul_(MOMENTUM).add_(g)
            p.sub_(lr[:, None, None] * m)

    def _lion(self, grads: Sequence[Tensor], lr: Tensor) -> None:
        b1, b2 = LION_BETAS
        for p, g, m in zip(self._tensors, grads, self._first, strict=True):
            p.sub_(lr[:, None, None] * (b1 * m + (1 - b1) * g).sign())
            m.mul_(b2).add_(g, alpha=1 - b2)
