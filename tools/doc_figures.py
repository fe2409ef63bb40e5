"""Draw the figures of docs/why-3x3.md from the table, so that they show what the program computes.

`python tools/doc_figures.py --write` puts them into docs/images; a test fails where a file differs
from what this draws now. Words are few, since the Chinese page shows the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from verydeep.cli.summary import describe
from verydeep.nets import network
from verydeep.pictures.block_figure import COLOURS, FONT, INK, PAPER, block_figure

__all__ = ["IMAGES", "figures"]

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"

CONV, FC, RELU = COLOURS["conv"], COLOURS["fc"], COLOURS["relu"]
EDGE = "#6d5f3f"


def figures() -> dict[str, str]:
    """File name -> SVG text."""
    net = network("vgg16")
    return {
        "vgg16.svg": block_figure(net, title=describe(net)),
        "stacks.svg": stacks(),
        "fields.svg": fields(),
        "costs.svg": costs(),
    }


def stacks() -> str:
    """Seen from the side: one unit on three layers of 3x3, and on one layer of 7x7."""
    cell, step, left = 24, 58, 40
    lines: list[str] = []
    for column, kernels in enumerate(([3, 3, 3], [7])):
        middle = left + 7 * cell / 2 + column * 350
        count, y = 1, 24.0
        lines += _cells(middle, y, cell, count)
        for kernel in kernels:
            rows = 3 // len(kernels)  # a single kernel spans the height of the stack
            opacity = 0.5 if count == 1 else 0.3
            below, end = count + kernel - 1, y + rows * step
            for i in range(count):  # what each unit sees
                x = middle + (i - (count - 1) / 2) * cell
                half = kernel * cell / 2
                lines.append(
                    f'<path d="M{x - cell / 2:.1f} {y + cell:.1f}H{x + cell / 2:.1f}'
                    f'L{x + half:.1f} {end:.1f}H{x - half:.1f}Z" fill="{RELU}" opacity="{opacity}"/>'
                )
            x = middle + below * cell / 2 + 12
            lines.append(_text(x, (y + cell + end) / 2 + 5, f"{kernel} × {kernel}"))
            count, y = below, end
            lines += _cells(middle, y, cell, count)
        lines.append(_text(middle, y + cell + 22, f"{count} × {count}", anchor="middle", bold=True))
    return _page(650, 262, lines)


def _cells(middle: float, y: float, side: int, count: int) -> Iterable[str]:
    for i in range(count):
        x = middle + (i - count / 2) * side
        yield (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" fill="{CONV}" '
            f'stroke="{EDGE}"/>'
        )


def fields() -> str:
    """What one unit at the end of each block sees of an image of 224 x 224 pixels, to scale."""
    scale, size, left, top = 1.5, 224, 24, 24
    rows = network("vgg16").rows(size)
    last = {row.layer.name[4]: row for row in rows if row.layer.kind == "relu" and row.stride < 32}
    last = {block: row for block, row in last.items() if block in "12345"}
    middle = size * scale / 2
    lines = [_square(left, top, size * scale, "#dfe3e8", "#8a93a1")]
    lines.append(_text(left + size * scale + 84, top + 5, f"{size} × {size}"))
    lines.append(_leader(left + size * scale, top, left + size * scale + 76, top))
    lowest = float(top)
    for number, row in enumerate(reversed(last.values())):
        side = row.receptive_field * scale
        x, y = left + middle - side / 2, top + middle - side / 2
        lines.append(_square(x, y, side, CONV if number % 2 == 0 else RELU, EDGE))
        lowest = max(lowest + 24, y)
        lines.append(_leader(x + side, y, left + size * scale + 76, lowest))
        words = f"{row.layer.name}: {row.receptive_field} × {row.receptive_field}"
        lines.append(_text(left + size * scale + 84, lowest + 5, words))
    return _page(620, round(size * scale) + 2 * top, lines)


def _square(x: float, y: float, side: float, fill: str, edge: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="{fill}" '
        f'stroke="{edge}"/>'
    )


def _leader(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{INK}" stroke-width="0.7"/>'


def costs() -> str:
    """For each layer of VGG-16 its share of the parameters, and of the multiply-adds."""
    rows = [row for row in network("vgg16").rows() if row.parameters]
    parameters = sum(row.parameters for row in rows)
    work = sum(row.multiply_adds for row in rows)
    middle, unit, step = 390, 3.6, 20  # unit: pixels a per cent
    lines = [
        _text(middle - 44, 28, "parameters 参数", anchor="end", bold=True),
        _text(middle + 44, 28, "multiply-adds 乘加", bold=True),
    ]
    y = 42.0
    for row in rows:
        colour = FC if row.layer.kind == "fc" else CONV
        lines.append(_text(middle, y + 12, row.layer.name, anchor="middle"))
        for share, side in ((row.parameters / parameters, -1), (row.multiply_adds / work, 1)):
            length = 100 * share * unit
            x = middle + side * 40 - (length if side < 0 else 0)
            lines.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(length, 0.5):.1f}" height="{step - 5}" '
                f'fill="{colour}" stroke="{EDGE}" stroke-width="0.6"/>'
            )
            end = middle + side * (40 + length + 6)
            anchor = "end" if side < 0 else "start"
            lines.append(_text(end, y + 12, f"{share:.1%}", anchor=anchor))
        y += step
    return _page(610, round(y) + 16, lines)


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{weight}>'
        f"{escape(words)}</text>"
    )


def _page(width: int, height: int, lines: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{FONT}" font-size="13">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n'
    )
    return head + "\n".join(lines) + "\n</svg>\n"


def main() -> int:
    if sys.argv[1:] not in ([], ["--write"]):
        print("usage: python tools/doc_figures.py [--write]", file=sys.stderr)
        return 2
    stale = []
    for name, text in figures().items():
        path = IMAGES / name
        if sys.argv[1:]:
            IMAGES.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    for name in stale:
        print(f"docs/images/{name} is out of date: run python tools/doc_figures.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
