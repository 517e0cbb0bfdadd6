"""`python -m benchmarks.speed`: measure, print a table, and write the rows as JSON."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed.bases import DTYPES, SHAPES, default_bases
from benchmarks.speed.rows import Row, table
from benchmarks.speed.run import Report, run
from benchmarks.speed.stages import STAGES, cases
from weightdiff.artifacts import atomic_write_json
from weightdiff.cli.common import code_commit, machine
from weightdiff.models.memory import keep_freed_memory


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="How fast the engine is: beside the bare base, the published scheme and PEFT.",
        epilog="Example: python -m benchmarks.speed --stage tuning --base 5m --json speed.json",
    )
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this one; may be repeated")
    parser.add_argument(
        "--base", action="append", choices=list(SHAPES), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="fp32", help="of bases on the CPU; by default fp32"
    )
    parser.add_argument("--quick", action="store_true", help="one small case a stage: whether it all runs")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="time in all; fewer rounds where it is short (default 15)"
    )
    parser.add_argument("--no-memory", action="store_true", help="measure no peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--folder", type=Path, help="where temporary stores are made")
    args = parser.parse_args(given)
    if args.base and not torch.cuda.is_available() and any(SHAPES[b].cuda for b in args.base):
        parser.error("the bases 0.6b and 4b need a GPU, and there is none; choose 5m or 60m")
    for folder in (args.folder, args.json and args.json.absolute().parent):
        if folder and not folder.is_dir():  # told now, not after a quarter of an hour
            parser.error(f"{folder} is no folder; make it first")
    return args


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a case failed."""
    args = arguments(given)
    chosen = cases(
        args.stage or STAGES, args.base or default_bases(), args.dtype, args.quick, not args.no_memory
    )
    words = sys.argv[1:] if given is None else given
    made = {
        "command": shlex.join(["python", "-m", "benchmarks.speed", *words]),
        "commit": code_commit(),
        "machine": f"{machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    report, rows = Report(), list[Row]()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for row in run(chosen, 60 * args.minutes, Path(folder), report, _tell):
            rows.append(row)
            if args.json:  # after every row, so that a stopped run leaves what it has measured
                atomic_write_json(args.json, {"made": made, "rows": [r.to_json() for r in rows]})
    print(table(rows))
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {_device()}")
    print("floor: the frozen base alone over the same tokens; ratio: the other way's time / ours")
    for kind, names in (("skipped, no time was left", report.skipped), ("failed", report.failed)):
        for name in names:
            print(f"{kind}: {name}")
    return 1 if report.failed else 0


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    keep_freed_memory()  # as the command does, here for every way
    raise SystemExit(main())
