"""`ModelRef`: which base model a weight diff belongs to, told by fingerprints rather than by its name.

The same weights under a local path and under a Hub name are the same base; the same name with other
weights is not. Shapes of single modules are the business of `models.spec`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from weightdiff.errors import FormatError

_DIGITS = 16
_HASH_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class ModelRef:
    """Name and fingerprints of a base model.

    An empty fingerprint means "not known" and matches everything: a PEFT folder made elsewhere names its
    base and says no more.

    Attributes:
        name: Hub name or path, for people.
        revision: commit or tag on the Hub, where known.
        architecture: short SHA-256 of the model type and of every parameter's name and shape.
        weights: short SHA-256 of every parameter's values.
    """

    name: str
    revision: str | None = None
    architecture: str = ""
    weights: str = ""

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None, revision: str | None = None) -> ModelRef:
        """Fingerprint a loaded model; parameters on the meta device leave `weights` unknown.

        Values are rounded to bfloat16 before they are hashed, so that a checkpoint gives the same fingerprint
        whether it was loaded as float32 or bfloat16 (and as float16, where its values fit that range).

        Args:
            model: a plain base model, without adapters on it.
            name: what to call it; by default the config's `_name_or_path`, else the class name.
            revision: commit or tag it came from.
        """
        config = getattr(model, "config", None)
        if name is None:
            name = str(getattr(config, "_name_or_path", "") or type(model).__name__)
        parameters = sorted(model.named_parameters())
        layout = {
            "model_type": str(getattr(config, "model_type", "")),
            "parameters": [(key, list(value.shape)) for key, value in parameters],
        }
        architecture = hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:_DIGITS]
        if any(value.is_meta for _, value in parameters):
            return cls(name, revision, architecture)
        digest = hashlib.sha256()
        for key, value in parameters:
            digest.update(key.encode())
            _hash_values(digest, value.detach())
        return cls(name, revision, architecture, digest.hexdigest()[:_DIGITS])

    def difference(self, other: ModelRef) -> str | None:
        """Return "architecture" or "weights", whichever known fingerprint differs first, or None."""
        for field in ("architecture", "weights"):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours and theirs and ours != theirs:
                return field
        return None

    def describe(self) -> str:
        """Return one line for people, such as `Qwen/Qwen3-4B@main (architecture 1f…, weights 9c…)`."""
        name = f"{self.name}@{self.revision}" if self.revision else self.name
        known = [f"{k} {v}" for k, v in (("architecture", self.architecture), ("weights", self.weights)) if v]
        return f"{name} ({', '.join(known) if known else 'no fingerprint'})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelRef:
        """Read what `to_json` wrote.

        Raises:
            FormatError: if the name is missing or a field is unknown or no string.
        """
        known = {"name", "revision", "architecture", "weights"}
        wrong = sorted(set(value) - known)
        wrong += [k for k in value if k in known - {"revision"} and not isinstance(value[k], str)]
        if "name" not in value or wrong or not isinstance(value.get("revision"), (str, type(None))):
            raise FormatError(
                f"not a base model reference: {dict(value)!r}; expected strings under {sorted(known)}"
            )
        return cls(**value)


def _hash_values(digest: Any, value: torch.Tensor) -> None:
    """Feed a parameter's bfloat16 bytes to `digest`, in pieces that bound the extra memory."""
    flat = value.reshape(-1)
    for start in range(0, flat.numel(), _HASH_ELEMENTS):
        piece = flat[start : start + _HASH_ELEMENTS]
        # + 0.0 folds the two zeros into one, which float16 and bfloat16 checkpoints may hold differently.
        rounded = (piece.to(torch.bfloat16) + 0.0).cpu().contiguous()
        digest.update(rounded.view(torch.uint8).numpy().data)
