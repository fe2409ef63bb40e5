"""A program that uses verydeep with its types: `mypy --strict` passes it as users have it (CI runs that).

    python examples/client.py PHOTO [PHOTO ...]

Names each photo, and says how much each is like the first by its features.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

import verydeep

SIDE = 128


@dataclass(frozen=True)
class Named:
    path: str
    label: str
    probability: float


def named(predictor: verydeep.Predictor, paths: list[str]) -> list[Named]:
    """Those that can be read; the others are said."""
    found = []
    for item in predictor.stream(paths, top=1):
        if isinstance(item, verydeep.Failure):
            print(item.error, file=sys.stderr)
        else:
            found.append(Named(str(item.path), item.label, item.probability))
    return found


def likeness(predictor: verydeep.Predictor, paths: list[str]) -> np.ndarray:
    """(n,) float32: the cosine of each photo's relu5_3 with the first's."""
    values = predictor.features(paths, ["relu5_3"], pool="avg")["relu5_3"]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines: np.ndarray = unit @ unit[0]
    return cosines


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python examples/client.py PHOTO [PHOTO ...]", file=sys.stderr)
        return 2
    try:
        with verydeep.load() as predictor:
            photos = named(predictor, paths)
            cosines = likeness(predictor, [photo.path for photo in photos]) if photos else None
    except verydeep.VerydeepError as error:
        print(error, file=sys.stderr)
        return 2
    for place, photo in enumerate(photos):
        like = "" if cosines is None or not place else f", {cosines[place]:.2f} like the first"
        print(f"{photo.path}: {photo.label} {photo.probability:.0%}{like}")
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    distance = verydeep.lpips(black, black + 255)
    assert isinstance(distance, verydeep.Distance)  # of many pairs it is an array
    print(f"LPIPS from black to white: {distance:.2f} ({distance.about})")
    return 0 if len(photos) == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
