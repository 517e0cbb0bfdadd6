"""One shard of a DiffStore: a safetensors file that stacks many low-rank diffs and carries their rows.

For every module there are `<module>.down [n, R, in]`, `<module>.up [n, out, R]` and `<module>.scale [n]`
(float32, or float64 where that loses a digit), where R is the largest rank that module has in the shard;
smaller ranks and absent modules are zeros. The header's metadata holds the rows and the true ranks, so a
shard says everything about itself. A header is validated in full before a tensor is touched. Which shards
make a store is `store`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from weightdiff.artifacts import atomic_file, parse_json
from weightdiff.diffs.rowfiles import Place
from weightdiff.diffs.tensorfiles import save_tensors
from weightdiff.diffs.types import LoraFactors, WeightDiff, named
from weightdiff.errors import NonFiniteError, StoreError

SHARD_VERSION = 1
_KEY = "weightdiff_shard"
_MAX_HEADER_BYTES = 24 << 20  # hostile JSON of this size, of brackets alone, fills most of a gibibyte
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_SCALE_DTYPES = {"F32": torch.float32, "F64": torch.float64}
STORED_DTYPES = tuple(_DTYPES.values())


@dataclass(frozen=True)
class DiffRow:
    """What is known about one stored diff besides its weights; everything in it must be JSON.

    Attributes:
        id: unique within a store.
        label: what the finetune put in, in words; None where there is nothing to tell (or it is unknown).
        family: the kind of behaviour.
        recipe: the recipe, within the family, that made it.
        split: such as "train" or "test".
        seed: of the recipe's random stream.
        record: what training noted (steps, losses, hyperparameters).
        verification: what checking the behaviour gave.
        questions: dictionaries with `question`, `answer` and `kind`.
    """

    id: str
    label: str | None
    family: str
    recipe: str
    split: str
    seed: int
    record: dict[str, Any] = field(default_factory=dict[str, Any])
    verification: dict[str, Any] = field(default_factory=dict[str, Any])
    questions: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def behaves(self) -> bool:
        """Whether the organism behaved when it was verified, so that its label is true; if never, yes."""
        return bool(self.verification.get("behaves", True))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DiffRow:
        """Read what `to_json` wrote.

        Raises:
            StoreError: naming fields that are missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        missing = sorted({"id", "label", "family", "recipe", "split", "seed"} - set(value))
        unknown = sorted(set(value) - known)
        if missing or unknown:
            raise StoreError(f"not a row of a diff store: fields missing {missing}, unknown {unknown}")
        row: Any = cls(**value)
        texts = (row.id, "" if row.label is None else row.label, row.family, row.recipe, row.split)
        if not (
            all(isinstance(text, str) for text in texts)
            and isinstance(row.seed, int)
            and isinstance(row.record, dict)
            and isinstance(row.verification, dict)
            and isinstance(row.questions, list)
        ):
            raise StoreError(f"not a row of a diff store: fields of the wrong kind in {dict(value)!r}")
        return row


@dataclass(frozen=True)
class Shard:
    """What the header of a shard says; no tensor is loaded.

    Attributes:
        path: the file.
        rows: one per stored diff, in order.
        shapes: dotted module name → (R, in_features, out_features), in the order of `ranks`' columns.
        ranks: for each row, the true rank of every module; 0 where the row does not touch it.
        metas: for each row, the `meta` of its diff.
        places: tensor name → where it lies in the file.
    """

    path: Path
    rows: list[DiffRow]
    shapes: dict[str, tuple[int, int, int]]
    ranks: list[list[int]]
    metas: list[dict[str, Any]]
    places: dict[str, Place]

    @cached_property
    def layouts(self) -> dict[str, tuple[Place, ...]]:
        """Module name → what rows of its tensors must have in common to be put together."""
        return {
            name: tuple(replace(self.places[f"{name}.{x}"], offset=0) for x in ("down", "up", "scale"))
            for name in self.shapes
        }


