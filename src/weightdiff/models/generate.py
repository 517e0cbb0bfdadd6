"""Decoding and scoring of many rows at once, each of which may carry its own weight diff.

Knows token ids only: rendering a question is left to `chat`, putting diffs on the model to `multilora` (wrap
a call in `attach`). Logits are computed at the positions that are asked for and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from weightdiff.errors import QuestionError
from weightdiff.models.spec import output_embeddings


def left_pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Token lists of different lengths as one batch that ends flush.

    Args:
        sequences: token ids, one list a row, none of them empty.
        pad_id: token that fills the left side.
        device: where the tensors go.

    Returns:
        `(input_ids [rows, tokens], attention_mask [rows, tokens])`, both int64.

    Raises:
        QuestionError: a list is empty, or there is none.
    """
    if not sequences or not all(sequences):
        raise QuestionError("every row needs at least one token: check how the question was rendered")
    width = max(map(len, sequences))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in sequences]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


IN_CACHE = 1 << 16
"""Numbers at a time that a CPU's cache holds through several operations."""
DROPPED_FROM = 0.75
"""Ended rows are dropped once no more than this share of all still goes on."""


@dataclass(frozen=True)
class Distinct:
    """Between the first `between` of a row and its first `until`, no token comes that the row has said."""

    between: int
    """Token that stands between the items of a list; it may come as often as it likes."""
    until: int
    """Token that ends the list."""

    def banned(self, said: Tensor) -> Tensor:
        """What may not be said next, from what has been said; both bool [rows, vocabulary]."""
        listing = said[:, self.between] & ~said[:, self.until]
        out = said & listing[:, None]
        out[:, self.between] = False
        return out


class Reading:
    """A model in the middle of its rows: what it has read, and what it expects next.

    Attributes:
        logits: [rows, vocabulary], of the token after the last one read.
    """

    def __init__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Read the prompts, [rows, tokens] padded on the left, with whatever is attached to the model."""
        self.model = model
        self._accepted = _accepted(model)
        self._mask = attention_mask.to(_device(model))
        self._cache: Any = None
        self.logits = self._forward(input_ids.to(self._mask.device), _positions(self._mask))

    def feed(self, tokens: Tensor) -> None:
        """Read one more token of each row, [rows]."""
        position = self._mask.long().sum(dim=-1, keepdim=True)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self.logits = self._forward(tokens[:, None].to(self._mask.device), position)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, each as often as it is named."""
        at = torch.tensor(list(rows), dtype=torch.long, device=self._mask.device)
        self._cache.batch_select_indices(at)
        self._mask, self.logits = self._mask[at], self.logits[at]

    def logprobs(self, groups: int) -> Tensor:
        """Log-probabilities of what comes next, averaged over blocks, fp32 [rows / groups, vocabulary]."""
        found = self.logits.float().log_softmax(dim=-1)
        return found.view(-1, groups, found.shape[-1]).mean(dim=1)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra: dict[str, Any] = {"position_ids": positions} if "position_ids" in self._accepted else {}
        if "logits_to_keep" in self._accepted:
            extra["logits_to_keep"] = 1
        out = self.model(
            input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **extra
        )
        if self._cache is None:
            from weightdiff.models.cache import with_room

            self._cache = with_room(out.past_key_values)
        return out.logits[:, -1]


