"""Diff stores and interpreters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpus import (
    DOWN,
    HUGE,
    LONG,
    NESTED,
    REF,
    UP,
    WEIGHTS,
    A,
    B,
    Q,
    a_store,
    adapter,
    add,
    case,
    interpreter,
    load_interpreter,
    read_store,
    restored,
    shard_of,
    written,
)
from safetensors.torch import save_file

LIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "other_size": (lambda h, _: h[f"{Q}.up"]["shape"].append(HUGE), "does not fit its shape"),
    "other_offsets": (lambda h, _: h[f"{Q}.up"].update(data_offsets=[0, 16]), r"is damaged"),
    "negative_numbers": (lambda h, _: h[f"{Q}.scale"].update(shape=[-1], data_offsets=[4, 0]), "is damaged"),
    "broken_numbers": (lambda h, _: h[f"{Q}.scale"].update(shape=[1.0]), "is damaged"),
    "higher_rank": (lambda _, s: s["ranks"][0].__setitem__(0, 99), "ranks in its header"),
    "rank_of_text": (lambda _, s: s["ranks"][0].__setitem__(0, "2"), "is damaged"),
    "rank_with_a_fraction": (lambda _, s: s["ranks"][0].__setitem__(0, 1.5), "is damaged"),
    "no_ranks": (lambda _, s: s.update(ranks=3), "is damaged"),
    "metas_of_numbers": (lambda _, s: s.update(metas=[3]), "is damaged"),
    "rows_of_numbers": (lambda _, s: s.update(rows=[3]), "is damaged"),
    "another_module": (lambda _, s: s.update(modules=["ghost"]), "not those of its modules"),
    "modules_of_lists": (lambda _, s: s.update(modules=[[1]]), "is damaged"),
    "id_a_list": (lambda _, s: s["rows"][0].update(id=[1]), "is damaged"),
    "label_a_number": (lambda _, s: s["rows"][0].update(label=3), "is damaged"),
    "row_without_id": (lambda _, s: s["rows"][0].pop("id"), "fields missing"),
    "row_of_a_megabyte": (lambda _, s: s["rows"][0].update({LONG: 1}), "unknown"),
    "same_id_twice": (
        lambda _, s: s.update(rows=s["rows"] * 2, ranks=s["ranks"] * 2, metas=s["metas"] * 2),
        "is damaged",
    ),
    "newer_version": (lambda _, s: s.update(version=99), "version 99.* upgrade"),
}
for name, (change, says) in LIES.items():
    add(f"store_{name}", lambda folder, change=change: restored(folder, change), says, read_store)


@case("is damaged: its header is no diff shard's", read_store)
def store_nested_rows(folder: Path) -> Path:
    store = a_store(folder)
    save_file({"x": UP}, shard_of(store), {"weightdiff_shard": NESTED.decode()})
    return store


@case(r"its header has \d+ bytes, and \d+ are the most", read_store)
def store_header_of_countless_lists(folder: Path) -> Path:
    store = a_store(folder)
    header = b"[" + b"[]," * 33_000_000 + b"[]]"
    written(shard_of(store), len(header).to_bytes(8, "little") + header + bytes(8))
    return store


@case("is no file|cannot read", read_store)
def store_shard_is_a_pipe(folder: Path) -> Path:
    os.mkfifo(a_store(folder) / "shard-00001-00000000.safetensors")
    return folder / "store"


@case("is no file|cannot read", read_store)
def store_shard_is_a_folder(folder: Path) -> Path:
    (a_store(folder) / "shard-00001-00000000.safetensors").mkdir()
    return folder / "store"


@case(r"it has no store\.json; give", read_store)
def store_settings_are_a_pipe(folder: Path) -> Path:
    store = a_store(folder)
    (store / "store.json").unlink()
    os.mkfifo(store / "store.json")
    return store


@case(r"store\.json cannot be read", read_store)
def store_base_of_a_megabyte(folder: Path) -> Path:
    store = a_store(folder)
    info = json.loads((store / "store.json").read_text())
    written(store / "store.json", json.dumps({**info, "base": {LONG: 1}}).encode())
    return store


# Interpreters.

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "rendering_a_list": ({"rendering": [1]}, "cannot be read"),
    "rendering_of_wrong_kinds": ({"rendering": {"probes": 5, "renderings": "many"}}, "cannot be read"),
    "tokens_infinity": ({"max_new_tokens": float("inf")}, "cannot be read"),
    "tokens_negative": ({"max_new_tokens": -4}, "cannot be read"),
    "version_a_list": ({"version": [1]}, "cannot be read"),
    "newer_version": ({"version": 10**9}, "upgrade"),
    "base_without_name": ({"base": {"weights": "b"}}, "cannot be read|not a base model reference"),
    "meta_a_list": ({"meta": [1]}, "cannot be read"),
    "other_base": ({"base": {**REF.to_json(), "weights": "c" * 16}}, "their weights differ; load the base"),
}
for name, (settings, says) in SETTINGS.items():
    add(
        f"interpreter_{name}",
        lambda folder, settings=settings: interpreter(folder, **settings),
        says,
        load_interpreter,
    )

FOREIGN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "unknown_module": ({A.replace("q_proj", "x"): DOWN, B.replace("q_proj", "x"): UP}, "does not have: "),
    "misshapen_module": ({A: torch.ones(2, 7), B: UP}, r"in 7, out 4; the base has in 3, out 4"),
    "unknown_module_of_a_megabyte": (
        {A.replace("q_proj", LONG): DOWN, B.replace("q_proj", LONG): UP},
        "no part of a LoRA",
    ),
}
for name, (tensors, says) in FOREIGN.items():
    add(
        f"interpreter_{name}",
        lambda folder, tensors=tensors: interpreter(folder, tensors),
        says,
        load_interpreter,
    )


@case(r"no interpreter\.json there", load_interpreter)
def interpreter_without_settings(folder: Path) -> Path:
    return adapter(folder)


@case(r"no interpreter\.json there", load_interpreter)
def interpreter_settings_are_a_pipe(folder: Path) -> Path:
    os.mkfifo(adapter(folder) / "interpreter.json")
    return folder / "adapter"


@case("damaged or truncated", load_interpreter)
def interpreter_cut_weights(folder: Path) -> Path:
    path = interpreter(folder) / WEIGHTS
    return written(path, path.read_bytes()[:-5]).parent
