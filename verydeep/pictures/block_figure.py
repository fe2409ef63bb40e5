"""A network as the well-known block figure of VGG, to scale, drawn from the table as SVG.

Boxes are feature maps: their height and their slanted edge are the map's sides, their thickness the
channels; upright bars are the FC layers. All scales are linear, and the figure says which.

Plain Python: text stays text, nothing outside the file is referred to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from xml.sax.saxutils import escape, quoteattr

from ..nets import Layer, Network, Row

WIDTH = 1200  # of the figure, in its own pixels: a width at which every text is readable
MARGIN = 24
BAND = 290  # height of the drawing itself: of the largest map, and of the longest FC bar
SLANT = (0.4, 0.3)  # right and up for each pixel into the page: such edges are drawn at half length
THINNEST = 2  # nothing is drawn thinner, or an input of three channels would vanish
LEAST_GAP = 7  # between boxes; what room is left is shared out as well
BAR = 9  # thickness of the FC bars, which means nothing

FONT = "Helvetica, Arial, sans-serif"
LABEL, TEXT, HEADING = 11, 12, 17  # font sizes
ANGLE = 60  # of the layers' names, in degrees: they then need little room beside one another
# The widest common sans-serif (Verdana, DejaVu) needs about this many ems a character.
EM = 0.62

INK, FAINT, PAPER = "#1f2530", "#5d6675", "#fbfaf7"  # PAPER stays light where the page is dark

# kind of part -> its colour; front faces have it as it is, tops lighter, sides darker
COLOURS: dict[str, str] = {
    "input": "#c9ced6",
    "conv": "#f3d694",
    "conv1x1": "#a9cf9f",
    "norm": "#b7a3d9",
    "relu": "#eaab66",
    "lrn": "#d99ac0",
    "pool": "#c9513f",
    "average": "#7fb8b5",
    "fc": "#6f9fd8",
    "softmax": "#6a4f96",
}
POOLINGS = {"max": "max-pool", "avg": "average pool", "l2": "l2 pool"}


def block_figure(
    net: Network, height: int = 224, width: int | None = None, *, title: str | None = None
) -> str:
    """The figure of `net` for an image of that many pixels, as the text of an SVG file.

    width: as `height` where not given. title: the heading, the network's name where not given.
    Each part of a box is a group with the layer's paper name in `data-layer` and what the table
    knows of it as a tooltip. The drawing is 1200 pixels wide, its height follows from the labels.
    Raises NetworkError where the image is too small for the network's pools.
    """
    width = height if width is None else width
    rows = net.rows(height, width)
    blocks = [_Block("input", (net.in_channels, height, width), (_Part("input", "", 1.0),))]
    blocks += _blocks(rows)
    heading, top = _heading(title or net.name)
    if net.top and net.head.kind == "gap":
        top += 16  # for the lines over the boxes
    scale = _scale(blocks, top)
    places = _arrange(blocks, scale)
    drawing = [*_leaders(places, scale)]
    for place, after in zip(places, [*places[1:], None], strict=True):
        drawing += _solid(place, scale, rows)
        # the average of a "gap" head reads other layers than the one before it
        joined = after and after.block.name == "avgpool" and net.head.kind == "gap"
        if after and not joined:
            drawing.append(_arrow(place, after, scale))
    drawing += _readers(net, places, scale)
    labels, y = _labels(places, scale)
    legend, y = _legend(net, blocks, y + 22)
    caption, y = _caption(scale, rows, net, y + 26)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" '
        f'width="{WIDTH}" height="{y:.0f}" font-family="{FONT}" role="img">',
        f"<title>{escape(title or net.name)}, {_shape((net.in_channels, height, width))}</title>",
        f'<rect width="{WIDTH}" height="{y:.0f}" rx="8" fill="{PAPER}"/>',
        *heading,
        *drawing,
        *labels,
        *legend,
        *caption,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Part:
    """A share of a block's thickness: a convolution, its batch norm and its ReLU stand in one box."""

    kind: str
    layer: str  # paper name; empty for the input
    share: float


