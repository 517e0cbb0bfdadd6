"""Asks methods about a dataset: batch by batch, each kept by its content, so that a killed run goes on.

A batch's file is whole or absent and its name is a digest of everything that its answers depend on; asking
again reads what is there. What answers are worth is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from weightdiff import __version__
from weightdiff.artifacts import atomic_write_bytes, read_json, remove_leftovers
from weightdiff.diffs.types import LoraFactors, WeightDiff, tensors_of
from weightdiff.errors import FormatError, NonFiniteError, QuestionError
from weightdiff.evals.dataset import Dataset, Item
from weightdiff.evals.scoring import ranks
from weightdiff.methods.base import Answer, Method, Ranker
from weightdiff.methods.dit import gives_evidence
from weightdiff.methods.guessing import WORLD
from weightdiff.methods.registry import Context, build, find

DIFFS_AT_ONCE = 32
ANSWERS = "answers"
"""Folder, in a run's, of the batches."""
REFUSALS = (FormatError, NonFiniteError, QuestionError)
"""What a method raises about a batch that it cannot answer."""
_FORMAT = 1

Progress = Callable[[str, int, int], None]
"""Called with a method's name, how many of its questions are answered, and how many there are."""


@dataclass(frozen=True)
class Told:
    """What a method said to one item."""

    answer: Answer
    seconds: float
    """The item's share of its batch's time."""
    rank: int | None = None
    truth_logprob: float | None = None
    error: str = ""
    """Why there is no answer."""


@dataclass(frozen=True)
class Asked:
    """What one method is asked in one go."""

    items: tuple[Item, ...]
    diffs: tuple[str | None, ...]
    """Their different diffs, in the order in which the method gets them."""


def batches(items: Sequence[Item], at_once: int = DIFFS_AT_ONCE) -> list[Asked]:
    """Split items so that a batch has at most `at_once` diffs of one family, each with all its items.

    In a batch, no diff stands beside one of its own cluster (in a circle), as far as that is possible:
    controls exchange neighbours. A diff is not left alone where another batch can take it.

    Raises:
        ValueError: `at_once` is less than two.
    """
    if at_once < 2:
        raise ValueError(f"a batch needs two diffs or more, not {at_once}: controls exchange them")
    families: dict[str, dict[str | None, list[Item]]] = {}
    for item in items:
        families.setdefault(item.family, {}).setdefault(item.diff, []).append(item)
    out = []
    for by_diff in families.values():
        order = _rounds({diff: own[0].cluster for diff, own in by_diff.items()})
        starts = list(range(0, len(order), at_once))
        if len(order) - starts[-1] == 1 and len(starts) > 1:
            starts[-1] -= 1  # the one before gives the last diff company
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            part = order[start:end]
            apart = spread(part, [by_diff[d][0].cluster for d in part])
            out.append(Asked(tuple(i for d in apart for i in by_diff[d]), tuple(apart)))
    return out


def spread(diffs: Sequence[str | None], clusters: Sequence[str]) -> list[str | None]:
    """The diffs in an order in which, around a circle, no two of a cluster are neighbours.

    Possible where no cluster has more than half of them; otherwise as many as can be are apart.
    """
    sizes = Counter(clusters)
    first = {c: i for i, c in reversed(list(enumerate(clusters)))}
    places = sorted(range(len(diffs)), key=lambda i: (-sizes[clusters[i]], first[clusters[i]], i))
    out: list[str | None] = [None] * len(diffs)
    slots = [*range(0, len(diffs), 2), *range(1, len(diffs), 2)]
    for slot, i in zip(slots, places, strict=True):
        out[slot] = diffs[i]
    return out


def ask(
    dataset: Dataset,
    methods: Sequence[str],
    context: Context,
    folder: Path,
    at_once: int = DIFFS_AT_ONCE,
    progress: Progress | None = None,
) -> dict[str, list[Told]]:
    """Ask every method every item, or read from `folder` what it answered before.

    Where a method cannot answer a batch (it raises one of `REFUSALS`), its items have no answer and the
    reason; such a batch is tried again next time.

    Args:
        dataset: what is asked.
        methods: names in the registry, each once.
        context: what they are built from.
        folder: of the run; batches are kept in its subfolder "answers".
        at_once: diffs of a batch.
        progress: called after each batch.

    Returns:
        For each method what it told, in the order of the dataset's items.

    Raises:
        QuestionError: a method is unknown, named twice, or lacks something that the context could have.
        MissingDependencyError: a method needs a package that is not installed.
        BaseMismatchError: the dataset is of another base.
    """
    if repeated := [name for name, n in Counter(methods).items() if n > 1]:
        raise QuestionError(f"method {repeated[0]!r} is named twice; name each method once")
    WeightDiff({}, dataset.base).check_base(context.base.ref)
    entries = {name: find(name) for name in methods}  # an unknown one is refused before any work
    built = {name: build(name, context) for name in methods}  # what it lacks is said now, not hours later
    reader = _Diffs(dataset)
    parts = batches(dataset.items, at_once)
    out: dict[str, list[Told]] = {}
    for name in methods:
        own = folder / ANSWERS / name
        remove_leftovers(own)
        told: dict[str, Told] = {}
        signature = _signature(name, entries[name].needs, context)
        for part in parts:
            file = own / f"{_key(signature, part, reader, dataset)}.json"
            found = _read(file, len(part.items))
            if found is None:
                found = _told(built[name], part, reader, dataset)
                if not any(t.error for t in found):
                    _write(file, found)
            told |= dict(zip((i.id for i in part.items), found, strict=True))
            if progress:
                progress(name, len(told), len(dataset.items))
        out[name] = [told[i.id] for i in dataset.items]
        del built[name]  # with all that it holds
    return out


