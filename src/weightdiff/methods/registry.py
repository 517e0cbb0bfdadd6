"""Every method by its name: the built-in ones, and those that other packages offer.

A method registers a builder where it is defined, `methods` imports the modules of this package, and other
packages name a builder in the entry-point group "weightdiff.methods". What a builder gets is a `Context`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from weightdiff.errors import BaseMismatchError, MissingDependencyError, QuestionError
from weightdiff.methods.base import Guesser, Method

if TYPE_CHECKING:
    from weightdiff.diffs.store import DiffStore
    from weightdiff.methods.dit import Interpreter
    from weightdiff.methods.loading import Base

GROUP = "weightdiff.methods"
NEEDS = {
    "interpreter": "an interpreter with an adapter: give --interpreter, or Context(interpreter=…)",
    "store": "a store of labelled diffs: give --train-store, or Context(store=…)",
}
"""What a method may need besides the base, and how it is given."""


@dataclass(frozen=True)
class Context:
    """What a method may be built from.

    Raises:
        BaseMismatchError: the interpreter or the store is of another base.
    """

    base: Base
    """The base of the diffs that will be asked about."""
    interpreter: Interpreter | None = None
    """For methods that need an adapter, or follow an interpreter's settings."""
    store: DiffStore | None = None
    """Training diffs, for methods that need labelled ones."""
    seed: int = 0
    """Of a method's random choices."""
    guesser: Guesser | None = None
    """Reads what finetuned models say, for black-box methods; None: counts the embedded world's words."""
    cache: Path | None = None
    """Folder where methods keep what they learned, so that it is not learned again; None: nowhere."""
    effort: float = 1.0
    """How long methods that tune something tune it, as a share of what they usually do."""

    def __post_init__(self) -> None:
        """Check that all parts are of one base."""
        bases = {
            "interpreter": None if self.interpreter is None else self.interpreter.base.ref,
            "store": None if self.store is None else self.store.base,
        }
        for part, ref in bases.items():
            if ref and (differs := self.base.ref.difference(ref)):
                raise BaseMismatchError(
                    f"the {part} is for {ref.describe()}, and the base is {self.base.ref.describe()}: their"
                    f" {differs} differ; give one of this base"
                )

    def required(self, part: str, method: str = "the method") -> Any:
        """A part that a method cannot do without, by its name in `NEEDS`.

        Raises:
            QuestionError: the context does not have it, or the interpreter has no adapter.
        """
        found = getattr(self, part)
        if found is None or (part == "interpreter" and found.adapter is None):
            raise QuestionError(f"{method} needs {NEEDS[part]}")
        return found


Builder: TypeAlias = Callable[[Context], Method]


@dataclass(frozen=True)
class Entry:
    """A method that can be built."""

    name: str
    description: str
    """What it does, in a line; for one that is not loaded yet, whose it is."""
    needs: tuple[str, ...] = ()
    """Parts of the context that it cannot do without, names of `NEEDS`."""
    builder: Builder | None = None
    """Makes the method; None for an entry point that is not loaded yet."""
    point: EntryPoint | None = None
    """Where another package says that the builder is."""
    package: str = ""
    """Package of the extra "eval" that it cannot do without, as it is imported."""


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, description: str, needs: Sequence[str] = (), package: str = ""
) -> Callable[[Builder], Builder]:
    """Make a builder known by a name.

    Args:
        name: short and unique.
        description: what the method does, in a line.
        needs: parts of the context that it cannot do without, names of `NEEDS`.
        package: of the extra "eval" that it cannot do without, as it is imported.

    Raises:
        ValueError: another method has the name, or nothing is known of a need.
    """
    if unknown := [need for need in needs if need not in NEEDS]:
        raise ValueError(f"method {name!r} needs {unknown}, and a context has only {sorted(NEEDS)}")

    def keep(builder: Builder) -> Builder:
        if name in _ENTRIES and _ENTRIES[name].builder is not builder:
            raise ValueError(f"two methods are named {name!r}; rename one")
        _ENTRIES[name] = Entry(name, description, tuple(needs), builder, package=package)
        return builder

    return keep


def methods() -> dict[str, Entry]:
    """Every method by its name, sorted.

    Other packages' are not loaded for it; where one of them has a registered method's name, the registered
    one counts.
    """
    package = importlib.import_module("weightdiff.methods")
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(info.name)
    found = {point.name: _unloaded(point) for point in entry_points(group=GROUP)} | _ENTRIES
    return {name: found[name] for name in sorted(found)}


def find(name: str) -> Entry:
    """A method by its name, loaded.

    Raises:
        QuestionError: there is none (the message lists those there are), or the package that offers it fails.
        MissingDependencyError: a package that it needs is not installed.
    """
    known = methods()
    if name not in known:
        raise QuestionError(f"no method is called {name!r}: choose one of {', '.join(known)}")
    entry = known[name]
    found = _loaded(name, entry.point) if entry.point else entry
    if found.package and importlib.util.find_spec(found.package) is None:
        raise MissingDependencyError(found.package, "eval")
    return found


def build(name: str, context: Context) -> Method:
    """Make a method.

    Raises:
        QuestionError: see `find`; or the context lacks what the method needs, and the message says what to
            give.
    """
    entry = find(name)
    for part in entry.needs:
        context.required(part, f"method {name!r}")
    if entry.builder is None:
        raise QuestionError(f"method {name!r} has no builder: register one, a function of the context")
    return entry.builder(context)


def _unloaded(point: EntryPoint) -> Entry:
    return Entry(point.name, f"from the package {_package(point)}", point=point)


def _loaded(name: str, point: EntryPoint) -> Entry:
    """The entry that an entry point's builder registered, or else a plain one."""
    try:
        loaded: Any = point.load()
    except Exception as e:  # whatever a foreign package raises at its import
        raise QuestionError(
            f"method {name!r} of the package {_package(point)} cannot be loaded from {point.value}"
            f" ({type(e).__name__}: {e}); mend or remove that package"
        ) from e
    if not callable(loaded):
        raise QuestionError(
            f"method {name!r} of the package {_package(point)}: {point.value} is no function of a context;"
            " name the method's builder in the entry point"
        )
    builder: Any = loaded
    registered = next((entry for entry in _ENTRIES.values() if entry.builder is builder), None)
    return replace(registered, name=name) if registered else Entry(name, "", builder=builder)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]
