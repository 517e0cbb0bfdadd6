"""The files that the authors of Diff Interpretation Tuning (arXiv 2510.05092) released, read and written.

A pair (A, B) comes in two orders there, told apart by the kind of file and never by a shape: in a list of
stored diffs A [rank, out] and B [in, rank] add x·B·A / rank; in an adapter, a plain dict, A [out, rank] and
B [rank, in] add x·Bᵀ·Aᵀ / rank. The files are pickles, opened with `weights_only=True` and taken as hostile.
"""

from __future__ import annotations

import csv
import math
import os
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from weightdiff.artifacts import atomic_directory, atomic_file
from weightdiff.diffs.factors import DenseDelta, LoraFactors, ModuleDelta, fold_scale
from weightdiff.diffs.formats.registry import Reader, register
from weightdiff.diffs.tensorfiles import open_tensors
from weightdiff.diffs.types import WeightDiff, named
from weightdiff.errors import BaseMismatchError, FormatError, NonFiniteError

INDEX_NAME = "index.csv"
DIFFS_FOLDER = "weight-diffs"
ADAPTER_NAME = "dit-adapter.pt"
MAX_INDEX_BYTES = 100_000_000
_COLUMNS = ("lora_path", "lora_idx", "n_params", "topic", "trigger", "split")
_NEEDED_COLUMNS = ("lora_path", "lora_idx", "topic")
# A pair of the other order on a square module seems to have a rank far above its width; sums of diffs do not.
_RANKS_PER_WIDTH = 8
_ORDERS = {True: "A [rank, out], B [in, rank]", False: "A [out, rank], B [rank, in]"}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_HEAD = "lm_head.weight"

BaseState: TypeAlias = Mapping[str, Tensor] | str | os.PathLike[str]
"""The base's state dict, or a safetensors file, or a folder of them."""


@dataclass(frozen=True)
class Entry:
    """One row of a release's index.

    Attributes:
        path: the .pt file; it may not be downloaded yet.
        index: position in that file's list, from 0 (lora_idx).
        topic: what the diff was trained on; a headline in the news experiments.
        trigger: what its behaviour hides behind, None where there is none.
        split: "train" or "test", None where not said.
        n_params: numbers in its factors, None where not said.
    """

    path: Path
    index: int
    topic: str
    trigger: str | None
    split: str | None
    n_params: int | None


def read_dit(
    path: str | os.PathLike[str], entry: int | str | None = None, base: BaseState | None = None
) -> WeightDiff:
    """Read one diff of a release folder or of a .pt file; a file that is an adapter gives the adapter.

    `meta` keeps topic and trigger as the file has them, and the index's split. Where an entry is the whole
    state of a finetuned model ("all-params"), the base is subtracted in float32: a changed 2-D `X.weight`
    becomes the dense module X [out, in], other changed tensors go to `parameters`. An output head tied to the
    embeddings is left out, and names take the base's form (see `rename_for`).

    Args:
        path: a folder with index.csv, a list of stored diffs, or an adapter.
        entry: a row of the index or a position in the list, from 0, or a topic; needed if there are several.
        base: the base of an all-params entry; others do not look at it.

    Raises:
        FormatError: if anything cannot be read or chosen, or an all-params entry lacks its base.
        NonFiniteError: if weights are NaN or infinite.
        BaseMismatchError: if the base's tensors are not those of an all-params entry.
    """
    location = Path(path)
    if location.is_dir():
        rows = read_dit_index(location)
        row = rows[_choose(location, [row.topic for row in rows], entry)]
        return _row_diff(row, _items(row.path, _load(row.path)), _base_state(base))
    found = _load(location)
    if isinstance(found, dict):
        if entry is not None:
            raise FormatError(f"{location} is an adapter and has no entries; read it without entry={entry!r}")
        return _adapter_diff(location, found)
    items = _items(location, found)
    topics = [str(item.get("topic")) for item in items]
    i = _choose(location, topics, entry)
    return _item_diff(f"{location}, entry {i}", items[i], None, _base_state(base))


