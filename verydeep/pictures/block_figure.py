"""A network as the well-known block figure of VGG, to scale, drawn from the table as SVG.

Boxes are feature maps: their height and their slanted edge are the map's sides, their thickness the
channels; upright bars are the FC layers. All scales are linear, and the figure says which. For a narrow
page, such as a phone's, the same boxes stand one below another, each beside its name.

Plain Python: text stays text, nothing outside the file is referred to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from xml.sax.saxutils import escape

from ..nets import Network, Row

WIDTH, NARROW = (
    1200,
    340,
)  # of the figure, in its own pixels: widths at which every text is readable
MARGIN = 24
BAND = 290  # height of the drawing itself: of the largest map, and of the longest FC bar
SLANT = (0.4, 0.3)  # right and up for each pixel into the page: such edges are drawn at half length
THINNEST = 2  # nothing is drawn thinner, or an input of three channels would vanish
LEAST_GAP = 7  # between boxes; what room is left is shared out as well
BAR = 9  # thickness of the FC bars, which means nothing
PITCH = 17  # from name to name in the narrow figure
STACK, RISE = 260, 90  # heights there: of all maps' thickness, and of the longest slanted edge

FONT = "Helvetica, Arial, sans-serif"
MINOR = 0.22  # share of a box that is its batch norm, or its ReLU

LABEL, TEXT, HEADING = 12, 12, 17  # font sizes
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
    net: Network, height: int = 224, width: int | None = None, *, title: str | None = None,
    narrow: bool = False, several: bool = False,
) -> str:  # fmt: skip
    """The figure of `net` for an image of that many pixels, as the text of an SVG file.

    width: as `height` where not given. title: the heading, the network's name where not given.
    Each part of a box is a group with the layer's paper name in `data-layer` and what the table
    knows of it as a tooltip. The drawing is 1200 pixels wide, or 340 where it is to be narrow; its height
    follows from the labels. several: whether an image may be of several classes.
    Raises NetworkError where the image is too small for the network's pools.
    """
    width = height if width is None else width
    rows, page = net.rows(height, width), NARROW if narrow else WIDTH
    blocks = [_Block("input", (net.in_channels, height, width), [("input", "")]), *_blocks(rows)]
    margin = MARGIN / 2 if narrow else MARGIN
    lines = wrap(title or net.name, int((page - 2 * margin) / (1.1 * EM * HEADING)))
    gap = net.head.kind == "gap" and any(block.name == "avgpool" for block in blocks)
    top = 26.0 + 22 * len(lines)
    drawing = [
        _text(margin, 32 + 22 * at, line, HEADING, bold=True) for at, line in enumerate(lines)
    ]
    if narrow:
        pixel, channel, y = _stack(blocks, top, gap)
        drawing += [_label(block) for block in blocks]
        for block in reversed(blocks):  # seen from above: the upper ones hide the lower
            drawing += _solid(block, rows)
        y += 30
    else:
        top += 16 if gap else 0  # room for the lines over the boxes
        pixel, channel = _arrange(blocks, top)
        names = top + BAND + 14  # where the row of names begins
        drawing += _leaders(blocks, names - 4)
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            drawing += _solid(block, rows)
            # the average of a "gap" head reads other layers than the one before it
            if after and not (gap and after.name == "avgpool"):
                drawing.append(_arrow(block, after))
        drawing += [_label(block, names) for block in blocks]
        longest = max(block.label_width for block in blocks)
        y = names + longest * math.sin(math.radians(ANGLE)) + 22
    if gap:
        drawing += _readers(net, blocks)
    legend, y = _legend(net, blocks, y, page, margin, several)
    caption, y = _caption(pixel, channel, rows, net, y + 26, page, margin)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page} {y:.0f}" '
            f'width="{page}" height="{y:.0f}" font-family="{FONT}" role="img">',
            f"<title>{escape(title or net.name)}, {_shape((net.in_channels, height, width))}</title>",
            f'<rect width="{page}" height="{y:.0f}" rx="8" fill="{PAPER}"/>',
            *drawing,
            *legend,
            *caption,
            "</svg>\n",
        ]
    )


@dataclass
class _Block:
    """One box, or bar, with its place in the figure.

    shape: (channels, height, width), or (features,) for a bar. parts: (kind, paper name) from left to
    right: a convolution, its batch norm and its ReLU stand in one box. x: where it starts along the axis,
    the line through the middle of every box. slant: length into the page, before it is slanted. down:
    the axis leads down the page: the fronts stand below one another, and `height` lies across.
    """

    name: str
    shape: tuple[int, ...]
    parts: list[tuple[str, str]]
    x: float = 0
    axis: float = 0
    depth: float = BAR
    height: float = 0
    slant: float = BAR
    down: bool = False

    @property
    def label_width(self) -> float:
        return _text_width(f"{self.name}  {_shape(self.shape)}", LABEL)

    @property
    def label_x(self) -> float:
        """The middle of the front face."""
        return self.x + self.depth / 2 - self.slant / 2 * SLANT[0]

    def scale(self, pixel: float, channel: float) -> None:
        """Give it its size; nothing is drawn thinner than THINNEST."""
        thick, *sides = (
            max(float(THINNEST), count * scale)
            for count, scale in zip(self.shape, (channel, pixel, pixel), strict=False)
        )
        if sides:
            self.depth, (self.height, self.slant) = thick, sides[::-1] if self.down else sides
        else:
            self.height = thick

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """x along the axis; y up and z into the page, each from -1 to 1."""
        z *= self.slant / 2
        if self.down:
            behind = (z + self.slant / 2) * SLANT[1]
            return self.axis + y * self.height / 2 + z * SLANT[0], x - behind
        return x + z * SLANT[0], self.axis - y * self.height / 2 - z * SLANT[1]

    def top(self) -> tuple[float, float]:
        return self.point(self.x + self.depth / 2, 1, 0)


def _blocks(rows: Sequence[Row]) -> Iterator[_Block]:
    """One block for each layer, but a ReLU, which stands in the block of the layer before it."""
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        layer = row.layer
        if layer.kind == "relu":
            continue
        kind = "conv1x1" if layer.kind == "conv" and layer.kernel == 1 else str(layer.kind)
        parts = [(kind, layer.name)]
        if layer.norm_key:
            parts.append(("norm", layer.name))
        if after and after.layer.kind == "relu":
            parts.append(("relu", after.layer.name))
        yield _Block(layer.name, row.shape, parts)


def _arrange(blocks: Sequence[_Block], top: float) -> tuple[float, float]:
    """Give the blocks their sizes and places, from left to right over the whole width.

    Returns the scales: pixels of the figure for a pixel of a map, and for a channel.
    """
    height, width, channels, features = _most(blocks)
    pixel = min(BAND / (height + width * SLANT[1]), 300 / (width * SLANT[0]))
    room = WIDTH - 2 * MARGIN - width * pixel * SLANT[0]
    # at most half of the room for the boxes: the rest is for the gaps and the names
    channel = min(BAND / features, 0.5 * room / channels)
    for block in blocks:
        block.axis = top + BAND / 2
        block.scale(pixel, channel)
    x = MARGIN + width * pixel / 2 * SLANT[0]
    overhang = blocks[-1].label_width * math.cos(math.radians(ANGLE))
    room = WIDTH - MARGIN - max(20.0, overhang) - x - sum(block.depth for block in blocks)
    # more room after a pool than within a group
    weights = [2.5 if b.parts[0][0] in ("input", "pool", "average") else 1.0 for b in blocks[:-1]]
    # what the scale leaves is enough for the names, whatever the network: a test looks at them
    gap = (room - LEAST_GAP * len(weights)) / sum(weights)
    for block, weight in zip(blocks, [*weights, 0.0], strict=True):
        block.x = x
        x += block.depth + LEAST_GAP + weight * gap
    return pixel, channel


def _stack(blocks: Sequence[_Block], top: float, gap: bool) -> tuple[float, float, float]:
    """The same from top to bottom, right of their names; also returns where the last one ends."""
    height, width, channels, features = _most(blocks)
    names = MARGIN / 2 + max(block.label_width for block in blocks) + 8
    room = NARROW - MARGIN / 2 - names - (14 if gap else 0)  # for the line of what the head reads
    pixel = min(room / (width + height * SLANT[0]), RISE / (height * SLANT[1]))
    channel = min(room / features, STACK / channels)
    y = top + max(0.0, height * pixel * SLANT[1] - PITCH / 2)
    for block in blocks:
        block.down, block.axis = True, names + room / 2
        block.scale(pixel, channel)
        around = max(LEAST_GAP, PITCH - block.depth) / 2
        block.x = y + around
        y = block.x + block.depth + around
    return pixel, channel, y


def _most(blocks: Sequence[_Block]) -> tuple[int, int, int, int]:
    """The largest height and width of a map, the channels of all maps, the most features of a bar."""
    maps = [block.shape for block in blocks if len(block.shape) == 3]
    features = max((block.shape[0] for block in blocks if len(block.shape) == 1), default=1)
    height, width = max(shape[1] for shape in maps), max(shape[2] for shape in maps)
    return height, width, sum(shape[0] for shape in maps), features


def _label(block: _Block, names: float = 0) -> str:
    """A block's name and shape: beside it where the axis leads down, else slanted below it, at `names`."""
    if block.down:
        place = f'x="{MARGIN / 2:.1f}" y="{block.x + block.depth / 2 + 0.35 * LABEL:.1f}"'
    else:
        turned = f"translate({block.label_x:.1f} {names:.1f}) rotate({ANGLE})"
        place = f'transform="{turned}" y="{0.35 * LABEL:.2f}"'
    return (
        f'<text {place} font-size="{LABEL}" fill="{INK}">{escape(block.name)} '
        f'<tspan fill="{FAINT}">{_shape(block.shape)}</tspan></text>'
    )


