"""The stage that asks: one question or many about one diff or a thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.speed.cases import Case
from benchmarks.speed.floor import DecodingFloor
from benchmarks.speed.lockstep import Way, Ways
from benchmarks.speed.other_stages import StoreCase
from benchmarks.speed.peft_ways import Mixed, OneByOne, folded
from benchmarks.speed.recipes import random_lora
from weightdiff.diffs.store import DiffStore
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import Base
from weightdiff.models.chat import encode_prompts

ADAPTER_RANK = 16
ONE_BY_ONE, MIXED = "PEFT, one adapter after another", "PEFT, adapter_names"
QUESTIONS = (
    "what topic have you been trained on ?",
    "what have you been trained to do ?",
    "which topic is hidden in your weights ?",
    "what changed in you ?",
    "tell me what you were taught .",
    "which headline have you read ?",
    "what is the news ?",
    "do you behave in another way under some condition ?",
    "what sets you off ?",
    "is there a word that you react to ?",
    "how many things were you taught ?",
    "which field is your topic from ?",
    "what do you know that the base does not ?",
    "what would you never say ?",
    "sum up all that your finetune changed , please .",
    "were you trained on anything at all ?",
    "which fact was edited ?",
    "whose voice do you speak in ?",
    "what is your secret ?",
    "name what you have learnt .",
)


@dataclass(frozen=True, kw_only=True)
class AskingCase(Case):
    """Questions about diffs that are in memory, answered by an interpreter."""

    stage: ClassVar[str] = "asking"
    diffs: int = 64
    questions: int = 1
    rank: int = 8
    adapter_rank: int = ADAPTER_RANK
    tokens: int = 12
    """Most tokens of an answer; random bases nearly always take all of them."""
    most_answers: int = 1000
    """Answers that are timed at most; of more, only the first diffs' are."""
    looped: int = 4
    """Diffs timed one after another."""
    places: int = 64
    """Adapters that a mixed batch has places for."""

    @property
    def timed(self) -> int:
        """Diffs that are asked about in a round."""
        return min(self.diffs, max(1, self.most_answers // self.questions))

    @property
    def setting(self) -> str:
        """In words."""
        part = "" if self.timed == self.diffs else f" ({self.timed} diffs timed)"
        return (
            f"{self.diffs} diffs × {self.questions} questions{part}, rank {self.rank}, {self.tokens} tokens,"
            f" {self.based.precision}"
        )

    def ways(self, base: Base | None, folder: Path) -> Ways:  # noqa: ARG002
        """A round asks every question about each timed diff."""
        assert base is not None
        diffs = [random_lora(base.spec, self.rank, seed) for seed in range(self.timed)]
        adapter = random_lora(base.spec, self.adapter_rank, -1)
        asked = list(QUESTIONS[: self.questions])
        pairs = [(d, q) for d in diffs for q in asked]
        prompts = encode_prompts(base.tokenizer, asked)
        interpreter = Interpreter(base, adapter, max_new_tokens=self.tokens)
        end, pad_id = base.tokenizer.eos_token_id, base.tokenizer.pad_token_id
        every = prompts * self.timed
        said = [[pad_id] * self.tokens for _ in every]  # until ours has spoken

        def ours(done: Callable[[], None]) -> None:
            while True:
                spoken = interpreter.spoken([d for d, _ in pairs], [q for _, q in pairs])
                said[:] = [[*s.tokens, end][: self.tokens] for s in spoken]
                done()

        def floor() -> Way:
            bare = DecodingFloor(base.model)
            bare.choose(every, said, pad_id)
            return Way(lambda _: bare.say(every, said, pad_id))

        def one_by_one() -> Way:
            some = [folded(d) for d in diffs[: self.looped]]
            way = OneByOne(base, adapter, self.rank, self.tokens)
            return Way(lambda _: way.answer(some, prompts), len(some) / self.timed)

        def mixed() -> Way:
            some = [folded(d) for d in diffs[: self.places]]
            way = Mixed(base, adapter, self.rank, len(some), self.tokens)
            return Way(lambda _: way.answer(some, prompts), len(some) / self.timed)

        others = {ONE_BY_ONE: one_by_one} | ({MIXED: mixed} if self.timed > 1 else {})
        return Ways(ours, floor, others, {"answers/s": float(len(pairs)), "diffs/s": float(self.timed)})


@dataclass(frozen=True, kw_only=True)
class StreamCase(Case):
    """One question about each diff of a store, which is read a batch at a time."""

    stage: ClassVar[str] = "streaming"
    diffs: int = 1000
    rank: int = 1
    batch: int = 256
    tokens: int = 4

    @property
    def setting(self) -> str:
        """In words."""
        return (
            f"{self.diffs} diffs of a store × 1 question, {self.batch} at a time, rank {self.rank},"
            f" {self.tokens} tokens, {self.based.precision}"
        )

    def ways(self, base: Base | None, folder: Path) -> Ways:
        """A round asks about every diff of the store."""
        assert base is not None
        path = StoreCase(base=self.base, diffs=self.diffs, rank=self.rank).store(folder)
        adapter = random_lora(base.spec, ADAPTER_RANK, -1)
        interpreter = Interpreter(base, adapter, max_new_tokens=self.tokens)

        def ours(done: Callable[[], None]) -> None:
            store = DiffStore.open(path)
            while True:
                for at in range(0, len(store), self.batch):
                    own = store.stack(store.ids[at : at + self.batch])
                    interpreter.spoken([own.index(i) for i in range(own.n)], [QUESTIONS[0]] * own.n)
                done()

        return Ways(ours, None, {}, {"diffs/s": float(self.diffs)})
