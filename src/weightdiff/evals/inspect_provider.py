"""Any diff as a model of inspect_ai: `weightdiff/BASE?diff=…&interpreter=…`.

Requests that come together are answered together. How conversations become tokens, and how diffs are put on a
base, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from logging import getLogger
from threading import Lock
from typing import Any
from urllib.parse import unquote

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from weightdiff.errors import BaseNeededError, QuestionError
from weightdiff.evals.gathering import Gatherer
from weightdiff.evals.inspect_errors import no_bars, one_line
from weightdiff.methods.base import Answer
from weightdiff.methods.carrying import fitted, goes_on_rows
from weightdiff.methods.chatting import FinetunedModel, Prompt, Reply
from weightdiff.methods.dit import Interpreter
from weightdiff.methods.loading import load_base
from weightdiff.methods.naming import BUNDLED, read_diff
from weightdiff.models.chat import encode_conversations
from weightdiff.models.merge import merge_into

logger = getLogger(__name__)
MAX_TOKENS = 512
"""Of a reply, where inspect does not say."""
BATCH_SIZE = 32
IGNORED = (
    "top_p",
    "top_k",
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "top_logprobs",
    "prompt_logprobs",
    "response_schema",
)
"""Settings of inspect that change nothing here; a warning says so."""


@dataclass(frozen=True)
class Settings:
    """What a model's name and its arguments say."""

    base: str
    """"bundled", a folder or a Hub name."""
    diff: str | None = None
    """As `weightdiff ask --diff` takes it; None for the bare base."""
    interpreter: str | None = None
    """"bundled", a folder or a Hub name: the model answers about itself. None: it is the finetuned model."""
    dtype: str = "float32"
    device_map: str | dict[str, Any] | None = None
    batch_size: int = BATCH_SIZE
    """Requests, or choices of one request, that are answered together."""

    @classmethod
    def read(cls, name: str, arguments: Mapping[str, Any]) -> Settings:
        """Settings from a name `BASE?key=value&…` and the model arguments (`-M key=value`).

        In the name, `&`, `?`, `%` and `=` of a value are percent-encoded.

        Raises:
            QuestionError: a setting is unknown, has no value, or is given twice; or there is no base.
        """
        base, _, query = name.partition("?")
        known = [f.name for f in fields(cls) if f.name != "base"]
        found: dict[str, Any] = {}
        given = [part.partition("=")[::2] for part in query.split("&") if part]
        for key, value in [*((k, unquote(v)) for k, v in given), *arguments.items()]:
            if key not in known:
                raise QuestionError(
                    f"a weightdiff model has no setting {key!r}; there are {', '.join(known)}, as in"
                    " weightdiff/bundled?diff=bundled::covert-rabbit-0-1"
                )
            if key in found:
                raise QuestionError(f"setting {key!r} of model {name!r} is given twice; give it once")
            if value == "":
                raise QuestionError(
                    f"setting {key!r} of model {name!r} has no value; give one, or leave it out"
                )
            found[key] = value
        if not base:
            raise QuestionError(
                f"model 'weightdiff/{name}' names no base; put bundled, a folder or a Hub name before '?'"
            )
        size = str(found.get("batch_size", BATCH_SIZE))
        if not size.isdecimal() or int(size) < 1:
            raise QuestionError(f"batch_size of model {name!r} is {size!r}; give a number from 1 on")
        return cls(base, **{**found, "batch_size": int(size)})

    def load(self) -> tuple[FinetunedModel, Interpreter | None]:
        """The model, and the interpreter for questions about it.

        Raises:
            WeightDiffError: base, diff or interpreter cannot be read or do not fit.
        """
        base = load_base(self.base, self.dtype, self.device_map)
        its = None
        if self.interpreter is not None:
            its = Interpreter.load(None if self.interpreter == BUNDLED else self.interpreter, base)
        diff = None
        if self.diff is not None:
            try:
                diff = read_diff(self.diff)
            except BaseNeededError:  # such as a full finetune
                diff = read_diff(self.diff, base.model)
        if diff is not None and its is None and not goes_on_rows(base, diff := fitted(base, diff)):
            merge_into(base.model, diff)  # once and for all: nobody else has this base
            diff = None
        return FinetunedModel(base, diff, its.adapter if its else None), its


@dataclass(frozen=True)
class _Request:
    """One conversation as inspect asks it."""

    prompt: Prompt
    choices: int
    temperature: float
    seed: int | None


