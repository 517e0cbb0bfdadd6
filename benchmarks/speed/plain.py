"""What plain loops do: rows padded on the right, losses from logits at every position, clipped steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightdiff.models.chat import Encoded

CLIP = 1.0
"""Largest norm of an organism's, or an adapter's, gradient."""


@dataclass(frozen=True)
class PlainBatch:
    """Right-padded rows.

    Attributes:
        ids: [rows, tokens].
        mask: [rows, tokens], 1 at tokens.
        weights: [rows, tokens - 1], one over the row's number of labels where the next token is a label,
            else 0.
    """

    ids: Tensor
    mask: Tensor
    weights: Tensor


def pad(rows: Sequence[Encoded], pad_id: int, device: torch.device | str) -> PlainBatch:
    """Rows as one batch as wide as the longest of them."""
    width = max(len(r.ids) for r in rows)
    ids, mask, weights = [], [], []
    for r in rows:
        spare = width - len(r.ids)
        labels = len(r.ids) - r.start
        ids.append([*r.ids, *[pad_id] * spare])
        mask.append([1] * len(r.ids) + [0] * spare)
        weights.append([0.0] * (r.start - 1) + [1.0 / labels] * labels + [0.0] * spare)
    return PlainBatch(*(torch.tensor(x, device=device) for x in (ids, mask, weights)))


def cross_entropy(logits: Tensor, batch: PlainBatch) -> Tensor:
    """Mean loss of each row's labels, in nats, fp32 [rows], from logits [rows, tokens, vocabulary]."""
    log_p = logits[:, :-1].float().log_softmax(-1)
    found = -log_p.gather(2, batch.ids[:, 1:, None])[..., 0]
    return (found * batch.weights).sum(1)


def divergence(logits: Tensor, teacher: Tensor, batch: PlainBatch) -> Tensor:
    """Mean KL(teacher ‖ model) of each row's labels, in nats, fp32 [rows]; logits as in `cross_entropy`."""
    log_p = logits[:, :-1].float().log_softmax(-1)
    log_q = teacher[:, :-1].float().log_softmax(-1)
    found = (log_q.exp() * (log_q - log_p)).sum(-1)
    return (found * batch.weights).sum(1)


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step at a learning rate; gradients are gone afterwards."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def clipped_step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same after clipping all gradients together."""
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], CLIP)
    step(optimizer, lr)
