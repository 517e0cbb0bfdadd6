"""Time and memory of `extract` on a synthetic pair of checkpoints, beside what cannot be avoided.

    python benchmarks/extract.py            # 1.1 billion parameters in bfloat16, 20 shards each; 4.4 GB
    python benchmarks/extract.py --small    # two layers of the same widths

What cannot be avoided is reading every tensor of both checkpoints once, and one truncated SVD for each linear
weight; both are timed alone. Every part runs in a process of its own, so that peaks of memory are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from weightdiff.diffs.algebra import truncated
from weightdiff.diffs.checkpoints import Checkpoint
from weightdiff.diffs.extraction import extract
from weightdiff.diffs.factors import DenseDelta

MIB = 1 << 20
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def shapes(args: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama."""
    wide, inner, kv = args.hidden, args.intermediate, args.kv
    sizes = ((wide, wide), (kv, wide), (kv, wide), (wide, wide), (inner, wide), (inner, wide), (wide, inner))
    yield "model.embed_tokens.weight", (args.vocabulary, wide)
    for layer in range(args.layers):
        for name, size in zip(LINEAR, sizes, strict=True):
            part = "self_attn" if name in LINEAR[:4] else "mlp"
            yield f"model.layers.{layer}.{part}.{name}.weight", size
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (wide,)
    yield "model.norm.weight", (wide,)
    yield "lm_head.weight", (args.vocabulary, wide)


def make(args: argparse.Namespace, root: Path) -> int:
    """Write base and finetune, shard by shard; every tensor changes. Returns the bytes of both."""
    stream = torch.Generator().manual_seed(args.seed)
    names = list(shapes(args))
    weight_map: dict[str, str] = {}
    for folder in ("base", "tuned"):
        (root / folder).mkdir()
    for i in range(args.shards):
        before: dict[str, torch.Tensor] = {}
        after: dict[str, torch.Tensor] = {}
        file = f"model-{i + 1:05d}-of-{args.shards:05d}.safetensors"
        for name, shape in names[i :: args.shards]:
            weight = 0.02 * torch.randn(shape, generator=stream)
            change = 0.0003 * torch.randn(shape, generator=stream)
            if len(shape) == 2:
                change += (
                    0.0003
                    * torch.randn(shape[0], 8, generator=stream)
                    @ torch.randn(8, shape[1], generator=stream)
                )
            before[name], after[name] = weight.bfloat16(), (weight + change).bfloat16()
            weight_map[name] = file
        save_file(before, root / "base" / file)
        save_file(after, root / "tuned" / file)
    for folder in ("base", "tuned"):
        (root / folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (root / folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(f.stat().st_size for f in root.glob("*/*.safetensors"))


def reading(root: Path) -> dict[str, float]:
    """Seconds for a copy of every tensor of both checkpoints."""
    start = time.perf_counter()
    for path in sorted(root.glob("*/*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name).clone()
    return {"seconds": time.perf_counter() - start}


def svds(root: Path, rank: int) -> dict[str, float]:
    """Seconds for one truncated SVD of a matrix of each linear weight's shape."""
    base = Checkpoint.open(root / "base")
    wanted = [base.shape(n) for n in base.names() if n.removesuffix(".weight").endswith(LINEAR)]
    matrices = {shape: DenseDelta(torch.randn(shape)) for shape in set(wanted)}
    start = time.perf_counter()
    for shape in wanted:
        truncated(matrices[shape], rank)
    return {"seconds": time.perf_counter() - start}


def extraction(root: Path, rank: int) -> dict[str, float]:
    """Seconds and peak memory of `extract`, with what it kept."""
    before = peak_memory()
    start = time.perf_counter()
    diff, report = extract(Checkpoint.open(root / "base"), Checkpoint.open(root / "tuned"), rank)
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": peak_memory() / MIB,
        "imports_mib": before / MIB,
        "diff_mib": 4 * diff.num_parameters / MIB,
        "read_mib": report.bytes_read / MIB,
        "energy": report.energy,
        "changed": report.changed,
    }


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage there also counts the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def energy_is_correct(rank: int) -> str:
    """The energy that is told of a matrix just large enough for the randomized SVD, beside exact ones."""
    matrix = torch.randn(1700, 1600) + torch.randn(1700, 8) @ torch.randn(8, 1600)
    low, told = truncated(DenseDelta(matrix), rank)
    values = torch.linalg.svdvals(matrix.double()).square()
    missed = float((matrix.double() - low.dense().double()).square().sum() / values.sum())
    best = float(values[:rank].sum() / values.sum())
    return f"told {told:.5f}, of the factors {1 - missed:.5f}, best possible {best:.5f}"


def measured(part: str, root: Path, rank: int) -> dict[str, float]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(root), "--rank", str(rank)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time and memory of extract on a synthetic pair.")
    parser.add_argument("--small", action="store_true", help="2 layers, 4000 tokens, 4 shards")
    for name, default in (
        ("hidden", 2048),
        ("intermediate", 5632),
        ("kv", 256),
        ("layers", 22),
        ("vocabulary", 32000),
        ("shards", 20),
        ("rank", 16),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"by default {default}")
    parser.add_argument("--folder", type=Path, help="where the temporary pair is made")
    parser.add_argument("--part", choices=["reading", "svds", "extraction"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.layers, args.vocabulary, args.shards = 2, 4000, 4
    return args


def main() -> None:
    """Make the pair, measure, print."""
    args = arguments()
    torch.manual_seed(args.seed)
    if args.part:
        run = {
            "reading": lambda: reading(args.folder),
            "svds": lambda: svds(args.folder, args.rank),
            "extraction": lambda: extraction(args.folder, args.rank),
        }
        print(json.dumps(run[args.part]()))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        size = make(args, root)
        count = size / 4 / 1e9
        print(f"{count:.2f} billion parameters, {size / MIB:.0f} MiB in {args.shards} shards each")
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, rank {args.rank}")
        read, svd, found = (measured(p, root, args.rank) for p in ("reading", "svds", "extraction"))
    floor = read["seconds"] + svd["seconds"]
    print(f"reading both checkpoints    {read['seconds']:8.2f} s")
    print(f"one SVD of each matrix      {svd['seconds']:8.2f} s")
    ratio = found["seconds"] / floor
    print(f"extract                     {found['seconds']:8.2f} s, {ratio:.2f} times their sum")
    parts = f"of which imports {found['imports_mib']:.0f} and the diff {found['diff_mib']:.0f}"
    print(f"peak memory of extract      {found['peak_mib']:8.0f} MiB, {parts}")
    print(f"{found['changed']:.0f} tensors changed, {found['read_mib']:.0f} MiB read")
    print(f"energy kept                 {found['energy']:8.4f}")
    print(f"energy of a 1700×1600 matrix: {energy_is_correct(args.rank)}")


if __name__ == "__main__":
    main()
