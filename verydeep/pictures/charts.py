"""Small charts as inline SVG, drawn by hand: lines, a confusion matrix, a reliability diagram.

Colours are CSS variables of the page that they stand in (--ink, --faint, --line, --a, --b), so that one
drawing serves light and dark. Every mark has a tooltip with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 40
PHONE = 350  # a matrix of a few classes is no wider
COLOURS = ("a", "b", "c")
NUMBERED = 25  # classes, up to which a confusion matrix has numbers and names


@dataclass(frozen=True)
class Line:
    """One curve: xs and ys of equal length; ys that are not finite leave a gap. dots: at each point one."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about so many, 1, 2 or 5 times a power of ten apart."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    given: Sequence[Line], *, x: str, y: str, percent: bool = False, low: float | None = None
) -> str:
    """Curves over one pair of axes, named at the top; a curve of one point is a dot.

    x, y: what the axes are. percent: the ys are fractions. low: where the y axis begins, None for the
    values' own.
    """
    xs = np.array([v for line in given for v in line.xs], float)
    ys = np.array([v for line in given for v in line.ys if math.isfinite(v)], float)
    if not len(ys):
        return ""
    bottom, top = float(ys.min()) if low is None else low, float(ys.max())
    if top <= bottom:
        top, bottom = top + max(abs(top), 1.0) * 0.05, bottom - max(abs(bottom), 1.0) * 0.05
    pad = 0.04 * (top - bottom)
    bottom, top = (bottom - pad if low is None else low), top + pad
    left, right = float(xs.min()), float(xs.max())
    if right <= left:
        left, right = left - 0.5, right + 0.5

    def across(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [_open(WIDTH, HEIGHT, f"{y} over {x}")]
    for value in ticks(bottom, top):
        shown = f"{value:.0%}" if percent and top - bottom > 0.05 else _number(value, percent)
        parts.append(_level(down(value), shown))
    marks = sorted({*xs.tolist()})
    if len(marks) > 6 or any(at % 1 for at in marks):
        marks = ticks(left, right)
    parts += [_text(across(at), HEIGHT - BOTTOM + 17, _number(at), "middle") for at in marks]
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "middle"))
    legend = ""
    for line, colour in zip(given, cycle(COLOURS), strict=False):
        path, pen, points, last = "", "M", [], math.nan
        for px, py in zip(line.xs, line.ys, strict=True):
            if not math.isfinite(py):
                pen = "M"
                continue
            cx, cy, last = across(px), down(py), py
            path, pen = f"{path}{pen}{cx:.1f} {cy:.1f}", "L"
            says = f"{line.name}, {_number(px)}: {f'{py:.2%}' if percent else _number(py)}"
            points.append(
                f'<circle class="dot {colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="4">'
                f"<title>{escape(says)}</title></circle>"
            )
        shown = f"{last:.2%}" if percent else _number(last)
        title = f"<title>{escape(line.name)}, last {shown}</title>"
        parts.append(f'<path class="curve {colour}" d="{path}">{title}</path>')
        parts += points if line.dots or len(points) == 1 else []
        legend += f'<span class="key {colour}">{escape(line.name)}</span>'
    return f'<div class="legend">{legend}</div>{"".join(parts)}</svg>'


def confusion(table: NDArray[np.int64], names: Sequence[str]) -> str:
    """A confusion matrix: rows are what it is, columns what it was taken for; right answers lie on the
    diagonal, in the first colour, mistakes in the second, as strong as their share of the row."""
    count = len(names)
    numbered = count <= NUMBERED
    longest = max((len(name) for name in names), default=0)
    room = min(150, 16 + 7.2 * min(longest, 18)) if numbered else 24
    cell = (
        max(34, min(46, round((PHONE - room) / max(count, 1))))
        if numbered
        else max(3, round(720 / count))
    )
    side, top = cell * count, (room if numbered else 24)
    width, height = room + side + 8, top + side + 8
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    parts = [_open(width, height, "confusion matrix")]
    parts.append(
        f'<rect class="frame" x="{room:.0f}" y="{top:.0f}" width="{side}" height="{side}"/>'
    )
    for row in range(count):
        y = top + row * cell
        if numbered:
            name = _short(names[row])
            parts.append(_text(room - 8, y + cell / 2 + 4, name, "end", names[row]))
            x = room + row * cell + cell / 2 + 4
            parts.append(
                f'<text transform="translate({x:.1f} {top - 8:.1f}) rotate(-90)">{escape(name)}'
                f"<title>{escape(names[row])}</title></text>"
            )
        for column in range(count) if numbered else np.flatnonzero(table[row]).tolist():
            number, x = int(table[row, column]), room + column * cell
            if not number and row != column:
                continue
            part = float(share[row, column])
            colour, strength = ("a", part) if row == column else ("b", math.sqrt(part))
            parts.append(
                f'<g><rect class="cell {colour}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" '
                f'height="{cell - 1}" fill-opacity="{0.06 + 0.8 * strength:.2f}"/>'
            )
            if numbered:
                weight = " strong" if strength > 0.6 else ""
                parts.append(
                    f'<text class="number{weight}" x="{x + cell / 2 - 0.5:.1f}" '
                    f'y="{y + cell / 2 + 5:.1f}" text-anchor="middle">{number}</text>'
                )
            says = f"{number} of {names[row]}"
            says += " named right" if row == column else f" taken for {names[column]}"
            parts.append(f"<title>{escape(says)} ({part:.1%})</title></g>")
    if not numbered:
        parts.append(_text(room + side / 2, 14, "taken for", "middle"))
        parts.append(f'<text transform="translate(15 {top + side / 2:.0f}) rotate(-90)">is</text>')
    parts.append("</svg>")
    return "".join(parts)


