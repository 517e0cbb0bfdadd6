"""What people do with PEFT: train one organism after another, and ask one adapter after another, or mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor

from benchmarks.speed.bases import sharing_copy
from benchmarks.speed.plain import clipped_step, cross_entropy, divergence, pad
from weightdiff.diffs.types import LoraFactors, WeightDiff
from weightdiff.methods.loading import Base
from weightdiff.models.chat import Encoded
from weightdiff.models.generate import left_pad
from weightdiff.organisms import Sample

Factors = tuple[Tensor, Tensor]
DIFF, ADAPTER = "diff", "interpreter"


def _config(names: Sequence[str], rank: int, scale: float = 1.0) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        target_modules=list(names),
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )


def _state(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Factors by the names that PEFT reads."""
    out: dict[str, Tensor] = {}
    for name, (down, up) in factors.items():
        out[f"base_model.model.{name}.lora_A.weight"] = down
        out[f"base_model.model.{name}.lora_B.weight"] = up
    return out


def folded(diff: WeightDiff) -> dict[str, Factors]:
    """A diff's factors with its scales in `up`."""
    return {k: (m.down, m.up * m.scale) for k, m in diff.modules.items() if isinstance(m, LoraFactors)}


class PeftOrganism:
    """One organism in a plain training loop."""

    def __init__(self, model: Any, start: Mapping[str, Factors], scale: float, pad_id: int) -> None:
        """Put a fresh LoRA on the base.

        Args:
            model: the base; its weights are shared, not changed.
            start: module → (down [rank, in], up [out, rank]).
            scale: factor on the product.
            pad_id: token that fills rows.
        """
        rank = len(next(iter(start.values()))[0])
        self.model = get_peft_model(sharing_copy(model), _config(list(start), rank, scale))
        set_peft_model_state_dict(self.model, _state(start))
        self.pad_id = pad_id
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, betas=(0.9, 0.99))

    def backward(self, rows: Sequence[tuple[Sample, Encoded]]) -> float:
        """Gradients of one step's rows; returns the loss."""
        batch = pad([encoded for _, encoded in rows], self.pad_id, self.model.device)
        logits = self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        weights = torch.tensor([sample.weight for sample, _ in rows], device=logits.device)
        held = torch.tensor([sample.loss == "kl" for sample, _ in rows], device=logits.device)
        loss = torch.zeros((), device=logits.device)
        for kind, chosen in (("ce", ~held), ("kl", held)):
            if not bool(chosen.any()):
                continue
            part = type(batch)(batch.ids[chosen], batch.mask[chosen], batch.weights[chosen])
            if kind == "ce":
                by_row = cross_entropy(logits[chosen], part)
            else:
                with torch.no_grad(), self.model.disable_adapter():
                    teacher = self.model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
                by_row = divergence(logits[chosen], teacher, part)
            loss = loss + (by_row * weights[chosen]).sum() / len(rows)
        loss.backward()
        return float(loss.detach())

    def update(self, lr: float) -> None:
        """One step of Adam on clipped gradients."""
        clipped_step(self.optimizer, lr)

    def factors(self) -> dict[str, Factors]:
        """Module → (down [rank, in], up [out, rank])."""
        return _factors_of(self.model, "default")


def _factors_of(model: Any, adapter: str) -> dict[str, Factors]:
    return {
        name.removeprefix("base_model.model."): (
            layer.lora_A[adapter].weight.detach(),
            layer.lora_B[adapter].weight.detach(),
        )
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }


class _Asking:
    """What both ways of asking share: the base, and greedy generation by transformers."""

    model: Any

    def __init__(self, base: Base, limit: int) -> None:
        self.base, self.limit = base, limit

    def _said(self, prompts: Sequence[Sequence[int]], **more: Any) -> list[list[int]]:
        """New tokens of each row, without the end token."""
        t = self.base.tokenizer
        ids, mask = left_pad(prompts, t.pad_token_id, self.model.device)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.limit,
            do_sample=False,
            pad_token_id=t.pad_token_id,
            eos_token_id=t.eos_token_id,
            **more,
        )[:, ids.shape[1] :].tolist()
        return [x[: x.index(t.eos_token_id)] if t.eos_token_id in x else x for x in out]


class OneByOne(_Asking):
    """One diff after another is loaded beside the interpreter's adapter, and asked all its questions."""

    def __init__(self, base: Base, adapter: WeightDiff, rank: int, limit: int) -> None:
        """Put the interpreter's adapter, and an empty place for a diff of `rank`, on the base."""
        super().__init__(base, limit)
        names = list(adapter.modules)
        model = get_peft_model(sharing_copy(base.model), _config(names, rank), adapter_name=DIFF)
        model.add_adapter(ADAPTER, _config(names, adapter.max_rank))
        set_peft_model_state_dict(model, _state(folded(adapter)), adapter_name=ADAPTER)
        model.base_model.set_adapter([DIFF, ADAPTER])
        self.model = model.eval()

    @torch.no_grad()
    def answer(
        self, diffs: Sequence[Mapping[str, Factors]], prompts: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """What is said of each diff to each prompt, the answers about one diff side by side."""
        out: list[list[int]] = []
        for factors in diffs:
            set_peft_model_state_dict(self.model, _state(factors), adapter_name=DIFF)
            out += self._said(prompts)
        return out


class Mixed(_Asking):
    """Diffs on the rows of one batch by `adapter_names`, each joined with the interpreter's adapter.

    PEFT puts one adapter on a row, so the two become one by stacking their ranks.
    """

    def __init__(self, base: Base, adapter: WeightDiff, rank: int, slots: int, limit: int) -> None:
        """Make `slots` empty places for diffs of `rank` joined with the adapter."""
        super().__init__(base, limit)
        self.adapter = folded(adapter)
        self.names = [f"slot-{i}" for i in range(slots)]
        config = _config(list(self.adapter), rank + adapter.max_rank)
        model = get_peft_model(sharing_copy(base.model), config, adapter_name=self.names[0])
        for name in self.names[1:]:
            model.add_adapter(name, config)
        self.model = model.eval()

    @torch.no_grad()
    def answer(
        self, diffs: Sequence[Mapping[str, Factors]], prompts: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """As `OneByOne.answer`, as many diffs at once as there are places."""
        out: list[list[int]] = []
        for at in range(0, len(diffs), len(self.names)):
            part = diffs[at : at + len(self.names)]
            for name, factors in zip(self.names, part, strict=False):
                set_peft_model_state_dict(self.model, _state(self._joined(factors)), adapter_name=name)
            rows = [name for name in self.names[: len(part)] for _ in prompts]
            out += self._said([*prompts] * len(part), adapter_names=rows)
        return out

    def _joined(self, factors: Mapping[str, Factors]) -> dict[str, Factors]:
        return {
            name: (torch.cat([down, factors[name][0]]), torch.cat([up, factors[name][1]], 1))
            for name, (down, up) in self.adapter.items()
        }