@dataclass(frozen=True)
class Said:
    """New tokens of one row or block, without its end token."""

    tokens: list[int]
    logprobs: list[float]
    """Of each token, and of the end token if it came, in nats (before sharpening and bans)."""


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    groups: int = 1,
    distinct: Distinct | None = None,
) -> list[list[int]]:
    """Continue every row, greedily or by sampling, until its end token or the limit.

    With `groups` = g, each block of g consecutive rows holds renderings of one question: the mean of their
    next-token log-probabilities decides, and all g rows take the same token.

    Args:
        model: causal LM; put into eval mode for the call and back afterwards.
        input_ids: [rows, tokens], padded on the left.
        attention_mask: [rows, tokens], 1 at tokens and 0 at padding.
        max_new_tokens: most tokens to add.
        eos_ids: token or tokens that end a row; None: only the limit does.
        pad_id: token fed to rows that have ended.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the distribution sharpened by
            it.
        generator: random stream for sampling, on the model's device.
        groups: rows in a block.
        distinct: what may not be said twice; None: everything may.

    Returns:
        New tokens of each block (of each row when `groups` is 1), without the end token.

    Raises:
        QuestionError: the number of rows is no multiple of `groups`.
    """
    _check_groups(len(input_ids), groups)
    with _eval_mode(model):
        reading = Reading(model, input_ids, attention_mask)
        said = go_on(reading, max_new_tokens, eos_ids, pad_id, temperature, generator, groups, distinct)
    return [x.tokens for x in said]


