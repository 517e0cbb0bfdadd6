"""weightdiff: says in plain language what a finetune changed in a language model.

The public names load on first use, so that `import weightdiff`, and with it the command line,
imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.diffs.types import WeightDiff
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.loading import load_base

__version__ = "0.1.0"
__all__ = ["DiffStore", "Interpreter", "WeightDiff", "__version__", "load_base"]

_HOMES = {
    "DiffStore": "weightdiff.diffs.store",
    "Interpreter": "weightdiff.methods.dit",
    "WeightDiff": "weightdiff.diffs.types",
    "load_base": "weightdiff.methods.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
