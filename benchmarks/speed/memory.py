"""Peak memory of one way of doing a case, above the base alone, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import Case

MIB = 1 << 20
PRELOADED = ["torch", "transformers", "peft", "weightdiff.training.tuning", "weightdiff.methods.dit"]
"""What the process that others are forked from imports once; it computes nothing, so that forking is safe."""
TIMEOUT = 600


class Peak:
    """Peak memory since it was begun, above what was held then; on a GPU the GPU's, else resident memory."""

    def __init__(self, device: str) -> None:
        """Begin."""
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            _forget_peak()
            self.before = _resident("VmRSS")

    @property
    def mib(self) -> float:
        """So far, in MiB."""
        if self.device == "cuda":
            import torch

            return (torch.cuda.max_memory_allocated() - self.before) / MIB
        return max(0, _resident("VmHWM") - self.before) / MIB


def _forget_peak() -> None:
    """Let the kernel count the peak anew; where it cannot, the peak since the process began counts."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident(field: str) -> int:
    """Resident memory of this process in bytes, now ("VmRSS") or at most ("VmHWM")."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage there also counts the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_of(case: Case, way: str, folder: Path) -> float:
    """Peak memory in MiB of two rounds of a case by one way, above the base and what is asked about.

    Raises:
        RuntimeError: the other process failed; the message has its error.
    """
    return in_a_process(_measure, case, way, folder)


def in_a_process(run: Callable[..., float], *arguments: Any) -> float:
    """A function's result from a new process, forked from one that has imported what is heavy.

    Raises:
        RuntimeError: it failed there, or took longer than `TIMEOUT` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_told, args=(theirs, run, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT):
            raise RuntimeError(f"{run.__name__} took longer than {TIMEOUT} s")
        good, found = ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"{run.__name__} ended with exit code {process.exitcode}") from error
    finally:
        process.kill()
        process.join()
    if not good:
        raise RuntimeError(found)
    return found


def _told(pipe: Any, run: Callable[..., float], arguments: tuple[Any, ...]) -> None:
    """Run in the new process, and tell the result."""
    try:
        pipe.send((True, run(*arguments)))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


def _measure(case: Case, way: str, folder: Path) -> float:
    from benchmarks.speed.lockstep import alone

    base = case.build()
    ways = case.ways(base, folder)
    peak = Peak("cpu" if case.base is None else case.base.device)
    alone(ways, way)
    return peak.mib
