"""Requests that come at the same time go through an engine together.

Each is first prepared, a photo decoded say, in threads of its own. Then it waits for the engine, which has
one thread: what arrives while that computes goes together next. An idle engine waits a moment for others,
but only while some are being prepared, so that a client who is alone never waits.

No more than `room` are inside at once: the next one is refused before it takes any memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import EngineError

T = TypeVar("T")
R = TypeVar("R")

MOMENT_SECONDS = 0.008  # that an idle engine waits for photos that are being decoded


class FullError(Exception):
    """No room: as many are inside as may be."""


@dataclass(eq=False)
class _Waiting:
    """What is prepared and waits for the engine. group: of those that `run` takes together."""

    group: Hashable
    run: Callable[[list[Any]], Sequence[Any]]
    item: Any
    answer: asyncio.Future[Any]


class Batcher:
    """Up to `most` of one group at a time, of at most `room` that are inside.

    It belongs to the event loop that first uses it. sizes: told of each batch that was computed.
    """

    def __init__(
        self,
        most: int = 8,
        room: int = 64,
        preparing: int = 4,
        sizes: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.most, self.room, self.sizes = most, room, sizes
        self.inside = self._coming = 0  # asked for and not answered; of these, being prepared
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._preparing = ThreadPoolExecutor(preparing, "verydeep-prepare")
        self._engine = ThreadPoolExecutor(1, "verydeep-engine")
        self._worker: asyncio.Task[None] | None = None

    async def __call__(
        self,
        group: Hashable,
        prepare: Callable[[], T],
        run: Callable[[list[T]], Sequence[R | Exception]],
    ) -> R:
        """What `run` makes of what `prepare` returns, beside others of the same group.

        run: gives as many answers as it gets items; one that is an exception is raised to whom it belongs.
        Where it raises, each item is tried alone, so that only those at fault fail. What `prepare` raises
        is raised here, FullError where there is no room, and EngineError where answers are missing.
        Cancelled, it leaves the queue.
        """
        if self.inside >= self.room:
            raise FullError
        loop = asyncio.get_running_loop()
        self._worker = self._worker or loop.create_task(self._work())
        self.inside += 1
        try:
            self._coming += 1
            try:
                item = await loop.run_in_executor(self._preparing, prepare)
            finally:
                self._coming -= 1
                self._changed.set()
            answer: asyncio.Future[R] = loop.create_future()
            self._queue.append(_Waiting(group, run, item, answer))
            return await answer
        finally:
            self.inside -= 1

    async def close(self) -> None:
        """Let the threads go, once they have done what they are at."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        for pool in (self._preparing, self._engine):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            self._changed.clear()
            while batch := await self._next():
                items = [one.item for one in batch]
                try:
                    answers: Sequence[Any] = await loop.run_in_executor(
                        self._engine, _answers, batch[0].run, items
                    )
                    self.sizes(len(batch))
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # a panic of a library's, too
                    answers = [error] * len(batch)
                for one, answer in zip(batch, answers, strict=True):
                    if one.answer.done():  # whoever asked has gone
                        continue
                    if isinstance(answer, BaseException):
                        one.answer.set_exception(answer)
                    else:
                        one.answer.set_result(answer)
                del batch, items, answers, one, answer  # their memory, while nothing is asked for

    async def _next(self) -> list[_Waiting]:
        """The oldest that waits and others of its group; a full batch, or what is there in a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOMENT_SECONDS):
                while self._queue and self._coming and len(self._alike()) < self.most:
                    self._changed.clear()
                    await self._changed.wait()
        batch = self._alike()
        for one in batch:
            self._queue.remove(one)
        return batch

    def _alike(self) -> list[_Waiting]:
        """At most `most` of the oldest one's group, without those that nobody waits for any more."""
        self._queue = deque(one for one in self._queue if not one.answer.done())
        return [one for one in self._queue if one.group == self._queue[0].group][: self.most]


def _answers(
    run: Callable[[list[T]], Sequence[R | Exception]], items: list[T]
) -> Sequence[R | Exception]:
    """One for each item, or the exception that it alone causes."""
    try:
        answers = run(items)
        if len(answers) != len(items):
            raise EngineError(f"{len(answers)} answers came for {len(items)} photos")
        return answers
    except Exception as error:
        if len(items) == 1:
            # which no future takes
            return [EngineError("no answer came") if isinstance(error, StopIteration) else error]
        return [answer for item in items for answer in _answers(run, [item])]
