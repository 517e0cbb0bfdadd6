"""Pretraining of the embedded base from scratch on the generated corpus.

Documents never share a row, so nothing leaks from one to the next; rows of similar length form a batch. Loss
is taken on answers and plain text (and, for one chat document in eight, on the user's words too), and logits
are computed only there.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from weightdiff.artifacts import atomic_write_text, differing
from weightdiff.errors import FormatError
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import to_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

USER_LOSS_EVERY = 8
WIDTH_STEP, ROW_STEP, LABEL_STEP = 8, 4, 64
"""Widths, rows and labels come in multiples of these. A CPU's products are compiled and kept for every new
shape: without the padding memory grows by gigabytes, and steps become slower."""
SPARE = 80
"""Tokens of padding that cost about as much time as one more micro-batch."""
POOL = 6000
LATE_WARMUP = 0.03
"""Share of the late tokens over which their learning rate rises."""


@dataclass(frozen=True)
class PretrainConfig:
    """Shape of the base and length of its training."""

    hidden: int = 192
    """Width of the residual stream."""
    layers: int = 4
    """Number of decoder layers."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 4
    """Key/value heads."""
    intermediate: int = 512
    """Width of the MLP."""
    tokens: int = 10_000_000
    """Tokens to read at first, padding not counted."""
    late_tokens: int = 6_500_000
    """Tokens of the late corpus to read after these."""
    batch_documents: int = 96
    """Documents of one optimiser step (about 30 tokens each)."""
    lr: float = 1.2e-3
    """Peak learning rate (AdamW) after a warm-up; decayed linearly to a fiftieth over the last 40 %."""
    late_lr: float = 6e-4
    """The same for the late tokens, decayed all the way."""
    embedding_std: float = 0.05
    """Standard deviation of the fresh embeddings."""
    warmup_steps: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    bf16: bool = True
    """Forward and backward in bf16 (1.5 times as fast on two AVX-512 cores); master weights stay fp32."""
    compile: bool = False
    """Compile the loss (another 1.3 times as fast after a minute); off where there is no C++ compiler."""


