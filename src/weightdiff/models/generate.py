"""Decoding and scoring of many rows at once, each of which may carry its own weight diff.

Knows token ids only: rendering a question is left to `chat`, putting diffs on the model to `multilora` (wrap
a call in `attach`). Logits are computed at the positions that are asked for and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
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
    device = _device(model)
    step_ids, prompt_mask = input_ids.to(device), attention_mask.to(device)
    rows, width = step_ids.shape
    ends = [] if eos_ids is None else [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    ends_at = torch.tensor(ends, device=device, dtype=torch.long)
    mask = torch.ones(rows, width + max_new_tokens, dtype=prompt_mask.dtype, device=device)
    mask[:, :width] = prompt_mask
    positions = _positions(prompt_mask)
    finished = torch.zeros(rows // groups, dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    accepted = _accepted(model)
    said: Tensor | None = None
    cache = None
    with _eval_mode(model):
        for step in range(max_new_tokens):
            extra: dict[str, Any] = {"position_ids": positions} if "position_ids" in accepted else {}
            if "logits_to_keep" in accepted:
                extra["logits_to_keep"] = 1
            out = model(
                input_ids=step_ids,
                attention_mask=mask[:, : width + step],
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
            cache = out.past_key_values
            scores = _scores(out.logits[:, -1], groups)
            if distinct is not None:
                said = torch.zeros_like(scores, dtype=torch.bool) if said is None else said
                scores = scores.masked_fill(distinct.banned(said), -torch.inf)
            token = _choose(scores, temperature, generator)
            if said is not None:
                said = said.scatter(1, token[:, None], True)
            token = torch.where(finished, pad_id, token)
            chosen.append(torch.where(finished, -1, token))
            finished = finished | torch.isin(token, ends_at)
            chosen[-1] = torch.where(finished, -1, chosen[-1])
            if bool(finished.all()):
                break
            step_ids = token.repeat_interleave(groups)[:, None]
            positions = positions[:, -1:] + 1
    if not chosen:
        return [[] for _ in range(rows // groups)]
    return [[t for t in row if t >= 0] for row in torch.stack(chosen, dim=1).tolist()]


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
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, positions: Tensor
) -> Tensor:
    """The model's logits at chosen places only.

    The hidden states are gathered on their way into the output embeddings, inside the model's own forward
    pass, so that whatever it does to logits afterwards (soft-capping, scaling) still happens. A model whose
    output embeddings carry hooks of their own (a LoRA there), or are not called as a module, computes all
    logits instead.

    Args:
        model: causal LM.
        input_ids: [rows, tokens], padded on either side.
        attention_mask: [rows, tokens].
        rows: [n] row of each place.
        positions: [n] position of each place; its logits predict the token after it.

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
    accepted = _accepted(model)
    extra = {"position_ids": _positions(attention_mask)} if "position_ids" in accepted else {}
    try:
        out = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
    finally:
        if handle is not None:
            handle.remove()
    return out.logits[0] if gathered else out.logits[rows, positions]


def _scores(logits: Tensor, groups: int) -> Tensor:
    """Scores of each block `[rows / groups, vocabulary]` from `logits [rows, vocabulary]`."""
    if groups == 1:
        return logits
    logprobs = logits.float().log_softmax(dim=-1)
    return logprobs.view(-1, groups, logprobs.shape[-1]).mean(dim=1)


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
