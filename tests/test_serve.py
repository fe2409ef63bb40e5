"""`verydeep serve`: every route and every refusal in this process, and a server of its own for its end."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import verydeep as package
from verydeep import retrieval
from verydeep.errors import DataError, EngineError
from verydeep.retrieval import approximate, nearest
from verydeep.serving import service as services
from verydeep.serving.batching import Batcher
from verydeep.serving.guard import Guard, Limits
from verydeep.serving.running import listening
from verydeep.serving.service import Service

from .conftest import Run
from .served import BASE, PHOTO, Server, jpeg, send, serving
from .tiny import NAMES, model_file, photo, tiny

# starlette leaves the file of a part that does not end to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning"
    ),
]
Made = Callable[..., TestClient]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, photos, and a file of their features."""
    folder = tmp_path_factory.mktemp("serve")
    model_file(folder / "tiny.safetensors")
    for seed in range(5):
        photo(folder / "photos" / f"{seed}.png", seed=seed)
    (folder / "photos" / "bad.png").write_text("no image")
    retrieval.features([folder / "photos"], folder / "index.npz", model=folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(files: Path) -> Iterator[Made]:
    """Clients of apps, which end with the module."""
    opened = ExitStack()
    models = itertools.count()

    def make(
        limits: Limits | None = None, index: bool = False, net: Any = None, **choices: Any
    ) -> TestClient:
        path = files / "tiny.safetensors"
        if net is not None:
            path = model_file(files / f"{next(models)}.safetensors", net)
        choices |= {"limits": limits, "index": files / "index.npz" if index else None}
        return opened.enter_context(serving(path, **choices))

    yield make
    with warnings.catch_warnings(action="ignore"):
        gc.collect()
    opened.close()


@pytest.fixture(scope="module")
def client(made: Made) -> TestClient:
    return made(index=True)


def is_problem(answer: httpx.Response, status: int, words: str = "") -> bool:
    said = answer.json()
    assert (answer.status_code, list(said)) == (status, ["error"]), answer.text
    assert words in said["error"], said
    assert "\n" not in said["error"]
    return True


# What is answered


def test_classify_is_what_the_predictor_says(client: TestClient, files: Path) -> None:
    said = send(client, "classify", top=3).json()
    answer = package.load(files / "tiny.safetensors")(PHOTO, top=3)
    assert [(one["label"], one["id"]) for one in said["predictions"]] == [
        (one.label, one.id) for one in answer.predictions
    ]
    shares = [one["probability"] for one in said["predictions"]]
    np.testing.assert_allclose(shares, [one.probability for one in answer.predictions], rtol=1e-5)
    assert (said["sure"], said["path"], said["engine"]) == (True, None, "onnxruntime")
    assert len(send(client, "classify").json()["predictions"]) == 5


def test_deep_photos_keep_their_values(client: TestClient, files: Path) -> None:
    file = io.BytesIO()
    values = np.random.default_rng(3).integers(0, 65536, (40, 40), np.uint16)
    Image.fromarray(values).save(file, "PNG")
    said = send(client, "classify", file.getvalue()).json()
    answer = package.load(files / "tiny.safetensors")(file.getvalue())
    assert said["predictions"][0]["probability"] == pytest.approx(answer.probability, rel=1e-5)
    for route in ("explain", "channels"):
        assert send(client, route, file.getvalue()).status_code == 200


def test_features(client: TestClient, files: Path) -> None:
    predictor = package.load(files / "tiny.safetensors")
    for params in ({}, {"layer": ["relu1_1", "fc8"], "pool": "max"}):
        said = send(client, "features", **params).json()["layers"]
        expected = predictor.features(PHOTO, params.get("layer"), pool=params.get("pool", "avg"))  # type: ignore[arg-type]
        assert list(said) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(said[name], value[0], rtol=1e-4, atol=1e-5)


def test_explain(client: TestClient, files: Path) -> None:
    said = send(client, "explain", label="daisy").json()
    heat = package.explain(files / "tiny.safetensors", PHOTO, label="daisy").maps[0]
    assert (said["method"], said["maps"][0]["label"]) == ("cam", "daisy")
    np.testing.assert_allclose(said["maps"][0]["values"], heat.map, rtol=1e-4, atol=1e-5)
    answer = send(client, "explain", form="png", top=2)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).width > 900
    maps = send(client, "explain", form="page", top=2).json()["maps"]
    assert all(one["picture"].startswith("data:image/jpeg;base64,") for one in maps)