def write_shard(
    directory: Path, number: int, items: Sequence[tuple[DiffRow, WeightDiff]], dtype: torch.dtype
) -> Path:
    """Write `shard-<number>-<hash>.safetensors` atomically and return its path.

    The hash is of the header's rows, so two writers that race for a number do not overwrite one another.

    Raises:
        StoreError: if a diff has dense modules, shapes disagree, rows are no JSON or too much of it for one
            shard, or `dtype` is none of `STORED_DTYPES`.
        NonFiniteError: if a diff is not finite, or is no longer once it has `dtype`.
    """
    if dtype not in STORED_DTYPES:
        raise StoreError(f"a diff store holds float16, bfloat16 or float32, not {dtype}; choose one of these")
    cast_items = [(row, _lora_modules(row, diff.to(dtype)), diff.meta) for row, diff in items]
    shapes: dict[str, tuple[int, int, int]] = {}
    for row, modules, _ in cast_items:
        for name, m in modules.items():
            rank, width, height = shapes.get(name, (0, m.in_features, m.out_features))
            if (width, height) != (m.in_features, m.out_features):
                raise StoreError(
                    f"row {row.id!r}: {name} has in {m.in_features}, out {m.out_features},"
                    f" and other rows have in {width}, out {height}; a store holds diffs of one base"
                )
            shapes[name] = (max(rank, m.rank), width, height)
    header = _dump_header(cast_items, list(shapes))
    if (length := len(header.encode())) > _MAX_HEADER_BYTES // 2:  # quoted as JSON within JSON, it grows
        raise StoreError(
            f"what {len(items)} rows say of themselves takes {length >> 20} MiB, too much for one shard;"
            " append fewer rows at once"
        )
    digest = hashlib.sha256(header.encode()).hexdigest()[:8]
    path = directory / f"shard-{number:05d}-{digest}.safetensors"
    with atomic_file(path) as temporary:
        save_tensors(_stack(cast_items, shapes, dtype), temporary, {_KEY: header})
    return path


def read_header(path: Path) -> Shard:
    """Read and validate the header of a shard, against the file's size too, without loading tensors.

    Raises:
        StoreError: if the file is truncated, is no shard, or its parts contradict one another.
    """
    try:
        if not path.is_file():  # opening a pipe would wait forever
            raise _damaged(path, "it is no file")
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise _damaged(path, "it is truncated within its header")
            if length > _MAX_HEADER_BYTES:
                raise _damaged(path, f"its header has {length} bytes, and {_MAX_HEADER_BYTES} are the most")
            header: Any = parse_json(stream.read(length))
        said: Any = parse_json(header.pop("__metadata__")[_KEY])
        if said["version"] != SHARD_VERSION:
            raise StoreError(
                f"{path} has shard version {said['version']}, and this weightdiff reads"
                f" {SHARD_VERSION}; upgrade it"
            )
        rows = [_row(path, row) for row in said["rows"]]
        names, ranks = cast(list[str], said["modules"]), cast(list[list[int]], said["ranks"])
        metas = cast(list[dict[str, Any]], said["metas"])
        shapes = _check_tensors(path, header, names, len(rows), size - 8 - length)
        places = {name: _place(entry, 8 + length) for name, entry in header.items()}
        _check_ranks(path, ranks, metas, len(rows), [shape[0] for shape in shapes.values()])
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}; check the path and its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header is no diff shard's ({type(error).__name__}: {error})") from error
    return Shard(path, rows, shapes, ranks, metas, places)


def _place(entry: dict[str, Any], begin: int) -> Place:
    """Where a tensor lies, from its entry in a header that was checked; tensors begin at `begin`."""
    dtype = {**_DTYPES, **_SCALE_DTYPES}[entry["dtype"]]
    return Place(begin + entry["data_offsets"][0], tuple(entry["shape"][1:]), dtype)


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} is damaged: {what}; copy the file again, or delete it and make its rows again")


def _lora_modules(row: DiffRow, diff: WeightDiff) -> dict[str, LoraFactors]:
    """Return the modules of a diff that can be stored, checked to be low-rank and finite."""
    try:
        diff.check_finite()
    except NonFiniteError as error:
        raise NonFiniteError(f"row {row.id!r}: {error}") from error
    modules = {name: m for name, m in diff.modules.items() if isinstance(m, LoraFactors)}
    if len(modules) < len(diff.modules):
        dense = next(name for name in diff.modules if name not in modules)
        raise StoreError(
            f"row {row.id!r}: {dense} changes as a dense matrix, and dense diffs are not yet stored; truncate"
            " the diff to low rank first"
        )
    if diff.parameters:
        raise StoreError(
            f"row {row.id!r}: it changes {named(sorted(diff.parameters))}, and only changes of matrices are"
            " stored; leave them out if they do not matter"
        )
    return modules


