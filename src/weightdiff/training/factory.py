"""The factory: many organisms trained at once on one frozen base.

Each organism sits in a slot with its own rows, random stream, clock and learning rate, and takes nothing from
its neighbours: a batch of them ends where each alone would end, up to rounding. When one has finished, the
next spec takes its slot. The teacher of the KL rows is the base itself with the LoRAs switched off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from weightdiff.diffs.store import DiffRow
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.models.chat import Encoded, encode_samples
from weightdiff.models.halving import Halving
from weightdiff.models.multilora import RowLoras, attach, switched_off
from weightdiff.models.packing import Packed, pack_where_it_pays
from weightdiff.models.spec import model_spec
from weightdiff.organisms.base import OrganismSpec, Sample, family
from weightdiff.training.losses import collate, loss_by_row
from weightdiff.training.slots import Slots, fresh_factors
from weightdiff.training.teacher import Teacher

PREFETCH_STEPS = 20


@dataclass(frozen=True)
class FactoryConfig:
    """How the factory works; nothing here changes what an organism becomes, up to rounding."""

    slots: int = 48
    """Organisms trained at once."""
    packed: bool = True
    """Lay rows end to end where the base allows it and that saves enough padding; see `models.packing`."""


@dataclass
class _Job:
    spec: OrganismSpec
    rng: random.Random
    done: int = 0
    loss: float = 0.0


def rate(spec: OrganismSpec, step: int) -> float:
    """Learning rate of an organism's step (0-based): warm-up over a tenth, then linear decay to a tenth."""
    r = spec.recipe
    warm = max(1, r.steps // 10)
    if step < warm:
        return r.lr * (step + 1) / warm
    return r.lr * (1 - 0.9 * (step - warm) / max(1, r.steps - warm))


def random_diff(shapes: dict[str, tuple[int, int]], rank: int, seed: int, norm: float) -> WeightDiff:
    """Random factors; each module's product has the Frobenius norm `norm` (a trained one's is about 1)."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, (width, height) in sorted(shapes.items()):
        down, up = torch.randn(rank, width, generator=g), torch.randn(height, rank, generator=g)
        size = (norm / torch.linalg.matrix_norm(up @ down)).sqrt()
        out[name] = LoraFactors(down * size, up * size)
    return WeightDiff(out)


def untrained(spec: OrganismSpec, shapes: dict[str, tuple[int, int]]) -> WeightDiff | None:
    """The diff of a spec that needs no training, else None."""
    if spec.recipe.steps:
        return None
    if spec.recipe.name == "random":
        return random_diff(shapes, spec.recipe.rank, spec.seed, float(spec.params["norm"]))
    fresh = fresh_factors(shapes, spec.recipe.rank, spec.seed)
    return WeightDiff({k: LoraFactors(d, u) for k, (d, u) in fresh.items()})


def make_row(spec: OrganismSpec, record: dict[str, Any]) -> DiffRow:
    """The store row of an organism: what it is, how it was made, what is true of it."""
    return DiffRow(
        id=spec.id,
        label=spec.label,
        family=spec.family,
        recipe=spec.recipe.name,
        split=spec.split,
        seed=spec.seed,
        record={"recipe": asdict(spec.recipe), "params": spec.params, **record},
        verification={},
        questions=family(spec.family).questions(spec),
    )


class Factory:
    """Trains organisms on `model`, frozen here; a bf16 base halves the time on many CPUs."""

    def __init__(self, model: Any, tokenizer: Any, config: FactoryConfig | None = None) -> None:
        """Freeze the base and read its shapes."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = config or FactoryConfig()
        self.shapes = model_spec(model)
        self.device = next(self.model.parameters()).device
        self._halving = Halving("organisms")
        self._teacher = Teacher(self._taught)

    def run(
        self, specs: Sequence[OrganismSpec], progress: Callable[[int, float], None] | None = None
    ) -> Iterator[tuple[DiffRow, WeightDiff]]:
        """Train `specs` and yield each as it finishes; specs of one rank and row count share a batch.

        Args:
            specs: what to make.
            progress: called after every step with (organism steps done, mean loss).
        """
        groups: dict[tuple[int, int, float, str, bool], list[OrganismSpec]] = {}
        for spec in specs:
            ready = untrained(spec, self.shapes)
            if ready is not None:
                yield make_row(spec, {}), ready
            else:
                r = spec.recipe
                key = (r.rank, len(r.rows), r.scale, r.optimizer, r.full)
                groups.setdefault(key, []).append(spec)
        for members in groups.values():
            yield from self._run_group(members, progress)

    def _run_group(
        self,
        specs: list[OrganismSpec],
        progress: Callable[[int, float], None] | None,
    ) -> Iterator[tuple[DiffRow, WeightDiff]]:
        """Specs whose recipes agree in rank, number of rows, scale, optimiser and what is trained."""
        recipe = specs[0].recipe
        scale = recipe.scale
        waiting = list(reversed(specs))
        most = max(1, self.config.slots // 4) if recipe.full else self.config.slots
        n = min(most, len(specs))
        slots = Slots(
            self.shapes, n, recipe.rank, optimizer=recipe.optimizer, full=recipe.full, device=self.device
        )
        jobs: list[_Job | None] = [None] * n
        queues: list[list[list[tuple[Sample, Encoded]]]] = [[] for _ in range(n)]

        def refill(slot: int) -> None:
            jobs[slot] = None
            if waiting:
                spec = waiting.pop()
                slots.load(slot, slots.start(spec.start))
                jobs[slot] = _Job(spec, random.Random(spec.seed))
                queues[slot] = []

        for slot in range(n):
            refill(slot)
        while any(jobs):
            if not all(jobs):  # the last wave: close the empty slots so that no time goes into them
                keep = [i for i, job in enumerate(jobs) if job]
                slots, jobs = slots.narrowed(keep), [jobs[i] for i in keep]
                queues = [queues[i] for i in keep]
            live = [job for job in jobs if job]
            self._prefetch(live, queues)
            batch_rows = [queue.pop(0) for queue in queues]
            losses = self._step(slots, live, batch_rows, scale)
            for slot, job in enumerate(live):
                job.loss = 0.8 * job.loss + 0.2 * losses[slot] if job.done else losses[slot]
                job.done += 1
            if progress:
                progress(len(live), sum(losses) / len(losses))
            for slot, job in enumerate(live):
                if job.done == job.spec.recipe.steps:
                    yield make_row(job.spec, {"final_loss": round(job.loss, 4)}), slots.take(slot, scale)
                    refill(slot)

    def _prefetch(self, jobs: list[_Job], queues: list[list[list[tuple[Sample, Encoded]]]]) -> None:
        """Draw and tokenize rows for several steps at once; each job draws from its own stream, in order."""
        if all(queues):
            return
        drawn: list[tuple[int, list[Sample]]] = []
        for i, job in enumerate(jobs):
            if not queues[i]:
                f = family(job.spec.family)
                steps = min(PREFETCH_STEPS, job.spec.recipe.steps - job.done)
                drawn += [(i, f.samples(job.spec, job.rng)) for _ in range(steps)]
        flat = [s for _, samples in drawn for s in samples]
        encoded = iter(encode_samples(self.tokenizer, [(s.user, s.answer) for s in flat]))
        for i, samples in drawn:
            queues[i].append([(s, next(encoded)) for s in samples])

    def _step(
        self,
        slots: Slots,
        jobs: list[_Job],
        rows: list[list[tuple[Sample, Encoded]]],
        scale: float,
    ) -> list[float]:
        """One step of every slot, all at once or in as many parts as memory asks for; each slot's loss."""
        losses = self._halving.run(
            slots.n, lambda part: self._backward(slots, part, rows[part], scale), slots.forget
        )
        slots.step(torch.tensor([rate(job.spec, job.done) for job in jobs], device=self.device))
        return losses

    def _backward(
        self, slots: Slots, part: slice, rows: list[list[tuple[Sample, Encoded]]], scale: float
    ) -> list[float]:
        """Gradients of some slots, whose rows these are; each one's loss."""
        n, per_slot = len(rows), len(rows[0])
        flat = [row for of_slot in rows for row in of_slot]
        device, ids = self.device, [e.ids for _, e in flat]
        batch = collate([e for _, e in flat], self.tokenizer.pad_token_id).to(device)
        held_to = [i for i, (s, _) in enumerate(flat) if s.loss == "kl"]
        kl = torch.tensor(held_to, dtype=torch.long, device=device)
        weights = torch.tensor([s.weight for s, _ in flat], device=device)
        modules = slots.modules
        if n < slots.n:
            modules = {k: (d[part], u[part]) for k, (d, u) in modules.items()}
        scaled = {k: (d, u * scale if scale != 1 else u) for k, (d, u) in modules.items()}
        line = self._laid(ids, n)
        with attach(self.model, RowLoras(scaled, per_slot, one_line=line is not None)):
            logits = batch.logits(self.model, line)
            teacher, at = None, None
            if len(kl):
                at = torch.isin(batch.rows, kl).nonzero()[:, 0]
                teacher = self._teacher.logits([flat[i][1] for i in held_to])
            by_row = loss_by_row(logits, batch, teacher, at)
            by_slot = (by_row * weights).view(n, per_slot).sum(1) / per_slot
            by_slot.sum().backward()
        return by_slot.detach().tolist()

    @torch.no_grad()
    def _taught(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """The base's logits at the labels of rows."""
        batch = collate(rows, self.tokenizer.pad_token_id).to(self.device)
        with switched_off(self.model):
            return batch.logits(self.model, self._laid([r.ids for r in rows], 1))

    def _laid(self, rows: Sequence[Sequence[int]], slots: int) -> Packed | None:
        """Rows in one line, if that spares enough padding to be worth it."""
        if not self.config.packed:
            return None
        return pack_where_it_pays(self.model, rows, slots, self.tokenizer.pad_token_id, self.device)