@dataclass(frozen=True)
class _Block:
    """One box or bar. shape: (channels, height, width), or (features,) for a bar."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[_Part, ...]

    @property
    def flat(self) -> bool:
        return len(self.shape) == 1

    @property
    def ends_a_group(self) -> bool:
        """Whether more room follows than between the layers of a group."""
        return self.parts[0].kind in ("input", "pool", "average")


@dataclass(frozen=True)
class _Scale:
    """Pixels of the figure for a pixel of a map, and for a channel.

    slant: length into the page of the largest map. top: where the drawing begins.
    """

    pixel: float
    channel: float
    slant: float
    top: float

    @property
    def axis(self) -> float:
        """Height, in the figure, of the line through the middle of every box."""
        return self.top + BAND / 2


@dataclass(frozen=True)
class _Place:
    """A block with its size in the figure: it starts at `x`, counted along the axis."""

    block: _Block
    x: float
    depth: float
    height: float
    slant: float  # length into the page, before it is slanted

    @property
    def label_x(self) -> float:
        """The middle of the front face."""
        return self.x + self.depth / 2 - self.slant / 2 * SLANT[0]

    def point(self, scale: _Scale, x: float, y: float, z: float) -> tuple[float, float]:
        """x along the axis; y up and z into the page, each from -1 to 1."""
        z *= self.slant / 2
        return x + z * SLANT[0], scale.axis - y * self.height / 2 - z * SLANT[1]

    def top(self, scale: _Scale) -> tuple[float, float]:
        return self.point(scale, self.x + self.depth / 2, 1, 0)


def _heading(words: str) -> tuple[list[str], float]:
    """The heading in as many lines as it needs; and where the drawing may begin."""
    lines = wrap(words, int((WIDTH - 2 * MARGIN) / (1.1 * EM * HEADING)))
    texts = [
        _text(MARGIN, 32 + 22 * i, line, HEADING, weight="bold") for i, line in enumerate(lines)
    ]
    return texts, 26.0 + 22 * len(lines)


def _blocks(rows: Sequence[Row]) -> Iterator[_Block]:
    """One block for each layer, but a ReLU, which stands in the block of the layer before it."""
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        layer = row.layer
        if layer.kind == "relu":
            continue
        kind = "conv1x1" if layer.kind == "conv" and layer.kernel == 1 else str(layer.kind)
        shares = {kind: layer.name}
        if layer.norm_key:
            shares["norm"] = layer.name
        if after and after.layer.kind == "relu":
            shares["relu"] = after.layer.name
        minor = 0.22
        parts = [
            _Part(kind, name, minor if kind in ("norm", "relu") else 1 - minor * (len(shares) - 1))
            for kind, name in shares.items()
        ]
        yield _Block(layer.name, row.shape, tuple(parts))


def _scale(blocks: Iterable[_Block], top: float) -> _Scale:
    maps = [block.shape for block in blocks if not block.flat]
    height, width = max(shape[1] for shape in maps), max(shape[2] for shape in maps)
    pixel = min(BAND / (height + width * SLANT[1]), 300 / (width * SLANT[0]))
    room = WIDTH - 2 * MARGIN - width * pixel * SLANT[0]
    features = max((block.shape[0] for block in blocks if block.flat), default=1)
    # at most half of the room for the boxes: the rest is for the gaps and the names
    channel = min(BAND / features, 0.5 * room / sum(shape[0] for shape in maps))
    return _Scale(pixel, channel, width * pixel, top)


def _arrange(blocks: Sequence[_Block], scale: _Scale) -> list[_Place]:
    """From left to right over the whole width, with more room after a pool than within a group."""
    sized = []
    for block in blocks:
        thick = max(float(THINNEST), block.shape[0] * scale.channel)
        if block.flat:
            sized.append(_Place(block, 0, BAR, thick, BAR))
        else:
            sides = [max(float(THINNEST), side * scale.pixel) for side in block.shape[1:]]
            sized.append(_Place(block, 0, thick, sides[0], sides[1]))
    x = MARGIN + scale.slant / 2 * SLANT[0]
    overhang = _text_width(_label(blocks[-1]), LABEL) * math.cos(math.radians(ANGLE))
    room = WIDTH - MARGIN - max(20.0, overhang) - x - sum(place.depth for place in sized)
    weights = [2.5 if block.ends_a_group else 1.0 for block in blocks[:-1]]
    # what the scale leaves is enough for the names, whatever the network: a test looks at them
    gap = (room - LEAST_GAP * len(weights)) / sum(weights)
    placed = []
    for place, weight in zip(sized, [*weights, 0.0], strict=True):
        placed.append(_Place(place.block, x, place.depth, place.height, place.slant))
        x += place.depth + LEAST_GAP + weight * gap
    return placed


def _solid(place: _Place, scale: _Scale, rows: Sequence[Row]) -> Iterator[str]:
    """The parts of a block, from left to right, each a group of faces; the last shows its side."""
    known = {row.layer.name: row for row in rows}
    x = place.x
    for part in place.block.parts:
        end = x + part.share * place.depth
        colour = COLOURS[part.kind]
        edge = _mixed(colour, "#000000", 0.45)
        attribute = "data-norm" if part.kind == "norm" else "data-layer"
        name = part.layer or "input"
        yield f'<g {attribute}={quoteattr(name)} stroke={quoteattr(edge)} stroke-width="0.6">'
        yield f"<title>{escape(_tooltip(part, place.block, known.get(name)))}</title>"
        faces = [
            ("front", colour, [(x, -1, -1), (end, -1, -1), (end, 1, -1), (x, 1, -1)]),
            ("top", _mixed(colour, "#ffffff", 0.35), [(x, 1, -1), (end, 1, -1), (end, 1, 1), (x, 1, 1)]),
        ]  # fmt: skip
        if part is place.block.parts[-1]:
            side = [(end, -1, -1), (end, -1, 1), (end, 1, 1), (end, 1, -1)]
            faces.append(("side", _mixed(colour, "#000000", 0.12), side))
        for face, fill, corners in faces:
            points = " ".join(_pair(place.point(scale, *corner)) for corner in corners)
            yield f'<polygon class="{face}" fill="{fill}" points="{points}"/>'
        yield "</g>"
        x = end


def _tooltip(part: _Part, block: _Block, row: Row | None) -> str:
    if row is None:
        return f"input: {_shape(block.shape)}"
    if part.kind == "norm":
        return f"batch normalisation of {part.layer}"
    words = [f"{part.layer}: {_shape(block.shape)}"]
    if row.parameters:
        words.append(f"{row.parameters:,} parameters")
    if row.multiply_adds:
        words.append(f"{row.multiply_adds:,} multiply-adds")
    words.append(f"sees {row.receptive_field} pixels")
    return ", ".join(words)


def _arrow(place: _Place, after: _Place, scale: _Scale) -> str:
    """Along the axis from the side of one block to the next, whose front is drawn over its end."""
    start = place.point(scale, place.x + place.depth, 0, 0)
    end = after.point(scale, after.x, 0, 0)
    return f'<path d="M{_pair(start)}H{end[0]:.1f}" stroke="{INK}" stroke-width="1" fill="none"/>'


def _leaders(places: Iterable[_Place], scale: _Scale) -> Iterator[str]:
    """From the bottom of each front face to its name, behind everything else."""
    yield f'<g stroke="{FAINT}" stroke-width="0.5" stroke-dasharray="1.5 2.5">'
    for place in places:
        x, y = place.point(scale, place.x + place.depth / 2, -1, -1)
        yield f'<path d="M{x:.1f} {y:.1f}V{_label_top(scale) - 4:.1f}"/>'
    yield "</g>"


def _readers(net: Network, places: Sequence[_Place], scale: _Scale) -> Iterator[str]:
    """What a "gap" head averages: lines over the boxes from the layers it reads to the average."""
    goal = next((place for place in places if place.block.name == "avgpool"), None)
    if goal is None or net.head.kind != "gap":
        return
    read = [
        place
        for place in places
        if any(p.kind != "norm" and p.layer in net.head_inputs for p in place.block.parts)
    ]
    level = min(place.point(scale, place.x, 1, 1)[1] for place in read) - 14
    x, y = goal.top(scale)
    yield f'<g class="reads" fill="none" stroke="{INK}" stroke-width="1">'
    for place in read:
        start = place.top(scale)
        yield f'<path d="M{_pair(start)}V{level:.1f}H{x:.1f}V{y - 3:.1f}"/>'
    yield f'<path d="M{x - 3:.1f} {y - 8:.1f}L{x:.1f} {y - 2:.1f}L{x + 3:.1f} {y - 8:.1f}"/></g>'


def _label(block: _Block) -> str:
    return f"{block.name}  {_shape(block.shape)}"


def _label_top(scale: _Scale) -> float:
    return scale.axis + BAND / 2 + 14


def _labels(places: Iterable[_Place], scale: _Scale) -> tuple[list[str], float]:
    """The names and shapes in a row beneath the drawing; and where the row ends."""
    y, longest, lines = _label_top(scale), 0.0, []
    for place in places:
        block = place.block
        lines.append(
            f'<text transform="translate({place.label_x:.1f} {y:.1f}) rotate({ANGLE})" '
            f'y="{0.35 * LABEL:.2f}" font-size="{LABEL}" fill="{INK}">{escape(block.name)} '
            f'<tspan fill="{FAINT}">{_shape(block.shape)}</tspan></text>'
        )
        longest = max(longest, _text_width(_label(block), LABEL))
    return lines, y + longest * math.sin(math.radians(ANGLE))


def _legend(net: Network, blocks: Iterable[_Block], y: float) -> tuple[list[str], float]:
    """A swatch for each kind of part that the figure has; as many rows as they need."""
    kinds = {part.kind for block in blocks for part in block.parts}
    average = next((layer for layer in net.top if layer.kind == "average"), None)
    words = {
        "input": "input image",
        "conv": "convolution 3 × 3",
        "conv1x1": "convolution 1 × 1",
        "norm": "its batch norm",
        "relu": "its ReLU",
        "lrn": "local response normalisation",
        "pool": POOLINGS[net.pool],
        "average": _average(average),
        "fc": "fully connected",
        "softmax": "soft-max",
    }
    lines, x = [], float(MARGIN)
    for kind in COLOURS:
        if kind not in kinds:
            continue
        needed = 18 + _text_width(words[kind], TEXT)
        if x + needed > WIDTH - MARGIN:
            x, y = float(MARGIN), y + 20
        lines.append(
            f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{COLOURS[kind]}" '
            f'stroke="{_mixed(COLOURS[kind], "#000000", 0.45)}" stroke-width="0.6"/>'
        )
        lines.append(_text(x + 18, y, words[kind], TEXT))
        x += needed + 14
    return lines, y


def _average(layer: Layer | None) -> str:
    if layer is None or layer.kernel == 1:
        return "global average"
    return f"average to {layer.kernel} × {layer.kernel}"


def _caption(scale: _Scale, rows: Sequence[Row], net: Network, y: float) -> tuple[list[str], float]:
    """The scales as bars, what they measure, and the totals."""
    lines, x = [], float(MARGIN)
    for unit, name in ((scale.pixel, "pixel"), (scale.channel, "channel")):
        count = _round(90 / unit)
        length = count * unit
        lines.append(
            f'<path class="scale" d="M{x:.1f} {y - 8:.1f}v8m0 -4h{length:.2f}m0 -4v8" '
            f'stroke="{INK}" stroke-width="1" fill="none"/>'
        )
        words = f"{count:,} {name}{'s' if count > 1 else ''}"
        lines.append(_text(x + length + 8, y, words, TEXT))
        x += length + 8 + _text_width(words, TEXT) + 22
    parameters = sum(row.parameters for row in rows)
    work = sum(row.multiply_adds for row in rows)
    totals = f"{parameters:,} parameters, {work:,} multiply-adds an image"
    lines.append(_text(x, y, totals, TEXT))
    bars = " FC bars: length = features, at the scale of the channels." if net.top else ""
    notes = (
        "All scales are linear. Boxes: height and slanted edge = the map's height and width (slanted "
        "edges at half length), thickness = channels.",
        f"Shapes are height × width × channels.{bars} Nothing is drawn thinner than {THINNEST} pixels.",
    )
    for note in notes:
        y += 19
        lines.append(_text(MARGIN, y, note, TEXT, fill=FAINT))
    return lines, y + 18


def _round(number: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 ... that is not above `number`; at least 1."""
    power = int(10 ** math.floor(math.log10(max(1.0, number))))
    return max(step * power for step in (1, 2, 5) if step * power <= max(1.0, number))


def _shape(shape: tuple[int, ...]) -> str:
    """As the well-known figure writes it: height x width x channels."""
    return " × ".join(map(str, (*shape[1:], shape[0])))


def _text(
    x: float, y: float, words: str, size: int, *, weight: str = "normal", fill: str = INK
) -> str:
    bold = f' font-weight="{weight}"' if weight != "normal" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{bold} fill="{fill}">'
        f"{escape(words)}</text>"
    )


def _text_width(words: str, size: int) -> float:
    return EM * size * len(words)


def _pair(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _mixed(colour: str, other: str, share: float) -> str:
    """`colour` with that share of `other`, both as #rrggbb."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
