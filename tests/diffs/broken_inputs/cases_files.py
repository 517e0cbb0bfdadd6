"""What is alike for several formats: safetensors files, JSON files, and paths."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from corpus import (
    CONFIG,
    HEADER,
    HUGE,
    INDEX,
    NESTED,
    WEIGHTS,
    A,
    B,
    a_store,
    adapter,
    add,
    case,
    entry,
    headed,
    indexed,
    interpreter,
    load_interpreter,
    load_on_base,
    pair_of_models,
    read_store,
    saved,
    shard_of,
    stored,
    written,
)

# safetensors files: alike for an adapter, a checkpoint and a shard of a store.

ENTRIES = {A: entry([2, 3], 0, 24), B: entry([4, 2], 24, 56)}
FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "cut_in_the_length": lambda: b"\x10\0\0\0",
    "cut_in_the_header": lambda: headed(ENTRIES, bytes(56))[:40],
    "cut_before_the_data": lambda: headed(ENTRIES),
    "cut_in_the_data": lambda: headed(ENTRIES, bytes(55)),
    "longer_than_its_tensors": lambda: headed(ENTRIES, bytes(60)),
    "header_of_2_to_the_60": lambda: struct.pack("<Q", 1 << 60) + b"{}",
    "header_of_spaces": lambda: headed(b" " * 100_000_000),
    "header_of_brackets": lambda: headed(NESTED),
    "header_that_is_a_list": lambda: headed(b"[]"),
    "header_that_is_no_text": lambda: headed(b'{"\xff\xfe": 1}'),
    "overlapping_tensors": lambda: headed({A: entry([2, 3], 0, 24), B: entry([4, 2], 8, 40)}, bytes(40)),
    "tensors_past_the_end": lambda: headed({**ENTRIES, B: entry([4, 2], HUGE, HUGE + 32)}, bytes(56)),
    "negative_offsets": lambda: headed({A: entry([2, 3], -24, 0), B: entry([4, 2], 0, 32)}, bytes(32)),
    "offsets_backwards": lambda: headed({A: entry([2, 3], 24, 0)}, bytes(24)),
    "negative_shape": lambda: headed({A: entry([-2, -3], 0, 24)}, bytes(24)),
    "shape_that_overflows": lambda: headed({A: entry([HUGE, HUGE, HUGE], 0, 24)}, bytes(24)),
    "shape_of_terabytes": lambda: headed({A: entry([HUGE], 0, 4 * HUGE)}, bytes(24)),
    "shape_of_texts": lambda: headed({A: entry(["a" * 1000, 10**12], 0, 24)}, bytes(24)),
    "unknown_dtype": lambda: headed({A: entry([2, 3], 0, 24, "X32")}, bytes(24)),
    "tensor_without_offsets": lambda: headed({A: {"dtype": "F32", "shape": [2, 3]}}, bytes(24)),
}


def adapter_of(data: Callable[[], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        written(adapter(folder) / WEIGHTS, data())
        return folder / "adapter"

    return build


def checkpoint_of(data: Callable[[], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        written(pair_of_models(folder) / "model.safetensors", data())
        return folder / "model"

    return build


def store_of(data: Callable[[], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        written(shard_of(a_store(folder)), data())
        return folder / "store"

    return build


for name, data in FILES.items():
    add(f"peft_{name}", adapter_of(data), r"adapter_model\.safetensors is damaged or truncated")
    add(f"checkpoint_{name}", checkpoint_of(data), r"model\.safetensors is damaged", load_on_base)
    add(f"store_{name}", store_of(data), r"shard-\S+\.safetensors is damaged: ", read_store)


# JSON files: an adapter's config, an index, a store's and an interpreter's settings.

JSONS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "cut": lambda: b'{"peft_type": "LORA", "r',
    "nested": lambda: NESTED,
    "nested_in_an_object": lambda: b'{"kind":' * 100_000,
    "a_list": lambda: b"[1, 2]",
    "a_number": lambda: b"NaN",
    "a_text": lambda: b'"LORA"',
    "no_utf8": lambda: b'{"peft_type": "\xff\xfe\x80"}',
    "utf16": lambda: '{"peft_type": "LORA"}'.encode("utf-16"),
    "an_endless_number": lambda: b'{"r": ' + b"1" * 100_000 + b"}",
    "forty_megabytes_of_lists": lambda: b"[" + b"[]," * ((40 << 20) // 3) + b"[]]",
}


def text_of(build: Callable[[Path], Path], file: str, data: Callable[[], bytes]) -> Callable[[Path], Path]:
    def rebuild(folder: Path) -> Path:
        path = build(folder)
        written(path / file, data())
        return path

    return rebuild


for name, data in JSONS.items():
    add(f"peft_config_{name}", text_of(adapter, CONFIG, data), CONFIG)
    add(f"index_{name}", text_of(lambda f: indexed(f, {}), INDEX, data), r"index\.json", load_on_base)
    add(f"store_settings_{name}", text_of(a_store, "store.json", data), r"store\.json", read_store)
    interpreter_says = r"interpreter\.json"
    add(
        f"interpreter_settings_{name}",
        text_of(interpreter, "interpreter.json", data),
        interpreter_says,
        load_interpreter,
    )


# Paths.


@case("does not exist")
def path_to_nothing(folder: Path) -> Path:
    return folder / "nothing"


@case("does not exist")
def path_is_a_broken_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nothing")
    return folder / "link"


@case("does not exist")
def path_is_a_circle_of_links(folder: Path) -> Path:
    (folder / "link").symlink_to("link")
    return folder / "link"


@case("does not exist")
def path_too_long(folder: Path) -> Path:
    return folder / ("p" * 5000)


@case("in no known format: found a pipe or device")
def path_is_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "d.pt")
    return folder / "d.pt"


@case("in no known format: found a pipe or device")
def path_is_a_device(folder: Path) -> Path:
    (folder / "d.pt").symlink_to("/dev/zero")
    return folder / "d.pt"


@case("in no known format: found an empty folder")
def path_is_an_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@case("in no known format: found a folder with")
def path_with_escapes(folder: Path) -> Path:
    return written(folder / "a\x1b[31m\nb" / "c\x1b[31m\nd", b"").parent


@case(r"fits several formats \(dit, peft\); keep one")
def path_of_two_formats(folder: Path) -> Path:
    path = adapter(folder)
    saved(path / "weight-diffs" / "d.pt", stored())
    return written(path / "index.csv", HEADER + b"d.pt,0,cats,1\n").parent


if os.geteuid():  # root may read everything

    @case("permission")
    def path_that_may_not_be_read(folder: Path) -> Path:
        adapter(folder).chmod(0)
        return folder / "adapter"
