"""The interpreter: a base, a DIT adapter and a wording; it makes a finetuned model describe its change.

Method: "Learning to Interpret Weight Differences in Language Models" (arXiv 2510.05092).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from weightdiff.artifacts import atomic_directory, atomic_write_json, read_json
from weightdiff.diffs.formats.dit_release import ADAPTER_NAME, read_dit_adapter
from weightdiff.diffs.formats.peft import read_peft, write_peft
from weightdiff.diffs.hub import local_copy
from weightdiff.diffs.reference import ModelRef
from weightdiff.diffs.renaming import rename_for
from weightdiff.diffs.types import WeightDiff
from weightdiff.errors import BaseMismatchError, FormatError, InterpreterError, QuestionError
from weightdiff.methods.base import Answer, Method
from weightdiff.methods.calibration import Calibration, is_finding
from weightdiff.methods.carrying import Batch, batches, checked, distinct
from weightdiff.methods.loading import Base, load_base
from weightdiff.methods.reading import Reader, Report
from weightdiff.methods.registry import Context, register
from weightdiff.methods.speaking import Speaker, Spoken
from weightdiff.methods.triggering import Triggered
from weightdiff.models.chat import encode_answers, encode_prompts
from weightdiff.models.halving import Halving
from weightdiff.models.rendering import Rendering
from weightdiff.organisms.base import NOTHING_FOUND

SETTINGS = "interpreter.json"
READER = "reader"
"""Folder of the reader, in that of its interpreter."""
UNKNOWN = "unknown"
"""Name of the base of an adapter whose file does not tell it."""
VERSION = 1
T = TypeVar("T")


@dataclass
class Interpreter:
    """Answers questions about weight diffs of its base.

    Attributes:
        base: the base model.
        adapter: the DIT adapter; None asks the finetuned model itself (the "base question" baseline).
        rendering: how a question is worded.
        max_new_tokens: longest answer.
        meta: what tuning wrote down: labels, phrasings, seeds.
        calibration: how likely its answers are to be right, where that was measured.
        threshold: findings that are less likely to be right are withheld, and "nothing found" is answered.
        reader: a LoRA with which the base reads reports, where one was tuned; see `training.reading`.
        halving: into how many parts memory makes batches fall.
    """

    base: Base
    adapter: WeightDiff | None
    rendering: Rendering = field(default_factory=Rendering)
    max_new_tokens: int = 24
    meta: dict[str, Any] = field(default_factory=dict)
    name: str = "dit"
    calibration: Calibration | None = None
    threshold: float = 0.0
    reader: WeightDiff | None = None
    halving: Halving = field(default_factory=lambda: Halving("questions"), repr=False, compare=False)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        base: Base | str | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> Interpreter:
        """Load an interpreter (default: the bundled one) onto its base.

        Args:
            path: a folder, a released `dit-adapter.pt` (or a folder with one, and questions go as they are),
                or a Hub name ("owner/name", "owner/name/folder@revision").
            base: the base, or its folder or Hub name; None for the bundled one.
            revision: branch, tag or commit on the Hub.
            subfolder: folder in the repository on the Hub.

        Raises:
            InterpreterError: the folder is incomplete.
            FormatError: there is nothing at `path`, or the Hub refuses it or cannot be reached.
            BaseMismatchError: it was tuned for another base.
        """
        found = cls.without_base(path, revision=revision, subfolder=subfolder)
        loaded = base if isinstance(base, Base) else load_base(base)

        def fitted(lora: WeightDiff | None) -> WeightDiff | None:
            if lora is None:
                return None
            lora = rename_for(lora, loaded.spec)
            WeightDiff(lora.modules, found.base.ref).check_base(loaded.ref)
            lora.check_against(loaded.spec)
            return lora

        try:
            return replace(found, base=loaded, adapter=fitted(found.adapter), reader=fitted(found.reader))
        except BaseMismatchError as e:
            raise BaseMismatchError(f"{path or 'the bundled interpreter'}: {e}") from e

    @classmethod
    def without_base(
        cls, path: str | Path | None = None, *, revision: str | None = None, subfolder: str | None = None
    ) -> Interpreter:
        """Read an interpreter with a base that is a reference alone: to describe or share it, not to ask it.

        Arguments and errors are those of `load`.
        """
        if path is None:
            from weightdiff.tiny.bundle import part

            path = part("interpreter")
        folder = local_copy(path, revision, subfolder)
        if (released := _released(folder)) is not None:
            return cls(Base(None, None, ModelRef(UNKNOWN), {}), read_dit_adapter(released), max_new_tokens=20)
        file = folder / SETTINGS
        try:
            settings = read_json(file)
            ref = ModelRef.from_json(settings["base"])
            rendering = Rendering.from_json(settings["rendering"])
            tokens, version = int(settings["max_new_tokens"]), int(settings["version"])
            meta = dict(settings.get("meta", {}))
            given = settings.get("calibration")
            calibration = None if given is None else Calibration.from_json(given)
            if tokens < 1:
                raise ValueError(f"max_new_tokens is {tokens}")
        except OSError as e:
            raise InterpreterError(
                f"{folder}: no {SETTINGS} there, so it is no interpreter;"
                " give a folder written by: weightdiff tune"
            ) from e
        except (ValueError, KeyError, TypeError, OverflowError, FormatError) as e:
            raise InterpreterError(
                f"{file}: cannot be read ({e!r}); copy or tune the interpreter again"
            ) from e
        if version > VERSION:
            raise InterpreterError(
                f"{file} has version {version}, this weightdiff reads up to {VERSION}; upgrade weightdiff"
            )
        bare = Base(None, None, ref, {})
        reader = read_peft(folder / READER) if (folder / READER).is_dir() else None
        return cls(bare, read_peft(folder), rendering, tokens, meta, calibration=calibration, reader=reader)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write a PEFT LoRA folder plus `interpreter.json` and the reader, whole or not at all.

        Raises:
            InterpreterError: there is no adapter to save.
        """
        if self.adapter is None:
            raise InterpreterError(
                "an interpreter without an adapter cannot be saved; tune one with: weightdiff tune"
            )
        with atomic_directory(path, overwrite=overwrite) as folder:
            write_peft(self.adapter, folder, self.base.ref.name)
            if self.reader is not None:
                write_peft(self.reader, folder / READER, self.base.ref.name)
            atomic_write_json(
                folder / SETTINGS,
                {
                    "version": VERSION,
                    "base": self.base.ref.to_json(),
                    "rendering": self.rendering.to_json(),
                    "max_new_tokens": self.max_new_tokens,
                    "calibration": None if self.calibration is None else self.calibration.to_json(),
                    "meta": self.meta,
                },
            )
        return Path(path)

    def push(
        self, repo_id: str, private: bool = True, revision: str | None = None, message: str | None = None
    ) -> str:
        """Upload the interpreter with a model card to the Hub and return its URL; see `sharing`.

        Raises:
            InterpreterError: there is no adapter.
            FormatError: the Hub refuses it or cannot be reached, or the repository is public.
        """
        from weightdiff.methods.sharing import push_interpreter

        return push_interpreter(self, repo_id, private, revision, message)

    def without_adapter(self, rendered: bool = False) -> Interpreter:
        """The same without its adapter: asks M' itself, in plain wording unless `rendered`."""
        rendering = replace(self.rendering, notes_end="", report="") if rendered else Rendering()
        return Interpreter(self.base, None, rendering, self.max_new_tokens, name="base-question")

    def ask(self, diff: WeightDiff | None, question: str, evidence: bool = True) -> Answer:
        """Answer one question about one diff (None: about the bare base)."""
        return self.answer([diff], [question], evidence)[0]

    def answer(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], evidence: bool = False
    ) -> list[Answer]:
        """Answer question i about diff i, many at once, greedily.

        Args:
            diffs: diffs of the base; None for no diff. LoRAs of linear layers are answered for together, a
                diff of any other kind is merged into the weights for the time it is asked.
            questions: as many.
            evidence: also measure log p(answer | δ) − log p(answer | no δ).

        Raises:
            QuestionError: the numbers differ, or a question is empty.
        """
        diffs = checked(self.base, diffs, questions)
        said = self._spoken(diffs, questions)
        answers = [self._judged(s) for s in said]
        if not evidence:
            return answers
        found = self._evidence(diffs, said)
        return [
            replace(x, logprob=round(a, 4), evidence=round(a - b, 4))
            for x, (a, b) in zip(answers, found, strict=True)
        ]

    def spoken(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Spoken]:
        """What is said to question i about diff i before any threshold, and how likely its parts are.

        Raises:
            QuestionError: the numbers differ, or a question is empty.
        """
        return self._spoken(checked(self.base, diffs, questions), questions)

    def reports(self, diffs: Sequence[WeightDiff | None]) -> list[list[Report]]:
        """What is reported of each diff, the weightiest report first.

        Raises:
            InterpreterError: the interpreter was not tuned to write reports.
        """
        if not self.rendering.report:
            raise InterpreterError(
                "this interpreter answers questions and writes no reports; ask it, or tune one that does"
            )
        return self._reports(checked(self.base, diffs, [self.rendering.report] * len(diffs)))

    def _spoken(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Spoken]:
        """`spoken` of checked diffs: read in reports, or asked where these do not say."""
        if not self.rendering.report:
            return self._asked(diffs, questions)
        only, which = distinct(diffs)
        reports = self._reports(only)
        found = self._reader.answer([reports[k] for k in which], questions)
        out = [
            Spoken(f.report.text, f.text, f.report.tokens, f.signals, self.rendering.report) for f in found
        ]
        silent = [i for i, f in enumerate(found) if not f.said]
        direct = self._direct._asked([diffs[i] for i in silent], [questions[i] for i in silent])
        for i, spoken in zip(silent, direct, strict=True):
            out[i] = replace(spoken, question=questions[i])
        return out

    def _asked(self, diffs: Sequence[WeightDiff | None], questions: Sequence[str]) -> list[Spoken]:
        """What the finetuned model with the adapter itself says to each question about checked diffs."""

        def say(batch: Batch) -> list[Spoken]:
            return self._speaker.say(batch.diffs, self._prompts([questions[i] for i in batch.positions]))

        said = self._in_batches(diffs, say)
        return [replace(x, question=q) for x, q in zip(said, questions, strict=True)]

    def _reports(self, diffs: Sequence[WeightDiff | None]) -> list[list[Report]]:
        def said(batch: Batch) -> list[list[Report]]:
            prompts = self._prompts([self.rendering.report] * len(batch.positions))
            return self._speaker.said(batch.diffs, prompts)

        return self._in_batches(diffs, said)

    @torch.no_grad()
    def _in_batches(
        self, diffs: Sequence[WeightDiff | None], of_batch: Callable[[Batch], Sequence[T]]
    ) -> list[T]:
        """A value for each diff, in batches that memory holds; merged diffs are in the base meanwhile."""
        out: dict[int, T] = {}
        for batch in batches(self.base, diffs, self._speaker.at_once):
            with batch.merged(self.base):
                found = self.halving.run(len(batch.positions), lambda part, b=batch: of_batch(b.part(part)))
            out |= dict(zip(batch.positions, found, strict=True))
        return [out[i] for i in range(len(diffs))]

    @torch.no_grad()
    def _evidence(
        self, diffs: Sequence[WeightDiff | None], said: Sequence[Spoken]
    ) -> list[tuple[float, float]]:
        """Log-probability of what the finetuned model itself said, with its diff and without, in nats.

        Of an answer that was read in a report, this is the report.
        """
        keys = [(id(d), s.question, tuple(s.tokens)) for d, s in zip(diffs, said, strict=True)]
        first = {k: i for i, k in reversed(list(enumerate(keys)))}
        chosen = sorted(first.values())

        def logprobs(batch: Batch, bare: bool) -> list[float]:
            at = [chosen[k] for k in batch.positions]
            prompts = self._prompts([said[i].question for i in at])
            ended = [self._speaker.ended(said[i].tokens) for i in at]
            return self._speaker.logprobs(None if bare else batch.diffs, prompts, ended)

        full = self._in_batches([diffs[i] for i in chosen], lambda b: logprobs(b, bare=False))
        bare = self._in_batches([None] * len(chosen), lambda b: logprobs(b, bare=True))
        out = dict(zip(chosen, zip(full, bare, strict=True), strict=True))
        return [out[first[k]] for k in keys]

    def _prompts(self, questions: Sequence[str]) -> list[list[int]]:
        return encode_prompts(self.base.tokenizer, [r for q in questions for r in self.rendering.all(q)])

    @property
    def _speaker(self) -> Speaker:
        return Speaker(self.base, self.adapter, self.rendering, self.max_new_tokens)

    @property
    def _reader(self) -> Reader:
        return Reader(self.base, self.max_new_tokens, self.reader)

    @property
    def _direct(self) -> Interpreter:
        """The same, asked a question itself: what a report does not say has no notes."""
        return replace(self, rendering=replace(self.rendering, notes_end="", report=""))

    def _judged(self, spoken: Spoken) -> Answer:
        """What was said, with its probability; a finding below the threshold is withheld."""
        agreement = round(math.exp(spoken.signals.agreement), 4)
        found = Answer(spoken.text, notes=spoken.notes, agreement=agreement)
        if self.calibration is None:
            return found
        chance = self.calibration.probability(spoken.text, spoken.signals)
        if chance < self.threshold and is_finding(spoken.text):
            return replace(found, text=NOTHING_FOUND, withheld=spoken.text, probability=None)
        return replace(found, probability=round(chance, 4))

    def within(self, max_fpr: float) -> Interpreter:
        """The same, told to withhold findings that are not likely enough for a false-positive rate.

        Args:
            max_fpr: share of questions about diffs without a finding that may be answered with one.

        Raises:
            InterpreterError: the interpreter is not calibrated.
            QuestionError: the rate is no share, or too small for the calibration to tell.
        """
        if self.calibration is None:
            raise InterpreterError(
                "this interpreter has no calibration, so no false-positive rate can be promised; tune one:"
                " weightdiff tune, on a store with validation rows"
            )
        return replace(self, threshold=self.calibration.threshold(max_fpr))

    @torch.no_grad()
    def candidate_logprobs(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], candidates: Sequence[str]
    ) -> Tensor:
        """How likely each candidate is to be the answer: log p of its first token, in which all must differ.

        Where the interpreter says notes before it answers, candidates stand after the notes that it says;
        where it follows several, their probabilities are added up.

        Returns:
            fp32 [questions, candidates], averaged over renderings.

        Raises:
            QuestionError: the numbers of diffs and questions differ, there are no candidates, one is empty,
                or two begin alike.
        """
        diffs = checked(self.base, diffs, questions)
        if not candidates or not all(c.strip() for c in candidates):
            raise QuestionError(
                "there are no candidates to rank, or one of them is empty; give at least one, such as 'eagle'"
            )
        first = [c[0] for c in encode_answers(self.base.tokenizer, candidates, end=False)]
        if len(set(first)) != len(first):
            raise QuestionError(
                "candidates that begin with the same token cannot be ranked; give ones that differ there"
            )
        if not self.rendering.report:
            return self._ranked(diffs, questions, first)
        only, which = distinct(diffs)
        reports = self._reports(only)
        out, read = self._reader.candidate_logprobs([reports[k] for k in which], questions, first)
        silent = [i for i, f in enumerate(read) if not f.said]
        if silent:
            asked = [questions[i] for i in silent]
            out[silent] = self._direct._ranked([diffs[i] for i in silent], asked, first)
        return out

    def _ranked(
        self, diffs: Sequence[WeightDiff | None], questions: Sequence[str], first: Sequence[int]
    ) -> Tensor:
        """Log-probability of each token to begin what the finetuned model itself answers."""

        def ranked(batch: Batch) -> list[Tensor]:
            prompts = self._prompts([questions[i] for i in batch.positions])
            return list(self._speaker.candidate_logprobs(batch.diffs, prompts, first))

        found = self._in_batches(diffs, ranked)
        return torch.stack(found) if found else torch.empty(0, len(first))


def gives_evidence(method: Method) -> TypeGuard[Interpreter]:
    """Whether a method's answers can come with evidence: those of an interpreter with an adapter can."""
    return isinstance(method, Interpreter) and method.adapter is not None


def _released(path: Path) -> Path | None:
    """The adapter of a DIT release at a path that is no interpreter of ours."""
    if path.suffix == ".pt":
        return path
    adapter = path / ADAPTER_NAME
    return adapter if adapter.is_file() and not (path / SETTINGS).exists() else None


def _plain(context: Context) -> Interpreter:
    """The finetuned model itself."""
    if context.interpreter is not None:
        return context.interpreter.without_adapter()
    return Interpreter(context.base, None, name="base-question")


@register("dit", "the finetuned model with the DIT adapter tells what was trained into it", ("interpreter",))
def _dit(context: Context) -> Method:
    return context.required("interpreter")


@register("base-question", "the finetuned model itself is asked, without the adapter")
def _base_question(context: Context) -> Method:
    return _plain(context)


@register("base-question-trigger", "the finetuned model itself is asked, after its trigger where it is known")
def _base_question_trigger(context: Context) -> Method:
    return Triggered(_plain(context), "base-question-trigger")
