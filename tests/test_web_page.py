"""The exported page in a real Chromium, from a plain server; skipped without npm's runtime in the cache."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

import verydeep as package
from verydeep.exporting import export, web
from verydeep.files.folders import cache_folder
from verydeep.preprocess import INTERPOLATIONS, Preprocess

from .browsing import GIVEN, watched
from .served import PHOTO
from .test_int8 import int8_file
from .tiny import NAMES, model_file, pixels, tiny

WEIGHTS = cache_folder() / "weights"  # of whoever runs this
if not (WEIGHTS / web.Package.file).is_file():
    pytest.skip(f"there is no {web.Package.file} in {WEIGHTS}", allow_module_level=True)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "photos"
ISOLATING = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


@contextmanager
def plain_server(folder: Path, **headers: str) -> Iterator[str]:
    """Python's own static server of a folder, as `python -m http.server` is."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            super().end_headers()

    made = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tiny model that is never sure, with the runtime from the cache of whoever runs this."""
    folder = tmp_path_factory.mktemp("web")
    model = model_file(folder / "m.safetensors", tiny("vgg16"), threshold=1.0, licence="CC0-1.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERYDEEP_MIRROR", str(WEIGHTS))
        export(model, "web", folder / "page")
    (folder / "a.jpg").write_bytes(PHOTO)
    (folder / "no.jpg").write_text("no photo at all")
    return folder / "page"


@pytest.fixture(scope="module")
def address(exported: Path) -> Iterator[str]:
    with plain_server(exported) as url:
        yield url


def opened(browser: Any, url: str, **look: Any) -> Any:
    page = watched(browser, url, **look)
    page.goto(url)
    page.get_by_text("to open; it computes in").wait_for()
    return page


def look_at(page: Any, path: Path) -> str:
    page.evaluate("document.getElementById('status').textContent = ''")
    page.locator("#one input").set_input_files(path)
    status = page.get_by_role("status").filter(has_text="%")
    status.wait_for()
    return str(status.inner_text())


def test_a_photo_is_named(browser: Any, exported: Path, address: str) -> None:
    page = opened(browser, address)
    assert page.locator("#about").inner_text().startswith("vgg16 that knows 7 names.")
    foot = page.locator("#foot").inner_text()
    for words in ("s to come", "in 1 thread. It is kept", "weights CC0-1.0", "Runtime MIT"):
        assert words in foot
    page.locator("#one input").set_input_files(exported.parent / "no.jpg")
    page.get_by_role("alert").filter(has_text="give a JPEG, PNG or WebP").wait_for()
    expected = package.load(exported.parent / "m.safetensors", engine="onnxruntime")(
        exported.parent / "a.jpg"
    )
    first = expected.predictions[0]
    shown = f"Not sure: {first.label}, {100 * first.probability:.1f}\u00a0%."
    assert look_at(page, exported.parent / "a.jpg") == shown
    assert not page.get_by_role("alert").is_visible()
    rows = page.locator("#guesses li").all_inner_texts()
    assert [row.split("\n")[0] for row in rows] == [one.label for one in expected.predictions]
    assert [float(row.split("\n")[1].split("\u00a0")[0]) for row in rows] == pytest.approx(
        [100 * one.probability for one in expected.predictions], abs=0.06
    )
    assert "to decode and resize" in page.locator("#how").inner_text()
    for kind, target in (("paste", "body"), ("drop", "#one"), ("drop", "h1")):
        page.evaluate("document.getElementById('status').textContent = ''")
        page.evaluate(GIVEN, [kind, target, list(PHOTO)])
        page.get_by_role("status").filter(has_text=shown).wait_for()
    assert page.wrong == []


SCORES = """async (photos) => {
    const worker = new Worker("worker.js", { type: "module" });
    const told = [];
    let wake = () => {};
    worker.onmessage = ({ data }) => { if (data.share === undefined) { told.push(data); wake(); } };
    const next = async () => {
        while (!told.length) await new Promise((done) => (wake = done));
        return told.shift();
    };
    await next();
    const all = [];
    for (const url of photos) {
        worker.postMessage({ file: await (await fetch(url)).blob(), number: 1 });
        const { scores, error } = await next();
        all.push(scores ?? error);
    }
    worker.terminate();
    return all;
}"""


def test_scores_are_those_of_python(browser: Any, tmp_path: Path) -> None:
    """With a model that ships, on the photos that ship: decoded by a browser, within a hundredth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERYDEEP_MIRROR", str(WEIGHTS))
        export("builtin/cifar10", "web", tmp_path / "page")
    names = ["bee.jpg", "tabby.png", "viaduct.jpg"]
    for name in names:
        (tmp_path / "page" / name).write_bytes((EXAMPLES / name).read_bytes())
    with plain_server(tmp_path / "page") as url:
        page = opened(browser, url)
        found = np.array(page.evaluate(SCORES, names))
    predictor = package.load("builtin/cifar10", engine="onnxruntime")
    expected = predictor.scores([EXAMPLES / name for name in names])
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize(("precision", "off"), [("exact", 1e-4), ("half", 3e-2), ("int8", 5e-2)])
def test_every_precision_runs(browser: Any, precision: str, off: float, tmp_path: Path) -> None:
    net = tiny("vgg16")
    model = tmp_path / "m.safetensors"
    if precision == "int8":
        int8_file(model, net, pixels(224, 224, 2))
    else:
        model_file(model, net, preprocess=Preprocess())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERYDEEP_MIRROR", str(WEIGHTS))
        export(model, "web", tmp_path / "page", precision=precision)
    (tmp_path / "page" / "bee.jpg").write_bytes((EXAMPLES / "bee.jpg").read_bytes())
    with plain_server(tmp_path / "page") as url:
        page = opened(browser, url)
        found = np.array(page.evaluate(SCORES, ["bee.jpg"]))
    kept = "int8" if precision == "int8" else "exact"
    predictor = package.load(model, engine="onnxruntime", precision=kept)
    expected = predictor.scores([EXAMPLES / "bee.jpg"])
    assert np.abs(found - expected).max() <= off * np.abs(expected).max()


