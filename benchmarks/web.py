"""How long does an exported page take, in a real Chromium, to load and to answer, in one WASM thread?

    python benchmarks/web.py [MODEL ...] [--photos 10] [--loads 3] [--runtime FOLDER] [--out FILE]

Each model is exported, served by Python's static server and opened, each time by a browser that has never
seen it. Of the photo it is what the page itself says: decoding and resizing, and the network; the first one
apart, since it warms what the others use. Models named `vgg16@1/4` are of that width, 224 pixels, random
weights; `vgg16` is the full network.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from machine import report

from verydeep.benching import random_model
from verydeep.exporting import export
from verydeep.nets import network

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
DEFAULT = ("builtin/cifar10", "builtin", "vgg16@1/4", "vgg16@1/2", "vgg16")
# the page's own worker, asked as the page asks it
TIMED = """async (photos) => {
    const worker = new Worker("worker.js", { type: "module" });
    const told = (one) => new Promise((done, failed) => (worker.onmessage = ({ data }) => {
        if (data.error) failed(new Error(data.error));
        else if (data[one] !== undefined) done(data);
    }));
    const { fetching, opening, threads } = await told("about");
    const taken = [];
    for (const name of photos) {
        const answer = told("scores");
        worker.postMessage({ file: await (await fetch(name)).blob(), number: 1 });
        const { preparing, computing } = await answer;
        taken.push([preparing, computing]);
    }
    worker.terminate();
    return { fetching, opening, threads, taken };
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    made = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def model_of(name: str, folder: Path) -> str | Path:
    base, _, width = name.partition("@")
    if base != "vgg16":
        return name
    net = network("vgg16", width=float(Fraction(width or "1")))
    return random_model(net, folder / "m.safetensors")


def timed(name: str, photos: list[Path], loads: int, runtime: Path | None) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "page"
        export(model_of(name, Path(place)), "web", folder, runtime=runtime)
        for photo in photos:
            shutil.copy(photo, folder)
        names = [photo.name for photo in photos]
        with served(folder) as url, sync_playwright() as driver:
            runs = []
            for _ in range(loads):
                browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
                page = browser.new_context(service_workers="block").new_page()
                page.set_default_timeout(600_000)
                page.route("**/page.js", lambda route: route.abort())  # its own worker is not asked
                page.goto(url)
                runs.append(page.evaluate(TIMED, names))
                version = browser.version
                browser.close()
        size = (folder / "model.onnx.gz").stat().st_size
    first = [run["taken"][0] for run in runs]
    later = [one for run in runs for one in run["taken"][1:]]
    middle = lambda values: round(statistics.median(values) / 1000, 3)  # noqa: E731
    return {
        "model": name, "chromium": version, "threads": runs[0]["threads"], "MB": round(size / 1e6, 1),
        "seconds, loading": middle(run["fetching"] + run["opening"] for run in runs),
        "seconds, first photo": middle(map(sum, first)),
        "seconds, a photo": middle(map(sum, later)),
        "of these, decoding and resizing": middle(one[0] for one in later),
        "of these, the network": middle(one[1] for one in later),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--photos", type=int, default=10)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    photos = sorted(file for file in PHOTOS.iterdir() if file.suffix in (".jpg", ".png"))
    before = os.getloadavg()[0]
    rows = [timed(name, photos[: args.photos], args.loads, args.runtime) for name in args.models]
    load = {"load before": before, "load after": os.getloadavg()[0]}
    report("web", {**load, "rows": rows}, args.out, "onnxruntime", "playwright")


if __name__ == "__main__":
    main()
