"""Learned changes of a few tokens' input embeddings, put on a model for the length of a `with` block.

An interpreter may own the tokens of its probes: whatever those tokens meant to the base, with these changes
they mean what helps a diff to show. The base's embedding matrix, and an output layer tied to it, stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightdiff.errors import BaseMismatchError


@dataclass
class TokenDeltas:
    """`deltas [n, hidden]` are added to the input embeddings of the tokens `ids [n]`; may require grad."""

    ids: Tensor
    deltas: Tensor


@contextmanager
def with_tokens(model: Any, tokens: TokenDeltas | None) -> Iterator[None]:
    """Add token deltas to a model's input embeddings until the block ends; `None` does nothing.

    Raises:
        BaseMismatchError: an id is not in the vocabulary, or the width is another.
    """
    if tokens is None:
        yield
        return
    embedding: nn.Embedding = model.get_input_embeddings()
    if tokens.deltas.shape[1] != embedding.embedding_dim or int(tokens.ids.max()) >= embedding.num_embeddings:
        raise BaseMismatchError(
            f"the interpreter's token changes {tuple(tokens.deltas.shape)} do not fit this base's embeddings"
            f" ({embedding.num_embeddings}, {embedding.embedding_dim}); load the base that it was tuned on"
        )
    place = torch.zeros(embedding.num_embeddings, dtype=torch.long)
    place[tokens.ids] = torch.arange(1, len(tokens.ids) + 1)

    def add(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        table = torch.cat([tokens.deltas.new_zeros(1, tokens.deltas.shape[1]), tokens.deltas])
        return out + nn.functional.embedding(place.to(out.device)[args[0]], table).to(out.dtype)

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
