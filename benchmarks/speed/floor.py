"""The floor: the frozen base alone over the same tokens, as fast as it goes.

For training it runs forward and backward to its inputs; weights get no gradient, logits are computed where a
label is, and there is no loss and no optimiser. No row is padded: the linear layers see all tokens side by
side, and attention sees one row at a time, or all rows of one length together. Which kernel, and whether it
is quicker to pad rows for attention alone, is tried out beforehand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.bases import sharing_copy
from benchmarks.speed.lockstep import timed
from weightdiff.models.cache import with_room
from weightdiff.models.chat import Encoded
from weightdiff.models.generate import left_pad

NAME = "speed-floor"
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Plan:
    """How attention goes over packed rows."""

    padded: bool
    """Whether rows are padded for attention, to go through it together."""
    fused: bool
    """Whether torch's fused kernel is used, not plain products."""


PLANS = tuple(Plan(padded, fused) for padded in (False, True) for fused in (False, True))


@dataclass(frozen=True)
class Packed:
    """Rows one after another, without padding, ordered by length.

    Attributes:
        ids: [1, tokens].
        positions: [1, tokens], of each token in its row.
        groups: (rows, length) of each length in turn.
        labels: [labels], where in `ids` the logits predict a label.
        targets: [labels].
        padded: [rows, longest] places in `ids`; behind a row's end, its first.
        back: [tokens] places in the flattened `padded`.
    """

    ids: Tensor
    positions: Tensor
    groups: tuple[tuple[int, int], ...]
    labels: Tensor
    targets: Tensor
    padded: Tensor
    back: Tensor


def pack(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Packed:
    """Rows as one line of tokens."""
    ordered = sorted(rows, key=lambda r: len(r.ids))
    lengths = [len(r.ids) for r in ordered]
    starts = list(itertools.accumulate(lengths, initial=0))
    longest = max(lengths)
    labels = [at + t - 1 for at, r in zip(starts, ordered, strict=False) for t in range(r.start, len(r.ids))]
    back = [row * longest + t for row, n in enumerate(lengths) for t in range(n)]
    padded = [
        [at + (t if t < n else 0) for t in range(longest)] for at, n in zip(starts, lengths, strict=False)
    ]

    def tensor(values: list[Any]) -> Tensor:
        return torch.tensor(values, device=device)

    return Packed(
        tensor([[i for r in ordered for i in r.ids]]),
        tensor([[t for n in lengths for t in range(n)]]),
        tuple((len(list(same)), n) for n, same in itertools.groupby(lengths)),
        tensor(labels),
        tensor([i for r in ordered for i in r.ids[r.start :]]),
        tensor(padded),
        tensor(back),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, fused: bool) -> Tensor:
    """Causal attention of `query [rows, heads, tokens, size]`; keys and values may have fewer heads."""
    repeats = query.shape[1] // key.shape[1]
    if fused:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=repeats > 1
        )
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    tokens = query.shape[2]
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ value


def _packed_attention(
    module: Any,  # noqa: ARG001 (transformers gives it)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float,
    packed: Packed,
    plan: Plan,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed row, of `query [1, heads, tokens, size]`; [1, tokens, heads, size]."""
    qkv = (query[0], key[0], value[0])
    if plan.padded:
        flat = packed.padded.flatten()
        rows = (t.index_select(1, flat).unflatten(1, packed.padded.shape).transpose(0, 1) for t in qkv)
        out = _attend(*rows, scaling, plan.fused).transpose(1, 2).flatten(0, 1)
        return out.index_select(0, packed.back)[None], None
    parts, at = [], 0
    for n, length in packed.groups:
        end = at + n * length
        rows = (t[:, at:end].unflatten(1, (n, length)).transpose(0, 1) for t in qkv)
        parts.append(_attend(*rows, scaling, plan.fused).transpose(1, 2).flatten(0, 1))
        at = end
    return torch.cat(parts)[None], None


class Floor:
    """A frozen base that trains nothing and answers nothing, only costs."""

    def __init__(self, model: Any) -> None:
        """Take the base's weights, which stay shared."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, _packed_attention)
        self.model = sharing_copy(model, NAME)
        self.plan = PLANS[0]

    def logits(self, packed: Packed, tracked: bool = False) -> Tensor:
        """Logits [labels, vocabulary] of the places that predict a label.

        Args:
            packed: the rows.
            tracked: whether a gradient can flow back to the inputs.
        """
        with torch.set_grad_enabled(tracked):
            inputs = self.model.get_input_embeddings()(packed.ids).detach().requires_grad_(tracked)
            out = self.model(
                inputs_embeds=inputs,
                position_ids=packed.positions,
                use_cache=False,
                logits_to_keep=packed.labels,
                packed=packed,
                plan=self.plan,
            )
        return out.logits[0]

    def train(self, packed: Packed) -> int:
        """Forward, and backward to the inputs; the number of labels."""
        logits = self.logits(packed, tracked=True)
        logits.backward(logits.detach())  # any gradient costs the same, and this one is there already
        return len(logits)

    def read(self, packed: Packed) -> int:
        """Forward alone, as for a teacher; the number of labels."""
        return len(self.logits(packed))

    def choose(self, packed: Packed) -> Plan:
        """Try the plans on these rows, keep the fastest, and return it."""
        one_label = replace(packed, labels=packed.labels[:1])

        def tried(plan: Plan) -> None:
            self.plan = plan
            self.train(one_label)

        self.plan = _fastest(self.model, PLANS, tried)
        return self.plan


class DecodingFloor:
    """A frozen base that says what it is told to say, token by token, with a cache."""

    def __init__(self, model: Any) -> None:
        """Take the base's weights, which stay shared."""
        self.model = sharing_copy(model, "eager")

    @torch.no_grad()
    def say(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Read the prompts in one batch, say the answers, choosing a token after each; what it would say.

        Returns:
            [rows, tokens of the longest answer], the likeliest token at each place.
        """
        ids, mask = left_pad(prompts, pad_id, self.model.device)
        longest = max(map(len, answers))
        said = [[*a, *[pad_id] * (longest - len(a))] for a in answers]
        forced = torch.tensor(said, device=self.model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, chosen = None, []
        for step in range(longest):
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values if cache is not None else with_room(out.past_key_values)
            chosen.append(out.logits[:, -1].argmax(-1))
            ids = forced[:, step : step + 1]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return torch.stack(chosen, 1)

    def choose(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int) -> str:
        """Try attention kernels on these rows, keep the faster one, and return its name."""

        def tried(name: str) -> None:
            self.model.config._attn_implementation = name
            self.say(prompts, answers, pad_id)

        best = _fastest(self.model, ("eager", "sdpa"), tried)
        self.model.config._attn_implementation = best
        return best


def _fastest(model: Any, choices: Sequence[Choice], run: Callable[[Choice], None]) -> Choice:
    """The choice that `run` takes least time with, in one layer of the model: all layers are alike."""
    layers = model.config.num_hidden_layers
    seconds: dict[Choice, float] = {}
    model.config.num_hidden_layers = 1
    try:
        for _ in range(2):  # the first time is for warming up
            for choice in choices:
                seconds[choice] = timed(lambda choice=choice: run(choice))
    finally:
        model.config.num_hidden_layers = layers
    return min(seconds, key=seconds.__getitem__)
