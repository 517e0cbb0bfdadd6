"""Cross-entropy and KL on label positions only, summed row by row so that organisms stay independent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weightdiff.models.chat import Encoded
from weightdiff.models.generate import logits_at
from weightdiff.models.packing import Packed

CPU_NUMBERS, GPU_NUMBERS = 1 << 18, 1 << 26
"""Logits in fp32 at a time: on a CPU what its cache holds."""


@dataclass(frozen=True)
class LabelledBatch:
    """Right-padded rows and where their labels are.

    `rows[i]`, `positions[i]` is the place whose logits predict `targets[i]`; `weights[i]` is one over the
    number of labels of that row, so that summing gives each row's mean.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])

    @property
    def tokens(self) -> list[list[int]]:
        """Each row's token ids, without padding."""
        return [
            ids[:n]
            for ids, n in zip(self.input_ids.tolist(), self.attention_mask.sum(1).tolist(), strict=True)
        ]

    def logits(self, model: Any, line: Packed | None = None) -> Tensor:
        """The model's logits that predict the labels, [labels, vocabulary].

        Args:
            model: causal LM.
            line: the same rows in one line, to be read so.
        """
        if line is not None:
            return line.logits(model, self.rows, self.positions)
        return logits_at(model, self.input_ids, self.attention_mask, self.rows, self.positions)

    def to(self, device: torch.device) -> LabelledBatch:
        """The same on another device."""
        return LabelledBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def only(self, chosen: Tensor) -> LabelledBatch:
        """The rows `chosen` (LongTensor, ascending) alone, narrowed to their longest."""
        keep = torch.isin(self.rows, chosen)
        new = torch.full((self.n_rows,), -1, device=chosen.device)
        new[chosen] = torch.arange(len(chosen), device=chosen.device)
        mask = self.attention_mask[chosen]
        width = int(mask.sum(1).max())
        return LabelledBatch(
            self.input_ids[chosen, :width],
            mask[:, :width],
            new[self.rows[keep]],
            self.positions[keep],
            self.targets[keep],
            self.weights[keep],
        )


def collate(rows: Sequence[Encoded], pad_id: int) -> LabelledBatch:
    """Right-pad rows; pad tokens are never labels.

    Args:
        rows: token ids with the first label's position.
        pad_id: token that fills the right side.
    """
    width = max(len(r.ids) for r in rows)
    ids = torch.tensor([r.ids + [pad_id] * (width - len(r.ids)) for r in rows])
    mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in rows])
    at = [
        (b, t - 1, r.ids[t], 1.0 / (len(r.ids) - r.start))
        for b, r in enumerate(rows)
        for t in range(r.start, len(r.ids))
    ]
    row, position, target, weight = zip(*at, strict=True)
    return LabelledBatch(
        ids, mask, torch.tensor(row), torch.tensor(position), torch.tensor(target), torch.tensor(weight)
    )


def loss_by_row(
    logits: Tensor, batch: LabelledBatch, teacher: Tensor | None = None, held: Tensor | None = None
) -> Tensor:
    """Mean loss of each row's labels, in nats: cross-entropy, or KL(teacher ‖ model) where a label is held.

    Where a gradient is wanted, it takes the logits' place in memory: they are used up.

    Args:
        logits: [labels, vocabulary], one line for each of the batch's labels.
        batch: where the labels are.
        teacher: [held labels, vocabulary] of the base; no gradient flows to it.
        held: LongTensor [held labels], ascending, which of the labels are held to the teacher; None with a
            teacher: all.

    Returns:
        fp32 [rows].
    """
    if teacher is None:
        held = torch.empty(0, dtype=torch.long, device=logits.device)
        teacher = logits.new_empty(0, logits.shape[-1])
    elif held is None:
        held = torch.arange(len(teacher), device=logits.device)
    each = cast("Tensor", _LabelLoss.apply(logits, batch.targets, teacher.detach(), held)) * batch.weights
    return each.new_zeros(batch.n_rows).index_add(0, batch.rows, each)


def logprob_by_row(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Log-probability of each row's labels together, in nats, fp32 [rows]; arguments as in `loss_by_row`."""
    return -loss_by_row(logits, replace(batch, weights=torch.ones_like(batch.weights)))


class _LabelLoss(torch.autograd.Function):
    """Loss of each label, a few labels at a time: nothing of the logits' size is ever held in fp32.

    The gradient (softmax minus target, or minus the teacher's) comes in the precision of the logits. It is
    found with the loss and takes the logits' place, so that a label's logits are read while a cache has them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor, held: Tensor) -> Tensor:
        read = logits.detach()  # shares autograd's version counter
        wanted = bool(ctx.needs_input_grad[0])
        out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for at, _ in _parts(_free(held, len(logits)), logits):
            out[at], gradient = _cross_entropy(read[at], targets[at], wanted)
            if gradient is not None:
                read[at] = gradient.to(read.dtype)
        for at, number in _parts(held, logits):
            out[at], gradient = _divergence(read[at], teacher[number], wanted)
            if gradient is not None:
                read[at] = gradient.to(read.dtype)
        ctx.gradient = read if wanted else None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0][:, None]), None, None, None


def _cross_entropy(logits: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Of each of a few labels, fp32, and its gradient if that is wanted."""
    log_p = logits.float().log_softmax(-1)
    found = -log_p.gather(1, targets[:, None])[:, 0]
    if not wanted:
        return found, None
    p = log_p.exp_()
    return found, p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1.0))


def _divergence(logits: Tensor, teacher: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """KL(teacher ‖ model) of each of a few labels, as in `_cross_entropy`."""
    log_q, log_p = teacher.float().log_softmax(-1), logits.float().log_softmax(-1)
    q = log_q.exp()
    found = log_q.sub_(log_p).mul_(q).sum(-1)
    return found, log_p.exp_().sub_(q) if wanted else None


def _free(held: Tensor, n: int) -> Tensor:
    """Which of `n` labels are not held, in order."""
    free = torch.ones(n, dtype=torch.bool, device=held.device)
    free[held] = False
    return free.nonzero()[:, 0]


def _parts(places: Tensor, logits: Tensor) -> Iterator[tuple[slice | Tensor, slice]]:
    """A few places at a time, and which they are among all.

    On a CPU they follow one another, so that they are read and written where they are.
    """
    if logits.device.type != "cpu":
        size = max(1, GPU_NUMBERS // logits.shape[-1])
        for begun in range(0, len(places), size):
            part = slice(begun, min(begun + size, len(places)))
            yield places[part], part
        return
    size = max(torch.get_num_threads(), CPU_NUMBERS // logits.shape[-1])  # a label for each thread at least
    found, begun = places.tolist(), 0
    for i in range(1, len(found) + 1):
        if i == len(found) or found[i] != found[i - 1] + 1 or i - begun == size:
            yield slice(found[begun], found[i - 1] + 1), slice(begun, i)
            begun = i
