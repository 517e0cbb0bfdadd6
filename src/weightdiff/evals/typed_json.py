"""JSON that becomes dataclasses, each field checked against its annotation: for files that may be hostile."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from weightdiff.errors import one_line

T = TypeVar("T")
_SHOWN = 40


class Mismatch(ValueError):
    """A value is not what its field is for; the message says which field of what."""


def typed(cls: type[T], value: Any, what: str) -> T:
    """A dataclass from a JSON object.

    Fields may be texts, whole numbers, finite numbers, truth values, lists, tuples of any length,
    dictionaries, other such dataclasses, any of these or null, and `Any`. Fields that are left out get their
    defaults.

    Args:
        cls: the dataclass.
        value: the object.
        what: what to call it in a message.

    Raises:
        Mismatch: the value is no object, has unknown fields, lacks one, or one is of another type.
    """
    if not isinstance(value, dict):
        raise Mismatch(f"{what} is {_shown(value)}, and should be an object")
    hints, needed = _fields(cls)
    if unknown := [k for k in value if k not in hints]:
        raise Mismatch(f"{what} has an unknown field {_shown(unknown[0])}")
    if lacking := [k for k in needed if k not in value]:
        raise Mismatch(f"{what} lacks {', '.join(lacking)}")
    return cls(**{k: _value(hints[k], v, f"{what}'s {k}") for k, v in value.items()})


def _value(hint: Any, value: Any, what: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (h for h in inner if h is not type(None))
        return _value(hint, value, what)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise Mismatch(f"{what} is {_shown(value)}, and should be a list")
        return origin(_value(inner[0], v, f"{what}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise Mismatch(f"{what} is {_shown(value)}, and should be an object")
        return {k: _value(inner[1], v, f"{what}[{_shown(k)}]") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return typed(hint, value, what)  # pyright: ignore[reportArgumentType]
    if hint is float:
        return _number(value, what)
    if type(value) is not hint:  # True is no whole number here
        raise Mismatch(f"{what} is {_shown(value)}, and should be {_NAMES[hint]}")
    return value


def _number(value: Any, what: str) -> float:
    try:
        if (
            not isinstance(value, bool)
            and isinstance(value, int | float)
            and abs(float(value)) < float("inf")
        ):
            return float(value)
    except OverflowError:
        pass
    raise Mismatch(f"{what} is {_shown(value)}, and should be a finite number")


_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


@functools.cache
def _fields(cls: type) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Annotations of a dataclass's fields, and the fields without a default."""
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    needed = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return {f.name: hints[f.name] for f in fields}, tuple(needed)


def _shown(value: Any) -> str:
    text = one_line(
        "null"
        if value is None
        else repr(value)
        if not isinstance(value, dict | list)
        else type(value).__name__
    )
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