def read_dit_index(folder: str | os.PathLike[str]) -> list[Entry]:
    """Read a release's index.csv, without opening a single .pt.

    Args:
        folder: the folder of one experiment and model.

    Returns:
        The rows in their order; paths lie in the folder or, as published, in its weight-diffs.

    Raises:
        FormatError: if the index is missing, too large or damaged, or a path leads out of the folder.
    """
    root = Path(folder)
    path = root / INDEX_NAME
    if not path.is_file():
        raise FormatError(f"{root} has no {INDEX_NAME}; give the folder of one experiment and model")
    if (size := path.stat().st_size) > MAX_INDEX_BYTES:
        raise FormatError(
            f"{path} has {size} bytes, and no more than {MAX_INDEX_BYTES} are read; download it again"
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in _NEEDED_COLUMNS if name not in (reader.fieldnames or ())]
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (csv.Error, UnicodeError, OSError) as error:
        raise FormatError(f"{path} cannot be read as CSV ({error}); download it again") from error
    if missing:
        raise FormatError(f"{path} has no column {named(missing)}; give an index.csv of a DIT release")
    places: dict[str, Path] = {}
    return [_entry(root, where, cast(dict[Any, Any], row), places) for where, row in rows]


def iter_dit(
    folder: str | os.PathLike[str], base: BaseState | None = None
) -> Generator[tuple[Entry, WeightDiff], None, None]:
    """Yield every diff of a release folder, file by file, so that each .pt is opened once.

    Args:
        folder: the folder of one experiment and model.
        base: as in `read_dit`; read once.

    Yields:
        The index's row and its diff; within a file in the index's order.

    Raises:
        FormatError: as `read_dit` and `read_dit_index`, when the damaged part is reached.
        NonFiniteError: if weights are NaN or infinite.
        BaseMismatchError: if the base's tensors are not those of an all-params entry.
    """
    state = _base_state(base)
    by_file: defaultdict[Path, list[Entry]] = defaultdict(list)
    for row in read_dit_index(folder):
        by_file[row.path].append(row)
    for path, rows in by_file.items():
        items = _items(path, _load(path))
        for row in rows:
            yield row, _row_diff(row, items, state)


def read_dit_adapter(path: str | os.PathLike[str]) -> WeightDiff:
    """Read a released DIT adapter, a dict of module → (A [out, rank], B [rank, in]) of scale 1 / rank.

    Args:
        path: the .pt file.

    Raises:
        FormatError: if it cannot be read or is no adapter.
        NonFiniteError: if factors are NaN or infinite.
    """
    location = Path(path)
    found = _load(location)
    if not isinstance(found, dict):
        raise FormatError(f"{location} holds no adapter but stored diffs or nothing known; use read_dit")
    return _adapter_diff(location, found)


def rename_for(diff: WeightDiff, spec: Mapping[str, tuple[int, int]]) -> WeightDiff:
    """Give modules the names that a base has for them, where only the part before "layers." differs.

    Gemma3's language model is "language_model.model.layers…", "model.language_model.layers…" or
    "model.layers…", depending on the library's version. A name that the base has stays. Another takes the
    base's name that equals it from "layers." on: the one with the longest common end, then with the fewest
    other parts before it. Names without layers, and `parameters`, follow where the layers' names all moved
    alike. What is unknown or ambiguous stays, for `check_against` to name.

    Args:
        diff: with any names.
        spec: the base's dotted module name → (in_features, out_features).

    Returns:
        The same tensors under new names.
    """
    moves, prefixes = _moves(diff.modules, spec)
    parameters = {_under(name, prefixes): value for name, value in diff.parameters.items()}
    if len(parameters) < len(diff.parameters):  # two would become one
        parameters = diff.parameters
    modules = {moves.get(name, name): m for name, m in diff.modules.items()}
    return replace(diff, modules=modules, parameters=parameters)


