"""The queue before an engine, with an engine of the test's own that waits until it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from verydeep.serving.batching import Batcher, FullError


class Engine:
    """Doubles numbers when it may; -1 is more than it can bear. batches: what it was given."""

    def __init__(self, *, open: bool = True) -> None:  # noqa: A002
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.begun = threading.Event()
        if open:
            self.may.set()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.begun.set()
        assert self.may.wait(20)
        if -1 in items:
            raise ValueError("-1 is no number")
        return [KeyError(item) if item == -2 else 2 * item for item in items]


def run(test: Callable[[Batcher], Coroutine[Any, Any, None]], **choices: Any) -> None:
    async def whole() -> None:
        batcher = Batcher(**{"preparing": 1, **choices})
        try:
            async with asyncio.timeout(20):
                await test(batcher)
            assert batcher.inside == 0
        finally:
            await batcher.close()

    asyncio.run(whole())


async def ask(batcher: Batcher, engine: Engine, item: int, group: str = "") -> int:
    return await batcher(group, lambda: item, engine)  # type: ignore[return-value]


async def behind_one(batcher: Batcher, engine: Engine) -> asyncio.Task[int]:
    """One that the engine is at."""
    first = asyncio.create_task(ask(batcher, engine, 0))
    await asyncio.to_thread(engine.begun.wait, 20)
    return first


async def all_queued(batcher: Batcher, count: int) -> None:
    while len(batcher._queue) < count:
        await asyncio.sleep(0.001)


def test_what_waits_goes_together_in_order_and_in_groups() -> None:
    engine = Engine(open=False)

    async def test(batcher: Batcher) -> None:
        first = await behind_one(batcher, engine)
        asked = [
            asyncio.create_task(ask(batcher, engine, n, "odd" if n % 2 else ""))
            for n in range(1, 8)
        ]
        await all_queued(batcher, 7)
        engine.may.set()
        assert await asyncio.gather(first, *asked) == [2 * n for n in range(8)]
        assert engine.batches == [[0], [1, 3, 5], [7], [2, 4, 6]] or engine.batches == [
            [0], [1, 3, 5], [2, 4, 6], [7]
        ]  # fmt: skip

    run(test, most=3)


def test_one_alone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verydeep.serving.batching.MOMENT_SECONDS", 1000)
    engine = Engine()

    async def test(batcher: Batcher) -> None:
        assert await ask(batcher, engine, 4) == 8

    run(test)


def test_an_idle_engine_waits_for_what_is_being_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verydeep.serving.batching.MOMENT_SECONDS", 10)
    engine, decoded = Engine(), threading.Event()

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(ask(batcher, engine, 1))
        slow = asyncio.create_task(batcher("", lambda: decoded.wait(20) and 2, engine))  # type: ignore[arg-type]
        await all_queued(batcher, 1)
        decoded.set()
        assert await asyncio.gather(first, slow) == [2, 4]
        assert engine.batches == [[1, 2]]

    run(test, preparing=2)


def test_but_not_for_long() -> None:
    engine, decoded = Engine(), threading.Event()

    async def test(batcher: Batcher) -> None:
        slow = asyncio.create_task(batcher("", lambda: decoded.wait(20) and 2, engine))  # type: ignore[arg-type]
        assert await ask(batcher, engine, 1) == 2
        assert engine.batches == [[1]]
        decoded.set()
        assert await slow == 4

    run(test, preparing=2)


def test_one_error_harms_no_neighbour() -> None:
    engine = Engine(open=False)

    async def test(batcher: Batcher) -> None:
        first = await behind_one(batcher, engine)
        asked = [asyncio.create_task(ask(batcher, engine, n)) for n in (1, -1, -2, 3)]
        await all_queued(batcher, 4)
        engine.may.set()
        good, bad, odd, last = await asyncio.gather(*asked, return_exceptions=True)
        assert (await first, good, last) == (0, 2, 6)
        assert isinstance(bad, ValueError)
        assert isinstance(odd, KeyError)
        with pytest.raises(ZeroDivisionError):
            await batcher("", lambda: 1 // 0, engine)

    run(test)


def test_who_has_gone_is_not_computed_and_makes_room() -> None:
    engine = Engine(open=False)

    async def test(batcher: Batcher) -> None:
        first = await behind_one(batcher, engine)
        one, other = (asyncio.create_task(ask(batcher, engine, n)) for n in (1, 2))
        await all_queued(batcher, 2)
        with pytest.raises(FullError):
            await ask(batcher, engine, 9)
        one.cancel()
        await asyncio.wait([one])
        assert batcher.inside == 2
        engine.may.set()
        assert [await first, await other, await ask(batcher, engine, 3)] == [0, 4, 6]
        assert engine.batches == [[0], [2], [3]]
        gone = asyncio.create_task(ask(batcher, engine, 5))
        gone.cancel()  # before it began
        await asyncio.wait([gone])
        assert await ask(batcher, engine, 6) == 12

    run(test, room=3)
