"""Advice of `verydeep serve`, followed."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

from PIL import Image

from verydeep import retrieval
from verydeep.serving.guard import Limits
from verydeep.serving.running import listening

from ..served import PHOTO, jpeg, send, serving
from ..tiny import photo
from .following import follows, refused, said

TOKEN = "a-token-of-mine"


@follows(
    "--token has blanks or other marks, or is short; give 8 or more plain letters, digits and marks",
    "--host {}: {}; name one of this machine", "{}:{}: {}; name another with --port",
    "--host {} can be reached from other machines; give a --token, or leave --host out",
)  # fmt: skip
def test_addresses() -> None:
    words = "--token has blanks or other marks, or is short; give 8 or more plain letters, digits and marks"
    said(words, refused(lambda: listening("127.0.0.1", 0, "my token")))
    words = "--host {} can be reached from other machines; give a --token, or leave --host out"
    said(words, refused(lambda: listening("0.0.0.0", 0, None)))
    words = "--host {}: {}; name one of this machine"
    said(words, refused(lambda: listening("nowhere.invalid", 0, None)))
    listening("0.0.0.0", 0, TOKEN).close()
    with closing(listening("127.0.0.1", 0, None)) as taken:
        port = taken.getsockname()[1]
        said(
            "{}:{}: {}; name another with --port",
            refused(lambda: listening("127.0.0.1", port, None)),
        )
    listening("127.0.0.1", 0, None).close()


@follows(
    "; give it a --token to be called by any name",
    "expected a form (multipart/form-data) with the photo in it", "; start the server with --index",
    "a {} file; expected JPEG, PNG, WebP, TIFF or the like", "; scale it down",
    "the index has changed since the server started; start it again",
    "it has changed since it was opened; open it again",
)  # fmt: skip
def test_requests(model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    index = tmp_path / "index.npz"
    retrieval.features([tmp_path / "photos"], index, model=model)
    odd = io.BytesIO()
    Image.new("RGB", (40, 40)).save(odd, "TGA")
    right = io.BytesIO()
    Image.open(odd).save(right, "PNG")
    foreign = {"host": "photos.example"}
    with serving(model, limits=Limits(pixels=60 * 60)) as client:
        answer = client.post("/v1/classify", content=PHOTO)
        said("expected a form (multipart/form-data) with the photo in it", answer.text)
        assert send(client, "classify").status_code == 200
        kind = "a {} file; expected JPEG, PNG, WebP, TIFF or the like"
        said(kind, send(client, "classify", odd.getvalue()).text)
        assert send(client, "classify", right.getvalue()).status_code == 200
        said("; scale it down", send(client, "classify", jpeg(0, 90, 90)).text)
        assert send(client, "classify", jpeg(0, 60, 60)).status_code == 200
        said("; start the server with --index", send(client, "search").text)
        answer = client.get("/v1/model", headers=foreign)
        said("; give it a --token to be called by any name", answer.text)
    file = retrieval.open_features(index)
    with serving(model, index) as client:
        photo(tmp_path / "photos" / "b.png")
        retrieval.features([tmp_path / "photos"], index, model=model)
        words = "the index has changed since the server started; start it again"
        said(words, send(client, "search").text)
    said("it has changed since it was opened; open it again", refused(file.numbers))
    assert len(retrieval.open_features(index).numbers()) == 2
    with serving(model, index, token=TOKEN) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert client.get("/v1/model", headers=foreign).status_code == 200
        assert send(client, "search").status_code == 200
