"""How long people wait for a picture of where the network looks: `verydeep explain photo.jpg --out ...`.

    python benchmarks/explain.py [--rounds 15] [--out FILE.json]

Whole processes, from start to the picture on the disk, in turns with an empty Python and with `classify`;
medians. Parity first: the class must be right, the heat map's mean the score less the bias, and torch not
imported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from machine import report
from startup import PHOTO, run

CHECK = """
import sys
import verydeep
predictor = verydeep.load()
seen = verydeep.explain(predictor, sys.argv[1])
bias = predictor.model.tensors(["classifier.bias"])["classifier.bias"][seen.maps[0].index]
assert abs(seen.map.mean() - (seen.maps[0].score - bias)) < 1e-3 * abs(seen.maps[0].score)
assert "torch" not in sys.modules
print(seen.label)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    answer = run(["-c", CHECK, str(PHOTO)])[1].strip()
    if answer != "goldfish":
        raise SystemExit(f"{PHOTO} is answered {answer!r}: no figure for a wrong answer")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        programs = {
            "python": ["-c", "pass"],
            "classify": ["-m", "verydeep", "classify", str(PHOTO)],
            "explain": ["-m", "verydeep", "explain", str(PHOTO), "--out", folder],
        }
        for _ in range(args.rounds):
            for name, words in programs.items():
                seconds.setdefault(name, []).append(run(words)[0])
        assert (Path(folder) / "goldfish-cam.png").exists()
    result = {
        "rounds": args.rounds,
        **{f"{name}_seconds": round(statistics.median(s), 4) for name, s in seconds.items()},
        "explain_seconds_range": [round(f(seconds["explain"]), 4) for f in (min, max)],
    }
    report("explain", result, args.out, "onnxruntime", "onnx", "pillow", "click")


if __name__ == "__main__":
    main()
