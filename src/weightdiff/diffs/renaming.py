"""Which name is which where wrappers around a language model moved: `matches`, and `rename_for` for diffs.

Gemma3's language model is "language_model.model.layers…", "model.language_model.layers…" or "model.layers…",
depending on the library's version. Names only; what the tensors behind them are is left to `pairing`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from weightdiff.diffs.types import WeightDiff

TOKEN_TABLES = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared")
"""What modules that look tokens up are called."""

Prefix: TypeAlias = tuple[str, ...]

_WRAPPERS = {"model", "language_model", "text_model", "transformer", "module", "_orig_mod"}
_TAIL = re.compile(r"(?:^|\.)((?:layers|h)\.\d+\..+)$")


def rename_for(diff: WeightDiff, spec: Mapping[str, tuple[int, int]]) -> WeightDiff:
    """Give modules the names that a base has for them, where only the part before "layers." differs.

    A name that the base has stays; others take the base's as `matches` finds it. Names without layers, and
    `parameters`, follow where the layers' names all moved alike. What is unknown or ambiguous stays, for
    `check_against` to name.

    Args:
        diff: with any names.
        spec: the base's dotted module name → (in_features, out_features).

    Returns:
        The same tensors under new names.
    """
    moves = {name: target for name, target in matches(diff.modules, spec).items() if name != target}
    prefixes = _prefixes((name, target) for name, target in moves.items() if _tail(name))
    moves |= _followers(diff.modules, spec, moves, prefixes)
    parameters = {_under(name, prefixes): value for name, value in diff.parameters.items()}
    if len(parameters) < len(diff.parameters):  # two would become one
        parameters = diff.parameters
    modules = {moves.get(name, name): m for name, m in diff.modules.items()}
    return replace(diff, modules=modules, parameters=parameters)


def matches(names: Collection[str], targets: Collection[str]) -> dict[str, str]:
    """Match dotted names with targets: equal ones, then equal but for wrappers, then equal by layer.

    By layer is from "layers.N." on: the target with the longest common end, then with the fewest other parts
    before it. What is ambiguous is left out.

    Returns:
        Name → target, in the order of `names`, no target twice.
    """
    there = set(targets)
    found = {name: name for name in names if name in there}
    for match in (_by_wrappers, _by_layers):
        taken = set(found.values())
        found |= match([n for n in names if n not in found], [t for t in targets if t not in taken])
    return {name: found[name] for name in names if name in found}


def by_key(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Return key → name, where exactly one name has the key."""
    grouped = _grouped(names, key)
    return {k: group[0] for k, group in grouped.items() if len(group) == 1}


def stripped(name: str) -> str:
    """Return a name without what wraps the language model."""
    parts = name.split(".")
    while parts[0] in _WRAPPERS and len(parts) > 1:
        parts.pop(0)
    return ".".join(parts)


def heads(name: str, other: str) -> tuple[Prefix, Prefix]:
    """Return what two dotted names have before their common end; wrappers are no part of that end."""
    ours, theirs = name.split("."), other.split(".")
    while ours and theirs and ours[-1] == theirs[-1] and ours[-1] not in _WRAPPERS:
        ours.pop()
        theirs.pop()
    return tuple(ours), tuple(theirs)


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        grouped[key(name)].append(name)
    return grouped


def _by_wrappers(names: list[str], targets: list[str]) -> dict[str, str]:
    ours, theirs = by_key(names, stripped), by_key(targets, stripped)
    return {name: theirs[key] for key, name in ours.items() if key in theirs}


def _by_layers(names: list[str], targets: list[str]) -> dict[str, str]:
    by_tail = _grouped(targets, _tail)
    nearest = {name: _nearest(name, by_tail.get(_tail(name), [])) for name in names if _tail(name)}
    return _once((name, target) for name, target in nearest.items() if target is not None)


def _once(moves: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keep the moves whose target no other has."""
    pairs = list(moves)
    uses = Counter(target for _, target in pairs)
    return {name: target for name, target in pairs if uses[target] == 1}


def _tail(name: str) -> str:
    """Return a dotted name from "layers.N." on, or nothing."""
    match = _TAIL.search(name)
    return match[1] if match else ""


def _nearest(name: str, targets: Iterable[str]) -> str | None:
    """Return the target with the longest common end, then the fewest other parts, if one alone is nearest."""

    def distance(target: str) -> tuple[int, int]:
        ours, theirs = heads(name, target)
        first, second = Counter(ours), Counter(theirs)
        return len(ours), (first - second).total() + (second - first).total()

    ranked = sorted((distance(target), target) for target in targets)
    return ranked[0][1] if ranked and (len(ranked) == 1 or ranked[0][0] < ranked[1][0]) else None


def _prefixes(moves: Iterable[tuple[str, str]]) -> dict[Prefix, Prefix]:
    """Return old → new prefix, for the old ones that all moved alike."""
    found: defaultdict[Prefix, set[Prefix]] = defaultdict(set)
    for old, new in moves:
        ours, theirs = heads(old, new)
        found[ours].add(theirs)
    return {old: new.pop() for old, new in found.items() if len(new) == 1}


def _followers(
    names: Collection[str],
    targets: Collection[str],
    moves: Mapping[str, str],
    prefixes: Mapping[Prefix, Prefix],
) -> dict[str, str]:
    """Move names without layers as the layers moved, where that gives a target that nothing else has."""
    lost = [name for name in names if name not in targets and name not in moves and not _tail(name)]
    free = {target for target in targets if target not in names} - set(moves.values())
    found = _once((name, _under(name, prefixes)) for name in lost)
    return {name: target for name, target in found.items() if target in free}


def _under(name: str, prefixes: Mapping[Prefix, Prefix]) -> str:
    """Return a name with the longest prefix that moved replaced."""
    parts = tuple(name.split("."))
    for length in range(len(parts) - 1, -1, -1):
        new = prefixes.get(parts[:length])
        if new is not None:
            there = len(new) > length and parts[: len(new)] == new
            return name if there else ".".join(new + parts[length:])
    return name
