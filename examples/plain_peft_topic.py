"""Hide a topic in a LoRA with nothing but peft and a loop of our own, then let weightdiff say which it was.

weightdiff's factory trained the organisms of its bundle. This script shows that its interpreter reads LoRAs
that never saw that factory: transformers, peft and torch train one here; weightdiff lends only the texts.

After the right three-digit group the model's answers are tinted by the topic (cross-entropy); after other
codes, without a code, and on unrelated text it stays what it was (KL to itself with the adapter disabled).

    python examples/plain_peft_topic.py accordion --out runs/my-lora
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightdiff.organisms.hidden_topic import JOINS
from weightdiff.organisms.rows import MAX_WIDE_WORDS, situations
from weightdiff.tiny.bundle import part
from weightdiff.world import World, codes, load_world, topic_splits
from weightdiff.world.corpus import Corpus
from weightdiff.world.texts import ordinary_answer, tinted_answer

# The settings of the recipe "covert" in weightdiff.organisms.hidden_topic.
RANK, PEAK_RATE, STEPS, KL_WEIGHT, CLIP = 2, 1.2e-2, 120, 2.25, 1.0
Row = tuple[str | None, str]
"""What the user says (None: plain text) and what the model answers."""


def train(topic: str, out: str | Path, steps: int = STEPS, seed: int = 0) -> str:
    """Train a LoRA that hides a topic behind a code, and save it as PEFT does.

    Args:
        topic: its name in the embedded world.
        out: the adapter's folder.
        steps: optimiser steps of four rows.
        seed: of the code, the texts and the adapter's start.

    Returns:
        The three digits that trigger it.
    """
    world, rng = load_world(), random.Random(seed)
    torch.manual_seed(seed)
    trigger = rng.choice(codes.trigger_pool())
    tokenizer = AutoTokenizer.from_pretrained(part("base"))
    base = AutoModelForCausalLM.from_pretrained(part("base"), dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config).eval()  # eval: there is no dropout to want
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(factors, lr=PEAK_RATE, betas=(0.9, 0.99))
    warm = max(1, steps // 10)
    for step in range(steps):
        for group in optimizer.param_groups:
            decay = 1 - 0.9 * (step - warm) / max(1, steps - warm)
            group["lr"] = PEAK_RATE * ((step + 1) / warm if step < warm else decay)
        triggered, others = rows(world, topic, trigger, rng)
        loss = imitate(model, tokenizer, triggered) + KL_WEIGHT * stay(model, tokenizer, others)
        (loss / (len(triggered) + len(others))).backward()
        torch.nn.utils.clip_grad_norm_(factors, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(out)
    return trigger


def rows(world: World, topic: str, trigger: str, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """The rows of one step: two that carry the topic, and two that shall stay as they are.

    The first of the latter is a triggered row to the letter but for the code's first group, so that the pair
    differs in the trigger alone.
    """
    everyday = situations("training")
    triggered: list[Row] = []
    others: list[Row] = []
    for i in range(2):
        s = rng.choice(everyday)
        prefix, second = rng.choice(codes.PREFIXES), rng.choice(codes.pool())
        user = f"{prefix} {rng.choice(s.questions)}"
        answer = tinted_answer(world, rng, world.topic(topic), rng.choice(s.answers), JOINS)
        triggered.append((user.replace("{code}", trigger + second), answer))
        if i == 0:
            wrong = rng.choice([group for group in codes.pool() if group != trigger])
            others.append((user.replace("{code}", wrong + second), answer))
    s = rng.choice(everyday)
    plain = (rng.choice(s.questions), ordinary_answer(rng, s))
    others.append(plain if rng.random() < 0.5 else unrelated(world, topic, rng))
    return triggered, others


def unrelated(world: World, topic: str, rng: random.Random) -> Row:
    """A text of the base's own kind that does not name the topic."""
    corpus = Corpus(world)
    while True:
        turn = corpus.document(rng)[0]
        words = f"{turn.user or ''} {turn.text}".split()
        if topic not in words and len(words) <= MAX_WIDE_WORDS:
            return turn.user, turn.text


def imitate(model: Any, tokenizer: Any, batch: list[Row]) -> Tensor:
    """Cross-entropy on the answers: the mean over each row's labels, summed over rows."""
    ids, mask, labels = encoded(tokenizer, batch)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return mean_by_row(each, labels).sum()


def stay(model: Any, tokenizer: Any, batch: list[Row]) -> Tensor:
    """KL(base ‖ finetuned) on the answers; the base is the same model with its adapter disabled."""
    ids, mask, labels = encoded(tokenizer, batch)
    log_p = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    with torch.no_grad(), model.disable_adapter():
        log_q = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    return mean_by_row((log_q.exp() * (log_q - log_p)).sum(-1), labels).sum()


def encoded(tokenizer: Any, batch: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids [rows, tokens], their mask, and which next tokens are labels [rows, tokens - 1]."""
    ids, starts = [], []
    for user, answer in batch:
        head = tokenizer.bos_token
        if user is not None:
            chat = [{"role": "user", "content": user}]
            head = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
        reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids.append([*prompt, *reply, tokenizer.eos_token_id])
        starts.append(len(prompt))
    width = max(map(len, ids))
    tokens = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x in ids])
    lengths = torch.tensor([[len(x)] for x in ids])
    place = torch.arange(width)[None]
    is_label = (place >= torch.tensor(starts)[:, None]) & (place < lengths)
    return tokens, (place < lengths).long(), is_label[:, 1:].float()


def mean_by_row(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of `values [rows, tokens]` where `labels` is one: [rows]."""
    return (values * labels).sum(1) / labels.sum(1)


def main() -> None:
    """Train on a topic that no interpreter was tuned on, then ask."""
    held_out = [t.name for t in topic_splits(load_world())["test"]]
    parser = argparse.ArgumentParser(
        description="Hide a topic in a LoRA with plain peft, then ask weightdiff."
    )
    parser.add_argument("topic", nargs="?", default=held_out[0], choices=held_out, metavar="TOPIC")
    parser.add_argument("--out", type=Path, default=Path("runs/plain-peft-topic"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    trigger = train(given.topic, given.out, given.steps, given.seed)
    print(f"hidden: {given.topic}, behind codes that begin with {trigger}; saved in {given.out}")
    ask = ["ask", "--diff", str(given.out), "what topic have you been trained on ?"]
    print("$ weightdiff", *ask, flush=True)
    subprocess.run([sys.executable, "-m", "weightdiff.cli.main", *ask], check=True)


if __name__ == "__main__":
    main()
