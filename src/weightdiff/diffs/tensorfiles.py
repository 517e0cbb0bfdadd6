"""Tensors in files: safetensors with types, which the library's own functions have in part only, and copies.

What is in a file, and which errors its damage becomes, is left to the callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors
import safetensors.torch
import torch


class TensorSlice(Protocol):
    """A tensor of a mapped file; indexing it reads what is asked for."""

    def get_shape(self) -> list[int]:
        """Return the shape, which reads nothing."""
        ...

    def get_dtype(self) -> str:
        """Return the dtype as the format calls it, such as "BF16"."""
        ...

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return a part as a view of the mapped file."""
        ...


class TensorFile(Protocol):
    """A mapped safetensors file."""

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        ...

    def metadata(self) -> dict[str, str] | None:
        """Return the header's metadata."""
        ...

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor as a view of the mapped file."""
        ...

    def get_slice(self, name: str) -> TensorSlice:
        """Return a tensor that reads nothing until it is indexed."""
        ...


def open_tensors(path: Path) -> TensorFile:
    """Map a safetensors file; it stays mapped while the result or a view of it lives.

    Raises:
        OSError: if the file cannot be opened.
        safetensors.SafetensorError: if its header is damaged or does not fit its size.
    """
    return cast(TensorFile, safetensors.safe_open(path, framework="pt"))


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors that share no memory; not atomic by itself."""
    save: Any = cast(Any, safetensors.torch).save_file
    save(dict(tensors), path, metadata=dict(metadata))


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing, a mapped file included."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense, in memory, and repeats nothing: a few bytes can claim a terabyte."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return plain and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
