"""Another language model, asked through inspect_ai: prompts in, texts out, each kept on disk by its content.

What is asked, and what the texts mean, is left to those who ask: guessers and judges.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdiff.artifacts import atomic_write_bytes, read_json
from weightdiff.errors import FormatError
from weightdiff.methods.model_service import safe, served

if TYPE_CHECKING:
    from inspect_ai.model import GenerateConfig

MAX_TOKENS = 2048
"""Longest completion; models that reason spend most of it before they answer."""
_FORMAT = 1

Progress = Callable[[int, int], None]
"""Called with how many different completions there are, and how many there will be."""


@dataclass(frozen=True)
class Completion:
    """What a model said to a prompt."""

    text: str
    error: str = ""
    """Why there is no text, in one line; empty where there is one."""


class LanguageModel:
    """A model that inspect_ai knows, called as one calls a function.

    Calls run in a thread with an event loop of its own, so that `complete` works anywhere, also where a loop
    is running already: in a notebook, in a solver of inspect. They are no part of an evaluation of inspect
    that may be running: its transcript does not show them, its limits and settings do not touch them, and
    they do not wait for its connections.

    With a cache nothing is asked twice, in later runs neither. inspect's own cache stays off: it would answer
    the repeats of a prompt with the first one.
    """

    def __init__(
        self,
        name: str,
        cache: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        concurrency: int = 10,
        retries: int = 4,
        timeout: int = 300,
        **settings: Any,
    ) -> None:
        """Build the model, so that a wrong name costs nothing but the message.

        Args:
            name: "provider/model", as inspect_ai names it.
            cache: folder in which completions are kept, made where it is missing; None: they are not kept.
            seed: of the sampling, for providers that take one; repeat n gets `seed + n`. None: none is sent.
            concurrency: calls at a time, over all threads.
            retries: of a call whose failure the provider holds to be a passing one, after 3 s, 6 s, 12 s, …
            timeout: seconds for one try.
            settings: further arguments of `inspect_ai.model.get_model`, such as `base_url`. A cache does not
                know them; one model, one cache.

        Raises:
            MissingDependencyError: inspect_ai is not installed.
            QuestionError: the provider is unknown, or its package, its key or the model is missing.
            FormatError: `cache` cannot be a folder.
        """
        self.name = name
        self.seed = seed
        self.concurrency = concurrency
        self.retries = retries
        self.timeout = timeout
        self._cache = None if cache is None else _Cache(Path(cache))
        self._served = served(name, concurrency, settings)
        self._is_local = name.startswith(
            "hf/"
        )  # inspect samples from those at any temperature, and takes no 0

    def complete(
        self,
        prompts: Sequence[str],
        system: str = "",
        repeats: int = 1,
        temperature: float | None = 0.0,
        max_tokens: int = MAX_TOKENS,
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Complete each prompt several times.

        Equal prompts are asked once; repeats are always calls of their own, at temperature 0 too. A call that
        fails becomes a completion with an error, which no cache keeps. A refusal, and a completion without
        any text, is an error as well.

        Args:
            prompts: any texts.
            system: the system message; "" for none.
            repeats: completions of each prompt.
            temperature: 0 takes the likeliest token; None leaves it to the provider.
            max_tokens: longest completion.
            progress: called in this thread, first with what the cache holds.

        Returns:
            For each prompt its completions, [prompts][repeats].

        Raises:
            ValueError: `repeats` is less than one.
        """
        if repeats < 1:
            raise ValueError(f"repeats must be 1 or more, not {repeats}")
        keys = [[self._key(system, p, n, temperature, max_tokens) for n in range(repeats)] for p in prompts]
        wanted = {key: (p, n) for p, row in zip(prompts, keys, strict=True) for n, key in enumerate(row)}
        found: dict[str, Completion] = {}
        if self._cache is not None:
            kept = {key: self._cache.read(key) for key in wanted}
            found = {key: Completion(text) for key, text in kept.items() if text is not None}
        if progress:
            progress(len(found), len(wanted))
        todo = {
            key: (prompt, self._config(n, temperature, max_tokens))
            for key, (prompt, n) in wanted.items()
            if key not in found
        }
        if self._is_local:
            api: Any = self._served.model.api
            api.do_sample = temperature != 0
        for key, completion in self._ask(todo, system):
            found[key] = completion
            if progress:
                progress(len(found), len(wanted))
        return [[found[key] for key in row] for row in keys]

    def _ask(
        self, todo: Mapping[str, tuple[str, GenerateConfig]], system: str
    ) -> Iterator[tuple[str, Completion]]:
        """Yields each key with its completion, as they come."""
        if not todo:
            return
        come: queue.SimpleQueue[tuple[str, Completion] | None] = queue.SimpleQueue()

        async def one(key: str, prompt: str, config: GenerateConfig) -> None:
            completion = await self._one(prompt, system, config)
            if self._cache is not None and not completion.error:
                self._cache.write(key, completion.text)
            come.put((key, completion))

        async def every() -> None:
            # a task each: what inspect notes in a task's context goes with the task
            tasks = [asyncio.create_task(one(key, *asked)) for key, asked in todo.items()]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                come.put(None)

        running = self._served.start(every())
        try:
            while (entry := come.get()) is not None:
                yield entry
            running.result()
        finally:
            running.cancel()

    async def _one(self, prompt: str, system: str, config: GenerateConfig) -> Completion:
        from inspect_ai.model import ChatMessageSystem, ChatMessageUser

        messages = [*([ChatMessageSystem(content=system)] if system else []), ChatMessageUser(content=prompt)]
        try:
            output = await self._served.model.generate(messages, config=config, cache=False)
        except Exception as e:  # whatever a provider raises
            return Completion("", self._reason(e))
        if output.error:
            return Completion("", self._safe(output.error))
        text = output.completion
        if not output.empty and output.stop_reason == "content_filter":
            return Completion("", self._safe(f"the model refused: {text}"))
        if not text.strip():
            why = "no choices" if output.empty else f"it stopped by {output.stop_reason}"
            return Completion("", f"the model said nothing ({why})")
        return Completion(text)

    def _config(self, number: int, temperature: float | None, max_tokens: int) -> GenerateConfig:
        from inspect_ai.model import GenerateConfig

        return GenerateConfig(
            temperature=None if temperature == 0 and self._is_local else temperature,
            max_tokens=max_tokens,
            seed=None if self.seed is None else self.seed + number,
            max_connections=self.concurrency,
            max_retries=self.retries,
            attempt_timeout=self.timeout,
        )

    def _key(self, system: str, prompt: str, number: int, temperature: float | None, max_tokens: int) -> str:
        said = [_FORMAT, self.name, system, prompt, number, temperature, max_tokens, self.seed]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def _reason(self, error: BaseException) -> str:
        """What went wrong, without the request that inspect puts into its message."""
        last = getattr(error, "last_attempt", None)  # tenacity's, when all retries failed
        if last is not None and last.exception() is not None:
            error = last.exception()
        said = getattr(error, "provider_message", None) or str(error)
        return self._safe(f"{type(error).__name__}: {said}" if said else type(error).__name__)

    def _safe(self, text: str) -> str:
        return safe(text, getattr(self._served.model.api, "api_key", None))


class _Cache:
    """A folder of completions, a small file each, named by what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FormatError(
                f"{folder}: no folder for completions can be there ({e.strerror}); name another"
            ) from e

    def read(self, key: str) -> str | None:
        """The text; None where there is none, or only a damaged file, which the next one replaces."""
        try:
            entry = read_json(self._file(key))
        except (OSError, ValueError):
            return None
        if not isinstance(entry, dict) or entry.get("key") != key or not isinstance(entry.get("text"), str):
            return None
        return entry["text"]

    def write(self, key: str, text: str) -> None:
        atomic_write_bytes(self._file(key), json.dumps({"key": key, "text": text}).encode())

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
