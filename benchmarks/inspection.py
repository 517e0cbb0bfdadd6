"""How long `weightdiff inspect` takes for a rank-16 LoRA of a 7B model, against multiplying it out.

Run: OMP_NUM_THREADS=1 python benchmarks/inspection.py

(The file is not called inspect.py: Python would then find it in place of its own module of that name.)
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from weightdiff.diffs.formats.peft import write_peft
from weightdiff.diffs.inspection import inspect
from weightdiff.diffs.types import LoraFactors, ModuleDelta, WeightDiff

LAYERS, RANK, HIDDEN, INNER = 32, 16, 4096, 11008
MODULES = {
    **{f"self_attn.{side}_proj": (HIDDEN, HIDDEN) for side in "qkvo"},
    **{f"mlp.{side}_proj": (HIDDEN, INNER) for side in ("gate", "up")},
    "mlp.down_proj": (INNER, HIDDEN),
}
"""Module → (in, out) features of one layer."""


def random_diff(seed: int = 0) -> WeightDiff:
    """Factors of a Llama-7B-shaped model, float32."""
    stream = torch.Generator().manual_seed(seed)
    modules: dict[str, ModuleDelta] = {
        f"model.layers.{layer}.{name}": LoraFactors(
            torch.randn(RANK, width, generator=stream) / width**0.5,
            torch.randn(height, RANK, generator=stream) * 0.01,
            2.0,
        )
        for layer in range(LAYERS)
        for name, (width, height) in MODULES.items()
    }
    return WeightDiff(modules)


def timed_thin(folder: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds for reading a folder and for inspecting it, and each module's largest singular value."""
    start = time.perf_counter()
    diff = WeightDiff.load(folder)
    read = time.perf_counter()
    found = inspect(diff)
    return read - start, time.perf_counter() - read, {r.name: r.spectral for r in found.modules}


def timed_plain(m: ModuleDelta) -> tuple[float, float]:
    """Seconds for multiplying one module out and taking its singular values; the largest of them."""
    start = time.perf_counter()
    largest = float(torch.linalg.svdvals(m.dense())[0])
    return time.perf_counter() - start, largest


def modules_worth_of(name: str) -> float:
    """The work of all modules' dense SVDs, in units of one module's: it grows as long side · short side²."""
    work = {n: max(size) * min(size) ** 2 for n, size in MODULES.items()}
    return LAYERS * sum(work.values()) / work[name]


def main() -> None:
    """Time both and print the ratio."""
    diff = random_diff()
    name = "self_attn.q_proj"
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_peft(diff, Path(temporary) / "adapter", base_name="random-7b")
        read, inspected, largest = timed_thin(folder)
    one = f"model.layers.0.{name}"
    seconds, expected = timed_plain(diff.modules[one])
    plain = seconds * modules_worth_of(name)
    print(f"{len(diff.modules)} modules, rank {RANK}, {diff.num_parameters:,} numbers, float32")
    print(f"reading {read:.2f} s, inspecting {inspected:.2f} s, together {read + inspected:.2f} s")
    print(f"multiplying out and svdvals of one {name}: {seconds:.1f} s; all, extrapolated: {plain:,.0f} s")
    print(f"inspecting is {plain / inspected:,.0f} times faster ({torch.get_num_threads()} threads)")
    print(f"the two largest singular values differ by {abs(largest[one] / expected - 1):.1e}, relatively")


if __name__ == "__main__":
    main()
