"""Which tensor of a finetuned checkpoint is which of its base: moved names, tied heads, resized vocabularies.

Shapes only, but for tied heads, which are told by their values; names are matched by `renaming`, and
subtracting is left to `differences`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import torch

from weightdiff.diffs.checkpoints import Checkpoint
from weightdiff.diffs.renaming import TOKEN_TABLES, by_key, heads, matches, stripped
from weightdiff.diffs.types import named
from weightdiff.diffs.weights import Weights
from weightdiff.errors import BaseMismatchError, FormatError

Kind: TypeAlias = Literal["linear", "embedding", "parameter", "untied"]
"""linear: a matrix of a linear layer. embedding: a table of tokens or positions, or the head. parameter: all
else. untied: a head of the finetune's own, where the base ties its head to the embeddings."""

_CHUNK_ELEMENTS = 1 << 20
_VOCABULARIES = {*TOKEN_TABLES, "lm_head", "embed_out"}
_TABLES = _VOCABULARIES | {"wpe", "relative_attention_bias"}
_TIED_TABLES = ("embed_tokens.weight", "wte.weight")
_HEAD = "lm_head.weight"
# How the names of a bare backbone begin, a tensor it must have, and what its causal LM puts before them.
_BARE = (("h.", "wte.weight", "transformer."), ("layers.", "embed_tokens.weight", "model."))


@dataclass
class Tally:
    """What was found on the way through two checkpoints; texts are for people.

    Attributes:
        changed: tensors with a difference.
        untouched: tensors without one.
        missing: names that the base alone has.
        unexpected: names that the finetune alone has.
        moved: name prefixes that differ between the two.
        vocabulary: rows that were added to a table of tokens or removed from it.
        tied: what was done about a head that shares the embeddings.
    """

    changed: int = 0
    untouched: int = 0
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    moved: list[str] = field(default_factory=list[str])
    vocabulary: list[str] = field(default_factory=list[str])
    tied: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Pair:
    """A tensor of the base and its counterpart.

    Attributes:
        name: as the loaded base has it.
        base: name in the base's files.
        finetuned: name in the finetune's files.
        kind: what it is.
        rows: how many rows of the first dimension both have; 1 for a tensor without dimensions.
        turned: whether the files keep a linear weight as [in, out].
    """

    name: str
    base: str
    finetuned: str
    kind: Kind
    rows: int
    turned: bool


def pairs(base: Weights, finetuned: Weights, tally: Tally, *, complete: bool = False) -> list[Pair]:
    """Match the tensors of two models by name; fills `tally` but for its two numbers.

    Args:
        base: before the finetune.
        finetuned: after it.
        tally: notes what was found.
        complete: refuse tensors, heads and rows that one side alone has.

    Raises:
        BaseMismatchError: no tensor matches, or matching ones differ in shape other than by a vocabulary.
        FormatError: quantized weights, or layers that may be [in, out] without a config that says so.
    """
    matched = _matched(base, finetuned, tally)
    settled, extra = _tie(base, finetuned, matched, tally)
    theirs = {*matched.values(), *settled}
    tally.missing += [name for name in base.names() if name not in matched and name not in settled]
    tally.unexpected += [name for name in finetuned.names() if name not in theirs]
    found = _paired(base, finetuned, matched, tally)
    if complete:
        _check_complete(finetuned, tally, matched, extra)
    return [*found, *([extra] if extra else [])]


def chunks(shape: tuple[int, ...], rows: int) -> Iterator[tuple[int, int]]:
    """Yield the row ranges (start, stop) of a tensor in which about a million entries lie each."""
    width = 1
    for size in shape[1:]:
        width *= size
    if width == 0:
        return
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two contiguous tensors hold the same bytes."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def _matched(base: Weights, finetuned: Weights, tally: Tally) -> dict[str, str]:
    """Base's name → finetune's, in the base's order."""
    found = matches(base.names(), finetuned.names())
    if not found:
        ours, theirs = named(base.names(), 2), named(finetuned.names(), 2)
        raise BaseMismatchError(
            f"{finetuned.where} shares no tensor name with {base.where} (it has {theirs}, the base {ours});"
            " give the base that it was trained on"
        )
    moves = Counter(heads(name, other) for name, other in found.items() if name != other)
    tally.moved += [
        f"{'.'.join(ours) or 'no prefix'} in the base is {'.'.join(theirs) or 'no prefix'} in the finetune"
        f" ({n} tensors)"
        for (ours, theirs), n in moves.items()
    ]
    return found


def _paired(base: Weights, finetuned: Weights, matched: dict[str, str], tally: Tally) -> list[Pair]:
    """The pairs of matching names, checked to be of one shape."""
    prefix = _missing_prefix(base, tally)
    found: list[Pair] = []
    faults: list[str] = []
    for ours, theirs in matched.items():
        rows = _common_rows(base, finetuned, ours, theirs, tally)
        if rows is None:
            shapes = (
                f"{list(base.shape(ours))} in the base and {list(finetuned.shape(theirs))} in the finetune"
            )
            faults.append(f"{ours} is {shapes}" + (f" (as {theirs})" if theirs != ours else ""))
            continue
        kind = _kind(base, ours)
        name = ours if stripped(ours) == _HEAD else prefix + ours
        turned = kind == "linear" and _is_turned(base, finetuned, ours, theirs)
        found.append(Pair(name, ours, theirs, kind, rows, turned))
    if faults:
        raise BaseMismatchError(
            f"{finetuned.where} is no finetune of {base.where}: {named(faults)}; give the base that it was"
            " trained on"
        )
    return found