class WeightDiffAPI(ModelAPI):
    """A base with one diff on it, which inspect asks."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (inspect's signature)
        **model_args: Any,
    ) -> None:
        """Load base, diff and interpreter.

        Raises:
            PrerequisiteError: a setting is unknown, or something cannot be loaded; says why.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        with one_line():
            settings = Settings.read(model_name, model_args)
            with no_bars():
                self.model, self.interpreter = settings.load()
        self.batch_size = settings.batch_size
        self._warned: set[str] = set()
        self._busy = Lock()  # answers and replies put their hooks on the same model
        self._replies: Gatherer[_Request, list[Reply]] = Gatherer(self._reply, self.batch_size)
        self._answers: Gatherer[str, Answer] = Gatherer(self._answer, self.batch_size)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002 (inspect's signature)
        config: GenerateConfig,
    ) -> ModelOutput:
        """Go on with a conversation.

        With an interpreter, a single question that nothing is sampled for is answered as `weightdiff ask`
        answers it, evidence and notes in the output's metadata. All else is continued by the model itself:
        greedily, unless a temperature is given. A request with a seed is sampled alone, so that the same seed
        gives the same words whatever is asked beside it.

        Raises:
            PrerequisiteError: tools or images are asked for, or the chat template refuses the messages.
        """
        with one_line():
            turns = _turns(input, tools)
            self._warn(config)
            ids = encode_conversations(self.model.base.tokenizer, [turns])[0]
            if self.interpreter is not None and _is_question(turns, config):
                return self._told(await self._answers.ask(turns[0][1]), len(ids))
            request = _Request(
                Prompt(ids, config.max_tokens or MAX_TOKENS, tuple(config.stop_seqs or ())),
                config.num_choices or 1,
                config.temperature or 0.0,
                config.seed if config.temperature else None,
            )
            replies = await self._replies.ask(request)
        return self._output(
            [self._choice(r, bool(config.logprobs)) for r in replies],
            len(ids),
            sum(len(r.tokens) for r in replies),
        )

    def max_tokens(self) -> int | None:
        """Of a reply, where inspect does not say."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """Requests in flight: what one batch takes."""
        return self.batch_size

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text, by the base's tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.model.base.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answer(self, questions: Sequence[str]) -> list[Answer]:
        assert self.interpreter is not None
        with self._busy:
            return self.interpreter.answer([self.model.diff] * len(questions), questions, evidence=True)

    def _reply(self, requests: Sequence[_Request]) -> list[list[Reply]]:
        """The replies to requests: greedy ones together, sampled ones of a temperature, seeded ones alone."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, r in enumerate(requests):
            alone = (i,) if r.seed is not None else ()
            groups.setdefault((r.temperature, *alone), []).append(i)
        out: list[list[Reply]] = [[] for _ in requests]
        for own in groups.values():
            first = requests[own[0]]
            rows = [i for i in own for _ in range(requests[i].choices if first.temperature else 1)]
            for at in range(0, len(rows), self.batch_size):
                part = rows[at : at + self.batch_size]
                seed = None if first.seed is None else first.seed + at
                with self._busy:
                    said = self.model.reply([requests[i].prompt for i in part], first.temperature, seed)
                for i, reply in zip(part, said, strict=True):
                    out[i].append(reply)
        return [
            found if len(found) == r.choices else found * r.choices
            for found, r in zip(out, requests, strict=True)
        ]

    def _choice(self, reply: Reply, logprobs: bool) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=reply.text, model=self.model_name, source="generate")
        words = self.model.base.tokenizer.convert_ids_to_tokens(reply.tokens)
        content = [Logprob(token=w, logprob=p) for w, p in zip(words, reply.logprobs, strict=True)]
        return ChatCompletionChoice(
            message=message,
            stop_reason=reply.ended,
            logprobs=Logprobs(content=content) if logprobs else None,
        )

    def _told(self, answer: Answer, asked: int) -> ModelOutput:
        """An interpreter's answer as inspect's output."""
        message = ChatMessageAssistant(content=answer.text, model=self.model_name, source="generate")
        said = f"{answer.notes} {answer.text}" if answer.notes else answer.text
        output = self._output(
            [ChatCompletionChoice(message=message, stop_reason="stop")],
            asked,
            len(self.model.base.tokenizer(said, add_special_tokens=False)["input_ids"]),
        )
        output.metadata = {"evidence": answer.evidence, "logprob": answer.logprob, "notes": answer.notes}
        return output

    def _output(self, choices: list[ChatCompletionChoice], asked: int, said: int) -> ModelOutput:
        usage = ModelUsage(input_tokens=asked, output_tokens=said, total_tokens=asked + said)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _warn(self, config: GenerateConfig) -> None:
        """Say once of each setting that it changes nothing."""
        for name in IGNORED:
            if getattr(config, name) is not None and name not in self._warned:
                self._warned.add(name)
                logger.warning("weightdiff models take no %s; it is left out", name)


@modelapi(name="weightdiff")
def weightdiff_model() -> type[ModelAPI]:
    """The models that inspect calls weightdiff/…."""
    return WeightDiffAPI


def _turns(messages: Sequence[ChatMessage], tools: Sequence[ToolInfo]) -> list[tuple[str, str]]:
    """Role and text of each message.

    Raises:
        QuestionError: there are tools, or a message is not text alone.
    """
    if tools or any(m.role == "tool" for m in messages):
        raise QuestionError("weightdiff models call no tools; choose a task or a solver without them")
    for m in messages:
        if not isinstance(m.content, str) and any(
            part.type not in ("text", "reasoning") for part in m.content
        ):
            raise QuestionError("weightdiff models read text only; choose a task without images or files")
    return [(m.role, m.text) for m in messages]


def _is_question(turns: Sequence[tuple[str, str]], config: GenerateConfig) -> bool:
    """Whether an interpreter can answer as it was tuned to: one question, greedily, as long as it likes."""
    plain = not (config.temperature or config.stop_seqs or config.logprobs)
    return len(turns) == 1 and turns[0][0] == "user" and plain and (config.num_choices or 1) == 1
