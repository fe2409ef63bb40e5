"""Progress on a real pseudo-terminal: when the first sign of life stands there, and how long nothing moves.

    python benchmarks/progress.py [--photos 240] [--only VERB ...] [--out FILE.json]

Each verb does minutes of real work by the built-in model in a terminal of 100 columns, with an empty cache,
so that engines are prepared and raced as on the first day. "first" is the seconds from the start of the
process to the first text on the screen, "gap" the longest time after it in which no text changed. What
was last on the screen's line is kept, for a reader to judge whether it says done, total and time left.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import report

EXAMPLES = Path(__file__).parent.parent / "examples" / "photos"
VERBS = {
    "classify": "classify P",
    "features": "features P --out f.npz",
    "distance": "distance Q R",
    "duplicates": "duplicates P",
    "evaluate": "evaluate builtin P",
    "check": "check P",
    "quantize": "quantize builtin --calibrate P --out q.safetensors",
    "export": "export builtin --to onnx --out m.onnx",
    "train": "train P --recipe probe --out run",
}


def photos(folder: Path, count: int, width: int = 1500) -> None:
    """Photos of some 1.5 megapixels in two classes, each of other pixels."""
    from PIL import Image

    sources = sorted(EXAMPLES.glob("*.jpg"))
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as image:
            turned = image.convert("RGB").rotate(number % 7).resize((width, width * 2 // 3))
        path = folder / ("bee", "koala")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned.save(path)


def watched(words: list[str], folder: Path) -> dict[str, object]:
    """How a command moves on its screen."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "TERM": "xterm",
        "VERYDEEP_CACHE": tempfile.mkdtemp(dir=folder),
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "verydeep", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment,
    )  # fmt: skip
    os.close(theirs)
    moments, line, last = list[float](), "", ""
    while True:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                read = os.read(ours, 2**16)
            except OSError:  # of a terminal, this is its end
                break
            if not read:
                break
            text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", read.decode("utf-8", "replace")).strip(
                "\r\n "
            )
            if text and text != line:
                line = text
                moments.append(time.perf_counter() - began)
                last = text.splitlines()[-1] if re.search("[⠀-⣿]", text) else last
    status = process.wait()
    seconds = time.perf_counter() - began
    gaps = [after - before for before, after in zip(moments, [*moments[1:], seconds], strict=True)]
    return {
        "command": "verydeep " + " ".join(words), "exit_status": status, "seconds": round(seconds, 1),
        "first": round(moments[0], 2), "gap": round(max(gaps), 2), "changes": len(moments), "line": last,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=240)
    parser.add_argument("--only", nargs="*", choices=VERBS, default=list(VERBS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        photos(folder / "P", options.photos)
        for pairs in "QR":
            photos(folder / pairs, options.photos // 4, 360)
        rows = {verb: watched(VERBS[verb].split(), folder) for verb in options.only}
    finally:
        shutil.rmtree(folder)
    report(
        "progress", {"photos": options.photos, "verbs": rows}, options.out, "onnxruntime", "torch"
    )


if __name__ == "__main__":
    main()
