"""The interpreter: a base, a DIT adapter and a wording; it makes a finetuned model describe its change.

Method: "Learning to Interpret Weight Differences in Language Models" (arXiv 2510.05092).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightdiff.artifacts import atomic_directory, atomic_write_json
from weightdiff.diffs.formats.peft import read_peft, write_peft
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.types import StackedLoras, WeightDiff
from weightdiff.errors import InterpreterError, QuestionError
from weightdiff.methods.base import Answer
from weightdiff.methods.loading import Base, load_base
from weightdiff.models.chat import encode_answers, encode_prompts
from weightdiff.models.generate import answer_logprobs, generate, left_pad
from weightdiff.models.multilora import RowLoras, SharedLora, attach
from weightdiff.models.rendering import Rendering
from weightdiff.models.tokens import TokenDeltas, with_tokens

SETTINGS = "interpreter.json"
TOKENS = "probe_tokens.safetensors"
VERSION = 1
ROWS_AT_ONCE = 256


@dataclass
class Interpreter:
    """Answers questions about weight diffs of its base.

    Attributes:
        base: the base model.
        adapter: the DIT adapter; None asks the finetuned model itself (the "base question" baseline).
        rendering: how a question is worded.
        max_new_tokens: longest answer.
        tokens: learned changes of the probes' embeddings, where tuning learned some.
        meta: what tuning wrote down: labels, phrasings, seeds.
    """

    base: Base
    adapter: WeightDiff | None
    rendering: Rendering = field(default_factory=Rendering)
    max_new_tokens: int = 24
    tokens: TokenDeltas | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    name: str = "dit"

    @classmethod
    def load(cls, path: str | Path | None = None, base: Base | str | None = None) -> Interpreter:
        """Load an interpreter folder (default: the bundled one) onto its base.

        Raises:
            InterpreterError: the folder is incomplete.
            BaseMismatchError: it was tuned for another base.
        """
        if path is None:
            from weightdiff.tiny.bundle import part

            path = part("interpreter")
        folder = Path(path)
        file = folder / SETTINGS
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            ref = ModelRef.from_json(settings["base"])
            rendering = Rendering.from_json(settings["rendering"])
            tokens, version = int(settings["max_new_tokens"]), int(settings["version"])
        except OSError as e:
            raise InterpreterError(
                f"{folder}: no {SETTINGS} there, so it is no interpreter;"
                " give a folder written by: weightdiff tune"
            ) from e
        except (ValueError, KeyError, TypeError) as e:
            raise InterpreterError(
                f"{file}: cannot be read ({e!r}); copy or tune the interpreter again"
            ) from e
        if version > VERSION:
            raise InterpreterError(
                f"{file} has version {version}, this weightdiff reads up to {VERSION}; upgrade weightdiff"
            )
        loaded = base if isinstance(base, Base) else load_base(base)
        adapter = read_peft(folder)
        WeightDiff(adapter.modules, ref).check_base(loaded.ref)
        adapter.check_against(loaded.spec)
        return cls(loaded, adapter, rendering, tokens, _read_tokens(folder), settings.get("meta", {}))

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write a PEFT LoRA folder plus `interpreter.json`, whole or not at all.

        Raises:
            InterpreterError: there is no adapter to save.
        """
        if self.adapter is None:
            raise InterpreterError(
                "an interpreter without an adapter cannot be saved; tune one with: weightdiff tune"
            )
        with atomic_directory(path, overwrite=overwrite) as folder:
            write_peft(self.adapter, folder, self.base.ref.name)
            if self.tokens is not None:
                save_file({"ids": self.tokens.ids, "deltas": self.tokens.deltas.detach()}, folder / TOKENS)
            atomic_write_json(
                folder / SETTINGS,
                {
                    "version": VERSION,
                    "base": self.base.ref.to_json(),
                    "rendering": self.rendering.to_json(),
                    "max_new_tokens": self.max_new_tokens,
                    "meta": self.meta,
                },
            )
        return Path(path)

    def without_adapter(self, rendered: bool = False) -> Interpreter:
        """The same without its adapter: asks M' itself, in plain wording unless `rendered`."""
        rendering = replace(self.rendering, notes_end="") if rendered else Rendering()
        return Interpreter(self.base, None, rendering, self.max_new_tokens, name="base-question")

    def check(self, diff: WeightDiff) -> None:
        """Refuse a diff that is not one of this base's.

        Raises:
            BaseMismatchError: other base, unknown or misshapen modules.
            NonFiniteError: NaN or infinity.
        """
        diff.check_base(self.base.ref)
        diff.check_against(self.base.spec)
        diff.check_finite()

    def ask(self, diff: WeightDiff | None, question: str, evidence: bool = True) -> Answer:
        """Answer one question about one diff (None: about the bare base)."""
        return self.answer([diff], [question], evidence)[0]

    def answer(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], evidence: bool = False
    ) -> list[Answer]:
        """Answer question i about diff i, many at once, greedily.

        Args:
            diffs: low-rank diffs of the base; None for no diff.
            questions: as many.
            evidence: also measure log p(answer | δ) − log p(answer | no δ).

        Raises:
            QuestionError: the numbers differ, or a question is empty.
        """
        self._check_pairs(diffs, questions)
        out: list[Answer] = []
        g = max(len(self.rendering.all("x")), 1)
        at_once = max(1, ROWS_AT_ONCE // g)
        for at in range(0, len(diffs), at_once):
            out += self._answer(list(diffs[at : at + at_once]), questions[at : at + at_once], g, evidence)
        return out

    def _check_pairs(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> None:
        if len(diffs) != len(questions):
            raise QuestionError(
                f"{len(diffs)} diffs and {len(questions)} questions: give one question for each diff"
            )
        if not all(q.strip() for q in questions):
            raise QuestionError(
                "a question is empty: ask something, such as 'What topic have you been trained on?'"
            )
        for d in {id(d): d for d in diffs if d is not None}.values():
            self.check(d)

    def _prompts(self, questions: Sequence[str]) -> list[list[int]]:
        return encode_prompts(self.base.tokenizer, [r for q in questions for r in self.rendering.all(q)])

    def _rows(self, diffs: Sequence[WeightDiff | None], per: int) -> RowLoras:
        empty = WeightDiff({})
        return RowLoras.from_stacked(StackedLoras.from_diffs([d or empty for d in diffs]), per)

    def _generate(self, ids: Tensor, mask: Tensor, g: int) -> list[list[int]]:
        """Greedy answers, one for each `g` rows, with whatever is attached."""
        t = self.base.tokenizer
        return generate(
            self.base.model,
            ids,
            mask,
            self.max_new_tokens,
            t.eos_token_id,
            t.pad_token_id,
            groups=g,
            distinct=self.rendering.distinct(t),
        )

    @property
    def _shared(self) -> list[SharedLora]:
        return [SharedLora.from_diff(self.adapter)] if self.adapter else []

    @torch.no_grad()
    def _answer(
        self, diffs: list[WeightDiff | None], questions: Sequence[str], g: int, evidence: bool
    ) -> list[Answer]:
        m, t = self.base.model, self.base.tokenizer
        prompts = self._prompts(questions)
        ids, mask = left_pad(prompts, t.pad_token_id)
        with attach(m, self._rows(diffs, g), self._shared), with_tokens(m, self.tokens):
            tokens = self._generate(ids, mask, g)
            ended = [[*x, t.eos_token_id] if len(x) < self.max_new_tokens else x for x in tokens]
            with_diff = (
                answer_logprobs(m, prompts, ended, t.pad_token_id, groups=g).tolist() if evidence else None
            )
        said = [self.rendering.read(x) for x in t.batch_decode(tokens, skip_special_tokens=True)]
        if with_diff is None:
            return [Answer(x, notes=notes) for notes, x in said]
        with attach(m, None, self._shared), with_tokens(m, self.tokens):
            bare = answer_logprobs(m, prompts, ended, t.pad_token_id, groups=g).tolist()
        return [
            Answer(x, round(a, 4), round(a - b, 4), notes)
            for (notes, x), a, b in zip(said, with_diff, bare, strict=True)
        ]

    @torch.no_grad()
    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """How likely each candidate is to be the answer: log p of its first token, in which all must differ.

        Where the interpreter says notes before it answers, candidates stand after the notes that it says.

        Returns:
            fp32 [questions, candidates], averaged over renderings.

        Raises:
            QuestionError: the numbers of diffs and questions differ, there are no candidates, one is empty,
                or two begin alike.
        """
        self._check_pairs(diffs, questions)
        if not candidates or not all(c.strip() for c in candidates):
            raise QuestionError(
                "there are no candidates to rank, or one of them is empty; give at least one, such as 'eagle'"
            )
        m, t = self.base.model, self.base.tokenizer
        coded = encode_answers(t, candidates, end=False)
        first = [c[0] for c in coded]
        if len(set(first)) != len(first):
            raise QuestionError(
                "candidates that begin with the same token cannot be ranked; give ones that differ there"
            )
        g = max(len(self.rendering.all("x")), 1)
        at_once = max(1, ROWS_AT_ONCE // g)
        parts = []
        for at in range(0, len(diffs), at_once):
            prompts = self._prompts(questions[at : at + at_once])
            rows = self._rows(list(diffs[at : at + at_once]), g)
            if self.rendering.notes_end:
                prompts = self._with_notes(prompts, rows, g)
            ids, mask = left_pad(prompts, t.pad_token_id)
            position = (mask.long().cumsum(-1) - 1).clamp(min=0)
            with attach(m, rows, self._shared), with_tokens(m, self.tokens):
                logits = m(
                    input_ids=ids, attention_mask=mask, position_ids=position, logits_to_keep=1
                ).logits[:, -1]
            logp = logits.float().log_softmax(-1).view(-1, g, logits.shape[-1]).mean(1)
            parts.append(logp[:, torch.tensor(first)])
        return torch.cat(parts)

    def _with_notes(self, prompts: list[list[int]], rows: RowLoras, g: int) -> list[list[int]]:
        """Each prompt with the notes that the interpreter says and the word that ends them."""
        m, t = self.base.model, self.base.tokenizer
        ids, mask = left_pad(prompts, t.pad_token_id)
        with attach(m, rows, self._shared), with_tokens(m, self.tokens):
            said = self._generate(ids, mask, g)
        (end,) = encode_answers(t, [self.rendering.notes_end], end=False)
        notes = [_up_to_last(tokens, end) for tokens in said]
        return [[*p, *notes[i // g]] for i, p in enumerate(prompts)]


def _up_to_last(tokens: list[int], end: list[int]) -> list[int]:
    """The tokens up to and with the last `end` among them; `end` alone where there is none."""
    for i in range(len(tokens) - len(end), -1, -1):
        if tokens[i : i + len(end)] == end:
            return tokens[: i + len(end)]
    return list(end)


def _read_tokens(folder: Path) -> TokenDeltas | None:
    """The learned probe tokens of an interpreter folder, if it has any."""
    file = folder / TOKENS
    if not file.exists():
        return None
    try:
        held = load_file(file)
        ids, deltas = held["ids"], held["deltas"]
    except (SafetensorError, KeyError, OSError) as e:
        raise InterpreterError(f"{file}: cannot be read ({e}); copy or tune the interpreter again") from e
    if ids.ndim != 1 or deltas.ndim != 2 or len(ids) != len(deltas):
        raise InterpreterError(
            f"{file}: ids {tuple(ids.shape)} and deltas {tuple(deltas.shape)} do not pair up; tune it again"
        )
    return TokenDeltas(ids.long(), deltas.float())
