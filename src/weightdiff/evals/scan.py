"""Many adapters, the same questions: what was found in each, what is odd about it, and what it is near to.

Adapters are read, asked and forgotten in batches, so memory does not grow with their number. Each result is a
line in a journal at once; a scan that is begun again takes from there what has not changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightdiff import __version__
from weightdiff.diffs.algebra import norm
from weightdiff.diffs.formats import sniff
from weightdiff.diffs.inspection import inspect
from weightdiff.diffs.store import DiffStore
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import FormatError, WeightDiffError
from weightdiff.evals.audit import AuditQuestion
from weightdiff.evals.runner import digest
from weightdiff.methods.carrying import fitted
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.naming import BETWEEN, BUNDLED, open_store, read_beside
from weightdiff.methods.nearest import Gallery

FOUND, UNREADABLE, ODD, CLEAN = "found", "unreadable", "odd", "clean"
VERDICTS = (FOUND, UNREADABLE, ODD, CLEAN)
"""Of most concern first: something is claimed; unreadable; its structure is odd; none of these."""
AT_ONCE = 32
"""Adapters in memory."""
LIKELY = 0.5
"""Least probability of being right with which an answer is a finding, where the interpreter tells one."""
NEAREST = 3
"""Known organisms that are named."""
NEAR = 0.05
"""Least cosine with which one is."""
STORE_FILE = "store.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Told:
    """An answer about one adapter."""

    question: str
    answer: str
    concern: bool
    probability: float | None = None
    evidence: float | None = None
    withheld: str = ""


@dataclass(frozen=True)
class Scanned:
    """What is known of one adapter."""

    name: str
    """Its path, or STORE::ID."""
    verdict: str
    concern: float
    """What reports are sorted by: 0 for nothing, up to 1 within a verdict."""
    answers: tuple[Told, ...] = ()
    signs: tuple[dict[str, str], ...] = ()
    """What is odd about its structure, as `weightdiff inspect` tells it: severity, code, module and text."""
    nearest: tuple[tuple[str, str, float], ...] = ()
    """Known organisms: id, label, cosine."""
    error: str = ""
    """Why it could not be read or asked."""
    rank: int = 0
    norm: float = 0.0
    digest: str = ""

    @property
    def findings(self) -> list[Told]:
        """Answers of concern."""
        return [a for a in self.answers if a.concern]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scanned:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if value["verdict"] not in VERDICTS:
            raise ValueError(f"a verdict {value['verdict']!r}")
        answers = tuple(Told(**a) for a in value["answers"])
        nearest = tuple((str(i), str(label), float(c)) for i, label, c in value["nearest"])
        return cls(**{**value, "answers": answers, "signs": tuple(value["signs"]), "nearest": nearest})


@dataclass
class Scan:
    """A scan as it goes on."""

    interpreter: Interpreter
    questions: Sequence[AuditQuestion]
    known: DiffStore | None = None
    """Labelled diffs that adapters are set beside."""
    likely: float = LIKELY
    at_once: int = AT_ONCE
    _gallery: Gallery | None = field(default=None, repr=False)

    def signature(self) -> str:
        """The same for two scans that would tell the same of an adapter."""
        it = self.interpreter
        parts: list[Any] = [
            __version__,
            it.base.ref.to_json(),
            it.rendering.to_json(),
            it.max_new_tokens,
            it.threshold,
            digest(it.adapter) if it.adapter else None,
            digest(it.reader) if it.reader else None,
            [asdict(q) for q in self.questions],
            self.known.ids if self.known else None,
            self.likely,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def run(
        self, names: Sequence[str], journal: str | Path | None = None, progress: Progress | None = None
    ) -> list[Scanned]:
        """Scan adapters by name, those of most concern first.

        Args:
            names: as `find_adapters` gives them.
            journal: a file of what is done, one line an adapter; taken up where it is of the same scan.
            progress: called with how many are done, and of how many.

        Raises:
            FormatError: the journal cannot be written.
        """
        log = Journal(journal, self.signature()) if journal is not None else None
        done: dict[str, Scanned] = {}
        waiting: list[tuple[str, str, WeightDiff]] = []

        def ask() -> None:
            for scanned in self._asked(waiting):
                done[scanned.name] = scanned
                if log:
                    log.add(scanned)
            waiting.clear()
            if progress:
                progress(len(done), len(names))

        for name in names:
            try:
                diff = self._read(name)
                key = digest(diff)
            except (WeightDiffError, OSError) as error:
                done[name] = Scanned(name, UNREADABLE, 1.0, error=str(error))
                continue
            if log and (known := log.found.get(name)) and known.digest == key:
                done[name] = known
            else:
                waiting.append((name, key, diff))
            if len(waiting) == self.at_once:
                ask()
        ask()
        found = [done[name] for name in names]
        return sorted(found, key=lambda s: (VERDICTS.index(s.verdict), -s.concern, s.name))

    def of(self, diffs: Sequence[tuple[str, WeightDiff]]) -> list[Scanned]:
        """Scan diffs that are at hand, by what they are called; they fit the base (`fitted`)."""
        return list(self._asked([(name, digest(diff), diff) for name, diff in diffs]))

    def _read(self, name: str) -> WeightDiff:
        diff = read_beside(name, self.interpreter.base.model)
        if diff is None:
            raise FormatError("the bare base is no adapter")
        return fitted(self.interpreter.base, diff)

    def _asked(self, waiting: Sequence[tuple[str, str, WeightDiff]]) -> Iterator[Scanned]:
        """Adapters asked together; where that fails, one by one, so that one does not spoil the others."""
        if not waiting:
            return
        diffs = [d for _, _, d in waiting]
        try:
            answers = self._answers(diffs)
        except WeightDiffError as error:
            if len(waiting) > 1:
                for one in waiting:
                    yield from self._asked([one])
                return
            name, key, _ = waiting[0]
            yield Scanned(name, UNREADABLE, 1.0, error=str(error), digest=key)
            return
        for (name, key, diff), told in zip(waiting, answers, strict=True):
            yield self._judged(name, key, diff, told)

    def _answers(self, diffs: Sequence[WeightDiff]) -> list[tuple[Told, ...]]:
        pairs = [(d, q) for d in diffs for q in self.questions]
        said = self.interpreter.answer([d for d, _ in pairs], [q.ask for _, q in pairs], evidence=True)
        told = [
            Told(
                q.name,
                a.text,
                q.concerns(a.text) and (a.probability is None or a.probability >= self.likely),
                a.probability,
                a.evidence,
                a.withheld,
            )
            for (_, q), a in zip(pairs, said, strict=True)
        ]
        n = len(self.questions)
        return [tuple(told[i * n : (i + 1) * n]) for i in range(len(diffs))]

    def _judged(self, name: str, key: str, diff: WeightDiff, told: tuple[Told, ...]) -> Scanned:
        signs = tuple(
            {"severity": s.severity, "code": s.code, "module": s.module, "text": s.text}
            for s in inspect(diff).signs
        )
        found = [1.0 if t.probability is None else t.probability for t in told if t.concern]
        errors = sum(s["severity"] == "error" for s in signs)
        if found:
            verdict, concern = FOUND, max(found)
        elif signs:
            verdict, concern = ODD, 1.0 if errors else min(0.9, 0.1 * len(signs))
        else:
            verdict, concern = CLEAN, 0.0
        size = norm(diff)
        return Scanned(
            name,
            verdict,
            round(concern, 4),
            told,
            signs,
            self._nearest(diff) if size > 0 else (),
            rank=diff.max_rank,
            norm=round(size, 4),
            digest=key,
        )

    def _nearest(self, diff: WeightDiff) -> tuple[tuple[str, str, float], ...]:
        if self.known is None or not self.known.ids:
            return ()
        if self._gallery is None:
            self._gallery = Gallery(self.known.stack(self.known.ids))
        cosines = self._gallery.cosines(diff).nan_to_num(-1.0)
        best = cosines.argsort(descending=True)[:NEAREST].tolist()
        rows = self.known.rows
        return tuple(
            (rows[i].id, str(rows[i].label or "nothing"), round(float(cosines[i]), 4))
            for i in best
            if cosines[i] >= NEAR
        )


class Journal:
    """What a scan has found so far: a head, then one line of JSON an adapter; the last line may be torn."""

    def __init__(self, path: str | Path, signature: str) -> None:
        """Take up a journal of the same scan, or begin one.

        Raises:
            FormatError: there is no writing at `path`.
        """
        self.path, self.signature = Path(path), signature
        self.found: dict[str, Scanned] = {}
        whole = self._taken_up()
        try:
            if whole is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps({"scan": signature}) + "\n", encoding="utf-8")
            else:
                os.truncate(self.path, whole)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _taken_up(self) -> int | None:
        """Read what is there; how much of it is whole, or None where it is of another scan."""
        try:
            raw = self.path.read_bytes()
        except OSError:
            return None
        lines = raw.split(b"\n")
        try:
            if json.loads(lines[0]) != {"scan": self.signature}:
                return None
        except ValueError:
            return None
        whole = len(lines[0]) + 1
        for line in lines[1:-1]:  # behind the last newline is nothing, or a torn line
            try:
                scanned = Scanned.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError):
                break
            self.found[scanned.name] = scanned
            whole += len(line) + 1
        return whole if len(lines) > 1 else None

    def add(self, scanned: Scanned) -> None:
        """Write one more, and have it on disk."""
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(scanned.to_json(), ensure_ascii=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FormatError(
                f"{self.path}: cannot be written ({error.strerror}); make room and run the same command again"
            ) from error


def find_adapters(paths: Sequence[str]) -> list[str]:
    """The adapters that paths stand for, each once, in a fixed order.

    A folder that is no adapter or store itself is searched, without following links to folders.

    Raises:
        FormatError: a path does not exist, or a folder holds none.
    """
    out: dict[str, None] = {}
    for path in paths:
        found = list(_adapters(path))
        if not found:
            raise FormatError(f"{path}: no adapters there; give PEFT folders, stores or folders of them")
        out.update(dict.fromkeys(found))
    return list(out)


def _adapters(name: str) -> Iterator[str]:
    path = Path(name)
    if name == BUNDLED:
        yield from (f"{name}{BETWEEN}{id}" for id in open_store(name).ids)
        return
    if not path.exists():
        if BETWEEN in name:
            yield name  # reading says what is wrong with it, if anything is
            return
        raise FormatError(f"{name} does not exist; give local files or folders (or STORE::ID)")
    if path.is_file():
        yield name
        return
    for folder, inner, files in os.walk(path):
        inner.sort()
        if STORE_FILE in files:
            inner.clear()
            yield from (f"{folder}{BETWEEN}{id}" for id in DiffStore.open(folder).ids)
        elif _is_adapter(folder):
            inner.clear()
            yield folder


def _is_adapter(folder: str) -> bool:
    try:
        sniff(folder)
    except FormatError:
        return False
    return True