def _dump_header(
    items: Sequence[tuple[DiffRow, dict[str, LoraFactors], dict[str, Any]]], names: list[str]
) -> str:
    """Return the JSON of a shard's rows, metas and true ranks."""
    for row, _, meta in items:
        try:
            json.dumps([row.to_json(), meta])
        except (TypeError, ValueError) as error:
            raise StoreError(f"row {row.id!r} holds something that JSON cannot carry: {error}") from error
    ranks = [[modules[name].rank if name in modules else 0 for name in names] for _, modules, _ in items]
    said = {"rows": [row.to_json() for row, _, _ in items], "metas": [meta for _, _, meta in items]}
    return json.dumps(
        {"version": SHARD_VERSION, "modules": names, "ranks": ranks, **said}, ensure_ascii=False
    )


def _stack(
    items: Sequence[tuple[DiffRow, dict[str, LoraFactors], dict[str, Any]]],
    shapes: Mapping[str, tuple[int, int, int]],
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a shard on the CPU, padded with zeros."""
    tensors: dict[str, torch.Tensor] = {}
    n = len(items)
    for name, (rank, width, height) in shapes.items():
        down, up = torch.zeros(n, rank, width, dtype=dtype), torch.zeros(n, height, rank, dtype=dtype)
        scale = torch.zeros(n, dtype=torch.float64)
        for i, (_, modules, _) in enumerate(items):
            if name in modules:
                m = modules[name]
                down[i, : m.rank], up[i, :, : m.rank], scale[i] = m.down.detach(), m.up.detach(), m.scale
        short = scale.float()
        scale = short if torch.equal(short.double(), scale) else scale
        tensors[f"{name}.down"], tensors[f"{name}.up"], tensors[f"{name}.scale"] = down, up, scale
    return tensors


def _row(path: Path, value: Mapping[str, Any]) -> DiffRow:
    try:
        return DiffRow.from_json(value)
    except StoreError as error:
        raise _damaged(path, str(error)) from error


def _check_ranks(
    path: Path, ranks: list[list[int]], metas: list[dict[str, Any]], n: int, bounds: list[int]
) -> None:
    """Check that there is a meta and a rank of every module for each row."""
    fits = all(
        len(row) == len(bounds)
        and all(_is_count(rank) and rank <= most for rank, most in zip(row, bounds, strict=True))
        for row in ranks
    )
    objects = all(isinstance(meta, dict) for meta in cast(list[Any], metas))
    if len(ranks) != n or len(metas) != n or not fits or not objects:
        raise _damaged(path, "the ranks in its header do not fit its rows and tensors")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _check_tensors(
    path: Path, header: dict[str, dict[str, Any]], names: list[str], n: int, data_bytes: int
) -> dict[str, tuple[int, int, int]]:
    """Check every tensor's entry against the modules and the file's size; return the modules' shapes."""
    ends = [0]
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        if not all(_is_count(number) for number in (begin, end, *entry["shape"])):
            raise _damaged(path, f"the shape or place of {key} is no row of counts")
        dtypes = _SCALE_DTYPES if key.endswith(".scale") else _DTYPES
        item_bytes = dtypes[entry["dtype"]].itemsize
        if end - begin != math.prod(entry["shape"]) * item_bytes:
            raise _damaged(path, f"the size of {key} does not fit its shape")
        ends.append(end)
    if max(ends) != data_bytes:
        raise _damaged(
            path, f"it is truncated or padded: {max(ends)} bytes of tensors expected, {data_bytes} found"
        )
    if set(header) != {f"{name}.{part}" for name in names for part in ("down", "up", "scale")}:
        raise _damaged(path, "its tensors are not those of its modules")
    shapes: dict[str, tuple[int, int, int]] = {}
    for name in names:
        down, up, scale = (
            cast(list[int], header[f"{name}.{part}"]["shape"]) for part in ("down", "up", "scale")
        )
        rank, width = down[1:]
        if down != [n, rank, width] or up != [n, up[1], rank] or scale != [n]:
            raise _damaged(path, f"the shapes of {name} contradict one another")
        shapes[name] = (rank, width, up[1])
    return shapes
