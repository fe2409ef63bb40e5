"""relu5_3, averaged, of 1,000 JPEGs at 224 by `verydeep features`, against a plain torchvision script.

    python benchmarks/features.py [--photos 1000] [--rounds 1] [--precision fast] [--out FILE.json]

Whole processes from start to exit, in turns; each writes a .npz. The script is what torchvision's
documentation shows: `create_feature_extractor`, which cuts the network after the layer, a Dataset, a
DataLoader with a worker a core, batches of 32; channels-last is allowed to it. Its network has the
built-in's weights, and both must give the same numbers for the same photos: that is checked before
anything is timed. The photos are those of `folder.py`. `features` has chosen and prepared its engine
before, as it has on a person's machine from the second folder on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from folder import make_photos, timed
from machine import ENGINES, report

LAYER, PLACE = "relu5_3", "features.29"  # by the paper, by torchvision
SIZE = 224
FEW = 48  # enough for a race of the engines

SCRIPT = """
import os, sys
import numpy, torch, torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models.feature_extraction import create_feature_extractor

class Photos(Dataset):
    def __init__(self, folder):
        self.paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        self.prepare = torchvision.transforms.Compose([
            torchvision.transforms.Resize(RESIZE), torchvision.transforms.CenterCrop(CROP),
            torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD),
        ])
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        return self.prepare(Image.open(self.paths[i]).convert("RGB"))

if __name__ == "__main__":
    torch.set_num_threads(CORES)
    photos, weights, out = sys.argv[1:]
    vgg = torchvision.models.vgg16()
    vgg.features.load_state_dict(torch.load(weights, weights_only=True))
    net = create_feature_extractor(vgg.eval(), {PLACE: LAYER}).to(memory_format=torch.channels_last)
    data, rows = Photos(photos), []
    with torch.inference_mode():
        for batch in DataLoader(data, batch_size=32, num_workers=CORES):
            rows.append(net(batch.to(memory_format=torch.channels_last))[LAYER].mean((2, 3)))
    numpy.savez(out, path=data.paths, **{LAYER: torch.cat(rows).numpy()})
"""


def write_script(folder: Path) -> list[str]:
    """The script with the built-in's weights beside it, as a command that lacks photos and output."""
    import torch

    from verydeep import models
    from verydeep.preprocess import sized
    from verydeep.published import find_model

    net = models.load(find_model("builtin"))
    assert net.record is not None
    torch.save(net.features.state_dict(), folder / "weights.pth")
    record = sized(net.record.preprocess, SIZE)
    text = SCRIPT
    for word, value in (
        ("RESIZE", record.resize_size), ("CROP", record.crop_size), ("MEAN", record.mean),
        ("STD", record.std), ("CORES", os.cpu_count()), ("PLACE", PLACE), ("LAYER", LAYER),
    ):  # fmt: skip
        text = text.replace(word, repr(value))
    (folder / "script.py").write_text(text)
    return [sys.executable, "-W", "ignore", str(folder / "script.py")]


def difference(ours: Path, theirs: Path) -> float:
    """||ours - theirs|| / ||theirs|| over all photos, which must be the same ones."""
    one, other = np.load(ours), np.load(theirs)
    assert one["path"].tolist() == other["path"].tolist(), "not the same photos"
    a, b = one[LAYER].astype(np.float64), other[LAYER].astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from verydeep.engines import TOLERANCES
    from verydeep.retrieval import open_features

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("photos", args.photos), ("few", FEW)):
            (folder / part).mkdir()
            make_photos(folder / part, count)
        theirs, ours = folder / "theirs.npz", folder / "ours.npz"
        script = write_script(folder)
        command = [sys.executable, "-m", "verydeep", "features", "--layer", LAYER, "--pool", "avg"]
        command += ["--size", str(SIZE), "--precision", args.precision, "--out", str(ours)]

        def both(photos: Path) -> tuple[float, float, float]:
            """Seconds of the script, of the command, and how far their numbers differ."""
            before, _ = timed([*script, str(photos), str(folder / "weights.pth"), str(theirs)])
            after, _ = timed([*command, str(photos)])
            off = difference(ours, theirs)
            if off > TOLERANCES[args.precision]:
                raise SystemExit(f"the features differ by {off:.1e}: no figure for wrong ones")
            return before, after, off

        both(folder / "few")  # checks, chooses the engine and prepares it
        rounds = []
        for number in range(args.rounds):
            rounds.append(both(folder / "photos"))
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        engine = open_features(ours).about.engine
    result = {
        "photos": args.photos,
        "layer": f"{LAYER}, avg, {SIZE}x{SIZE}",
        "precision": args.precision,
        "engine": engine,
        "rounds": args.rounds,
        "difference": float(f"{max(off for *_, off in rounds):.2g}"),
        "script_seconds": round(statistics.median(before for before, _, _ in rounds), 2),
        "features_seconds": round(statistics.median(after for _, after, _ in rounds), 2),
        "times_as_fast": round(statistics.median(b / a for b, a, _ in rounds), 3),
    }
    report("features", result, args.out, *ENGINES, "torchvision", "pillow")


if __name__ == "__main__":
    main()
