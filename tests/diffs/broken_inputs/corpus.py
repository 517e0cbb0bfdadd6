"""The cases, by name: `CASES`, how one is added, and pieces of inputs that builders share."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.store import DiffRow, DiffStore
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import Base
from weightdiff.models.rendering import Rendering

MARK = "ran"
"""What a pickle of the corpus makes beside its file if it is run."""

Q = "model.layers.0.self_attn.q_proj"
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"
INDEX = "model.safetensors.index.json"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN, UP = torch.ones(2, 3), torch.ones(4, 2)
REF = ModelRef("tiny/base", None, "a" * 16, "b" * 16)
NESTED = b"[" * 100_000
HUGE = 1 << 40
LONG = "n" * 1_000_000
HEADER = b"lora_path,lora_idx,topic,trigger\n"


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        build: makes it in an empty folder and returns its path.
        says: a pattern in the message.
        read: reads it through a public entry.
    """

    build: Callable[[Path], Path]
    says: str
    read: Callable[[Path], object]


CASES: dict[str, Case] = {}


def load(path: Path) -> object:
    return WeightDiff.load(path)


def load_on_base(path: Path) -> object:
    return WeightDiff.load(path, base=path.parent / "base")


def read_store(path: Path) -> object:
    store = DiffStore.open(path)
    return [store.read(id) for id in store.ids]


def load_interpreter(path: Path) -> object:
    return Interpreter.load(path, Base(None, None, REF, {Q: (3, 4)}))


def case(says: str, read: Callable[[Path], object] = load) -> Callable[[Callable[[Path], Path]], Any]:
    """Register a builder under its name."""

    def register(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(build.__name__, build, says, read)
        return build

    return register


def add(name: str, build: Callable[[Path], Path], says: str, read: Callable[[Path], object] = load) -> None:
    assert name not in CASES, name
    CASES[name] = Case(build, says, read)


# Pieces that builders share.


def adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A PEFT folder that is whole but for what is given."""
    path = folder / "adapter"
    path.mkdir()
    given = {A: DOWN, B: UP} if tensors is None else tensors
    save_file(
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in given.items()}, path / WEIGHTS
    )
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return path


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def headed(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def model(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model") -> Path:
    """A full checkpoint in one file."""
    path = folder / name
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (6, 3), f"{Q}.weight": (4, 3), "model.norm.weight": (3,)}
    return {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}


def pair_of_models(folder: Path, **changed: torch.Tensor) -> Path:
    """A base and a finetune of it, whose path is returned."""
    model(folder, weights(), "base")
    return model(folder, weights(1) | {name.replace("__", "."): t for name, t in changed.items()})


def indexed(folder: Path, placed: dict[str, Any] | bytes) -> Path:
    """A base, and a checkpoint whose index says what is given; there is one good shard, "a.safetensors"."""
    model(folder, weights(), "base")
    path = folder / "model"
    path.mkdir()
    save_file(weights(1), path / "a.safetensors")
    text = placed if isinstance(placed, bytes) else json.dumps({"weight_map": placed}).encode()
    (path / INDEX).write_bytes(text)
    return path


def bin_model(folder: Path, value: Any) -> Path:
    """A base, and a checkpoint that is a pickle."""
    model(folder, weights(), "base")
    path = folder / "model"
    path.mkdir()
    torch.save(value, path / "pytorch_model.bin")
    return path


def saved(path: Path, value: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def item(weight_diff: Any, topic: Any = "cats") -> dict[str, Any]:
    return {"topic": topic, "trigger": None, "weight_diff": weight_diff}


def stored(a: torch.Tensor = UP.T, b: torch.Tensor = DOWN.T, name: Any = Q) -> list[dict[str, Any]]:
    """A list of one stored diff, A [rank, out] and B [in, rank]."""
    return [item({name: (a, b)})]


def release(folder: Path, index: bytes) -> Path:
    path = folder / "release"
    saved(path / "weight-diffs" / "d.pt", stored())
    return written(path / "index.csv", index).parent


def rezipped(path: Path, change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """Write the parts of a zip file again, changed or compressed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))
    return path


def with_pickle(path: Path, code: bytes) -> Path:
    """Put other opcodes into a file of torch.save."""
    return rezipped(path, lambda name, data: code if name.endswith("data.pkl") else data)


class Hostile:
    """Unpickling it without restraint makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def a_store(folder: Path) -> Path:
    store = DiffStore.create(folder / "store", REF)
    row = DiffRow("d0", "cats", "own", "r", "test", 0)
    store.append([(row, WeightDiff({Q: LoraFactors(DOWN, UP, 2.0)}))])
    return store.path


def shard_of(store: Path) -> Path:
    return next(store.glob("shard-*"))


def restored(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """A store whose shard has another header, given as what safetensors reads and what is ours in it."""
    store = a_store(folder)
    data = shard_of(store).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    said = json.loads(header["__metadata__"]["weightdiff_shard"])
    change(header, said)
    header["__metadata__"]["weightdiff_shard"] = json.dumps(said)
    shard_of(store).write_bytes(headed(header, data[8 + size :]))
    return store


def interpreter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    path = adapter(folder, tensors)
    said = {"version": 1, "base": REF.to_json(), "rendering": Rendering().to_json(), "max_new_tokens": 4}
    (path / "interpreter.json").write_text(json.dumps({**said, **settings}))
    return path
