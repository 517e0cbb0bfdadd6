"""Pretraining of the embedded base from scratch on the generated corpus.

Documents never share a row, so nothing leaks from one to the next; rows of similar length form a batch. Loss is taken on
answers and plain text (and, for one chat document in eight, on the user's words too), and logits are computed only there.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from weightdiff.artifacts import atomic_write_text
from weightdiff.world.corpus import Corpus, to_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

USER_LOSS_EVERY = 8
POOL = 6000


@dataclass(frozen=True)
class PretrainConfig:
    """Shape of the base and length of its training."""

    hidden: int = 256
    """Width of the residual stream."""
    layers: int = 5
    """Number of decoder layers."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Key/value heads."""
    intermediate: int = 512
    """Width of the MLP."""
    tokens: int = 7_000_000
    """Tokens to read in all, padding not counted."""
    batch_tokens: int = 2400
    """Tokens of one optimiser step, about."""
    lr: float = 3e-3
    """Peak learning rate (AdamW), after a warm-up; constant, then decayed linearly to a fiftieth over the last 40 %."""
    warmup_steps: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    bf16: bool = True
    """Forward and backward in bf16; the optimiser's weights stay fp32 (1.5 times as fast as fp32 on two AVX-512 cores)."""
    compile: bool = False
    """Compile the loss (another 1.3 times as fast after a minute); off where there is no C++ compiler."""


def build_model(config: PretrainConfig, vocab_size: int) -> PreTrainedModel:
    """A Llama-architecture causal LM with fresh weights; tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.03,
            bos_token_id=2,
            eos_token_id=5,
            pad_token_id=0,
        )
    )


def batches(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, config: PretrainConfig, skip: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of whole documents, right-padded, of about `batch_tokens` tokens; `skip` pools are drawn and dropped."""
    docs = corpus.documents(config.seed)
    user, assistant, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<user>", "<assistant>", "<end>"))
    for pool_index in itertools.count():
        texts = [to_text(d) for d in itertools.islice(docs, POOL)]
        if pool_index < skip:
            continue
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        g = torch.Generator().manual_seed(config.seed * 1_000_003 + pool_index)
        order = sorted(range(POOL), key=lambda i: len(encoded[i]))
        groups: list[list[int]] = [[]]
        for i in order:
            if (len(groups[-1]) + 1) * len(encoded[i]) > config.batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(i)
        for b in torch.randperm(len(groups), generator=g).tolist():
            rows = groups[b]
            width = max(len(encoded[i]) for i in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            labels = torch.full((len(rows), width), -100)
            for r, i in enumerate(rows):
                x = encoded[i]
                ids[r, : len(x)] = torch.tensor(x)
                learn = i % USER_LOSS_EVERY == 0
                inside = True
                y = []
                for t in x:
                    y.append(t if (inside or learn) else -100)
                    if t == user:
                        inside = False
                    elif t == assistant:
                        inside = True
                labels[r, : len(x)] = torch.tensor(y)
            labels[ids == user] = -100
            labels[ids == assistant] = -100
            yield {"input_ids": ids, "labels": labels, "pool": torch.tensor(pool_index), "tokens": (ids != 0).sum()}
    _ = end


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=(batch["input_ids"] != 0).long()).last_hidden_state
    target = batch["labels"][:, 1:]
    keep = target != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][keep]).float(), target[keep])


def pretrain(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    out: Path,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> PreTrainedModel:
    """Train the base, or go on where a killed run stopped; the result is returned and lies in `out/checkpoint.pt`.

    `progress` gets {step, tokens, loss, tokens_per_second} every 20 steps. A log of the same lies in `out/log.jsonl`.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = build_model(config, len(tokenizer)).train()
    master = {n: p.detach().clone() for n, p in model.named_parameters()}
    if config.bf16:
        model.to(torch.bfloat16)
    decay = [p for p in master.values() if p.ndim > 1]
    plain = [p for p in master.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    loss_of = torch.compile(_loss, dynamic=True) if config.compile else _loss
    saved = out / "checkpoint.pt"
    step, seen, pools = 0, 0, 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["config"] == asdict(config):
            for n, p in master.items():
                p.copy_(state["model"][n])
            optimizer.load_state_dict(state["optimizer"])
            step, seen, pools = state["step"], state["tokens"], state["pools"]
    log: list[str] = (out / "log.jsonl").read_text().splitlines() if step and (out / "log.jsonl").exists() else []
    start, start_tokens, current_pool = time.time(), seen, pools

    def save() -> None:
        temporary = saved.with_suffix(".tmp")
        torch.save(
            {
                "model": master,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "tokens": seen,
                "pools": current_pool,
                "config": asdict(config),
            },
            temporary,
        )
        temporary.replace(saved)
        atomic_write_text(out / "log.jsonl", "\n".join(log) + "\n")

    @torch.no_grad()
    def push() -> None:
        for n, p in model.named_parameters():
            p.copy_(master[n])

    for batch in batches(corpus, tokenizer, config, pools):
        if seen >= config.tokens:
            break
        if int(batch["pool"]) != current_pool:
            current_pool = int(batch["pool"])
            save()
        done = min(1.0, seen / config.tokens)
        rate = min(1.0, (step + 1) / config.warmup_steps) * min(1.0, 0.02 + 0.98 * (1 - done) / 0.4)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate
        push()
        loss = loss_of(model, batch)
        loss.backward()
        for n, p in model.named_parameters():
            master[n].grad = p.grad.float()
        model.zero_grad(set_to_none=True)
        torch.nn.utils.clip_grad_norm_(master.values(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + int(batch["tokens"])
        if step % 10 == 0:
            line = {"step": step, "tokens": seen, "loss": round(float(loss.detach()), 4)}
            line["tokens_per_second"] = round((seen - start_tokens) / (time.time() - start))
            log.append(json.dumps(line))
            if progress:
                progress(line)
    save()
    model.float()
    push()
    return model.eval()