def tell(method: Method, part: Asked, dataset: Dataset) -> list[Told]:
    """Ask a method one batch and keep nothing: one entry an item of the batch, as `ask` has them."""
    return _told(method, part, _Diffs(dataset), dataset)


def _told(method: Method, part: Asked, reader: _Diffs, dataset: Dataset) -> list[Told]:
    """Ask one batch."""
    of = {d: reader.diff(d) for d in part.diffs}
    diffs, questions = [of[i.diff] for i in part.items], [i.question for i in part.items]
    began = time.perf_counter()
    try:
        if gives_evidence(method):
            answers = method.answer(diffs, questions, evidence=True)
        else:
            answers = method.answer(diffs, questions)
        ranked = _ranked(method, part, diffs, dataset) if isinstance(method, Ranker) else {}
    except REFUSALS as e:
        return [Told(Answer(""), 0.0, error=str(e)) for _ in part.items]
    share = (time.perf_counter() - began) / len(part.items)
    return [
        Told(a, round(share, 6), *ranked.get(item.id, (None, None)))
        for item, a in zip(part.items, answers, strict=True)
    ]


def _ranked(
    method: Ranker, part: Asked, diffs: Sequence[WeightDiff | None], dataset: Dataset
) -> dict[str, tuple[int, float]]:
    """Rank and log-probability of the truth, for items that have candidates; by item id."""
    found: dict[str, tuple[int, float]] = {}
    for name in sorted({i.candidates for i in part.items if i.candidates}):
        candidates = dataset.candidates[name]
        at = [k for k, i in enumerate(part.items) if i.candidates == name]
        scores = method.candidate_logprobs(
            [diffs[k] for k in at], [part.items[k].question for k in at], candidates
        )
        truths = [candidates.index(part.items[k].truths[0]) for k in at]
        for k, rank, row, truth in zip(at, ranks(scores, truths), scores, truths, strict=True):
            found[part.items[k].id] = rank, round(float(row[truth]), 5)
    return found


class _Diffs:
    """Reads the diffs of a dataset, a batch's worth at a time, and knows their digests."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._digests: dict[str | None, str] = {None: "none"}
        self._held: dict[str | None, WeightDiff | None] = {None: None}

    def diff(self, name: str | None) -> WeightDiff | None:
        if name not in self._held:
            if len(self._held) > 2 * DIFFS_AT_ONCE:
                self._held = {None: None}
            self._held[name] = self.dataset.read(name)
        return self._held[name]

    def digest(self, name: str | None) -> str:
        if name not in self._digests:
            found = self.diff(name)
            self._digests[name] = "none" if found is None else digest(found)
        return self._digests[name]


def digest(diff: WeightDiff) -> str:
    """SHA-256 of all that a diff changes, and of what is known of its trigger."""
    found = hashlib.sha256(json.dumps(diff.meta.get("trigger"), default=str).encode())
    for name, m in sorted(diff.modules.items()):
        scale = m.scale if isinstance(m, LoraFactors) else None
        found.update(f"{name} {type(m).__name__} {scale!r}".encode())
        for tensor in tensors_of(m):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for name, p in sorted(diff.parameters.items()):
        found.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        found.update(p.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _signature(name: str, needs: Sequence[str], context: Context) -> dict[str, Any]:
    """What a method's answers depend on besides the questions; weights only where it needs them."""
    it, store = context.interpreter, context.store
    asked = it if "interpreter" in needs else None
    return {
        "format": _FORMAT,
        "version": __version__,
        "method": name,
        "base": context.base.ref.to_json(),
        "wording": None if it is None else [it.rendering.to_json(), it.max_new_tokens],
        "adapter": digest(asked.adapter) if asked is not None and asked.adapter else None,
        "reader": digest(asked.reader) if asked is not None and asked.reader else None,
        "store": store.ids if store is not None and "store" in needs else None,
        "seed": context.seed,
        "effort": context.effort if "store" in needs else None,
        "guesser": WORLD if context.guesser is None else context.guesser.name,
    }


def _key(signature: dict[str, Any], part: Asked, reader: _Diffs, dataset: Dataset) -> str:
    """Digest of a batch."""
    asked = [
        [reader.digest(i.diff), i.question, i.candidates and [i.truths[0], *dataset.candidates[i.candidates]]]
        for i in part.items
    ]
    text = json.dumps([signature, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path, n: int) -> list[Told] | None:
    """A batch from its file; None where there is none that can be used."""
    try:
        entries = read_json(file)["told"]
        found = [Told(**{**e, "answer": Answer(**e["answer"])}) for e in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if len(found) == n else None


def _write(file: Path, told: Sequence[Told]) -> None:
    text = json.dumps({"told": [asdict(t) for t in told]}, ensure_ascii=False)
    atomic_write_bytes(file, text.encode())


def _rounds(cluster_of: dict[str | None, str]) -> list[str | None]:
    """Diffs in rounds: the first of every cluster, then the second of every cluster, and so on."""
    number: Counter[str] = Counter()
    rounds: list[tuple[int, str | None]] = []
    for diff, cluster in cluster_of.items():
        rounds.append((number[cluster], diff))
        number[cluster] += 1
    return [diff for _, diff in sorted(rounds, key=lambda r: r[0])]