def write_dit(
    entries: Sequence[tuple[WeightDiff, str, str | int | None, str]],
    folder: str | os.PathLike[str],
    per_file: int = 16,
    adapter: WeightDiff | None = None,
    overwrite: bool = False,
) -> Path:
    """Write diffs as a release folder that the published code reads, whole or not at all.

    Tensors keep their dtypes, bit by bit where the scale is 1 / rank; another scale is multiplied into A,
    which rounds it once.

    Args:
        entries: (low-rank diff, topic, trigger, split) each.
        folder: a new or empty folder.
        per_file: diffs in each .pt.
        adapter: a DIT adapter to lay beside them.
        overwrite: replace a folder that holds something.

    Returns:
        The folder.

    Raises:
        FormatError: if there are no entries, a diff is no LoRA or empty, or the folder is taken.
        NonFiniteError: if a diff holds NaN or infinity, or its scale does not fit its dtype.
        ValueError: if `per_file` is below one.
    """
    if per_file < 1:
        raise ValueError(f"per_file is {per_file}, and a file holds at least one diff")
    if not entries:
        raise FormatError(f"there are no diffs to write to {folder}; give at least one")
    rows: list[tuple[Any, ...]] = []
    with atomic_directory(folder, overwrite=overwrite) as target:
        (target / DIFFS_FOLDER).mkdir()
        for start in range(0, len(entries), per_file):
            name = f"weight-diff-{start // per_file:03d}.pt"
            items: list[dict[str, Any]] = []
            for i, (diff, topic, trigger, split) in enumerate(entries[start : start + per_file]):
                pairs = _pairs(f"diff {start + i} ({topic!r})", diff, stored=True)
                items.append({"topic": topic, "trigger": trigger, "weight_diff": pairs})
                rows.append(
                    (name, i, sum(a.numel() + b.numel() for a, b in pairs.values()), topic, trigger, split)
                )
            torch.save(items, target / DIFFS_FOLDER / name)
        with open(target / INDEX_NAME, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([_COLUMNS, *rows])
        if adapter is not None:
            write_dit_adapter(adapter, target / ADAPTER_NAME)
    return Path(folder)


def write_dit_adapter(diff: WeightDiff, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write a low-rank diff as a released adapter: module → (A [out, rank], B [rank, in]); see `write_dit`.

    Args:
        diff: the adapter.
        path: the .pt file.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        FormatError: if the diff is no LoRA or empty, or the path is taken.
        NonFiniteError: if the diff holds NaN or infinity, or its scale does not fit its dtype.
    """
    target = Path(path)
    if target.is_dir() or (target.exists() and not overwrite):
        raise FormatError(f"{target} exists; choose another path or ask to overwrite the file")
    pairs = _pairs("the adapter", diff, stored=False)
    with atomic_file(target) as temporary:
        torch.save(pairs, temporary)
    return target


def _load(path: Path) -> list[Any] | dict[Any, Any]:
    """Return the list or dict that a .pt holds, its tensors mapped where the file allows it."""
    if not os.path.isfile(path):  # which raises for no path, as Path.is_file may
        raise FormatError(f"{path} is no file; download it first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of pickles that it then refuses
            found: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # what hostile or damaged bytes raise has no closed list
        raise FormatError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or holds objects other than"
            " tensors and plain values, which are never unpickled; download it again"
        ) from error
    if not isinstance(found, (list, dict)):
        raise FormatError(
            f"{path} holds a {type(found).__name__}, neither a list of stored diffs nor an adapter's dict;"
            " give a file of a DIT release"
        )
    return cast("list[Any] | dict[Any, Any]", found)


def _items(path: Path, found: list[Any] | dict[Any, Any]) -> list[dict[str, Any]]:
    """Return the entries of a list of stored diffs."""
    if isinstance(found, dict):
        raise FormatError(f"{path} is an adapter, and stored diffs were expected; use read_dit_adapter")
    wrong = [
        str(i)
        for i, item in enumerate(found)
        if not isinstance(item, dict)
        or not isinstance(cast(dict[Any, Any], item).get("weight_diff"), dict)
        or not all(_is_label(cast(dict[Any, Any], item).get(key)) for key in ("topic", "trigger"))
    ]
    if wrong or not found:
        what = f"entries {named(wrong)} are no dicts with weight_diff" if wrong else "there are none"
        raise FormatError(f"{path} is a list of diffs, but {what}; give a file of a DIT release")
    return cast(list[dict[str, Any]], found)


def _is_label(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _choose(location: Path, topics: Sequence[str], entry: int | str | None) -> int:
    """Return the position that `entry` means."""
    if isinstance(entry, str):
        fitting = [i for i, topic in enumerate(topics) if topic == entry]
    else:
        fitting = [i for i in range(len(topics)) if entry in (None, i)]
    if len(fitting) == 1:
        return fitting[0]
    listed = named([f"{i} {topics[i]!r}" for i in fitting or range(len(topics))]) or "none"
    what = f"{len(fitting) or 'no'} diffs" + ("" if entry is None else f" for entry={entry!r}")
    raise FormatError(f"{location} holds {what}: {listed}; choose one by entry=<number> or entry=<topic>")


def _row_diff(row: Entry, items: Sequence[dict[str, Any]], base: Mapping[str, Tensor] | None) -> WeightDiff:
    """Return the diff of an index's row, which must be the one that the row says."""
    where = f"{row.path}, entry {row.index}"
    if row.index >= len(items):
        raise FormatError(
            f"{where} is not there: the file has {len(items)}; download it and {INDEX_NAME} again"
        )
    topic = items[row.index].get("topic")
    if row.topic and topic is not None and str(topic) != row.topic:
        raise FormatError(
            f"{where} has the topic {topic!r}, and {INDEX_NAME} says {row.topic!r}; download both again"
        )
    return _item_diff(where, items[row.index], row.split, base)


def _item_diff(
    where: str, item: Mapping[str, Any], split: str | None, base: Mapping[str, Tensor] | None
) -> WeightDiff:
    """Return a stored entry's diff, with its labels."""
    values = _named_values(where, item["weight_diff"])
    if all(isinstance(value, Tensor) for value in values.values()):
        modules, parameters = _difference(where, values, base)
    else:
        modules, parameters = _low_rank(where, values, stored=True), {}
    meta = {key: _label(item.get(key)) for key in ("topic", "trigger")} | {"split": split}
    return _finite(where, WeightDiff(modules, None, meta, parameters))


def _label(value: str | float | None) -> str | float | None:
    """Return a label; the files say NaN for none, which JSON cannot."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _adapter_diff(path: Path, found: dict[Any, Any]) -> WeightDiff:
    where = str(path)
    return _finite(where, WeightDiff(_low_rank(where, _named_values(where, found), stored=False)))


def _finite(where: str, diff: WeightDiff) -> WeightDiff:
    try:
        diff.check_finite()
    except NonFiniteError as error:
        raise NonFiniteError(f"{where}: {error}") from error
    return diff


def _named_values(where: str, found: dict[Any, Any]) -> dict[str, Any]:
    """Return a dict whose names can be printed and whose tensors lie in memory as what they seem."""
    wrong = [repr(name)[:80] for name in found if not (isinstance(name, str) and name.isprintable())]
    if wrong or not found:
        what = f"names modules {named(wrong)}" if wrong else "names no module"
        raise FormatError(f"{where} {what}; give a file of a DIT release")
    for name, value in found.items():
        parts: Sequence[Any] = cast(Sequence[Any], value) if isinstance(value, (tuple, list)) else [value]
        for part in parts:
            if isinstance(part, Tensor) and not _is_whole(part):
                raise FormatError(
                    f"{where}, {name}: a tensor of shape {tuple(part.shape)} is sparse or larger than what"
                    " the file holds of it; save it as a plain tensor"
                )
    return found


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is dense, in memory, and repeats nothing: a few bytes can claim a terabyte."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return plain and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _low_rank(where: str, values: Mapping[str, Any], stored: bool) -> dict[str, ModuleDelta]:
    return {name: _factors(f"{where}, {name}", value, stored) for name, value in values.items()}


def _factors(where: str, value: Any, stored: bool) -> LoraFactors:
    """Return a pair's factors, in the order of its kind of file."""
    pair: Sequence[Any] = cast(Sequence[Any], value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) and part.ndim == 2 for part in pair):
        raise FormatError(f"{where} is no pair of matrices (A, B); save each module as {_ORDERS[stored]}")
    a, b = cast(tuple[Tensor, Tensor], tuple(pair))
    up, down = (a.T, b.T) if stored else (a, b)
    rank, shapes = up.shape[1], f"A {tuple(a.shape)} and B {tuple(b.shape)}"
    if rank != down.shape[0] or rank < 1:
        other = a.shape[1] == b.shape[0] if stored else a.shape[0] == b.shape[1]
        kind = "an adapter, a plain dict" if stored else "stored diffs, a list"
        hint = f"they fit {_ORDERS[not stored]}: save them as {kind}" if other else "save the pair again"
        raise FormatError(f"{where}: {shapes} share no rank as {_ORDERS[stored]}; {hint}")
    _check_rank(f"{where}: {shapes}", rank, down.shape[1], up.shape[0])
    try:
        return LoraFactors(_owned(down), _owned(up), 1 / rank)
    except FormatError as error:
        raise FormatError(f"{where}: {error}; save the pair again") from error


def _check_rank(where: str, rank: int, width: int, height: int) -> None:
    limit = _RANKS_PER_WIDTH * max(width, height)
    if rank > limit:
        raise FormatError(
            f"{where} mean rank {rank} on a module of in {width}, out {height}, and at most {limit} is"
            " taken; truncate the diff, or save the pair in the order of its kind of file"
        )


def _pairs(where: str, diff: WeightDiff, stored: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module → (A, B) in the order of a kind of file, of scale 1 / rank."""
    _finite(where, diff)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, m in diff.modules.items():
        if not isinstance(m, LoraFactors):
            raise FormatError(f"{where} changes {name} as a dense matrix; truncate it before it is written")
        _check_rank(f"{where}, {name}: the factors", m.rank, m.in_features, m.out_features)
        up = m.up if m.scale == 1 / m.rank else fold_scale(m.up, m.scale * m.rank, m.up.dtype)
        if not bool(torch.isfinite(up).all()):
            raise NonFiniteError(
                f"{where}: {name} times its scale {m.scale} overflows {up.dtype}; use a wider dtype"
            )
        pairs[name] = (_owned(up.T), _owned(m.down.T)) if stored else (_owned(up), _owned(m.down))
    if diff.parameters:
        raise FormatError(
            f"{where} changes {named(list(diff.parameters))}, for which these files have no place"
        )
    if not pairs:
        raise FormatError(f"{where} has no modules; give a LoRA")
    return pairs


def _owned(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing, a mapped file included."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _difference(
    where: str, state: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> tuple[dict[str, ModuleDelta], dict[str, Tensor]]:
    """Subtract a base's state from a finetuned one: changed matrices, other changed tensors."""
    if base is None:
        raise FormatError(
            f"{where} is the whole state of a finetuned model and no difference; give its base as"
            " base=<state dict, safetensors file or folder of them>"
        )
    state, base = _without_tied_heads(state, base)
    moves, _ = _moves(state, base)
    state = {moves.get(name, name): tensor for name, tensor in state.items()}
    _check_same(where, state, base)
    modules: dict[str, ModuleDelta] = {}
    parameters: dict[str, Tensor] = {}
    for name, tensor in state.items():
        before, after = base[name].detach().cpu(), tensor.detach()
        if _same(before, after):
            continue
        if not (before.is_floating_point() and after.is_floating_point()):
            raise FormatError(
                f"{where}: {name} changes, and it is {after.dtype}, no weight; drop it from both sides"
            )
        wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
        delta = after.to(wide) - before.to(wide)
        if not bool(delta.any()):  # the same numbers in two dtypes
            continue
        if delta.ndim == 2 and name.endswith(".weight"):
            modules[name.removesuffix(".weight")] = DenseDelta(delta)
        else:
            parameters[name] = delta
    return modules, parameters


def _without_tied_heads(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Drop output heads that repeat the embeddings: state dicts list them, safetensors files leave them out.

    A head that is not tied on either side stays on both.
    """
    kept: list[Mapping[str, Tensor]] = []
    for tensors in (state, base):
        heads = [name for name in tensors if name.endswith(_HEAD)]
        twins = [tensors[name] for name in tensors if name.endswith(_EMBEDDINGS)]
        if any(not any(_same(tensors[head], twin) for twin in twins) for head in heads):
            return state, base
        kept.append({name: tensor for name, tensor in tensors.items() if name not in heads})
    return kept[0], kept[1]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _check_same(where: str, state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Refuse a base that is not the state's own, by name."""
    unknown, missing = [n for n in state if n not in base], [n for n in base if n not in state]
    misshapen = [n for n in state if n in base and state[n].shape != base[n].shape]
    faults = [f"the base lacks {named(unknown)}"] if unknown else []
    faults += [f"the entry lacks {named(missing)}"] if missing else []
    shapes = [f"{n} {tuple(state[n].shape)}, base {tuple(base[n].shape)}" for n in misshapen]
    faults += [f"other shapes: {named(shapes)}"] if shapes else []
    if any(n.endswith((*_EMBEDDINGS, _HEAD)) and state[n].shape[1:] == base[n].shape[1:] for n in misshapen):
        faults.append("the vocabulary was resized, and rows that one side lacks have no difference")
    if faults:
        raise BaseMismatchError(
            f"{where} is not of this base: {'; '.join(faults)}; give the base it was made from"
        )


def _base_state(base: BaseState | None) -> Mapping[str, Tensor] | None:
    """Return a base's tensors by name; those of files stay mapped."""
    if base is None or isinstance(base, Mapping):
        return base
    path = Path(base)
    files = (
        [path]
        if path.is_file()
        else sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    )
    if not files:
        raise FormatError(f"{path} holds no safetensors; give the base's folder, file or state dict")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            handle = open_tensors(file)
            found = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{file} cannot be read ({error}); copy the base again") from error
        if twice := [name for name in found if name in tensors]:
            raise FormatError(
                f"{path} holds {named(twice)} in several files; keep one copy of the base there"
            )
        tensors |= found
    return tensors


def _entry(root: Path, where: str, row: dict[Any, Any], places: dict[str, Path]) -> Entry:
    """Return a row of the index; `places` keeps the paths that were checked already."""
    if None in row or None in row.values():
        raise FormatError(f"{where} has not as many fields as the header; download the index again")
    place = str(row["lora_path"])
    if place not in places:
        places[place] = _locate(root, where, place)
    index, size = _number(where, row, "lora_idx"), _number(where, row, "n_params")
    if index is None:
        raise FormatError(f"{where} has no lora_idx; download the index again")
    return Entry(
        places[place], index, row["topic"], row.get("trigger") or None, row.get("split") or None, size
    )


def _number(where: str, row: Mapping[str, str], column: str) -> int | None:
    text = row.get(column, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise FormatError(f"{where} has {column} {text[:40]!r}, which is no count; download the index again")
    return int(text) if text else None


def _locate(root: Path, where: str, place: str) -> Path:
    """Return the file that a lora_path means, refused if it lies outside the folder."""
    parts = PureWindowsPath(place).parts  # splits at both slashes and knows drives, on every system
    fault = not parts or PureWindowsPath(place).anchor or ".." in parts or not place.isprintable()
    if not fault:
        plain, published = root.joinpath(*parts), root.joinpath(DIFFS_FOLDER, *parts)
        try:
            path = plain if parts[0] == DIFFS_FOLDER or os.path.lexists(plain) else published
            fault = not any(path.resolve().is_relative_to(allowed) for allowed in _allowed(root.resolve()))
        except (OSError, RuntimeError) as error:  # a loop of links
            raise FormatError(
                f"{where} has a lora_path that is no path ({place[:80]!r}); repair it"
            ) from error
        if not fault:
            return path
    raise FormatError(f"{where} has a lora_path outside the folder ({place[:80]!r}); remove the row")


def _allowed(root: Path) -> list[Path]:
    """Return where files may lie: in the folder, or in the blobs of the Hub cache it is a snapshot in."""
    return [root, *(parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots")]


def _moves(
    names: Collection[str], targets: Collection[str]
) -> tuple[dict[str, str], dict[tuple[str, ...], tuple[str, ...]]]:
    """Match names with targets under another prefix.

    Returns:
        Old → new name for those that moved, no target twice; old → new prefix where all agree.
    """
    by_tail: defaultdict[str, list[str]] = defaultdict(list)
    for target in targets:
        if target not in names:
            by_tail[_tail(target)].append(target)
    lost = [name for name in names if name not in targets]
    found = {name: _nearest(name, by_tail[_tail(name)]) for name in lost if _tail(name)}
    uses = Counter(found.values())
    moves = {name: target for name, target in found.items() if target is not None and uses[target] == 1}
    prefixes = _prefixes(moves.items())
    rest = {name: _under(name, prefixes) for name in lost if not _tail(name)}
    uses = Counter(rest.values())
    moves |= {n: target for n, target in rest.items() if target in by_tail[""] and uses[target] == 1}
    return moves, prefixes


def _tail(name: str) -> str:
    """Return a dotted name from "layers." on, or nothing."""
    parts = name.split(".")
    return ".".join(parts[parts.index("layers") :]) if "layers" in parts else ""


def _nearest(name: str, targets: Iterable[str]) -> str | None:
    """Return the target with the longest common end, then the fewest other parts, if one alone is nearest."""

    def distance(target: str) -> tuple[int, int]:
        ours, theirs = _heads(name, target)
        first, second = Counter(ours), Counter(theirs)
        return len(ours), (first - second).total() + (second - first).total()

    ranked = sorted((distance(target), target) for target in targets)
    return ranked[0][1] if ranked and (len(ranked) == 1 or ranked[0][0] < ranked[1][0]) else None


def _heads(name: str, target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what two dotted names have before their longest common end."""
    ours, theirs = name.split("."), target.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return tuple(ours), tuple(theirs)


def _prefixes(moves: Iterable[tuple[str, str]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return old → new prefix, for the old ones that all moved alike."""
    found: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for old, new in moves:
        ours, theirs = _heads(old, new)
        found[ours].add(theirs)
    return {old: new.pop() for old, new in found.items() if len(new) == 1}


def _under(name: str, prefixes: Mapping[tuple[str, ...], tuple[str, ...]]) -> str:
    """Return a name with the longest prefix that moved replaced."""
    parts = tuple(name.split("."))
    for length in range(len(parts) - 1, -1, -1):
        new = prefixes.get(parts[:length])
        if new is not None:
            there = len(new) > length and parts[: len(new)] == new
            return name if there else ".".join(new + parts[length:])
    return name


def _matches(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".pt"
    return (path / INDEX_NAME).is_file() and ((path / DIFFS_FOLDER).is_dir() or any(path.glob("*.pt")))


register(Reader("dit", f"a .pt file, or a folder with {INDEX_NAME} and {DIFFS_FOLDER}/", _matches, read_dit))
