"""A served model in this process, and what is sent to it."""

from __future__ import annotations

import io
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