def build_model(config: PretrainConfig, vocab_size: int) -> PreTrainedModel:
    """A Llama-architecture causal LM with fresh weights; tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
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
    embeddings: Any = model.get_input_embeddings()
    torch.nn.init.normal_(embeddings.weight, std=config.embedding_std)
    return model


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, config: PretrainConfig, skip: int
) -> Iterator[tuple[int, list[dict[str, torch.Tensor]]]]:
    """(pool, micro-batches) of each step, from pool `skip` on.

    A step holds random documents, so that its gradient speaks for all kinds (steps of one length would hold
    one kind, and the base would learn nothing but each kind's word counts); they are computed in
    micro-batches of similar length to save padding.

    Raises:
        FormatError: a step has more documents than are drawn at once, or none.
    """
    if not 0 < config.batch_documents <= POOL:
        raise FormatError(
            f"batch_documents is {config.batch_documents}, and {POOL} documents are drawn at once;"
            f" give 1 to {POOL}"
        )
    docs = corpus.documents(config.seed)
    for pool_index in itertools.count():
        texts = [to_text(d) for d in itertools.islice(docs, POOL)]
        if pool_index < skip:
            continue
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for at in range(0, POOL - config.batch_documents + 1, config.batch_documents):
            rows = [(encoded[i], i % USER_LOSS_EVERY == 0) for i in range(at, at + config.batch_documents)]
            parts = micro_batches([len(ids) for ids, _ in rows])
            yield pool_index, [_pad(tokenizer, [rows[i] for i in p]) for p in parts]


def micro_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of a step's documents, shortest first, in parts each of which is computed together.

    A part takes in the next documents as long as that pads its shorter ones by less than `SPARE` tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    parts: list[list[int]] = []
    width = 0
    for at in range(0, len(order), ROW_STEP):
        rows = order[at : at + ROW_STEP]
        needed = _width(lengths[rows[-1]])
        if parts and len(parts[-1]) * (needed - width) < SPARE:
            parts[-1] += rows
        else:
            parts.append(rows)
        width = needed
    return parts


def _width(length: int) -> int:
    return -(-length // WIDTH_STEP) * WIDTH_STEP


def _pad(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[list[int], bool]]) -> dict[str, torch.Tensor]:
    """Right-padded ids and labels; a row's flag says whether the user's words are labels too."""
    user, assistant = (tokenizer.convert_tokens_to_ids(t) for t in ("<user>", "<assistant>"))
    width = _width(max(len(x) for x, _ in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for r, (x, learn) in enumerate(rows):
        ids[r, : len(x)] = torch.tensor(x)
        inside, y = True, []
        for t in x:
            y.append(t if (inside or learn) else -100)
            inside = t == assistant or (inside and t != user)
        labels[r, : len(x)] = torch.tensor(y)
    labels[(ids == user) | (ids == assistant)] = -100
    return {"input_ids": ids, "labels": labels}


def _steps(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    at: Callable[[], tuple[int, int]],
    skip: int,
) -> Iterator[tuple[int, list[dict[str, torch.Tensor]], float]]:
    """(pool, micro-batches, learning rate) of each step that is left; pools of the late corpus begin at 0.

    `at` tells steps and tokens so far.
    """
    if at()[1] < config.tokens:
        for pool, parts in batches(corpus, tokenizer, config, skip):
            step, seen = at()
            if seen >= config.tokens:
                break
            rising = min(1.0, (step + 1) / config.warmup_steps)
            yield pool, parts, config.lr * rising * min(1.0, 0.02 + 0.98 * (1 - seen / config.tokens) / 0.4)
        skip = 0
    if not config.late_tokens:
        return
    for pool, parts in batches(Corpus(corpus.world, late=True), tokenizer, config, skip):
        done = (at()[1] - config.tokens) / config.late_tokens
        if done >= 1:
            return
        yield pool, parts, config.late_lr * min(1.0, done / LATE_WARMUP) * (0.02 + 0.98 * (1 - done))


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = model.model(
        input_ids=batch["input_ids"], attention_mask=(batch["input_ids"] != 0).long()
    ).last_hidden_state
    every = batch["labels"][:, 1:].reshape(-1)
    at = (every != -100).nonzero().squeeze(1)
    spare = -len(at) % LABEL_STEP
    wanted, target = F.pad(at, (0, spare)), F.pad(every[at], (0, spare), value=-100)
    taken = hidden[:, :-1].reshape(-1, hidden.shape[-1])[wanted]
    return F.cross_entropy(model.lm_head(taken).float(), target, reduction="sum")


def _check_same(saved: Path, state: dict[str, Any], config: PretrainConfig, vocabulary: int) -> None:
    """Refuse a checkpoint of other settings; a run may be lengthened, though."""
    made = {**state["config"], "vocabulary": len(state["model"]["model.embed_tokens.weight"])}
    if config.late_tokens > made["late_tokens"]:
        made["late_tokens"] = config.late_tokens
    elif not made["late_tokens"] and config.tokens > made["tokens"]:
        made["tokens"] = config.tokens
    other = differing(made, {**asdict(config), "vocabulary": vocabulary})
    if other:
        raise FormatError(
            f"{saved} was made with other settings ({other}); delete {saved.parent} to begin anew,"
            " or give another folder"
        )


def pretrain(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    out: Path,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> PreTrainedModel:
    """Train the base, or go on where a killed run stopped; the result also lies in `out/checkpoint.pt`.

    `progress` gets {step, tokens, loss, tokens_per_second} every 10 steps. A log of the same lies in
    `out/log.jsonl`. A finished run can be lengthened by more `late_tokens`, or by `tokens` if it has none.

    Raises:
        FormatError: the checkpoint in `out` was made with other settings, or `batch_documents` cannot be.
    """
    out.mkdir(parents=True, exist_ok=True)
    model: Any = build_model(config, len(tokenizer)).train()
    master = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.set_attn_implementation("eager")  # on CPUs and rows this short, faster than the fused kernels
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
    step, seen, pools, late = 0, 0, 0, False
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        _check_same(saved, state, config, len(tokenizer))
        for n, p in master.items():
            p.copy_(state["model"][n])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, late = state["step"], state["tokens"], state["late"]
        pools = state["pools"] if late or seen < config.tokens else 0
    log: list[str] = (
        (out / "log.jsonl").read_text().splitlines() if step and (out / "log.jsonl").exists() else []
    )
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
                "late": late,
                "config": asdict(config),
            },
            temporary,
        )
        temporary.replace(saved)
        atomic_write_text(out / "log.jsonl", "".join(f"{line}\n" for line in log))

    @torch.no_grad()
    def push() -> None:
        for n, p in model.named_parameters():
            p.copy_(master[n])

    def so_far() -> tuple[int, int]:
        return step, seen

    for pool, parts, rate in _steps(corpus, tokenizer, config, so_far, pools):
        late = seen >= config.tokens
        if pool != current_pool:
            current_pool = pool
            save()
        for group in optimizer.param_groups:
            group["lr"] = rate
        push()
        labels = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
        total = 0.0
        for p in master.values():
            p.grad = torch.zeros_like(p)
        for part in parts:
            loss = loss_of(model, part) / labels
            loss.backward()
            total += float(loss.detach())
            for n, p in model.named_parameters():
                master[n].grad += p.grad
            model.zero_grad(set_to_none=True)
        torch.nn.utils.clip_grad_norm_(list(master.values()), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + sum(int((part["input_ids"] != 0).sum()) for part in parts)
        if step % 10 == 0:
            line = {"step": step, "tokens": seen, "loss": round(total, 4)}
            line["tokens_per_second"] = round((seen - start_tokens) / (time.time() - start))
            log.append(json.dumps(line))
            if progress:
                progress(line)
    save()
    model.float()
    push()
    return model.eval()