def test_a_head_with_fc_layers_is_explained_by_what_there_is(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    classic = made(net=tiny(head="classic"))
    assert classic.get("/v1/model").json()["explains_by"] == "gradcam"
    monkeypatch.setattr(
        "verydeep.engines.Kind.available", property(lambda kind: kind.name != "torch")
    )
    assert send(classic, "explain").json()["method"] == "occlusion"


def test_a_trunk_gives_features_alone(made: Made) -> None:
    trunk = made(net=tiny(head="classic", classes=0))
    assert send(trunk, "features").status_code == 200
    assert is_problem(send(trunk, "classify"), 422, "a trunk without a head: it cannot classify")
    assert is_problem(send(trunk, "explain"), 422, "has no classes to explain")
    assert trunk.get("/v1/model").json()["explains_by"] is None


def test_distance(client: TestClient) -> None:
    def ask(a: bytes, b: bytes, **params: Any) -> httpx.Response:
        return client.post("/v1/distance", files={"a": a, "b": b}, params=params)  # type: ignore[return-value]

    said = ask(PHOTO, jpeg(1)).json()
    assert said["distance"] == pytest.approx(float(package.lpips(PHOTO, jpeg(1))), rel=1e-3)
    assert said["line"].startswith("lpips 0.1, vgg16 ")
    assert ask(PHOTO, PHOTO, metric="dists").json()["distance"] == pytest.approx(0, abs=1e-5)
    assert ask(PHOTO, jpeg(1), form="png").headers["content-type"] == "image/png"
    page = ask(PHOTO, jpeg(1), form="page").json()
    assert page["picture"].startswith("data:image/")
    assert page["highest"] > 0
    assert is_problem(
        ask(PHOTO, jpeg(1, 40, 40)), 422, "the first image is 64x48 and the second 40x40"
    )
    for metric in ("dists", "style"):
        words = f"{metric} has no map: it compares statistics of whole images; lpips and"
        assert is_problem(ask(PHOTO, jpeg(1), metric=metric, form="png"), 422, words)
        page = ask(PHOTO, jpeg(1), metric=metric, form="page")
        assert (page.status_code, "picture" in page.json()) == (200, False)
    assert is_problem(ask(PHOTO, b"x"), 415, "not an image")
    assert is_problem(send(client, "distance"), 422, "a: Field required")


def test_channels(client: TestClient, files: Path) -> None:
    blocks = send(client, "channels", strongest=2).json()
    portrait = package.show(files / "tiny.safetensors", PHOTO, strongest=2)
    assert [(b["layer"], [c["index"] for c in b["channels"]]) for b in blocks] == [
        (block.layer, [one.index for one in block.channels]) for block in portrait.blocks
    ]
    one, fc = send(client, "channels", layer=["conv2_1", "fc8"]).json()
    assert (one["layer"], fc["shape"], len(fc["channels"])) == ("conv2_1", [7], 7)
    assert is_problem(send(client, "channels", layer="relu9_9"), 422, "relu9_9")


def test_search(client: TestClient, made: Made, files: Path) -> None:
    content = (files / "photos" / "3.png").read_bytes()
    matches = send(client, "search", content, top=2).json()["matches"]
    assert Path(matches[0]["path"]).name == "3.png"
    assert matches[0]["cosine"] == pytest.approx(1, abs=1e-4)
    small = client.get(f"/v1/photo/{matches[0]['row']}")
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).size == (320, 240)
    for row in (-1, 6, 10**30):
        assert is_problem(client.get(f"/v1/photo/{row}"), 404, "the index has no row")
    row = next(
        i
        for i, path in enumerate(retrieval.open_features(files / "index.npz").paths)
        if "bad" in path
    )
    assert is_problem(client.get(f"/v1/photo/{row}"), 404, "cannot be read any more")
    for way in ("..%2f..%2fetc%2fpasswd", "../../pyproject.toml", "0/../../x"):
        assert client.get(f"/v1/photo/{way}").status_code in (404, 422)
    without = made()
    assert is_problem(
        send(without, "search"), 404, "no index to search; start the server with --index"
    )
    assert is_problem(without.get("/v1/photo/0"), 404, "no index")


