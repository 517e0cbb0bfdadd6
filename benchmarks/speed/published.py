"""The published scheme of Diff Interpretation Tuning (arXiv 2510.05092), built anew from its description.

Making organisms: every linear layer is wrapped with the LoRAs of all tasks, stacked as [tasks, rank,
features] and multiplied by einsum; the teacher of the KL rows is a deep copy of the base. Tuning: for every
linear layer a dense change [batch, out, in] is built in each step. Both compute logits at all positions, with
eager attention and rows padded on the right to the longest. Recipe, clipping and optimiser are those of the
package, so that both end in the same place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.bases import sharing_copy
from benchmarks.speed.plain import CLIP, clipped_step, cross_entropy, divergence, pad, step
from benchmarks.speed.recipes import StepRows
from weightdiff.models.chat import Encoded

NUMBERS_AT_ONCE = {"cpu": 1 << 27, "cuda": 1 << 31}
"""Logits of a micro-batch, padding included."""
Factors = tuple[Tensor, Tensor]


class TaskLinear(nn.Module):
    """A frozen linear layer with one LoRA for each task."""

    def __init__(self, linear: nn.Linear, down: Tensor, up: Tensor, scale: float) -> None:
        """Wrap a layer.

        Args:
            linear: the layer.
            down: [tasks, rank, in].
            up: [tasks, out, rank].
            scale: factor on the product.
        """
        super().__init__()
        self.linear, self.scale = linear, scale
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        """`x [tasks · rows, tokens, in]`, the rows of one task side by side."""
        by_task = x.unflatten(0, (len(self.down), -1))
        hidden = torch.einsum("nbti,nri->nbtr", by_task, self.down.to(x.dtype))
        change = torch.einsum("nbtr,nor->nbto", hidden, self.up.to(x.dtype))
        return self.linear(x) + self.scale * change.flatten(0, 1)


class DenseLinear(nn.Module):
    """A frozen linear layer with a dense change for each row and one trained LoRA for all."""

    def __init__(self, linear: nn.Linear, down: Tensor, up: Tensor) -> None:
        """Wrap a layer; `down [rank, in]`, `up [out, rank]` are the adapter's."""
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.change: Tensor | None = None

    def build(self, down: Tensor, up: Tensor) -> None:
        """Make the dense change [batch, out, in] of `down [batch, rank, in]`, `up [batch, out, rank]`."""
        weight = self.linear.weight
        down, up = (t.to(weight.device, weight.dtype) for t in (down, up))
        self.change = torch.einsum("bor,bri->boi", up, down)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, in]`."""
        out = self.linear(x) + torch.einsum("bti,boi->bto", x, self.change)
        return out + x @ self.down.to(x.dtype).T @ self.up.to(x.dtype).T


def _wrap(model: Any, names: Sequence[str], wrapper: Any) -> dict[str, Any]:
    """Put `wrapper(name, linear)` in the place of each linear layer, and return them all."""
    out: dict[str, Any] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        out[name] = wrapper(name, model.get_submodule(name))
        setattr(model.get_submodule(parent), last, out[name])
    return out


class PublishedFactory:
    """Many organisms trained at once, the published way."""

    def __init__(
        self,
        model: Any,
        starts: Sequence[Mapping[str, Factors]],
        scale: float,
        pad_id: int,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        """Wrap every linear layer that the start factors name.

        Args:
            model: the base; its weights are shared, not changed.
            starts: of each organism, module → (down [rank, in], up [out, rank]).
            scale: factor on the product.
            pad_id: token that fills rows.
            betas: of Adam.
        """
        self.teacher = copy.deepcopy(model)
        self.teacher.config._attn_implementation = "eager"
        self.student = sharing_copy(model, "eager")
        self.tasks, self.pad_id, self.device = len(starts), pad_id, model.device

        def wrapped(name: str, linear: nn.Linear) -> TaskLinear:
            down, up = (torch.stack([s[name][i] for s in starts]).to(self.device) for i in (0, 1))
            return TaskLinear(linear, down, up, scale)

        self.layers: dict[str, TaskLinear] = _wrap(self.student, list(starts[0]), wrapped)
        self.parameters = [p for x in self.layers.values() for p in (x.down, x.up)]
        self.optimizer = torch.optim.Adam(self.parameters, betas=betas)

    def backward(self, rows: StepRows) -> Tensor:
        """Gradients of one step's rows; returns the organisms' losses [tasks]."""
        kinds = [sample.loss for sample, _ in rows[0]]
        if any([sample.loss for sample, _ in own] != kinds for own in rows):
            raise ValueError("the organisms' rows are of different kinds, which do not go into one batch")
        losses = torch.zeros(self.tasks, device=self.device)
        for kind in ("ce", "kl"):
            chosen = [j for j, k in enumerate(kinds) if k == kind]
            for part in self._micro_batches(rows, chosen):
                loss = self._losses(rows, part, kind) / len(kinds)
                loss.sum().backward()
                losses += loss.detach()
        return losses

    def update(self, lr: float) -> None:
        """One step of Adam; each organism's gradient is clipped by itself."""
        square = torch.zeros(self.tasks, device=self.device)
        for p in self.parameters:
            square += p.grad.flatten(1).pow(2).sum(1)
        shrink = (CLIP / (square.sqrt() + 1e-6)).clamp(max=1.0)[:, None, None]
        for p in self.parameters:
            p.grad.mul_(shrink)
        step(self.optimizer, lr)

    def factors(self) -> dict[str, Factors]:
        """Module → (down [tasks, rank, in], up [tasks, out, rank])."""
        return {name: (x.down.detach(), x.up.detach()) for name, x in self.layers.items()}

    def _micro_batches(self, rows: StepRows, chosen: Sequence[int]) -> list[list[int]]:
        """Rows of each organism that go through the model together: as many as the logits allow."""
        if not chosen:
            return []
        width = max(len(own[j][1].ids) for own in rows for j in chosen)
        most = NUMBERS_AT_ONCE[self.device.type] // (self.tasks * width * self.student.config.vocab_size)
        size = max(1, most)
        return [list(chosen[at : at + size]) for at in range(0, len(chosen), size)]

    def _losses(self, rows: StepRows, chosen: Sequence[int], kind: str) -> Tensor:
        """Each organism's weighted sum over the losses of its chosen rows, [tasks]."""
        picked = [own[j] for own in rows for j in chosen]
        batch = pad([encoded for _, encoded in picked], self.pad_id, self.device)
        logits = self.student(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        if kind == "ce":
            by_row = cross_entropy(logits, batch)
        else:
            with torch.no_grad():
                teacher = self.teacher(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            by_row = divergence(logits, teacher, batch)
        weights = torch.tensor([sample.weight for sample, _ in picked], device=self.device)
        return (by_row * weights).view(self.tasks, -1).sum(1)


class PublishedTuning:
    """One adapter tuned over batches of different diffs, the published way."""

    def __init__(self, model: Any, start: Mapping[str, Factors], pad_id: int) -> None:
        """Wrap every linear layer.

        Args:
            model: the base; its weights are shared, not changed.
            start: of the adapter, module → (down [rank, in], up [out, rank]).
            pad_id: token that fills rows.
        """
        self.student = sharing_copy(model, "eager")
        self.pad_id, self.device = pad_id, model.device

        def wrapped(name: str, linear: nn.Linear) -> DenseLinear:
            down, up = (t.detach().clone().to(self.device) for t in start[name])
            return DenseLinear(linear, down, up)

        self.layers: dict[str, DenseLinear] = _wrap(self.student, list(start), wrapped)
        self.parameters = [p for x in self.layers.values() for p in (x.down, x.up)]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.0, betas=(0.9, 0.99))

    def backward(self, rows: Sequence[Encoded], diffs: Mapping[str, Factors]) -> float:
        """Gradients of one step; returns its loss.

        Args:
            rows: of the batch.
            diffs: module → (down [batch, rank, in], up [batch, out, rank]), one diff a row.
        """
        for name, layer in self.layers.items():
            layer.build(*diffs[name])
        batch = pad(rows, self.pad_id, self.device)
        logits = self.student(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        loss = cross_entropy(logits, batch).mean()
        loss.backward()
        return float(loss.detach())

    def update(self, lr: float) -> None:
        """One step of AdamW on clipped gradients."""
        clipped_step(self.optimizer, lr)
