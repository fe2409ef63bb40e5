"""A served model in this process, and what is sent to it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from verydeep import retrieval
from verydeep.modelfile import read
from verydeep.serving import app as application
from verydeep.serving.guard import Limits
from verydeep.serving.service import Service

BASE = "http://127.0.0.1:8000"


def jpeg(seed: int = 0, height: int = 48, width: int = 64) -> bytes:
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize((width, height)).save(file, "JPEG", quality=95)
    return file.getvalue()


PHOTO = jpeg()


@contextmanager
def serving(
    model: Path, index: Path | None = None, limits: Limits | None = None, **choices: Any
) -> Iterator[TestClient]:
    """A client of an app that is ready. choices: of `build`."""
    service = Service(
        read(model), index=retrieval.open_features(index) if index else None, limits=limits,
        engine="onnxruntime",
    )  # fmt: skip
    app = application.build(service, application.Metrics(), **choices)
    with TestClient(app, base_url=BASE) as client:  # type: ignore[arg-type]
        while client.get("/ready").status_code != 200:
            time.sleep(0.01)
        yield client


def send(client: Any, route: str, content: bytes = PHOTO, **params: Any) -> httpx.Response:
    return client.post(f"/v1/{route}", files={"file": content}, params=params)  # type: ignore[no-any-return]


class Server:
    """`verydeep serve` in a process of its own, on a free port."""

    def __init__(self, *words: object) -> None:
        program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        program += "from verydeep.cli import main; main()"
        command = [sys.executable, "-c", program, "serve", "--port", "0", "--engine", "onnxruntime"]
        self.process = subprocess.Popen(
            [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.line = self.process.stderr.readline()
        assert "ready on http://127.0.0.1:" in self.line, self.line + self.process.stderr.read()
        self.port = int(self.line.split("127.0.0.1:")[1].split("/")[0])
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, one: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(one)
        out, err = self.process.communicate(timeout=60)
        assert out == ""
        return self.process.returncode, err
