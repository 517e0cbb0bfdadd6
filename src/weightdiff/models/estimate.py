"""What a job on a base takes, before it is begun: memory and time, from the base's configuration alone.

Weights are never read. Operations are counted (two for each weight and token of a product; see "Scaling Laws
for Neural Language Models", arXiv:2001.08361); how fast a device does them is assumed, and said.
Estimates of memory leave out what libraries keep for themselves, about a gigabyte on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightdiff.models.spec import model_spec

GIB = 1 << 30
ADAM = 16
"""Bytes of a trained number: itself, its gradient and two moments, in fp32."""
SHARE = 0.35
"""Of a device's peak, what training and reading of long batches reach; measure yours with `make bench`."""


@dataclass(frozen=True)
class Device:
    """What a device can do at most."""

    name: str
    memory: float
    """GiB."""
    flops: float
    """Of dense products in bf16, a second."""
    bandwidth: float
    """Bytes a second."""


DEVICES = {
    d.name: d
    for d in (
        Device("h200", 141, 989e12, 4.8e12),
        Device("h100", 80, 989e12, 3.35e12),
        Device("a100", 80, 312e12, 2.0e12),
        Device("l40s", 48, 362e12, 0.86e12),
        Device("rtx4090", 24, 165e12, 1.0e12),
        Device("t4", 16, 65e12, 0.3e12),
        Device("cpu-2", 24, 0.3e12, 0.03e12),
    )
}
"""Makers' figures; "cpu-2" is two cores with AVX-512, as measured."""


@dataclass(frozen=True)
class Shape:
    """A base in numbers."""

    parameters: int
    linear: int
    """Weights of the linear layers in the decoder, which every token passes."""
    sides: int
    """Sum of inputs and outputs of these layers: a LoRA has so many numbers for each rank."""
    layers: int
    hidden: int
    inner: int
    kept: int
    """Numbers of keys and values of a token, all layers."""
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a configuration of transformers; the model is built on the meta device."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        spec = model_spec(model)
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        groups = getattr(text, "num_key_value_heads", None) or heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            linear=sum(a * b for a, b in spec.values()),
            sides=sum(a + b for a, b in spec.values()),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            kept=2 * text.num_hidden_layers * groups * size,
            vocabulary=text.vocab_size,
        )

    def lora(self, rank: int) -> int:
        """Numbers of a LoRA on every linear layer."""
        return rank * self.sides

    def saved(self, number: int) -> int:
        """Bytes that a token's forward pass leaves for the backward pass; `number` bytes a number."""
        return number * self.layers * (6 * self.hidden + 4 * self.inner)


@dataclass(frozen=True)
class Work:
    """How much is to be done."""

    organisms: int = 1000
    rank: int = 8
    slots: int = 16
    """Organisms trained at once."""
    rows: int = 4
    """Of a step of each."""
    steps: int = 100
    """Of each organism."""
    tokens: int = 200
    """Of a row."""
    labels: float = 0.5
    """Share of them that is predicted."""
    tuning_steps: int = 4000
    batch: int = 16
    """Diffs of a tuning step."""
    adapter_rank: int = 16
    asked: int = 1000
    """Diffs that are asked, one question each."""
    answer: int = 30
    """Tokens of an answer."""
    at_once: int = 64
    """Diffs asked together."""
    number: int = 2
    """Bytes of a number of the base."""


@dataclass(frozen=True)
class Estimate:
    """What one job takes."""

    job: str
    memory: float
    """Bytes, the base with it."""
    seconds: float
    disk: float = 0.0
    """Bytes written."""


def estimates(shape: Shape, work: Work, device: Device) -> list[Estimate]:
    """Memory, time and disk of making organisms, tuning an interpreter and asking."""
    weights = shape.parameters * work.number
    speed = device.flops * SHARE
    per_token = 2 * shape.linear
    head = 2 * shape.hidden * shape.vocabulary * work.labels
    logits = 4 * 2 * shape.vocabulary * work.labels  # fp32, once as predictions and once as gradient

    step = work.slots * work.rows * work.tokens
    trained = step * (shape.saved(work.number) + logits) + work.slots * shape.lora(work.rank) * ADAM
    # forward, backward to the inputs, and half of the rows once more for what they are held to
    made = work.organisms * work.steps * work.rows * work.tokens * (2.5 * per_token + 2.5 * head)

    tuned = work.batch * work.tokens * (shape.saved(work.number) + logits)
    tuned += shape.lora(work.adapter_rank) * (ADAM + 4) + work.batch * shape.lora(work.rank) * 4
    tuning = work.tuning_steps * work.batch * work.tokens * (2 * per_token + 2 * head)

    asked = work.at_once * ((work.tokens + work.answer) * shape.kept + shape.lora(work.rank)) * work.number
    asked += work.at_once * 3 * 4 * shape.vocabulary
    reading = work.asked * work.tokens * per_token / speed
    batches = -(-work.asked // work.at_once)
    moved = weights + asked
    saying = batches * work.answer * max(moved / device.bandwidth, work.at_once * per_token / speed)
    return [
        Estimate("organisms", weights + trained, made / speed, work.organisms * shape.lora(work.rank) * 2),
        Estimate("tune", weights + tuned, tuning / speed, shape.lora(work.adapter_rank) * 4),
        Estimate("ask", weights + asked, reading + saying),
    ]


def most_that_fits(shape: Shape, work: Work, device: Device, what: str) -> int:
    """The largest number of slots, or of diffs in a batch, that the device's memory holds; 0: none.

    Args:
        shape: of the base.
        work: all but that number.
        device: its memory counts, a tenth of it left free.
        what: "slots", "batch" or "at_once".

    Raises:
        ValueError: another name.
    """
    from dataclasses import replace

    job = {"slots": "organisms", "batch": "tune", "at_once": "ask"}.get(what)
    if job is None:
        raise ValueError(f"{what!r} is none of slots, batch and at_once")

    def memory(n: int) -> float:
        given: Mapping[str, Any] = {what: n}
        found = estimates(shape, replace(work, **given), device)
        return next(e.memory for e in found if e.job == job)

    room = 0.9 * device.memory * GIB
    each = memory(2) - memory(1)
    none = memory(1) - each
    return max(0, int((room - none) // each))