def reliability_diagram(*bins: NDArray[Any]) -> str:
    """How often first answers are right against how sure they were; whiskers are one standard error.

    bins: of each how many answers it has, their mean probability, and how often they are right. Below it
    how many answers there were. On the dashed line a probability means what it says.
    """
    low, foot = HEIGHT - BOTTOM + 70, 44
    height, plot = HEIGHT + 70, HEIGHT - BOTTOM - 8
    across = (WIDTH - LEFT - RIGHT) / len(bins[0])

    def px(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        return plot - value * (plot - TOP)

    parts = [_open(WIDTH, height, "reliability diagram")]
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_level(py(value), f"{value:.0%}"))
        parts.append(_text(px(value), low + 17, f"{value:.0%}", "end" if value == 1 else "middle"))
    most = max(1, int(bins[0].max()))
    for at, (answers, mean, accuracy) in enumerate(zip(*(x.tolist() for x in bins), strict=True)):
        if not answers:
            continue
        x = LEFT + at * across
        error = math.sqrt(max(accuracy * (1 - accuracy), 0.25 / answers) / answers)
        says = f"{answers} answers, {mean:.1%} sure on average, {accuracy:.1%} right"
        if answers == 1:
            says = f"one answer, {mean:.1%} sure, {'right' if accuracy else 'wrong'}"
        middle = x + across / 2
        tall = max(1.0, foot * answers / most)
        parts.append(
            f'<g><rect class="cell a" fill-opacity=".55" x="{x + 1:.1f}" y="{py(accuracy):.1f}" '
            f'width="{across - 2:.1f}" height="{max(0.5, plot - py(accuracy)):.1f}"/>'
            f'<path class="whisker" d="M{middle:.1f} {py(min(1, accuracy + error)):.1f}'
            f'V{py(max(0, accuracy - error)):.1f}"/>'
            f'<rect class="cell c" x="{x + 1:.1f}" y="{low - tall:.1f}" width="{across - 2:.1f}" '
            f'height="{tall:.1f}"/><title>{says}</title></g>'
        )
    parts.append(f'<path class="ideal" d="M{px(0)} {py(0):.1f}L{px(1)} {py(1):.1f}"/>')
    parts.append(
        f'<path class="axis" d="M{LEFT} {plot}H{WIDTH - RIGHT}M{LEFT} {low}H{WIDTH - RIGHT}"/>'
    )
    parts.append(_text(LEFT - 7, low - 20, "answers", "end"))
    parts.append(_text(px(0.5), height - 6, "how sure the first answer was", "middle"))
    parts.append("</svg>")
    return "".join(parts)


def _open(width: float, height: float, label: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width:.0f}px;--width:{width:.0f}px" '
        f'role="img" aria-label="{escape(label)}">'
    )


def _level(y: float, words: str) -> str:
    """A line of the grid, and its value at the axis."""
    line = f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    return line + _text(LEFT - 7, y + 4, words, "end")


def _text(x: float, y: float, words: str, anchor: str, whole: str = "") -> str:
    title = f"<title>{escape(whole)}</title>" if whole and whole != words else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}{title}</text>'


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _number(value: float, percent: bool = False) -> str:
    return f"{value:.1%}" if percent else f"{value:.4g}"