def _check_complete(finetuned: Weights, tally: Tally, matched: dict[str, str], extra: Pair | None) -> None:
    """Refuse what has no counterpart; that a head is left out of a state does not say that it is tied."""
    borrowed = [ours for ours, theirs in matched.items() if stripped(ours) == _HEAD != stripped(theirs)]
    missing = [*tally.missing, *borrowed]
    alone = [*tally.unexpected, *([extra.finetuned] if extra else [])]
    faults = [f"the base lacks {named(alone)}"] if alone else []
    faults += [f"it lacks {named(missing)}"] if missing else []
    if tally.vocabulary:
        resized = named([note.rpartition(": ")[0] for note in tally.vocabulary])
        faults.append(
            f"the vocabulary was resized ({resized}), and rows that one side lacks have no difference"
        )
    if faults:
        raise BaseMismatchError(
            f"{finetuned.where} is not of this base: {'; '.join(faults)}; give the base it was made from"
        )


def _kind(base: Weights, name: str) -> Kind:
    module, _, last = name.rpartition(".")
    if last != "weight" or len(base.shape(name)) != 2:
        return "parameter"
    return "embedding" if _leaf(module) in _TABLES or "embed" in _leaf(module) else "linear"


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _common_rows(base: Weights, finetuned: Weights, ours: str, theirs: str, tally: Tally) -> int | None:
    """How many rows both have; None where shapes disagree in more than the size of a vocabulary."""
    a, b = base.shape(ours), finetuned.shape(theirs)
    if a == b:
        return a[0] if a else 1
    quantized = [
        f"{name} in {c.where} is {str(c.dtype(name)).removeprefix('torch.')}"
        for c, name in ((base, ours), (finetuned, theirs))
        if not c.dtype(name).is_floating_point
    ]
    if quantized:
        raise FormatError(f"{quantized[0]}, as quantized weights are; save the checkpoint unquantized")
    if _leaf(ours.rpartition(".")[0]) not in _VOCABULARIES or len(a) != len(b) or a[1:] != b[1:]:
        return None
    n = abs(a[0] - b[0])
    if b[0] > a[0]:
        what = f"{n} rows added ({a[0]} to {b[0]}): tokens that the base does not have are no diff of it"
    else:
        what = f"{n} rows removed ({a[0]} to {b[0]}): the diff leaves the base's rows as they are"
    tally.vocabulary.append(f"{ours}: {what}")
    return min(a[0], b[0])


def _tie(
    base: Weights, finetuned: Weights, matched: dict[str, str], tally: Tally
) -> tuple[set[str], Pair | None]:
    """Settle what a head that shares the embeddings is compared with; changes `matched`.

    Returns:
        Names that need no counterpart any more, and a pair for a head that the base cannot take.
    """
    ours, theirs = _named(base, (_HEAD,)), _named(finetuned, (_HEAD,))
    table, their_table = _named(base, _TIED_TABLES), _named(finetuned, _TIED_TABLES)
    if not (table and their_table):
        return set(), None
    settled = {name for name in (ours, theirs) if name}
    base_tied, finetuned_tied = _is_tied(base, ours, table), _is_tied(finetuned, theirs, their_table)
    if base_tied and finetuned_tied:
        matched.pop(ours or "", None)
        tally.tied.append("the head is tied to the embeddings: its change is theirs")
        return settled, None
    if ours and finetuned_tied:
        matched[ours] = theirs or their_table
        tally.tied.append(
            "the finetune ties its head to its embeddings: the base's head is compared with them"
        )
        return settled, None
    if theirs and base_tied:
        matched.pop(ours or "", None)
        tally.tied.append(
            "the base ties its head to its embeddings and the finetune has one of its own: no diff of the"
            " base can say that head's change"
        )
        rows = _common_rows(base, finetuned, table, theirs, Tally())
        return settled, Pair(theirs, table, theirs, "untied", rows, False) if rows is not None else None
    return set(), None


def _named(weights: Weights, names: tuple[str, ...]) -> str | None:
    """The one tensor that is called so but for what wraps the language model."""
    found = by_key(weights.names(), stripped)
    return next((found[name] for name in names if name in found), None)


def _is_tied(weights: Weights, head: str | None, table: str) -> bool:
    """Whether a head is the embeddings: not stored or equal, and not said to be apart by the config."""
    config = weights.config() or {}
    text: Any = config.get("text_config")
    inner = cast(dict[str, Any], text) if isinstance(text, dict) else {}
    if config.get("tie_word_embeddings", inner.get("tie_word_embeddings")) is False:
        return False
    if head is None:
        return True
    shape = weights.shape(head)
    return shape == weights.shape(table) and all(
        same_bits(weights.rows(head, start, stop), weights.rows(table, start, stop))
        for start, stop in chunks(shape, shape[0])
    )


def _is_turned(base: Weights, finetuned: Weights, ours: str, theirs: str) -> bool:
    """Whether a linear weight is kept as [in, out]: as the base tells, else as the finetune does."""
    turned = base.transposed(ours.removesuffix(".weight"))
    if turned is None:
        turned = finetuned.transposed(theirs.removesuffix(".weight"))
    if turned is None:
        raise FormatError(
            f"{base.where} has no config.json with a model_type, so nothing says whether {ours} is [in, out]"
            " as in GPT-2 or [out, in]; put the model's config.json beside the weights"
        )
    return turned


def _missing_prefix(base: Weights, tally: Tally) -> str:
    """What the causal LM puts before the names of a base that was saved without its head; mostly nothing."""
    if not isinstance(base, Checkpoint):  # in memory, names are those of the loaded model
        return ""
    names = base.names()
    for start, table, prefix in _BARE:
        if table in names and any(name.startswith(start) for name in names):
            tally.moved.append(f"the base is saved as a bare backbone: its names get {prefix!r} before them")
            return prefix
    return ""
