"""Workers on the nodes of a Ray cluster, and the parts that are handed out to them.

The part of a worker that dies, with its node or alone, is done by another one; a node that joins gets
workers.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeAlias

from ..errors import DataError, EngineError, MissingExtraError, warn_once
from .source import Part, reason
from .work import Report, Work, Worker

ANSWER_SECONDS = 5  # for a cluster's port
LOOK_SECONDS = 5  # after which it is looked whether the cluster has grown
MOST_DEATHS = 4  # of workers in a row, without an answer between
MOST_TRIES = 10  # of a part
STORE_BYTES = 100 << 20  # of Ray's memory for objects: what is said here is small

Numbered: TypeAlias = "tuple[int, Part]"


def require_ray() -> None:
    """MissingExtraError where Ray, or what it writes with, is not installed."""
    if not all(map(importlib.util.find_spec, ("ray", "pyarrow"))):
        raise MissingExtraError("computing on a cluster", "ray")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray: on this machine alone ("local"), or a cluster that has a node here ("auto", "HOST:PORT").

    A program that is connected stays so, whatever the address. DataError where nothing answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # or it warns of a later version
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        if host := re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d+)", address):  # Ray would wait for minutes
            socket.create_connection((host[1], int(host[2])), ANSWER_SECONDS).close()
        elif address not in ("local", "auto"):
            raise ValueError("expected HOST:PORT, auto or local")
        own: Any = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        ending = signal.getsignal(signal.SIGTERM)
        ray.init(
            address, log_to_driver=False, logging_level="ERROR", **(own if address == "local" else {})
        )  # fmt: skip
        # Ray puts its own in the place of a program's
        if callable(ending) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)
    except (OSError, ValueError, OverflowError, RuntimeError, ray.exceptions.RayError) as error:
        raise DataError(f"no Ray cluster answers at {address!r}: {reason(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class Workers:
    """One a core, of `threads` cores where that is more than one; or one a GPU.

    nodes: how many parts each one did. most: workers at once.
    """

    def __init__(self, ray: Any, work: Work, out: str, job: str) -> None:
        self._ray, self._told = ray, (work, out, job)
        self._share = {"CPU": work.threads, "GPU": int(work.device == "cuda")}
        if not self._room():
            there = ray.cluster_resources()
            raise DataError(
                f"a worker takes {', '.join(f'{n} {kind}' for kind, n in self._share.items() if n)}, and "
                f"the cluster has {', '.join(f'{there.get(kind, 0):.0f} {kind}' for kind in self._share)}"
            )
        self._actor = ray.remote(
            num_cpus=work.threads, num_gpus=self._share["GPU"], max_restarts=0
        )(Worker)
        self._idle: list[Any] = []
        # by the reference that is waited for: who is at which part, None while it starts
        self._busy: dict[Any, tuple[Any, Numbered | None]] = {}
        self._deaths = 0  # in a row
        self.nodes: Counter[str] = Counter()
        self.most = 0

    def _room(self) -> int:
        """How many workers the cluster has room for, those that are there among them."""
        there = self._ray.cluster_resources()
        return int(min(there.get(kind, 0) // n for kind, n in self._share.items() if n))

    def close(self) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            with suppress(Exception):
                self._ray.kill(worker)

    def reports(self, parts: Iterator[Numbered]) -> Iterator[Report]:
        """Have all parts computed: a report of each, in the order in which they end."""
        todo: deque[Numbered] = deque()
        tried: Counter[int] = Counter()
        while True:
            room = self._room()
            todo.extend(islice(parts, max(0, max(1, room) - len(todo))))
            at_work = sum(part is not None for _, part in self._busy.values())
            if not todo and not at_work:
                return
            there = len(self._idle) + len(self._busy)
            for _ in range(min(room, len(todo) + at_work) - there):
                worker = self._actor.remote(*self._told)
                self._busy[worker.ready.remote()] = worker, None
            while todo and self._idle:
                worker, part = self._idle.pop(), todo.popleft()
                self._busy[worker.compute.remote(*part)] = worker, part
            if not self._busy:
                warn_once("waiting for cores of the cluster")
                time.sleep(LOOK_SECONDS)
                continue
            for ref in self._ray.wait(list(self._busy), timeout=LOOK_SECONDS)[0]:
                report, (worker, done) = self._report(ref), self._busy.pop(ref)
                if report is not None:
                    self._idle.append(worker)
                    self.most = max(self.most, len(self._idle) + len(self._busy))
                if report is not None and done is not None:
                    self.nodes[report.node] += 1
                    yield report
                elif done is not None:
                    tried[done[0]] += 1
                    if tried[done[0]] == MOST_TRIES:
                        raise EngineError(
                            f"{MOST_TRIES} workers died at the images from {done[1].names[0]} on; look for "
                            "one that takes all memory, and take it out of the source"
                        )
                    todo.appendleft(done)

    def _report(self, ref: Any) -> Report | None:
        """What a worker answers; None where it died. Raises what it refuses."""
        errors = self._ray.exceptions
        try:
            report: Report = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise EngineError(f"a worker failed: {reason(error.cause)}") from error
        except errors.RayError as error:
            self._deaths += 1
            if self._deaths > MOST_DEATHS:
                last = str(error).strip().splitlines()[-1].strip()
                raise EngineError(
                    f"{self._deaths} workers died one after another: {last}"
                ) from error
            return None
        self._deaths = 0
        if report.refusal:
            here = report.node == platform.node()
            raise report.kind(report.refusal if here else f"node {report.node}: {report.refusal}")
        return report
