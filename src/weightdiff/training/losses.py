"""Cross-entropy and KL on label positions only, summed row by row so that organisms stay independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightdiff.models.chat import Encoded


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

    def only(self, chosen: Tensor) -> LabelledBatch:
        """The rows `chosen` (LongTensor, ascending) alone, narrowed to their longest."""
        keep = torch.isin(self.rows, chosen)
        new = torch.full((self.n_rows,), -1)
        new[chosen] = torch.arange(len(chosen))
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


def ce_by_row(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Mean cross-entropy of each row's labels, in nats.

    Args:
        logits: [labels, vocabulary], one line for each of the batch's labels.
        batch: where the labels are.

    Returns:
        fp32 [rows].
    """
    each = F.cross_entropy(logits.float(), batch.targets, reduction="none") * batch.weights
    return torch.zeros(batch.n_rows, dtype=each.dtype).index_add(0, batch.rows, each)


def logprob_by_row(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Log-probability of each row's labels together, in nats, fp32 [rows]; arguments as in `ce_by_row`."""
    each = -F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return torch.zeros(batch.n_rows, dtype=each.dtype).index_add(0, batch.rows, each)


def kl_by_row(logits: Tensor, teacher: Tensor, batch: LabelledBatch) -> Tensor:
    """Mean KL(teacher ‖ model) over each row's label positions, in nats.

    Args:
        logits: [labels, vocabulary] of the model.
        teacher: [labels, vocabulary] of the base; no gradient flows to it.
        batch: where the labels are.

    Returns:
        fp32 [rows].
    """
    log_p = logits.float().log_softmax(-1)
    log_q = teacher.detach().float().log_softmax(-1)
    each = (log_q.exp() * (log_q - log_p)).sum(-1) * batch.weights
    return torch.zeros(batch.n_rows, dtype=each.dtype).index_add(0, batch.rows, each)
