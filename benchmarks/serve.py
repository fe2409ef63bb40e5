"""What does HTTP cost, with 64 clients and with one, and does memory stay flat under attack?

    python benchmarks/serve.py [--photos 256] [--rounds 3] [--requests 10000] [--hostile 0.1] [--out FILE]

Throughput: 64 clients send JPEGs as fast as they are answered, beside `Predictor.stream` of the same bytes;
both decode, both with the engine named. Latency: one client beside `predictor(bytes)`. The clients are one
process of plain sockets, whose processor time is stated: the server has it not, where cores are few.
Memory: of a server of a VGG-16 of width 1/8, so that requests are many; of `--requests` that share is
hostile: odd bytes, photos and forms cut off or changed at random, bombs, senders that go. `--only` takes
one part.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import ENGINES, report

import verydeep
from verydeep.benching import random_model
from verydeep.nets import network

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
CLIENTS = 64
HEAD = (
    "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    "Content-Length: {}\r\n\r\n"
)
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'


def form(photo: bytes) -> bytes:
    return PART + photo + b"\r\n--x--\r\n"


class Server:
    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "verydeep", "serve", "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = []
        while "ready on http://127.0.0.1:" not in "".join(lines[-1:]):
            lines.append(self.process.stderr.readline())
            if not lines[-1]:
                raise SystemExit("".join(lines))
        self.port = int(lines[-1].split("127.0.0.1:")[1].split("/")[0])

    def megabytes(self) -> float:
        """Resident, without what is mapped from files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    def seconds(self) -> float:
        """Of its processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


class Client:
    """One connection, kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, body: bytes, promised: int = 0) -> int:
        """The status; 0 where the connection ended. promised: the length told, and then the sender goes."""
        try:
            self.ends = self.ends or await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.ends
            writer.write(HEAD.format(promised or len(body)).encode() + body)
            await writer.drain()
            if promised:
                self.drop()
                return 0
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.drop()
            return 0

    def drop(self) -> None:
        if self.ends is not None:
            self.ends[1].close()
        self.ends = None


async def sent(
    port: int, count: int, clients: int, make: Callable[[int], tuple[bytes, int]]
) -> Counter[int]:
    """Statuses of `count` requests by so many clients."""
    statuses: Counter[int] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        client = Client(port)
        for number in numbers:
            statuses[await client.send(*make(number))] += 1
        client.drop()

    await asyncio.gather(*(work() for _ in range(clients)))
    return statuses


def fast(photos: list[bytes], rounds: int, engine: str) -> dict[str, object]:
    """Photos a second through HTTP and through `stream`, and one client's latency, in turns."""
    predictor = verydeep.load(engine=engine)
    list(predictor.stream(iter(photos[:40])))  # opened, and raced where the engine is auto
    server = Server("--engine", engine)
    bodies = [form(photo) for photo in photos]
    result: dict[str, list[float]] = {
        "stream": [],
        "serve": [],
        "client": [],
        "call": [],
        "request": [],
    }
    try:
        for _ in range(rounds):
            began = time.perf_counter()
            assert len(list(predictor.stream(iter(photos)))) == len(photos)
            result["stream"].append(len(photos) / (time.perf_counter() - began))
            began, used = time.perf_counter(), time.process_time()
            statuses = asyncio.run(
                sent(server.port, len(photos), CLIENTS, lambda at: (bodies[at], 0))
            )
            seconds = time.perf_counter() - began
            assert statuses == {200: len(photos)}, statuses
            result["serve"].append(len(photos) / seconds)
            result["client"].append((time.process_time() - used) / seconds)

            async def one_by_one() -> None:
                client = Client(server.port)
                for photo, body in zip(photos[:30], bodies, strict=False):
                    began = time.perf_counter()
                    predictor(photo)
                    middle = time.perf_counter()
                    assert await client.send(body) == 200
                    result["call"].append(1000 * (middle - began))
                    result["request"].append(1000 * (time.perf_counter() - middle))
                client.drop()

            asyncio.run(one_by_one())
    finally:
        status = server.end()
    ratios = [a / b for a, b in zip(result["serve"], result["stream"], strict=True)]
    more = [b - a for a, b in zip(result["call"], result["request"], strict=True)]
    return {
        "clients": CLIENTS, "photos": len(photos), "engine": predictor.engine,
        "photos a second, stream": statistics.median(result["stream"]),
        "photos a second, serve": statistics.median(result["serve"]),
        "serve to stream": statistics.median(ratios),
        "clients' share of a core": statistics.median(result["client"]),
        "milliseconds, predictor(bytes)": statistics.median(result["call"]),
        "milliseconds, one client": statistics.median(result["request"]),
        "milliseconds more": statistics.median(more),
        "exit status": status,
    }  # fmt: skip


