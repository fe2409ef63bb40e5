"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import re
import signal
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import DataError, VerydeepError, log
from ..modelfile import read
from ..published import find_model
from ..retrieval import open_features
from .app import Metrics, build
from .guard import LOOPBACK, Limits
from .service import Service

M_MMAP_THRESHOLD = -3  # malloc.h: what is larger has pages of its own
WSAEADDRINUSE = 10048  # winerror.h
GRACE_SECONDS = 5  # beyond the limits of time, for what is in flight at the end


class Patient(H11Protocol):
    """A connection that is closed where nothing whole is asked in `seconds`; uvicorn waits for ever."""

    def __init__(self, seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self.seconds = seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.look = self.loop.call_later(self.seconds, self._look, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.look.cancel()
        super().connection_lost(exc)

    def _look(self, before: int) -> None:
        """before: which request was the last one when this looked before; 0 for none."""
        last = 0 if self.cycle is None else id(self.cycle)
        if last == before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        else:
            self.look = self.loop.call_later(self.seconds, self._look, last)


def listening(host: str, port: int, token: str | None) -> socket.socket:
    """A socket at that address. DataError where it cannot be had, or needs a token and has none."""
    if token is not None and not re.fullmatch("[!-~]{8,}", token):
        raise DataError(
            "--token has blanks or other marks, or is short; give 8 or more plain letters, digits and marks"
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise DataError(f"--host {host}: {error.strerror}; name one of this machine") from None
    if token is None and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise DataError(
            f"--host {host} can be reached from other machines; give a --token, or leave --host out"
        )
    try:
        listener = socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # and the address once more
        if error.errno in (errno.EADDRINUSE, WSAEADDRINUSE):
            why = "Address already in use"
        raise DataError(f"{host}:{port}: {why}; name another with --port") from None
    # which connections inherit: asyncio sees to it only where it made the socket itself, and without it
    # the second part of an answer waits 40 ms for the first one's receipt
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _give_back() -> None:
    """Have glibc return a decoded photo's memory; it would keep some hundred MB for each thread."""
    with suppress(AttributeError, OSError, TypeError):  # other systems
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 4 << 20)


def serve(
    model: str, *, host: str, port: int, token: str | None, index: str | None, layer: str | None,
    limits: Limits, say_requests: bool, **options: Any,
) -> int:  # fmt: skip
    """Answer until SIGTERM or Ctrl-C, finish what is in flight, and return 0; 2 where the model failed."""
    with listening(host, port, token) as listener:
        _give_back()
        metrics = Metrics()
        service = Service(
            read(find_model(model)), index=open_features(index) if index else None, layer=layer,
            limits=limits, sizes=metrics.batches.observe, **options,
        )  # fmt: skip
        errors: list[BaseException] = []

        def failed(error: BaseException) -> None:
            errors.append(error)
            server.should_exit = True

        app = build(
            service, metrics, token=token, hosts=(*LOOPBACK, host), say_requests=say_requests, failed=failed
        )  # fmt: skip
        config = uvicorn.Config(
            app, log_config=None, log_level="error", access_log=False, server_header=False, ws="none",
            http=partial(Patient, limits.seconds),  # type: ignore[arg-type]
            timeout_graceful_shutdown=int(2 * limits.seconds + GRACE_SECONDS),
        )  # fmt: skip
        server = uvicorn.Server(config)
        # where each odd byte is a warning
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        shown = f"[{host}]" if ":" in host else host
        service.on_ready = lambda: log.info(
            f"ready on http://{shown}:{listener.getsockname()[1]}/ ({service.predictor})"
        )
        # uvicorn raises what it heard once more when all is done, which would end this with an error
        before = {
            one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            server.run(sockets=[listener])
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
    for error in errors:
        if not isinstance(error, VerydeepError):
            raise error
        log.error(error)
    return 2 if errors else 0