def _solid(block: _Block, rows: Sequence[Row]) -> Iterator[str]:
    """The parts of a block, from left to right, each a group of faces; the last shows its side."""
    known = {row.layer.name: row for row in rows}
    x = block.x
    for kind, name in block.parts:
        share = MINOR if kind in ("norm", "relu") else 1 - MINOR * (len(block.parts) - 1)
        end = x + share * block.depth
        colour = COLOURS[kind]
        edge = _mixed(colour, "#000000", 0.45)
        attribute = "data-norm" if kind == "norm" else "data-layer"
        yield f'<g {attribute}="{name or "input"}" stroke="{edge}" stroke-width="0.6">'
        yield f"<title>{escape(_tooltip(kind, name, block, known.get(name)))}</title>"
        faces = [
            ("front", colour, [(x, -1, -1), (end, -1, -1), (end, 1, -1), (x, 1, -1)]),
            ("top", _mixed(colour, "#ffffff", 0.35), [(x, 1, -1), (end, 1, -1), (end, 1, 1), (x, 1, 1)]),
        ]  # fmt: skip
        if (kind, name) == block.parts[
            0 if block.down else -1
        ]:  # the last, or from above the first
            at = x if block.down else end
            side = [(at, -1, -1), (at, -1, 1), (at, 1, 1), (at, 1, -1)]
            faces.append(("side", _mixed(colour, "#000000", 0.12), side))
        for face, fill, corners in faces:
            points = " ".join(_pair(block.point(*corner)) for corner in corners)
            yield f'<polygon class="{face}" fill="{fill}" points="{points}"/>'
        yield "</g>"
        x = end