def bomb(side: int) -> bytes:
    """A PNG of so many black pixels a side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(side * (1 + 3 * side)) if side < 7000 else bytes(1 << 24), 9)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMBS = [form(bomb(side)) for side in (6000, 10_000, 60_000)]


def hostile(photos: list[bytes], draw: np.random.Generator) -> tuple[bytes, int]:
    """A body that is no good, and the length that it is said to have, where its sender goes."""
    body = bytearray(form(photos[draw.integers(len(photos))]))
    kind = draw.integers(20)
    if kind == 0:
        return BOMBS[draw.integers(len(BOMBS))], 0
    if kind == 1:
        return bytes(body[: len(body) // 2]), len(body)
    if kind == 2:
        return form(draw.bytes(int(draw.integers(1, 20_000)))), 0
    if kind == 3:
        return draw.bytes(int(draw.integers(1, 2000))), 0
    if kind == 4:
        return form(bytes(21 << 20)), 0
    for _ in range(draw.integers(1, 30)):
        at = int(draw.integers(len(body)))
        if kind < 8:
            body[at : at + int(draw.integers(1, 200))] = draw.bytes(int(draw.integers(0, 200)))
        elif kind < 10:
            del body[max(1, at) :]
        else:
            body[at if kind < 17 else at % 700] = draw.integers(256)
    return bytes(body), 0


def memory(requests: int, share: float) -> dict[str, object]:
    draw = np.random.default_rng(0)
    # small ones: what is asked is whether anything is kept
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(
            network("vgg16", width=1 / 8, classes=10), Path(folder) / "m.safetensors"
        )
        server = Server("--model", model, "--engine", "onnxruntime")

        def make(_: int) -> tuple[bytes, int]:
            if draw.random() < share:
                return hostile(photos, draw)
            return form(photos[draw.integers(len(photos))]), 0

        try:
            steps = [server.megabytes()]
            statuses: Counter[int] = Counter()
            for part in range(11):  # the first warms: threads' own memory, the allocator's
                statuses += asyncio.run(
                    sent(server.port, requests // 10 if part else 1000, 16, make)
                )
                steps.append(server.megabytes())
                print(f"{part} of 10: {steps[-1]:.0f} MB, {dict(statuses)}", file=sys.stderr)
        finally:
            status = server.end()
    return {
        "requests": requests, "hostile": share, "exit status": status,
        "statuses": {str(key): n for key, n in sorted(statuses.items())},
        "MB when ready, after 1,000 and each tenth": [round(step, 1) for step in steps],
        "growth after the first 1,000": steps[-1] / steps[1] - 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--hostile", type=float, default=0.1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--only", choices=["fast", "memory"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    files = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    photos = [files[at % len(files)] for at in range(args.photos)]
    result: dict[str, object] = {"load before": os.getloadavg()[0]}
    if args.only != "memory":
        result["fast"] = fast(photos, args.rounds, args.engine)
    if args.only != "fast":
        result["memory"] = memory(args.requests, args.hostile)
    report("serve", result, args.out, *ENGINES, "fastapi", "uvicorn")


if __name__ == "__main__":
    main()
