"""Requests that come one by one, answered together: for front ends that ask concurrently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
PATIENCE = 0.05
"""Seconds to wait for company."""


@dataclass(eq=False)
class _Place(Generic[Q, A]):
    """One request in the queue."""

    request: Q
    answer: A | None = None
    error: Exception | None = None
    done: bool = False


class Gatherer(Generic[Q, A]):
    """Answers requests in batches, one batch at a time, in a worker thread.

    The first to wait leads: after a moment it takes those that have come by then along. Who comes while a
    batch is answered waits for the next one.
    """

    def __init__(
        self, answer: Callable[[Sequence[Q]], Sequence[A]], most: int, patience: float = PATIENCE
    ) -> None:
        """Gather for a function of many requests.

        Args:
            answer: gives one answer for each request.
            most: requests in a batch.
            patience: seconds that a batch waits for company.
        """
        import anyio

        self._answer, self._most, self._patience = answer, most, patience
        self._waiting: list[_Place[Q, A]] = []
        self._turn = anyio.Lock()

    async def ask(self, request: Q) -> A:
        """The answer to one request; what the function raises, every request of its batch raises."""
        place: _Place[Q, A] = _Place(request)
        self._waiting.append(place)
        try:
            async with self._turn:
                if not place.done:
                    await self._lead(place)
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
        if place.error is not None:
            raise place.error
        return place.answer  # type: ignore[return-value]  # done without an error

    async def _lead(self, first: _Place[Q, A]) -> None:
        """Answer a batch that has `first` in it."""
        import anyio
        import anyio.to_thread

        await anyio.sleep(self._patience)
        batch = [first, *(p for p in self._waiting if p is not first)][: self._most]
        self._waiting = [p for p in self._waiting if p not in batch]
        try:
            answers = await anyio.to_thread.run_sync(self._answer, [p.request for p in batch])
        except Exception as error:
            for place in batch:
                place.error, place.done = error, True
        except BaseException:  # this one was called off: the others go on waiting
            self._waiting = [p for p in batch if p is not first] + self._waiting
            raise
        else:
            for place, answer in zip(batch, answers, strict=True):
                place.answer, place.done = answer, True
