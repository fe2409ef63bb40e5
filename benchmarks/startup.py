"""How long people wait for the first answer: `verydeep classify photo.jpg`, and `import verydeep`.

    python benchmarks/startup.py [--rounds 15] [--out FILE.json]

Whole processes, from start to exit, in turns with an empty Python; medians. Parity first: the answer must
be right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import report

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "goldfish.jpg"
PROGRAMS = {
    "python": ["-c", "pass"],
    "import": ["-c", "import verydeep"],
    "classify": ["-m", "verydeep", "classify", str(PHOTO), "--json"],
}


def run(words: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    answer = json.loads(run(PROGRAMS["classify"])[1])[0]["predictions"][0]["label"]
    if answer != "goldfish":
        raise SystemExit(f"{PHOTO} is answered {answer!r}: no figure for a wrong answer")
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(args.rounds):
        for name, words in PROGRAMS.items():
            seconds[name].append(run(words)[0])
    imports = [a - b for a, b in zip(seconds["import"], seconds["python"], strict=True)]
    result = {
        "rounds": args.rounds,
        "classify_seconds": round(statistics.median(seconds["classify"]), 4),
        "classify_seconds_range": [round(f(seconds["classify"]), 4) for f in (min, max)],
        "import_seconds_beyond_python": round(statistics.median(imports), 4),
        "python_seconds": round(statistics.median(seconds["python"]), 4),
    }
    report("startup", result, args.out, "onnxruntime", "onnx", "pillow", "click")


if __name__ == "__main__":
    main()
