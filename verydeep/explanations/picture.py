"""The picture of an explanation: the photo, then each heat map over it with its scale and probability.

The photo lies beneath in grey, so that colour means evidence and nothing else; what speaks against the
class, or not at all, shows no colour. All panels have one scale: where the evidence for a class is
strongest stands the class's probability, so that an improbable one does not glow like a certain one.
Around the part that the network saw, the photo is dimmed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..pictures import layout
from ..pictures.layout import Box, Panel, coloured

if TYPE_CHECKING:
    from . import Explanation, HeatMap

DIM = 0.35  # of the contrast outside what the network saw
STRONGEST = 0.78  # opacity of the strongest colour
EARLY = 0.6  # power of a value that its colour has: a sixth can be seen, on a dark photo too
SMOOTH = 1.5  # deviation, in the network's pixels, by which ig is smoothed for the eye
OUTLIERS = 99.5  # percentile that ig's scale ends at: single pixels would hide all others

UNSEEN = 0.01  # probability below which a map would show colours that nobody could see


def draw(explanation: Explanation) -> Image.Image:
    """An RGB picture: the photo and a panel for each class, in rows, and one line that says how."""
    photo, box = _fitted(explanation)
    parts = [_first(photo, box, explanation)]
    parts += [_panel(photo, box, heat, explanation.method) for heat in explanation.maps]
    count = len(parts)
    columns = count if count <= 3 else math.ceil(count / math.ceil(count / 4))
    return layout.sheet(parts, columns, f"{explanation.model} · {explanation.how}")


def over_photo(explanation: Explanation) -> list[Image.Image]:
    """Each heat map over the photo, without its scale and words."""
    photo, box = _fitted(explanation)
    return [overlaid(photo, box, *_scaled(heat, explanation.method)) for heat in explanation.maps]


def _fitted(explanation: Explanation) -> tuple[Image.Image, Box]:
    """The photo as it is drawn, and where the network saw it."""
    photo = layout.fitted(explanation.photo)
    whole = explanation.photo.size  # of a narrow one both shrink differently: none below a pixel
    across, down = photo.width / whole[0], photo.height / whole[1]
    left, top, right, bottom = explanation.box
    return photo, (left * across, top * down, right * across, bottom * down)


def _scaled(heat: HeatMap, method: str) -> tuple[np.ndarray, float]:
    """The values that are drawn, and the one that would get the last colour."""
    values = blurred(heat.upscaled, SMOOTH) if method == "ig" else heat.upscaled
    top = float(np.percentile(values, OUTLIERS) if method == "ig" else values.max())
    return values, top / max(heat.probability, 1e-9)


def _first(photo: Image.Image, box: Box, explanation: Explanation) -> Panel:
    height, width = explanation.pixels.shape[:2]
    name = Path(explanation.path).name if explanation.path else "the image"
    bright = " of the bright part" if _is_inside(box, photo.size) else ""
    said = f"the network sees {width} x {height} pixels{bright}"
    foot = layout.paragraph(said, max(photo.width, layout.NARROWEST))
    return name, "", _outside(photo, box), (10, foot)


def _panel(photo: Image.Image, box: Box, heat: HeatMap, method: str) -> Panel:
    values, top = _scaled(heat, method)
    width = max(photo.width, layout.NARROWEST)
    if top <= 0:
        foot = layout.paragraph("nothing here speaks for this class", width)
    elif heat.probability < UNSEEN:
        foot = layout.paragraph("the network does not see this class here", width)
    else:
        foot = layout.scale(width, "100 %", "probability, by evidence", _on_grey)
    picture = overlaid(photo, box, values, top)
    return heat.label, f"{heat.probability:.1%}", picture, (12, foot)


def overlaid(photo: Image.Image, box: Box, heat: np.ndarray, top: float) -> Image.Image:
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
    return _outside(Image.fromarray(_on_grey(np.clip(np.asarray(whole), 0, 1), grey)), box)


def _on_grey(value: np.ndarray, grey: np.ndarray | float = 128.0) -> np.ndarray:
    """Values of 0 to 1 as colours on grey: no colour for nothing, soon enough to see it."""
    value = np.asarray(value) ** EARLY
    alpha = STRONGEST * np.clip(value / 0.6, 0, 1)[..., None]
    mixed = (1 - alpha) * grey + alpha * coloured(value)
    return np.asarray(np.rint(mixed).clip(0, 255), np.uint8)


def _outside(photo: Image.Image, box: Box) -> Image.Image:
    """The photo with what lies outside the box dimmed towards the paper."""
    if not _is_inside(box, photo.size):
        return photo
    pale = Image.blend(Image.new("RGB", photo.size, layout.PAPER), photo, DIM)
    left, up, right, down = (round(value) for value in box)
    seen = (max(0, left), max(0, up), min(photo.width, right), min(photo.height, down))
    pale.paste(photo.crop(seen), seen[:2])
    return pale


def _is_inside(box: Box, size: tuple[int, int]) -> bool:
    """Whether there is photo left outside the box."""
    return box[0] > 1 or box[1] > 1 or box[2] < size[0] - 1 or box[3] < size[1] - 1


def blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    """The Gaussian mean around each pixel of (height, width[, channels]), as float64; whole at borders."""
    for axis in (0, 1):
        side = np.arange(values.shape[axis])
        weights = np.exp(-0.5 * (np.subtract.outer(side, side) / deviation) ** 2)
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values
