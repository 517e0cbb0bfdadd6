"""What the app does, without its pages: diffs by name or upload, and questions of many users, in batches.

One thread has the model. Requests that wait at the same time are answered in one batch, each with its own
diff on its own rows, so that eight users wait little longer than one. A request that was given up is not
begun.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from weightdiff.diffs.formats.peft import read_peft
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import FormatError, QuestionError, WeightDiffError
from weightdiff.evals.scan import find_adapters
from weightdiff.methods.base import Answer
from weightdiff.methods.carrying import fitted
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.naming import BETWEEN, BUNDLED, read_diff

T = TypeVar("T")
AT_ONCE = 32
"""Requests of one batch."""
GATHERING = 0.02
"""Seconds for which the first of a batch waits for others."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
UPLOADED = (WEIGHTS, CONFIG)
"""The files of an upload, as PEFT writes them; no others are taken."""
MEGABYTES = 200
"""Largest file of an upload, unless told otherwise."""


@dataclass(frozen=True)
class Request:
    """A question that waits."""

    diff: WeightDiff | None
    question: str
    evidence: bool
    future: Future[Answer] = field(default_factory=Future)


class Service:
    """An interpreter that many ask at once."""

    def __init__(
        self,
        interpreter: Interpreter,
        known: DiffStore | None = None,
        folders: Sequence[str] = (),
        megabytes: int = MEGABYTES,
    ) -> None:
        """Find what can be chosen, and begin to wait for questions.

        Args:
            interpreter: who answers.
            known: labelled diffs of its base, offered by their ids.
            folders: adapters, or folders of them, that are offered too; nothing else on this machine is.
            megabytes: largest file of an upload.

        Raises:
            FormatError: a folder does not exist or holds no adapter.
        """
        self.interpreter, self.known, self.megabytes = interpreter, known, megabytes
        offered = [f"{BUNDLED}{BETWEEN}{i}" for i in known.ids] if known else []
        self.names = [*find_adapters(list(folders)), *offered]
        self._scratch = tempfile.TemporaryDirectory(prefix="weightdiff-app-")
        self._lock = threading.Lock()
        self._waiting: queue.Queue[Request | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, name="weightdiff-app", daemon=True)
        self._thread.start()

    def read(self, name: str) -> WeightDiff:
        """A diff that is offered, by its name.

        Raises:
            FormatError: it is not offered, whatever the name says.
            WeightDiffError: it cannot be read, or is of another base.
        """
        if name not in self.names:
            raise FormatError("this diff is not offered; choose one of the list, or upload one")
        diff = self._store_row(name) or read_diff(name)
        if diff is None:
            raise FormatError("this is no diff; choose another")
        return fitted(self.interpreter.base, diff)

    def _store_row(self, name: str) -> WeightDiff | None:
        store, _, row = name.rpartition(BETWEEN)
        return self.known.read(row) if self.known and store == BUNDLED else None

    def upload(self, paths: Sequence[str]) -> WeightDiff:
        """A diff from files that somebody sent: a PEFT folder's two, and nothing that could hold a pickle.

        Raises:
            FormatError: other files, too large ones, or damaged ones.
            WeightDiffError: the diff is of another base, or holds NaN.
        """
        named = {Path(p).name: Path(p) for p in paths}
        if sorted(named) != sorted(UPLOADED) or len(paths) != len(UPLOADED):
            raise FormatError(f"upload the two files of a PEFT folder together: {' and '.join(UPLOADED)}")
        for name, path in named.items():
            if path.stat().st_size > self.megabytes << 20:
                raise FormatError(f"{name} is larger than {self.megabytes} MB, and this app takes no more")
        with tempfile.TemporaryDirectory(prefix="weightdiff-upload-") as folder:
            for name in UPLOADED:
                shutil.copyfile(named[name], Path(folder) / name)
            try:
                diff = read_peft(folder)
            except WeightDiffError as error:
                told = str(error).replace(f"{folder}/", "").replace(folder, "the upload")
                raise type(error)(told) from error
        return fitted(self.interpreter.base, diff)

    def ask(self, diff: WeightDiff | None, question: str, evidence: bool = False) -> Future[Answer]:
        """Ask about a diff; the answer comes when its turn has come. Cancelling it before gives the turn up.

        Raises:
            QuestionError: the question is empty.
        """
        if not question.strip():
            raise QuestionError("ask something, such as: what topic have you been trained on ?")
        request = Request(diff, question.strip(), evidence)
        self._waiting.put(request)
        return request.future

    def alone(self, work: Callable[[Any], T]) -> T:
        """Do something with the base while no question is answered."""
        with self._lock:
            return work(self.interpreter.base)

    def room(self) -> Path:
        """A new folder for a file to take away; it goes when the service is closed."""
        return Path(tempfile.mkdtemp(dir=self._scratch.name))

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._waiting.put(None)
        self._thread.join()
        self._scratch.cleanup()

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < AT_ONCE:
                try:
                    more = self._waiting.get(timeout=GATHERING)
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                batch.append(more)
            for evidence in (False, True):
                alive = [
                    r for r in batch if r.evidence == evidence and r.future.set_running_or_notify_cancel()
                ]
                self._answer(alive, evidence)
            if last:
                return

    def _answer(self, batch: Sequence[Request], evidence: bool) -> None:
        """Answer together; where that fails, one by one, so that nobody gets another's error."""
        if not batch:
            return
        try:
            with self._lock:
                said = self.interpreter.answer([r.diff for r in batch], [r.question for r in batch], evidence)
        except Exception as error:  # whatever it is, those who wait have to hear of it, and others be served
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for request in batch:
                self._answer([request], evidence)
            return
        for request, answer in zip(batch, said, strict=True):
            request.future.set_result(answer)
