"""A model of inspect_ai in a thread of its own, and its errors without secrets; `language_model` asks it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import re
import threading
import weakref
from collections.abc import Coroutine, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any

from weightdiff.errors import MissingDependencyError, QuestionError, one_line

if TYPE_CHECKING:
    from inspect_ai.model import Model

LONGEST_REASON = 300
"""Characters of an error that are kept."""
_SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRETS = re.compile(
    r"(?<=bearer )\S+|(?<=://)[^/\s@]+(?=@)|\b(?:sk-|hf_|gsk_|xai-|AIza)[\w*-]{16,}", re.IGNORECASE
)
_LEAST_SECRET = 8
_MARKUP = re.compile(r"\[/?[a-z_ ]+\]")


class Served:
    """A model of inspect, and the thread whose event loop alone calls it: connections belong to a loop."""

    def __init__(self, name: str, concurrency: int, settings: Mapping[str, Any]) -> None:
        """Build the model; the thread begins with the first work. See `served`."""
        self.model = _build(name, concurrency, settings)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        """Begin work in the loop, outside the context (an evaluation's, say) that this thread is in."""
        with self._lock:
            if not (self._loop and self._thread and self._thread.is_alive()):  # a fork has no threads
                # Limits of concurrency are inspect's, shared by key and good for one loop. An evaluation's
                # own calls of the model may hold theirs while its loop waits for us: we take another key.
                key = f"weightdiff {next(_NUMBERS)}"
                self.model.api.connection_key = lambda: key
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop, self.model.api), name="weightdiff-model", daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, self._loop, self._thread)
            return Context().run(asyncio.run_coroutine_threadsafe, work, self._loop)


_NUMBERS = itertools.count()
_LOCK = threading.Lock()
_SHARED: weakref.WeakValueDictionary[tuple[str, int], Served] = weakref.WeakValueDictionary()


def served(name: str, concurrency: int, settings: Mapping[str, Any]) -> Served:
    """The model; where there are no settings, all who name it alike share it: it may be one in memory.

    Args:
        name: "provider/model", as inspect_ai names it.
        concurrency: calls at a time.
        settings: further arguments of `inspect_ai.model.get_model`.

    Raises:
        MissingDependencyError: inspect_ai is not installed.
        QuestionError: the provider is unknown, or its package, its key or the model is missing.
    """
    if settings:
        return Served(name, concurrency, settings)
    with _LOCK:
        found = _SHARED.get((name, concurrency))
        if found is None:
            found = _SHARED[name, concurrency] = Served(name, concurrency, settings)
        return found


def _build(name: str, concurrency: int, settings: Mapping[str, Any]) -> Model:
    try:
        from inspect_ai.model import GenerateConfig, get_model
    except ImportError as e:
        raise MissingDependencyError("inspect_ai", "eval") from e
    try:
        config = GenerateConfig(max_connections=concurrency)
        return get_model(name, config=config, memoize=False, **settings)
    except Exception as e:  # whatever a provider raises: it may read keys, import its package, load weights
        said = safe(_MARKUP.sub("", str(e)) or type(e).__name__, settings.get("api_key"))
        raise QuestionError(
            f"the language model {name!r} cannot be built ({said}); name it as provider/model, as inspect_ai"
            " does, install the provider's package, and set its key in the environment"
        ) from e


def _serve(loop: asyncio.AbstractEventLoop, api: Any) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        with contextlib.suppress(Exception):
            loop.run_until_complete(api.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=5)


def safe(text: str, key: object = None) -> str:
    """One short line without anything that looks like a secret: errors are kept in reports."""
    secrets = {v for k, v in os.environ.items() if _SECRET_NAMES.search(k) and len(v) >= _LEAST_SECRET}
    if isinstance(key, str) and len(key) >= _LEAST_SECRET:
        secrets.add(key)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = " ".join(one_line(_SECRETS.sub("***", text)).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