def test_pixels_are_pillows(browser: Any, address: str) -> None:
    draw = np.random.default_rng(5)
    records = [
        Preprocess(interpolation=how, resize_size=size, crop_size=crop)  # type: ignore[arg-type]
        for how in INTERPOLATIONS
        for size, crop in ((20, 15), (33, 40), (90, None))
    ]
    base = Preprocess()
    records += [
        replace(base, resize="exact", resize_size=(30, 47), crop_size=None),
        replace(base, resize="exact", resize_size=25, crop_size=None),
        replace(base, resize="none", resize_size=None, crop_size=31),
        replace(base, resize_size=64, crop_size=64, detail=20),
        Preprocess(channel_order="L", mean=(0.5,), std=(0.5,), resize_size=20, crop_size=20),
    ]
    page = opened(browser, address)
    for record in records:
        height, width = (int(side) for side in draw.integers(18, 130, 2))
        image = pixels(height, width, 1)[0]
        rgba = np.dstack([image, np.full((height, width), 255, np.uint8)])
        found = page.evaluate(
            """async ([bytes, width, height, record]) => {
                const { prepared } = await import("./resize.js");
                const image = prepared({ data: new Uint8ClampedArray(bytes), width, height }, record);
                return [image.height, image.width, image.channels, ...image.data];
            }""",
            [rgba.ravel().tolist(), width, height, record.to_dict()],
        )
        expected = record.pixels(Image.fromarray(image))
        assert tuple(found[:3]) == expected.shape
        off = np.abs(np.array(found[3:]) - expected.ravel().astype(int)).max()
        # older ones resize the width first, also of what is tall
        assert off <= (0 if int(PIL.__version__.split(".")[0]) >= 13 else 1), record


WHOLE = """async (names) => {
    const kept = (await (await caches.open("page")).keys()).map((one) => one.url.split("/").pop());
    return names.every((name) => kept.includes(name));
}"""


def wait_for_a_copy(page: Any) -> None:
    """Until all that the page needs is kept: that goes on after the model is loaded."""
    names = ["", "page.js", "worker.js", "resize.js", "page.json", "model.onnx.gz", *web.RUNTIME]
    page.wait_for_function(WHOLE, arg=names)


def test_it_works_without_a_network(browser: Any, exported: Path) -> None:
    with plain_server(exported) as url:
        page = opened(browser, url)
        before = look_at(page, exported.parent / "a.jpg")
        wait_for_a_copy(page)
    page.reload()
    page.get_by_text("to open; it computes in").wait_for()
    assert look_at(page, exported.parent / "a.jpg") == before
    assert page.wrong == []


