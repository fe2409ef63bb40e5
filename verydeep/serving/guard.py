"""What stands before every route: who may ask, how much they may send, and for how long.

A plain ASGI wrapper, so that nothing of a body is read, or kept, before it has been decided that it may be:

403, 421   a page of another site asks, in somebody's browser (the Origin or Host header says so)
401        no token, or a false one, where one was set
408, 413   the body does not come, or is too large; bytes are counted as they arrive
429        more is being answered than there is room for
503        no answer in time
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.responses import Response

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

# what a browser may need before its person has given the token; it says nothing of models and photos
OPEN = (
    "/", "/page.css", "/page.js", "/photo.css", "/photo.js", "/style.css", "/health", "/ready",
)  # fmt: skip
LOOPBACK = ("localhost", "127.0.0.1", "::1")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src "
    "'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """Of what is taken in.

    size_bytes: of a body. pixels: of a photo. seconds: for a body to come, and again for the answer.
    waiting: requests at once; of a body's bytes all of these together have `held_bytes`.
    """

    size_bytes: int = 20 << 20
    pixels: int = 40_000_000
    seconds: float = 60
    waiting: int = 128
    held_bytes: int = 256 << 20


def refused(status: int, words: str) -> HTTPException:
    """An answer that is an error; whoever is to come again later is told when."""
    return HTTPException(status, words, {"retry-after": "1"} if status in (429, 503) else None)


def as_json(said: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: names of files may hold what is no UTF-8."""
    return Response(json.dumps(said, allow_nan=False), status, headers, "application/json")


def problem(error: HTTPException) -> Response:
    """Every error has this shape."""
    return as_json({"error": error.detail}, error.status_code, error.headers)


class Guard:
    """An app behind its limits.

    token: that requests have to bear; None for none. hosts: names by which this server may be called, where
    there is no token. told: of each answer, its method, path, status (499 where nobody waited for it) and
    seconds.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        token: str | None = None,
        hosts: tuple[str, ...] = LOOPBACK,
        told: Callable[[str, str, int, float], None] = lambda *_: None,
    ) -> None:
        self.app, self.limits, self.token, self.told = app, limits, token, told
        self.hosts = {host.lower() for host in hosts}
        self.inside = self.held = 0  # requests, and bytes of their bodies

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499
        task: asyncio.Future[None] | None = None

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        body = _Body(self, receive)
        self.inside += 1
        try:
            self._allow(scope)
            task = asyncio.ensure_future(self.app(scope, body, guarded))
            gone = asyncio.ensure_future(body.gone())
            seconds = 2 * self.limits.seconds
            await asyncio.wait({task, gone}, timeout=seconds, return_when="FIRST_COMPLETED")
            gone.cancel()
            if task.done():
                task.result()
            else:
                task.cancel()  # its photo leaves the queue
                await asyncio.wait([task])
                task.cancelled() or task.exception()  # which nobody waits for any more
                if status == 499 and not body.left:
                    words = f"no answer within {seconds:g} seconds; try again later"
                    await problem(refused(503, words))(scope, receive, guarded)
        except HTTPException as error:
            await problem(error)(scope, receive, guarded)
        finally:
            if task is not None:
                task.cancel()  # where this one is cancelled itself
            self.inside -= 1
            self.held -= body.count
            self.told(scope["method"], scope["path"], status, time.perf_counter() - began)

    def _allow(self, scope: Message) -> None:
        """Raise the answer to what may not even send its body."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.token is None and _name(host) not in self.hosts:
            raise refused(
                421,
                f"this server is not called {host!r}; give it a --token to be called by any name",
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            raise refused(403, f"a page of {origin} may not ask this server")
        if self.token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self.token.encode())
            if not (right and kind.lower() == b"bearer"):
                said = "the token is not the right one" if given else "a token is needed"
                raise HTTPException(
                    401, f"{said}; send the header Authorization: Bearer TOKEN",
                    {"www-authenticate": "Bearer"},
                )  # fmt: skip
        work = scope["method"] == "POST" or scope["path"].startswith("/v1/photo/")
        if work and self.inside > self.limits.waiting:
            raise refused(
                429, f"{self.limits.waiting} requests are being answered; try again later"
            )


class _Body:
    """A request's body as it comes, counted. count: bytes so far. left: whether its sender has gone."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive = guard, receive
        self.count, self.left = 0, False
        self.whole = asyncio.Event()
        self.until = asyncio.get_running_loop().time() + guard.limits.seconds

    async def __call__(self) -> Message:
        limits = self.guard.limits
        if self.whole.is_set():  # what comes now is that the sender has gone, of which `gone` tells
            await asyncio.Event().wait()
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.receive()
        except TimeoutError:
            words = f"the photo did not come within {limits.seconds:g} seconds; send it again"
            raise refused(408, words) from None
        if message["type"] == "http.disconnect":
            self.left = True
            self.whole.set()
            return message
        size = len(message.get("body", b""))
        self.count += size
        self.guard.held += size
        if self.count > limits.size_bytes:
            most = f"{limits.size_bytes / (1 << 20):.3g} MiB"
            raise refused(413, f"more than {most}; send a smaller photo")
        if self.guard.held > max(limits.held_bytes, limits.size_bytes):  # one alone always fits
            raise refused(429, "too many photos at once; try again later")
        if not message.get("more_body"):
            self.whole.set()
        return message

    async def gone(self) -> None:
        """Ends when the sender has gone, after its whole body came."""
        await self.whole.wait()
        while not self.left:
            self.left = (await self.receive())["type"] == "http.disconnect"


def _name(host: str) -> str:
    """Of a Host header, without its port: "[::1]:8000" is "::1"."""
    name = (
        host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    )
    return name.rstrip(".")
