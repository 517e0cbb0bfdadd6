"""A corpus of broken and hostile inputs: each case builds one and says what refusing it must say.

`test_broken_inputs` runs this folder (python broken_inputs FOLDER), so that a hang or a bomb ends in a child
of it: every case is read in a process of its own, under limits of time and memory.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_checkpoint
import cases_dit
import cases_files
import cases_peft
import cases_store
from corpus import CASES, MARK, Case

from weightdiff.diffs.formats import readers
from weightdiff.errors import WeightDiffError

__all__ = ["CASES", "cases_checkpoint", "cases_dit", "cases_files", "cases_peft", "cases_store"]

SECONDS = 5
GUARD_BYTES = 3 << 30
"""Address space that a case may take; what it may use is less, and is measured."""


def main(root: Path) -> None:
    """Read every case and print a JSON object: name → what came of it."""
    readers()  # imports them once, and not in every child
    gc.freeze()
    found = {name: outcome(chosen, root / str(i)) for i, (name, chosen) in enumerate(CASES.items())}
    json.dump(found, sys.stdout)


def outcome(chosen: Case, folder: Path) -> dict[str, Any]:
    """Build a case here and read it in a child."""
    folder.mkdir()
    path = chosen.build(folder)
    paths = [str(path), *([str(path.parent)] if os.path.isfile(path) else [])]
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        with os.fdopen(sending, "w") as stream:
            stream.write(json.dumps(attempt(chosen.read, path)))
            stream.flush()
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    found = json.loads(text) if text else {"died": f"status {status}"}
    found |= {"paths": paths, "ran": (folder / MARK).exists()}
    for held in (folder, *folder.rglob("*")):
        if held.is_dir() and not held.is_symlink():
            held.chmod(0o700)
    shutil.rmtree(folder)
    return found


def attempt(read: Callable[[Path], object], path: Path) -> dict[str, Any]:
    """Read under limits; whatever happens is told."""
    before = peak()
    limit_memory()
    signal.alarm(SECONDS)  # which ends this process
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            read(path)
            said = {"error": None, "ours": False, "message": "it was read"}
        except BaseException as error:
            ours = isinstance(error, WeightDiffError)
            said = {"error": type(error).__name__, "ours": ours, "message": str(error)}
    return {
        **said,
        "seconds": time.perf_counter() - start,
        "bytes": peak() - before,
        "warnings": [str(w.message) for w in warned],
    }


def peak() -> int:
    """Most memory that this process held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def limit_memory() -> None:
    """Refuse memory long before the machine runs out of it."""
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        now = int(sizes.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + GUARD_BYTES, now + GUARD_BYTES))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