def test_an_index_that_is_replaced(files: Path, tmp_path: Path) -> None:
    """By one of as many rows, whose photos are others."""
    old, new = tmp_path / "i.npz", tmp_path / "new.npz"
    for name, seeds in (("old", (0, 1)), ("new", (2, 3))):
        for seed in seeds:
            photo(tmp_path / name / f"{seed}.png", seed=seed)
    retrieval.features([tmp_path / "old"], old, model=files / "tiny.safetensors")
    retrieval.features([tmp_path / "new"], new, model=files / "tiny.safetensors")
    content = (tmp_path / "new" / "3.png").read_bytes()
    with serving(files / "tiny.safetensors", old) as client:
        assert client.get("/v1/photo/1").status_code == send(client, "search").status_code == 200
        new.replace(old)
        words = "the index has changed since the server started; start it again"
        for answer in (client.get("/v1/photo/1"), send(client, "search", content)):
            assert is_problem(answer, 503, words)  # type: ignore[arg-type]
        assert send(client, "classify").status_code == 200
    with serving(files / "tiny.safetensors", old) as client:
        (match,) = send(client, "search", content, top=1).json()["matches"]
        assert (Path(match["path"]).name, match["row"]) == ("3.png", 1)


def test_photos_of_an_index_have_limits(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one is refused; one at a time is in memory; those that wait are counted."""
    for seed in range(2):
        photo(tmp_path / "photos" / f"{seed}.png", seed=seed)
    Image.new("RGB", (400, 300)).save(tmp_path / "photos" / "2.png")
    retrieval.features([tmp_path / "photos"], tmp_path / "i.npz", model=files / "tiny.safetensors")
    draw, at_once, most = services.as_rgb, 0, 0

    def slowly(image: Any) -> Any:
        nonlocal at_once, most
        most = max(most, at_once := at_once + 1)
        time.sleep(0.1)
        at_once -= 1
        return draw(image)

    monkeypatch.setattr(services, "as_rgb", slowly)
    limits = Limits(pixels=300 * 300, waiting=3)
    with serving(files / "tiny.safetensors", tmp_path / "i.npz", limits) as client:
        assert is_problem(
            client.get("/v1/photo/2"), 413, "400 x 300 pixels; at most 0.09 million are taken"
        )
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: client.get("/v1/photo/0"), range(8)))
        assert most == 1
        assert {answer.status_code for answer in answers} == {200, 429}
        late = next(answer for answer in answers if answer.status_code == 429)
        assert is_problem(late, 429, "3 requests are being answered; try again later")


def test_search_among_very_many(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of neighbours is there before somebody waits for it."""
    pytest.importorskip("usearch")
    shutil.copy(files / "index.npz", tmp_path / "f.npz")
    monkeypatch.setattr(approximate, "LEAST_ROWS", 2)
    with serving(files / "tiny.safetensors", tmp_path / "f.npz") as client:
        assert list(tmp_path.glob("f.npz.nearest/*.json"))
        monkeypatch.setattr(nearest, "nearest_rows", None)  # no row but those that it proposes
        content = (files / "photos" / "3.png").read_bytes()
        (match,) = send(client, "search", content, top=1).json()["matches"]
        assert Path(match["path"]).name == "3.png"


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_names_that_are_not_utf8_are_found(files: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    photo(tmp_path / "a.png").rename(tmp_path / name)
    retrieval.features([tmp_path], tmp_path / "i.npz", model=files / "tiny.safetensors")
    with serving(files / "tiny.safetensors", tmp_path / "i.npz") as client:
        (match,) = json.loads(send(client, "search").content)["matches"]
        assert Path(match["path"]).name == name
        assert client.get("/v1/photo/0").status_code == 200


def test_what_is_served_and_how_it_is_drawn(client: TestClient) -> None:
    said = client.get("/v1/model").json()
    assert (said["network"], said["classes"], said["index"]) == ("vgg11", 7, 6)
    assert said["layers"][0] == "conv1_1"
    for narrow in (False, True):
        figure = client.get("/v1/network", params={"narrow": narrow})
        assert figure.headers["content-type"] == "image/svg+xml"
        assert 'data-layer="conv1_1"' in figure.text


def test_metrics_and_openapi(client: TestClient) -> None:
    send(client, "classify")
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'verydeep_requests_total{path="/v1/classify",status="200"}' in text
    assert 'path="other",status="404"' in text
    assert "nowhere" not in text
    assert "verydeep_batch_images_count" in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {f"/v1/{n}" for n in ("classify", "features", "distance", "explain", "search")} < set(
        paths
    )
    assert "429" in paths["/v1/classify"]["post"]["responses"]
    assert client.get("/health").json() == {"status": "ok"}


def test_the_page_fetches_nothing_from_elsewhere(client: TestClient) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css"),
                       ("/photo.js", "text/javascript"), ("/photo.css", "text/css"),
                       ("/style.css", "text/css")):  # fmt: skip
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")
        assert "https://" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    html = client.get("/").text
    assert "<style" not in html
    assert " style=" not in html
    assert " on" not in html.partition("<body")[2].replace(" on ", "") or "onclick" not in html


# What is refused


def bomb(side: int = 30_000) -> bytes:
    """A PNG of so many pixels a side, all black: small, and gigabytes when decoded."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = zlib.compress(bytes(1 + side * 3) * 8, 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("route", ["classify", "features", "explain", "channels", "search"])
def test_what_is_no_photo(client: TestClient, route: str) -> None:
    assert is_problem(send(client, route, b""), 415, "the file is empty")
    assert is_problem(send(client, route, b"hello world" * 20), 415, "not an image")
    assert is_problem(send(client, route, PHOTO[:200]), 415, "damaged, cut short")
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "TGA")
    assert is_problem(send(client, route, file.getvalue()), 415, "expected JPEG, PNG")
    assert is_problem(
        send(client, route, bomb(8000)), 413, "8000 x 8000 pixels; at most 40 million"
    )
    assert is_problem(send(client, route, bomb()), 415, "perhaps a decompression bomb")
    assert is_problem(client.post(f"/v1/{route}"), 415, "expected a form")
    assert is_problem(client.post(f"/v1/{route}", json={"file": "x"}), 415, "expected a form")
    assert is_problem(
        client.post(f"/v1/{route}", files={"photo": PHOTO}), 422, "file: Field required"
    )
    twice = [("file", PHOTO), ("file", PHOTO)]
    assert is_problem(client.post(f"/v1/{route}", files=twice), 422, "file is there several times")
    assert is_problem(client.get(f"/v1/{route}"), 405)
    head = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x",
        b"--x\r\n\r\nabc",
        b"nonsense",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
    ):
        answer = client.post(f"/v1/{route}", content=body, headers=head)
        assert answer.status_code in (400, 422), answer.text
        assert list(answer.json()) == ["error"]


def test_numbers_and_names_that_make_no_sense(client: TestClient) -> None:
    for top in (0, 101, "x", 1.5):
        assert is_problem(send(client, "classify", top=top), 422, "top: ")
    assert is_problem(send(client, "features", layer="conv9_9"), 422, "conv9_9")
    assert is_problem(send(client, "features", pool="sum"), 422, "pool: ")
    assert is_problem(send(client, "explain", label="unicorn"), 422, "no class 'unicorn'")
    assert is_problem(client.get("/v1/nothing"), 404)


def test_bytes_are_counted_as_they_come(made: Made) -> None:
    small = made(Limits(size_bytes=20_000))
    assert send(small, "classify").status_code == 200
    assert is_problem(send(small, "classify", bytes(30_000)), 413, "more than 0.0191 MiB")

    def chunks() -> Iterator[bytes]:  # no Content-Length at all
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(10):
            yield bytes(4000)

    head = {"content-type": "multipart/form-data; boundary=x"}
    assert is_problem(small.post("/v1/classify", content=chunks(), headers=head), 413)
    assert small.app.held == small.app.inside == 0  # type: ignore[attr-defined]


def test_bytes_of_all_requests_together(made: Made) -> None:
    little = made(Limits(size_bytes=20_000, held_bytes=20_000))
    little.app.held = 15_000  # type: ignore[attr-defined]  # another's
    answer = send(little, "classify", bytes(10_000))
    assert is_problem(answer, 429, "too many photos at once")
    assert answer.headers["retry-after"] == "1"
    little.app.held -= 15_000  # type: ignore[attr-defined]
    assert send(little, "classify").status_code == 200


def test_the_largest_body_that_is_taken_has_room(made: Made) -> None:
    """Alone; beside another it waits for its turn."""
    large = made(Limits(size_bytes=40_000, held_bytes=20_000))
    assert is_problem(send(large, "classify", bytes(30_000)), 415, "not an image")
    large.app.held = 20_000  # type: ignore[attr-defined]  # another's
    assert is_problem(send(large, "classify", bytes(30_000)), 429, "too many photos at once")
    large.app.held -= 20_000  # type: ignore[attr-defined]


def test_a_token(made: Made) -> None:
    closed = made(token="my-long-secret", hosts=())
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer nonsense"},
                    {"authorization": "Basic my-long-secret"},
                    {"authorization": "Bearer ü"}):  # fmt: skip
        sent = {key: value.encode() for key, value in headers.items()}
        answer = closed.post("/v1/classify", files={"file": PHOTO}, headers=sent)
        assert is_problem(answer, 401, "send the header Authorization: Bearer TOKEN")  # type: ignore[arg-type]
        assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/openapi.json", "/v1/model", "/v1/photo/0"):
            assert closed.get(path, headers=sent).status_code == 401
    for path in (
        "/",
        "/page.js",
        "/page.css",
        "/photo.js",
        "/photo.css",
        "/style.css",
        "/health",
        "/ready",
    ):
        assert closed.get(path).status_code == 200
    good = {"authorization": "bearer my-long-secret"}
    assert closed.post("/v1/classify", files={"file": PHOTO}, headers=good).status_code == 200
    assert closed.get("/metrics", headers={**good, "host": "photos.example"}).status_code == 200


def test_pages_of_other_sites_ask_in_vain(client: TestClient) -> None:
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "",
        "[::2]:8000",
    ):
        answer = client.get("/v1/model", headers={"host": host})
        assert is_problem(answer, 421, "this server is not called")  # type: ignore[arg-type]
    for host in ("localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1", "localhost."):
        assert client.get("/v1/model", headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://127.0.0.1"):
        answer = client.post("/v1/classify", files={"file": PHOTO}, headers={"origin": origin})
        assert is_problem(answer, 403, "may not ask this server")  # type: ignore[arg-type]
    own = client.post("/v1/classify", files={"file": PHOTO}, headers={"origin": BASE})
    assert own.status_code == 200
    assert own.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_full_queue_says_when_to_come_again(made: Made) -> None:
    slow = made(Limits(waiting=2))
    service: Service = slow.app.app.state.service  # type: ignore[attr-defined]
    begun, may = threading.Event(), threading.Event()
    stream = service._stream

    def waiting(*args: Any, **options: Any) -> Any:
        begun.set()
        assert may.wait(20)
        return stream(*args, **options)

    service._stream = waiting  # type: ignore[method-assign]
    answers: list[httpx.Response] = []
    first = threading.Thread(target=lambda: answers.append(send(slow, "classify")))
    second = threading.Thread(target=lambda: answers.append(send(slow, "classify")))
    first.start()
    assert begun.wait(20)
    second.start()
    while slow.app.inside < 2:  # type: ignore[attr-defined]
        time.sleep(0.005)
    answer = send(slow, "classify")
    assert is_problem(answer, 429, "2 requests are being answered; try again later")
    assert answer.headers["retry-after"] == "1"
    assert slow.get("/health").status_code == 200
    may.set()
    first.join()
    second.join()
    assert [one.status_code for one in answers] == [200, 200]


def test_no_answer_in_time(made: Made) -> None:
    slow = made(Limits(seconds=0.2))
    service: Service = slow.app.app.state.service  # type: ignore[attr-defined]
    may = threading.Event()
    service._stream = lambda *_, **__: may.wait(20) and [EngineError("late")]  # type: ignore[method-assign,assignment,return-value]
    assert is_problem(send(slow, "classify"), 503, "no answer within 0.4 seconds; try again later")
    may.set()


def test_an_engine_that_fails_is_one_line(made: Made) -> None:
    broken = made()
    service: Service = broken.app.app.state.service  # type: ignore[attr-defined]

    def fails(*_: Any, **__: Any) -> Any:
        raise EngineError("it failed")

    service._stream = fails  # type: ignore[method-assign]
    assert is_problem(send(broken, "classify"), 500, "it failed")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_body_is_never_an_error_of_ours(client: TestClient, data: st.DataObject) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    body = bytearray(head + PHOTO + b"\r\n--x--\r\n")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        how = data.draw(st.sampled_from("change cut drop insert".split()))
        if how == "change":
            body[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del body[max(at, 1) :]
        elif how == "drop":
            del body[at : at + data.draw(st.integers(1, 40))]
        else:
            body[at:at] = data.draw(st.binary(max_size=20))
        body = body or bytearray(b"-")
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/classify", content=bytes(body), headers=kind)
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text


# The command


def test_what_cannot_be_served(
    verydeep: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", files / "tiny.safetensors")

    def refused(words: str, *given: object) -> None:
        done = verydeep("serve", *given)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert words in done.err

    refused(
        "--host 0.0.0.0 can be reached from other machines; give a --token",
        "--host",
        "0.0.0.0",
        *model,
    )
    refused("--host nowhere.invalid: ", "--host", "nowhere.invalid", *model)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        refused(
            f"127.0.0.1:{port}: Address already in use; name another with --port",
            "--port",
            port,
            *model,
        )
    refused("gone.safetensors: there is no such file", "--model", "gone.safetensors", "--port", 0)
    refused("no such file", "--index", tmp_path / "gone.npz", "--port", 0, *model)
    refused("was made with another model", "--index", files / "index.npz", "--port", 0)
    for token in ("", "a b c d e f", "short", "ünicode token"):
        refused("--token has", "--token", token, "--port", 0, *model)
    refused("--max-mb", "--max-mb", "0", *model)
    refused("70000", "--port", "70000", *model)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "verydeep.serving.running", raising=False)
    refused('install it with: pip install "verydeep[serve]"', *model)


HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"
HEAD += b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"


def test_no_answer_waits_for_a_receipt() -> None:
    with (
        closing(listening("127.0.0.1", 0, None)) as listener,
        socket.create_connection(listener.getsockname()),
        closing(listener.accept()[0]) as taken,
    ):
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def server(files: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*words: object) -> Server:
        started.append(Server("--model", files / "tiny.safetensors", *words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
def test_what_is_in_flight_is_answered_at_the_end(
    server: Callable[..., Server], how: signal.Signals
) -> None:
    running = server("--timeout", 20)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + PHOTO
        + b"\r\n--x--\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.port)) as late:
        late.sendall(HEAD % len(body) + body[:100])
        time.sleep(0.3)
        running.process.send_signal(how)
        time.sleep(0.5)
        with pytest.raises(OSError):  # noqa: PT011  # nobody new is let in
            socket.create_connection(("127.0.0.1", running.port), 1).close()
        late.sendall(body[100:])
        answer = b""
        while part := late.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert NAMES[0].encode() in answer or b"predictions" in answer
    out, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, out, err) == (0, "", "")


def test_an_address_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows says it, in numbers that os.strerror does not know."""
    where = " (while attempting to bind on address ('127.0.0.1', 80))"
    for number, said, words in (
        (10048, "Only one usage of each socket address is permitted", "Address already in use"),
        (10013, "An attempt was made in a way forbidden", "An attempt was made in a way forbidden"),
    ):
        error = OSError(number, said + where)
        monkeypatch.setattr(socket, "create_server", Mock(side_effect=error))
        with pytest.raises(DataError, match=f"^127.0.0.1:80: {words}; name another with --port$"):
            listening("127.0.0.1", 80, None)


class Panic(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.mark.parametrize("wrong", [Panic, StopIteration, "no answer", "no sizes"])
def test_a_queue_outlives_what_goes_wrong(wrong: Any) -> None:
    expected = {"no answer": EngineError, "no sizes": ZeroDivisionError, StopIteration: EngineError}

    def run(items: list[int]) -> list[int]:
        if isinstance(wrong, type) and items == [0]:
            raise wrong
        return [] if wrong == "no answer" and items == [0] else items

    async def test() -> None:
        sizes = [ZeroDivisionError if wrong == "no sizes" else None, None]
        batcher = Batcher(preparing=1, sizes=Mock(side_effect=sizes))
        async with asyncio.timeout(5):
            with pytest.raises(expected.get(wrong, Panic)):
                await batcher("", lambda: 0, run)
            assert await batcher("", lambda: 1, run) == 1
        await batcher.close()

    asyncio.run(test())


def test_slow_clients_and_cut_off_uploads(server: Callable[..., Server]) -> None:
    running = server("--timeout", 1, "--log-requests")
    head = HEAD % 5000
    for _ in range(5):  # the sender goes in the middle
        with socket.create_connection(("127.0.0.1", running.port)) as gone:
            gone.sendall(head + b"--x\r\n")
    with socket.create_connection(("127.0.0.1", running.port)) as slow:
        slow.sendall(head + b"--x\r\n")
        answer = slow.recv(65536)
        while b"\r\n\r\n{" not in answer:
            answer += slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the photo did not come within 1 seconds" in answer
    with socket.create_connection(("127.0.0.1", running.port)) as odd:
        odd.sendall(b"nonsense\r\n\r\n")
        assert odd.recv(100).startswith(b"HTTP/1.1 400 ")
    for beginning in (b"", b"GET /health HTTP/1.1\r\nHost: lo"):
        with socket.create_connection(("127.0.0.1", running.port), 20) as silent:
            silent.sendall(beginning)
            assert silent.recv(100) == b""
    files = {"file": PHOTO}
    assert httpx.post(f"{running.url}/v1/classify", files=files).status_code == 200
    status, err = running.end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in err
    assert "/v1/classify 408 in" in err
    assert "/v1/classify 200 in" in err


def test_a_request_whose_sender_goes_is_given_up() -> None:
    told: list[int] = []
    cancelled: list[bool] = []

    async def app(_: Any, receive: Any, __: Any) -> None:
        await receive()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def test() -> None:
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": b"x", "more_body": False})
        messages.put_nowait({"type": "http.disconnect"})
        guard = Guard(app, Limits(), told=lambda _, __, status, ___: told.append(status))
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": headers}
        async with asyncio.timeout(20):
            await guard(scope, messages.get, messages.put)
        assert (guard.inside, guard.held, messages.qsize()) == (0, 0, 0)

    asyncio.run(test())
    assert (cancelled, told) == ([True], [499])


def test_a_model_that_turns_out_to_be_of_no_use(
    verydeep: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise EngineError("it gave scores that are not finite")

    monkeypatch.setattr(Service, "_warm", fails)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    done = verydeep("serve", "--model", files / "tiny.safetensors", "--port", 0)
    assert (done.status, done.out) == (2, "")
    assert done.err == "verydeep: it gave scores that are not finite\n"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