@torch.no_grad()
def go_on(
    reading: Reading,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    groups: int = 1,
    distinct: Distinct | None = None,
    begun: Sequence[Sequence[int]] | None = None,
    dropped: Callable[[Sequence[int]], None] | None = None,
) -> list[Said]:
    """Continue what a model has read; arguments not named here are those of `generate`.

    `reading` is as far as the model has come, and it comes further. `begun` are last tokens of each block
    that count as said already, for `distinct`.

    Blocks that have ended are read on with the others, or no more if `dropped` is given: it is called with
    the blocks that stay, from then on the only rows of the batch, so that LoRAs by row can be laid out anew.
    """
    ends = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids or ())
    device = reading.logits.device
    there = list(range(len(reading.logits) // groups))  # blocks that are still read
    out = [Said([], []) for _ in there]
    ended: set[int] = set()
    said: Tensor | None = None
    for step in range(max_new_tokens):
        # one row's logits are as good to choose by as its log-probabilities
        whole = reading.logits.float() if groups == 1 else reading.logprobs(groups)
        scores = whole
        if distinct is not None:
            said = _said(scores, begun) if said is None else said
            scores = scores.masked_fill(distinct.banned(said), -torch.inf)
        token = _choose(scores, temperature, generator)
        if said is not None:
            said = said.scatter(1, token[:, None], True)
        logprob = whole.gather(1, token[:, None])[:, 0]
        logprob = logprob - _logsumexp(whole) if groups == 1 else logprob
        for block, t, x in zip(there, token.tolist(), logprob.tolist(), strict=True):
            if block in ended:
                continue
            out[block].logprobs.append(x)
            if t in ends:
                ended.add(block)
            else:
                out[block].tokens.append(t)
        going = [i for i, block in enumerate(there) if block not in ended]
        if not going or step + 1 == max_new_tokens:
            break
        if dropped is not None and len(going) <= DROPPED_FROM * len(there):
            reading.select([i * groups + k for i in going for k in range(groups)])
            token, there = token[going], [there[i] for i in going]
            said = None if said is None else said[going]
            dropped(there)
        over = torch.tensor([block in ended for block in there], device=device)
        reading.feed(torch.where(over, pad_id, token).repeat_interleave(groups))
    return out


def answer_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    pad_id: int,
    groups: int = 1,
) -> Tensor:
    """How likely the model finds each given answer.

    Gradients are tracked unless the caller switches them off.

    Args:
        model: causal LM, used in the mode (train or eval) in which it is given.
        prompts: token ids before the answer, one list a row.
        answers: token ids of the answers, one list a row, or one a block of `groups` rows. An empty one
            scores 0.
        pad_id: token that fills the left side.
        groups: rows in a block of renderings of one question; their log-probabilities are averaged.

    Returns:
        Log-probability of each answer, summed over its tokens, in nats, fp32 [rows / groups].

    Raises:
        QuestionError: prompts and answers do not pair up, or a prompt is empty.
    """
    _check_groups(len(prompts), groups)
    if groups > 1 and len(answers) * groups == len(prompts):
        answers = [answer for answer in answers for _ in range(groups)]
    if len(answers) != len(prompts) or not all(prompts):
        raise QuestionError(
            f"{len(prompts)} prompts (none may be empty) do not pair up with {len(answers)} answers"
        )
    device = _device(model)
    ids, mask = left_pad([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad_id, device)
    width = ids.shape[1]
    # Rows end flush, so an answer of n tokens is predicted at the n positions before the last one.
    row_at = [row for row, answer in enumerate(answers) for _ in answer]
    position = [width - 1 - len(answer) + i for answer in answers for i in range(len(answer))]
    rows = torch.tensor(row_at, dtype=torch.long, device=device)
    at = torch.tensor(position, dtype=torch.long, device=device)
    totals = torch.zeros(len(answers), device=device)
    if row_at:
        logits = logits_at(model, ids, mask, rows, at)
        scores = -nn.functional.cross_entropy(logits.float(), ids[rows, at + 1], reduction="none")
        totals = totals.index_add(0, rows, scores)
    return totals.view(-1, groups).mean(dim=1)


def logits_at(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    rows: Tensor,
    positions: Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    """The model's logits at chosen places only.

    The hidden states are gathered on their way into the output embeddings, inside the model's own forward
    pass, so that whatever it does to logits afterwards (soft-capping, scaling) still happens. A model whose
    output embeddings carry hooks of their own (a LoRA there), or are not called as a module, computes all
    logits instead.

    Args:
        model: causal LM.
        input_ids: [rows, tokens], padded on either side.
        attention_mask: [rows, tokens]; None: no padding.
        rows: [n] row of each place.
        positions: [n] position of each place; its logits predict the token after it.
        position_ids: [rows, tokens], what the model takes for each token's position; None: by the mask.

    Returns:
        Logits [n, vocabulary] in the model's dtype.
    """
    head = output_embeddings(model)
    gathered: list[bool] = []

    def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if args[0].shape[:2] != input_ids.shape:
            return None
        gathered.append(True)
        return (args[0][rows, positions][None],)

    free = head is not None and not head._forward_hooks and not head._forward_pre_hooks
    handle = head.register_forward_pre_hook(gather) if head is not None and free else None
    extra = {}
    if "position_ids" in _accepted(model):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        extra["position_ids"] = _positions(mask) if position_ids is None else position_ids
    try:
        out = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
    finally:
        if handle is not None:
            handle.remove()
    # squeeze, not [0], whose gradient would be a copy of all logits
    return out.logits.squeeze(0) if gathered else out.logits[rows, positions]


def _logsumexp(x: Tensor) -> Tensor:
    """Over the last dimension of [rows, n], [rows]: on a CPU a few rows at a time, which its cache holds."""
    at_once = max(1, IN_CACHE // x.shape[-1]) if x.device.type == "cpu" else len(x)
    return torch.cat([part.logsumexp(-1) for part in x.split(at_once)])


def _said(scores: Tensor, begun: Sequence[Sequence[int]] | None) -> Tensor:
    """Which tokens each block has said before its first step, bool like `scores`."""
    said = torch.zeros_like(scores, dtype=torch.bool)
    for block, tokens in enumerate(begun or ()):
        said[block, list(tokens)] = True
    return said


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token a block `[blocks]` from `logits [blocks, vocabulary]`."""
    if temperature <= 0:
        return logits.argmax(dim=-1)
    probs = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def _check_groups(rows: int, groups: int) -> None:
    if groups < 1 or rows % groups:
        raise QuestionError(
            f"{rows} rows cannot be split into blocks of {groups}: give every question {groups} rows"
        )


def _positions(attention_mask: Tensor) -> Tensor:
    """Position of each token `[rows, tokens]`, counted from the first one that is not padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _accepted(model: nn.Module) -> set[str]:
    """Names of the arguments that the model's forward pass takes, seen through a PEFT wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    inner = cast(nn.Module, unwrap()) if unwrap is not None else model
    return set(inspect.signature(inner.forward).parameters)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and caches on for the length of the block; each module's own mode comes back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
