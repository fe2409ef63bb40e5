"""Processes of one group, as torchrun would start them, forked from one that has imported torch."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 120.0  # after which a process that has not ended hangs

if "forkserver" in mp.get_all_start_methods():  # not on Windows
    _context = mp.get_context("forkserver")
    # an optimiser loads the second
    _context.set_forkserver_preload(
        ["torch", "torch._dynamo", "verydeep.training.run", "tests.labelled"]
    )


def together(world: int, work: Callable[..., Any], *given: Any) -> list[tuple[int, Any]]:
    """(exit code, what work(rank, *given) gave, or "type: message" of its error) of each process.

    The code of one that hung is -9, and what it gave "hangs"; of one that was killed -9, and None.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes, ends = [], []
    for rank in range(world):
        end, other = _context.Pipe(duplex=False)
        processes.append(
            _context.Process(target=_one, args=(other, rank, world, port, work, given))
        )
        processes[-1].start()
        other.close()
        ends.append(end)
    until = time.monotonic() + SECONDS
    found = []
    for process, end in zip(processes, ends, strict=True):
        told = None
        with suppress(EOFError):
            told = end.recv() if end.poll(max(0, until - time.monotonic())) else "hangs"
        if told == "hangs":
            process.kill()
        process.join()
        assert process.exitcode is not None
        found.append((process.exitcode, told))
    return found


def _one(
    end: Connection,
    rank: int,
    world: int,
    port: int,
    work: Callable[..., Any],
    given: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        told = work(rank, *given)
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
    end.send(told)