def test_a_whole_copy_is_never_mixed_with_another(
    browser: Any, exported: Path, tmp_path: Path
) -> None:
    """A new page.json came, and its model did not; then a server that answers nothing but errors."""
    folder = shutil.copytree(exported, tmp_path / "page")
    with plain_server(folder) as url:
        page = opened(browser, url)
        before = look_at(page, exported.parent / "a.jpg")
        wait_for_a_copy(page)
        about = json.loads((folder / "page.json").read_text())
        about.update(labels=list(reversed(about["labels"])), sha256="0" * 64)
        (folder / "page.json").write_text(json.dumps(about))
        (folder / "model.onnx.gz").unlink()
        page.reload()
        page.get_by_role("alert").filter(
            has_text="model are of two versions; load the page"
        ).wait_for()
        shutil.rmtree(folder)
        page.reload()
        page.get_by_text("to open; it computes in").wait_for()
        assert look_at(page, exported.parent / "a.jpg") == before
        assert page.wrong == []


KEPT = """async (names) => {
    for (const name of names) await (await fetch(name)).text();
    await new Promise((done) => setTimeout(done, 200));
    const kept = await caches.open("page");
    return (await kept.keys()).map((one) => new URL(one.url).pathname).sort();
}"""


def test_nothing_else_is_kept(browser: Any, exported: Path, tmp_path: Path) -> None:
    """Of another page that one day has this address, such as that of `verydeep serve`."""
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "secret.json").write_text("{}")
    with plain_server(tmp_path) as url:
        page = opened(browser, url)
        files = page.evaluate(KEPT, ["secret.json"])
        assert "/secret.json" not in files
        assert {"/", "/model.onnx.gz", "/page.json", "/worker.js"} <= set(files)
    with plain_server(exported, **{"Cache-Control": "no-store"}) as url:
        page = opened(browser, url)
        assert "/worker.js" not in page.evaluate(KEPT, [])
        assert "kept" not in page.locator("#foot").inner_text()


def test_a_reload_past_what_is_kept(browser: Any, exported: Path, address: str) -> None:
    """By shift and reload, when nothing that is kept is asked, browsers never hand the page over."""
    page = opened(browser, address)
    page.context.new_cdp_session(page).send("Page.reload", {"ignoreCache": True})
    page.wait_for_function("!navigator.serviceWorker.controller")
    page.get_by_text("to open; it computes in").wait_for()
    assert look_at(page, exported.parent / "a.jpg").startswith("Not sure: ")


def test_threads_where_the_page_is_isolated(browser: Any, exported: Path) -> None:
    with plain_server(exported, **ISOLATING) as url:
        page = opened(browser, url)
        threads = page.evaluate("Math.min(4, navigator.hardwareConcurrency)")
        words = f"in {threads} thread{'s' if threads > 1 else ''}."
        assert words in page.locator("#foot").inner_text()
        assert look_at(page, exported.parent / "a.jpg").startswith("Not sure: ")
        assert page.wrong == []


def test_several_labels_and_a_missing_file(browser: Any, exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((tmp_path / "page.json").read_text())
    about.update(thresholds=[0.0] * 7, threshold=None)
    (tmp_path / "page.json").write_text(json.dumps(about))
    with plain_server(tmp_path) as url:
        page = opened(browser, url)
        assert not look_at(page, exported.parent / "a.jpg").startswith("Not sure")
        assert page.locator("#guesses .sure").count() == len(NAMES)
        (tmp_path / "model.onnx.gz").unlink()
        page = watched(browser, url)
        page.goto(url)
        page.get_by_role("alert").filter(has_text="model.onnx.gz cannot be had: 404").wait_for()
        assert page.locator("#about").inner_text() == "The model could not be loaded."


def test_narrow_dark_and_by_keyboard(browser: Any, exported: Path, address: str) -> None:
    page = opened(browser, address, viewport={"width": 360, "height": 740}, color_scheme="dark")
    look_at(page, exported.parent / "a.jpg")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(21, 23, 28)"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('[id]').id") == "one"
    assert page.evaluate("[...document.images].every((image) => image.hidden || image.alt)")
    assert page.wrong == []


def test_opened_as_a_file_it_says_what_to_do(browser: Any, exported: Path) -> None:
    page = browser.new_context().new_page()
    page.goto((exported / "index.html").as_uri())
    assert "python -m http.server" in page.locator("#about").inner_text()