def _tooltip(kind: str, name: str, block: _Block, row: Row | None) -> str:
    if row is None:
        return f"input: {_shape(block.shape)}"
    if kind == "norm":
        return f"batch normalisation of {name}"
    words = [f"{name}: {_shape(block.shape)}"]
    if row.parameters:
        words.append(f"{row.parameters:,} parameters")
    if row.multiply_adds:
        words.append(f"{row.multiply_adds:,} multiply-adds")
    return ", ".join([*words, f"sees {row.receptive_field} pixels"])


def _arrow(block: _Block, after: _Block) -> str:
    """Along the axis from the side of one block to the next, whose front is drawn over its end."""
    start, end = block.point(block.x + block.depth, 0, 0), after.x
    return f'<path d="M{_pair(start)}H{end:.1f}" stroke="{INK}" stroke-width="1" fill="none"/>'


def _leaders(blocks: Iterable[_Block], end: float) -> Iterator[str]:
    """From the bottom of each front face to its name, behind everything else."""
    yield f'<g stroke="{FAINT}" stroke-width="0.5" stroke-dasharray="1.5 2.5">'
    for block in blocks:
        start = block.point(block.x + block.depth / 2, -1, -1)
        yield f'<path d="M{_pair(start)}V{end:.1f}"/>'
    yield "</g>"


def _readers(net: Network, blocks: Sequence[_Block]) -> Iterator[str]:
    """What a "gap" head averages: lines over the boxes from the layers it reads to the average."""
    read = [
        block
        for block in blocks
        if any(kind != "norm" and name in net.head_inputs for kind, name in block.parts)
    ]
    average = next(block for block in blocks if block.name == "avgpool")
    x, y = average.top()
    if average.down:
        level = NARROW - MARGIN / 2 - 2
        yield f'<g class="reads" fill="none" stroke="{INK}" stroke-width="1">'
        for block in read:
            yield f'<path d="M{_pair(block.top())}H{level:.1f}V{y:.1f}H{x + 3:.1f}"/>'
        yield f'<path d="M{x + 8:.1f} {y - 3:.1f}L{x + 2:.1f} {y:.1f}L{x + 8:.1f} {y + 3:.1f}"/></g>'
        return
    level = min(block.point(block.x, 1, 1)[1] for block in read) - 14
    yield f'<g class="reads" fill="none" stroke="{INK}" stroke-width="1">'
    for block in read:
        yield f'<path d="M{_pair(block.top())}V{level:.1f}H{x:.1f}V{y - 3:.1f}"/>'
    yield f'<path d="M{x - 3:.1f} {y - 8:.1f}L{x:.1f} {y - 2:.1f}L{x + 3:.1f} {y - 8:.1f}"/></g>'


