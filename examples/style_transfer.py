"""One photo painted with the colours and strokes of another (Gatys et al. 2015, arXiv:1508.06576).

    python examples/style_transfer.py [CONTENT STYLE OUT.jpg] [--size 384] [--steps 50 40 30]

Coarse to fine: a small picture takes the broad strokes in seconds, and each larger one starts from it
and adds what it has room for. L-BFGS, as in the paper; average pools, as in the paper.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from verydeep.files.atomic import replacing
from verydeep.losses import ContentLoss, StyleLoss, TotalVariation

PHOTOS = Path(__file__).parent / "photos"
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CHANNELS = (64, 128, 256, 512, 512)


def read(path: Path, size: int) -> torch.Tensor:
    """(1, 3, h, w) from 0 to 1, its longer side `size` pixels."""
    with Image.open(path) as image:
        photo = ImageOps.exif_transpose(image).convert("RGB")
    scale = size / max(photo.size)
    width, height = (max(32, round(side * scale)) for side in photo.size)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


def paint(
    picture: torch.Tensor, content: torch.Tensor, style: torch.Tensor, steps: int, weight: float
) -> torch.Tensor:
    """`picture`, moved until it shows the content and has the style's Gram matrices."""
    # the paper's layers and weights, each Gram matrix counted for its size
    of_style = StyleLoss(LAYERS, [1e3 / c for c in CHANNELS], pool="avg", check=False)
    of_content = ContentLoss(("relu4_2",), pool="avg", check=False)
    smooth = TotalVariation(2)
    wanted, shown = of_style.remember(style), of_content.remember(content)
    picture = picture.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([picture], max_iter=1, history_size=20, max_eval=2)
    began, told = time.monotonic(), 0.0

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = weight * of_style(picture, wanted) + of_content(picture, shown)
        value = value + 20 * smooth(picture)
        value.backward()
        return value.detach()

    for step in range(1, steps + 1):
        value = float(optimiser.step(loss))
        seconds = time.monotonic() - began
        if seconds - told > 5 or step == steps:
            told, rate = seconds, step / seconds
            height, width = picture.shape[2:]
            print(
                f"{width}x{height}: step {step} of {steps}, {rate:.1f} a second, "
                f"{(steps - step) / rate:.0f} s left, loss {value:.4g}",
                file=sys.stderr,
            )
    return picture.detach().clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("content", type=Path, nargs="?", default=PHOTOS / "viaduct.jpg")
    parser.add_argument("style", type=Path, nargs="?", default=PHOTOS / "suspension-bridge.jpg")
    parser.add_argument("out", type=Path, nargs="?", default=Path("painted.jpg"))
    parser.add_argument("--size", type=int, default=384, help="longer side of the picture, pixels")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 40, 30], help="coarse to fine")
    parser.add_argument("--weight", type=float, default=4.0, help="of style against content")
    args = parser.parse_args()
    sizes = [max(64, args.size >> level) for level in reversed(range(len(args.steps)))]
    picture = read(args.content, sizes[0])
    for size, steps in zip(sizes, args.steps, strict=True):
        content, style = read(args.content, size), read(args.style, size)
        picture = torch.nn.functional.interpolate(picture, content.shape[2:], mode="bicubic")
        picture = paint(picture.clamp(0, 1), content, style, steps, args.weight)
    pixels = (255 * picture[0]).round().byte().permute(1, 2, 0).numpy()
    with replacing(args.out) as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
    print(args.out)


if __name__ == "__main__":
    main()
