"""Full checkpoints: their index, safetensors and pickles."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpus import (
    HUGE,
    LONG,
    MARK,
    NESTED,
    UP,
    Hostile,
    Q,
    add,
    bin_model,
    case,
    entry,
    headed,
    indexed,
    load_on_base,
    model,
    pair_of_models,
    rezipped,
    saved,
    stored,
    weights,
    with_pickle,
    written,
)
from safetensors.torch import save_file

PLACES: dict[str, tuple[Any, str]] = {
    "absolute_path": ("/etc/passwd", "outside its folder"),
    "path_upwards": ("../base/model.safetensors", "outside its folder"),
    "path_of_windows": ("..\\base.safetensors", "outside its folder"),
    "missing_shard": ("b.safetensors", r"has no b\.safetensors, which .* lists; copy"),
    "shard_with_a_nul": ("a\0.safetensors", "copy the missing shard"),
    "shard_of_a_megabyte": (LONG, "copy the missing shard"),
    "shard_with_escapes": ("\x1b[31m\n.safetensors", "copy the missing shard"),
    "shard_that_is_a_number": (3, "which is no text; copy"),
    "shard_that_is_a_list": ([], "which is no text; copy"),
}
for name, (place, says) in PLACES.items():
    add(f"index_{name}", lambda folder, place=place: indexed(folder, {"x": place}), says, load_on_base)


@case("has no weight_map", load_on_base)
def index_without_tensors(folder: Path) -> Path:
    return indexed(folder, {})


@case("has no weight_map", load_on_base)
def index_of_a_list(folder: Path) -> Path:
    return indexed(folder, b'{"weight_map": [1]}')


@case("lists ghost, and the shard it names", load_on_base)
def index_of_a_tensor_that_is_not_there(folder: Path) -> Path:
    return indexed(folder, {"ghost": "a.safetensors"})


@case("names several shards that hold", load_on_base)
def index_of_a_tensor_in_two_shards(folder: Path) -> Path:
    path = indexed(folder, {**dict.fromkeys(weights(), "a.safetensors"), "extra": "b.safetensors"})
    save_file({**weights(2), "extra": UP}, path / "b.safetensors")
    return path


@case("a link to a file outside its folder; copy", load_on_base)
def index_of_a_link_outside(folder: Path) -> Path:
    path = indexed(folder, {f"{Q}.weight": "b.safetensors"})
    (path / "b.safetensors").symlink_to(folder / "base" / "model.safetensors")
    return path


@case(r"has no b\.safetensors, which", load_on_base)
def index_of_a_folder(folder: Path) -> Path:
    path = indexed(folder, {f"{Q}.weight": "b.safetensors"})
    (path / "b.safetensors").mkdir()
    return path


@case(r"has no b\.safetensors, which", load_on_base)
def index_of_a_pipe(folder: Path) -> Path:
    path = indexed(folder, {f"{Q}.weight": "b.safetensors"})
    os.mkfifo(path / "b.safetensors")
    return path


@case("give the base")
def checkpoint_without_its_base(folder: Path) -> Path:
    return pair_of_models(folder)


@case("NaN or infinity", load_on_base)
def checkpoint_with_nan(folder: Path) -> Path:
    return pair_of_models(folder, model__norm__weight=torch.full((3,), float("nan")))


@case("is no finetune of", load_on_base)
def checkpoint_of_other_shapes(folder: Path) -> Path:
    return pair_of_models(folder, model__norm__weight=torch.ones(5))


@case("shares no tensor name with", load_on_base)
def checkpoint_of_other_names(folder: Path) -> Path:
    model(folder, weights(), "base")
    return model(folder, {LONG: torch.ones(1)})


@case("is int8 and changed", load_on_base)
def checkpoint_of_integers(folder: Path) -> Path:
    return pair_of_models(folder, model__norm__weight=torch.ones(3, dtype=torch.int8))


@case("save the checkpoint unquantized", load_on_base)
def checkpoint_of_four_bits(folder: Path) -> Path:
    path = pair_of_models(folder)
    header = {"model.norm.weight": entry([4], 0, 2, "F4")}
    written(path / "model.safetensors", headed(header, bytes(2)))
    return path


@case(r"config\.json is damaged", load_on_base)
def checkpoint_with_a_nested_config(folder: Path) -> Path:
    path = pair_of_models(folder)
    written(path / "config.json", NESTED)
    return path


BINS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "that_runs_code": (lambda f: {"a": torch.ones(1), "b": Hostile(f / MARK)}, "is refused"),
    "that_runs_code_as_a_key": (lambda f: {Hostile(f / MARK): torch.ones(1)}, "is refused"),
    "of_a_list": (lambda _: [torch.ones(1)], "no dictionary of tensors"),
    "of_a_tensor": (lambda _: torch.ones(1), "no dictionary of tensors"),
    "of_numbers": (lambda _: {"a": torch.ones(1), "step": 3}, "holds step besides tensors"),
    "of_a_sparse_tensor": (lambda _: {"a": UP.to_sparse()}, "sparse"),
    "of_a_shell": (lambda _: {"a": torch.ones(1, device="meta")}, "sparse, expanded or empty shell"),
    "of_an_expanded_tensor": (lambda _: {"a": torch.ones(1).expand(HUGE)}, "sparse, expanded"),
    "of_a_megabyte_name": (lambda _: {LONG: 1}, "besides tensors"),
}
for name, (value, says) in BINS.items():
    add(f"bin_{name}", lambda folder, value=value: bin_model(folder, value(folder)), says, load_on_base)


def a_bin(folder: Path) -> Path:
    return bin_model(folder, weights(1)) / "pytorch_model.bin"


@case("is no whole zip file of torch.save", load_on_base)
def bin_empty(folder: Path) -> Path:
    return written(a_bin(folder), b"").parent


@case("is no whole zip file of torch.save", load_on_base)
def bin_cut(folder: Path) -> Path:
    path = a_bin(folder)
    return written(path, path.read_bytes()[:700]).parent


@case("is no whole zip file of torch.save", load_on_base)
def bin_that_is_a_bare_pickle(folder: Path) -> Path:
    return written(a_bin(folder), pickle.dumps({"a": Hostile(folder / MARK)})).parent


@case("compressed parts", load_on_base)
def bin_compressed(folder: Path) -> Path:
    return rezipped(a_bin(folder), lambda _, data: data, zipfile.ZIP_DEFLATED).parent


# Opcodes that make much out of little: bytearray(2 ** 31 - 1), and "hex" of "hex" of … of two letters.
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
DOUBLINGS = 29
ENCODED = (
    b"\x80\x02"
    + b"c_codecs\nencode\n" * DOUBLINGS
    + b"c_codecs\nencode\nX\x02\0\0\0aaX\x05\0\0\0ascii\x86R"
    + b"X\x03\0\0\0hex\x86R" * DOUBLINGS
    + b"."
)
# {(t, t): 1} with t = (s, s), s = (r, r) and so on: from the memo, from the stack, and after a mark.
RECALLED = b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s."
DUPLICATED = b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s."
MARKED = b"\x80\x02})q\x00" + b"(h\x00h\x00tq\x00" * 60 + b"K\x01s."
BOMBS = {
    "of_a_huge_bytearray": BYTEARRAY,
    "of_doublings": ENCODED,
    "of_recalled_tuples": RECALLED,
    "of_duplicated_tuples": DUPLICATED,
    "of_marked_tuples": MARKED,
}
for name, code in BOMBS.items():
    add(
        f"bin_{name}",
        lambda folder, code=code: with_pickle(a_bin(folder), code).parent,
        "is refused",
        load_on_base,
    )
    add(
        f"dit_{name}",
        lambda folder, code=code: with_pickle(saved(folder / "d.pt", stored()), code),
        r"d\.pt cannot be read",
    )