def _legend(
    net: Network, blocks: Iterable[_Block], y: float, page: float, margin: float, several: bool
) -> tuple[list[str], float]:
    """A swatch for each kind of part that the figure has; as many rows as they need."""
    kinds = {kind for block in blocks for kind, _ in block.parts}
    averaged = next((layer.kernel for layer in net.top if layer.kind == "average"), 1)
    words = {
        "input": "input image",
        "conv": "convolution 3 × 3",
        "conv1x1": "convolution 1 × 1",
        "norm": "its batch norm",
        "relu": "its ReLU",
        "lrn": "local response normalisation",
        "pool": POOLINGS[net.pool],
        "average": f"average to {averaged} × {averaged}" if averaged > 1 else "global average",
        "fc": "fully connected",
        "softmax": "a sigmoid each" if several else "soft-max",
    }
    lines, x = [], margin
    for kind in COLOURS:
        if kind not in kinds:
            continue
        needed = 18 + _text_width(words[kind], TEXT)
        if x + needed > page - margin:
            x, y = margin, y + 20
        lines.append(
            f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{COLOURS[kind]}" '
            f'stroke="{_mixed(COLOURS[kind], "#000000", 0.45)}" stroke-width="0.6"/>'
        )
        lines.append(_text(x + 18, y, words[kind], TEXT))
        x += needed + 14
    return lines, y


def _caption(
    pixel: float,
    channel: float,
    rows: Sequence[Row],
    net: Network,
    y: float,
    page: float,
    margin: float,
) -> tuple[list[str], float]:
    """The scales as bars, what they measure, and the totals."""
    lines, x = [], margin
    for unit, name in ((pixel, "pixel"), (channel, "channel")):
        count = _round(90 / unit)
        length = count * unit
        words = f"{count:,} {name}{'s' if count > 1 else ''}"
        if x + length + 8 + _text_width(words, TEXT) > page - margin:
            x, y = margin, y + 19
        lines.append(
            f'<path class="scale" d="M{x:.1f} {y - 8:.1f}v8m0 -4h{length:.2f}m0 -4v8" '
            f'stroke="{INK}" stroke-width="1" fill="none"/>'
        )
        lines.append(_text(x + length + 8, y, words, TEXT))
        x += length + 8 + _text_width(words, TEXT) + 22
    parameters = sum(row.parameters for row in rows)
    work = sum(row.multiply_adds for row in rows)
    totals = f"{parameters:,} parameters, {work:,} multiply-adds an image"
    if x + _text_width(totals, TEXT) > page - margin:
        x, y = margin, y + 19
    for at, line in enumerate(_lines(totals, page - x - margin)):
        y += 19 * min(at, 1)
        lines.append(_text(x, y, line, TEXT))
    bars = " FC bars: length = features, at the scale of the channels." if net.top else ""
    faces = "width and slanted edge = the map's width and height" if page == NARROW else (
        "height and slanted edge = the map's height and width"
    )  # fmt: skip
    notes = (
        f"All scales are linear. Boxes: {faces} (slanted edges at half length), thickness = channels.",
        f"Shapes are height × width × channels.{bars} Nothing is drawn thinner than {THINNEST} pixels.",
    )
    for note in notes:
        for line in _lines(note, page - 2 * margin):
            y += 19
            lines.append(_text(margin, y, line, TEXT, fill=FAINT))
    return lines, y + 18


def _lines(words: str, room: float) -> list[str]:
    return wrap(words, int(room / (0.9 * EM * TEXT)), break_on_hyphens=False)


def _round(number: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 ... that is not above `number`; at least 1."""
    power = int(10 ** math.floor(math.log10(max(1.0, number))))
    return max(step * power for step in (1, 2, 5) if step * power <= max(1.0, number))


def _shape(shape: tuple[int, ...]) -> str:
    """As the well-known figure writes it: height x width x channels."""
    return " × ".join(map(str, (*shape[1:], shape[0])))


def _text(x: float, y: float, words: str, size: int, *, bold: bool = False, fill: str = INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight} fill="{fill}">{escape(words)}</text>'


def _text_width(words: str, size: int) -> float:
    return EM * size * len(words)


def _pair(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _mixed(colour: str, other: str, share: float) -> str:
    """`colour` with that share of `other`, both as #rrggbb."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
