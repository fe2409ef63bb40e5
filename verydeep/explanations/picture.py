"""The picture of an explanation: the photo, then each heat map over it with its scale and probability.

The photo lies beneath in grey, so that colour means evidence and nothing else; what speaks against the
class, or not at all, shows no colour. Around the part that the network saw, the photo is dimmed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..pictures.colours import coloured
from ..pictures.text import length, lines, shortened, write

if TYPE_CHECKING:
    from . import Explanation, HeatMap

PANEL = 460  # longest side of a photo, pixels
MARGIN, GAP = 28, 24
TITLE, TEXT = 25, 16  # font sizes
HEAD, FOOT = 42, 62  # above and below a photo
PAPER, INK, FAINT = (255, 255, 255), (24, 26, 30), (110, 116, 124)
DIM = 0.35  # of the contrast outside what the network saw
STRONGEST = 0.78  # opacity of the strongest colour
SMOOTH = 1.5  # deviation, in the network's pixels, by which ig is smoothed for the eye
OUTLIERS = 99.5  # percentile that ig's scale ends at: single pixels would hide all others

UNITS = {
    "cam": "share of the score",
    "gradcam": "weighted activation",
    "gradcam++": "weighted activation",
    "occlusion": "fall of the score",
    "ig": "share of the score, a pixel, smoothed",
}


def draw(explanation: Explanation) -> Image.Image:
    """An RGB picture: the photo and a panel for each class, in rows, and one line that says how."""
    photo, scale = _fitted(explanation.photo)
    box = tuple(value * scale for value in explanation.box)
    panels = [_first(photo, box, explanation)]
    panels += [_panel(photo, box, heat, explanation.method) for heat in explanation.maps]
    columns = (
        len(panels) if len(panels) <= 3 else math.ceil(len(panels) / math.ceil(len(panels) / 4))
    )
    rows = math.ceil(len(panels) / columns)
    width, height = panels[0].size
    footer = lines(f"{explanation.model} · {explanation.how}", TEXT - 2, _width(columns, width))
    canvas = Image.new(
        "RGB",
        (
            2 * MARGIN + _width(columns, width),
            MARGIN + rows * height + (rows - 1) * GAP + 10 + 20 * len(footer) + MARGIN // 2,
        ),
        PAPER,
    )  # fmt: skip
    for at, panel in enumerate(panels):
        row, column = divmod(at, columns)
        canvas.paste(panel, (MARGIN + column * (width + GAP), MARGIN + row * (height + GAP)))
    pen = ImageDraw.Draw(canvas)
    top = MARGIN + rows * height + (rows - 1) * GAP + 10
    for at, line in enumerate(footer):
        write(pen, (MARGIN, top + 20 * at), line, FAINT, TEXT - 2)
    return canvas


def overlaid(
    photo: Image.Image, box: tuple[float, ...], heat: np.ndarray, top: float
) -> Image.Image:
    """A heat map over its photo in grey.

    box: what the map covers, in pixels of the photo. heat: values, 0 to `top` of which get colours.
    """
    grey = np.asarray(photo.convert("L"), np.float32)[..., None] * 0.9 + 12
    left, up, right, down = (round(value) for value in box)
    shown = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    share = Image.fromarray(shown.astype(np.float32)).resize(
        (max(1, right - left), max(1, down - up)), Image.Resampling.BICUBIC
    )
    whole = Image.new("F", photo.size, 0)
    whole.paste(share, (left, up))
    value = np.clip(np.asarray(whole), 0, 1)
    alpha = _opacity(value)[..., None]
    mixed = (1 - alpha) * grey + alpha * coloured(value)
    return _outside(Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8)), box)


def _opacity(value: np.ndarray) -> np.ndarray:
    """No colour for nothing, soon enough to see it."""
    return np.asarray(STRONGEST * np.clip(value / 0.6, 0, 1))


def _first(photo: Image.Image, box: tuple[float, ...], explanation: Explanation) -> Image.Image:
    from pathlib import Path

    seen = explanation.pixels.shape
    name = Path(explanation.path).name if explanation.path else "the image"
    panel = _blank(photo.size)
    panel.paste(_outside(photo.convert("RGB"), box), (0, HEAD))
    pen = ImageDraw.Draw(panel)
    write(pen, (0, HEAD - 12), shortened(name, TITLE, photo.width), INK, TITLE, anchor="ls")
    said = f"the network sees {seen[1]} x {seen[0]} pixels"
    if _is_inside(box, photo.size):
        said += " of the bright part"
    write(pen, (0, HEAD + photo.height + 10), said, FAINT, TEXT)
    return panel


def _panel(photo: Image.Image, box: tuple[float, ...], heat: HeatMap, method: str) -> Image.Image:
    panel = _blank(photo.size)
    values = smoothed(heat.upscaled) if method == "ig" else heat.upscaled
    top = float(np.percentile(values, OUTLIERS) if method == "ig" else values.max())
    panel.paste(overlaid(photo, box, values, top), (0, HEAD))
    pen = ImageDraw.Draw(panel)
    percent = f"{heat.probability:.1%}"
    room = photo.width - length(percent, TITLE) - 14
    write(pen, (0, HEAD - 12), shortened(heat.label, TITLE, room), INK, TITLE, anchor="ls")
    write(pen, (photo.width, HEAD - 12), percent, FAINT, TITLE, anchor="rs")
    _legend(panel, photo, top, UNITS[method])
    return panel


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean around each pixel, for the eye: neighbouring pixels' own values differ wildly."""
    for axis in (0, 1):
        apart = np.subtract.outer(np.arange(values.shape[axis]), np.arange(values.shape[axis]))
        weights = np.exp(-0.5 * (apart / SMOOTH) ** 2)
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


