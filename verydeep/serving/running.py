"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from ipaddress import ip_address
from typing import Any

import uvicorn

from ..errors import DataError, VerydeepError, log
from ..modelfile import read
from ..published import find_model
from ..retrieval import open_features
from .app import Metrics, build
from .guard import LOOPBACK, Limits
from .service import Service

GRACE_SECONDS = 5  # beyond the limits of time, for what is in flight at the end


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
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise DataError(f"{host}:{port}: {why}; name another with --port") from None


def serve(
    model: str, *, host: str, port: int, token: str | None, index: str | None, layer: str | None,
    limits: Limits, say_requests: bool, **options: Any,
) -> int:  # fmt: skip
    """Answer until SIGTERM or Ctrl-C, finish what is in flight, and return 0; 2 where the model failed."""
    with listening(host, port, token) as listener:
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
            timeout_graceful_shutdown=int(2 * limits.seconds + GRACE_SECONDS),
        )  # fmt: skip
        server = uvicorn.Server(config)
        logging.getLogger("python_multipart").setLevel(
            logging.ERROR
        )  # each odd byte is a warning there
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
