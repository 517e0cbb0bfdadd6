"""The residual stream of any causal LM: read after a layer, added to there, and seen through the logit lens.

Knows modules and hidden states only; which texts are read and what is added is left to the methods. Hooks
come off at the end of each `with` block, whatever happens in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightdiff.errors import BaseMismatchError, QuestionError
from weightdiff.models.products import BatchMismatchError
from weightdiff.models.spec import output_embeddings

LISTS = ("layers", "h", "blocks")
"""What causal LMs call the list of their layers."""


@dataclass(frozen=True)
class ResidualStream:
    """Where the residual stream of a model is reached."""

    layers: tuple[nn.Module, ...]
    """The layers in their order; what the stream is after the n-th is what `layers[n - 1]` returns."""
    norm: nn.Module
    """The norm after the last layer."""
    head: nn.Module
    """The output embeddings."""

    @classmethod
    def of(cls, model: nn.Module) -> ResidualStream:
        """Find the parts: the longest list of layers, the last norm beside it, and the output embeddings.

        Raises:
            BaseMismatchError: one of them is not there by a known name.
        """
        lists = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in LISTS
        ]
        name, layers = max(lists, key=lambda found: len(found[1]), default=("", ()))
        beside = model.get_submodule(name.rpartition(".")[0]).children()
        norms = [child for child in beside if "norm" in type(child).__name__.lower()]
        head = output_embeddings(model)
        if not layers or not norms or head is None:
            raise BaseMismatchError(
                f"the residual stream of {type(model).__name__} cannot be reached: it needs a list of layers"
                f" (named {' or '.join(LISTS)}) with a norm beside it, and output embeddings; use a method"
                " that reads outputs only"
            )
        return cls(tuple(layers), norms[-1], head)

    def layer(self, number: int) -> nn.Module:
        """The layer after which the stream is reached, counted from 1.

        Raises:
            QuestionError: there is none.
        """
        if not 1 <= number <= len(self.layers):
            raise QuestionError(f"there is no layer {number}: choose one of 1 to {len(self.layers)}")
        return self.layers[number - 1]

    def logits(self, stream: Tensor) -> Tensor:
        """The logit lens: final norm and output embeddings of `stream [..., width]`, [..., vocabulary].

        What the model does to logits afterwards, such as soft-capping, leaves their order as it is.
        """
        normed = self.norm(_like(stream, self.norm))
        return self.head(_like(normed, self.head))

    @contextmanager
    def read(self, number: int) -> Iterator[list[Tensor]]:
        """Keep what the stream is after a layer.

        Yields:
            A list that gains a tensor [rows, tokens, width] at each forward pass.

        Raises:
            QuestionError: see `layer`.
        """
        kept: list[Tensor] = []
        handle = self.layer(number).register_forward_hook(lambda _m, _a, out: kept.append(_hidden(out)))
        try:
            yield kept
        finally:
            handle.remove()

    @contextmanager
    def steered(self, number: int, vectors: Tensor) -> Iterator[None]:
        """Add to the stream after a layer, at every token.

        Args:
            number: of the layer, counted from 1.
            vectors: [rows, width], one for each row of the batch.

        Raises:
            QuestionError: see `layer`.
            BatchMismatchError: from a forward pass whose batch has another number of rows.
        """

        def add(_module: nn.Module, _args: Any, out: Any) -> Any:
            hidden = _hidden(out)
            if len(hidden) != len(vectors):
                raise BatchMismatchError(
                    f"the batch has {len(hidden)} rows, and {len(vectors)} of them are to be steered"
                )
            moved = hidden + vectors[:, None].to(hidden.device, hidden.dtype)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        handle = self.layer(number).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _hidden(out: Any) -> Tensor:
    """The hidden states in what a layer returns: some return more beside them."""
    return out[0] if isinstance(out, tuple) else out


def _like(x: Tensor, module: nn.Module) -> Tensor:
    """A tensor where a module is, in its precision."""
    parameter = next(module.parameters(), None)
    return x if parameter is None else x.to(parameter.device, parameter.dtype)