def _legend(panel: Image.Image, photo: Image.Image, top: float, unit: str) -> None:
    """A bar of the colours as they look on grey, with both ends' values and what they mean."""
    pen = ImageDraw.Draw(panel)
    up = HEAD + photo.height + 12
    value = np.linspace(0, 1, photo.width)[None, :].repeat(10, 0)
    alpha = _opacity(value)[..., None]
    bar = (1 - alpha) * 128 + alpha * coloured(value)
    panel.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (0, up))
    below = up + 16
    if top <= 0:
        write(pen, (0, below), "nothing here speaks for this class", FAINT, TEXT)
        return
    write(pen, (0, below), "0", INK, TEXT)
    write(pen, (photo.width / 2, below), unit, FAINT, TEXT, anchor="ma")
    write(pen, (photo.width, below), _number(top), INK, TEXT, anchor="ra")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _outside(photo: Image.Image, box: tuple[float, ...]) -> Image.Image:
    """The photo with what lies outside the box dimmed towards the paper."""
    if not _is_inside(box, photo.size):
        return photo
    values = np.asarray(photo, np.float32)
    left, up, right, down = (round(value) for value in box)
    seen = np.zeros(values.shape[:2], bool)
    seen[max(0, up) : max(0, down), max(0, left) : max(0, right)] = True
    pale = values * DIM + np.array(PAPER, np.float32) * (1 - DIM)
    return Image.fromarray(np.where(seen[..., None], values, pale).astype(np.uint8))


def _is_inside(box: tuple[float, ...], size: tuple[int, int]) -> bool:
    """Whether there is photo left outside the box."""
    return box[0] > 1 or box[1] > 1 or box[2] < size[0] - 1 or box[3] < size[1] - 1


def _fitted(photo: Image.Image) -> tuple[Image.Image, float]:
    """The photo at the size of a panel, and by what it was scaled."""
    scale = PANEL / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), scale


def _blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", (size[0], HEAD + size[1] + FOOT), PAPER)


def _width(columns: int, width: int) -> int:
    return columns * width + (columns - 1) * GAP
