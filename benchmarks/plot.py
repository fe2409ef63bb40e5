"""Draw what `engines.py` measured: a bar for each entrant, how many times as fast as torch eager.

python benchmarks/plot.py results/engines_*.json engines.svg

Each run has a torch eager of its own, and its rows are ratios to that; an entrant that several runs had is
drawn as the first of them saw it.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

LEFT, BAR, STEP, PLACE = 250, 420, 24, 70  # pixels: names, the longest bar, a row, figures after it
COLOURS = {"plain": "#9aa5b1", "auto": "#c2410c", "engine": "#2563eb"}


def figure(results: list[dict[str, Any]]) -> str:
    result = results[0]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in (row for one in results for row in one["rows"]):
        if row["speedup_vs_torch"] is not None:
            found.setdefault((row["engine"], row["precision"], row["batch"]), row)
    rows = list(found.values())
    longest = max(row["speedup_vs_torch"] for row in rows)
    lines: list[str] = []
    y = 58
    for batch in sorted({row["batch"] for row in rows}):
        y += 26
        lines.append(f'<text x="12" y="{y}" class="head">batch {batch}</text>')
        y += 10
        some = [row for row in rows if row["batch"] == batch]
        for row in sorted(some, key=lambda row: -row["speedup_vs_torch"]):
            kind = row["engine"].split()[0]
            colour = COLOURS.get(kind, COLOURS["engine"])
            name = f"{row['engine']}: {row['chosen']}" if row["chosen"] else row["engine"]
            width = BAR * row["speedup_vs_torch"] / longest
            middle = y + STEP / 2 + 4
            lines += [
                f'<text x="{LEFT - 8}" y="{middle}" class="name">{escape(name)}, {row["precision"]}'
                "</text>",
                f'<rect x="{LEFT}" y="{y + 3}" width="{width:.1f}" height="{STEP - 6}" fill="{colour}"/>',
                f'<text x="{LEFT + width + 6:.1f}" y="{middle}">{row["speedup_vs_torch"]:.2f}</text>',
            ]
            y += STEP
    machine = result["machine"]
    about = f"{machine['processor']} ({machine['family, model']}), {machine['cores']} cores"
    has = ", ".join(flag for flag in machine["has"] if flag != "avx2") or "AVX2"
    title = f"{result['model']}: times as fast as torch eager, more is better"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + BAR + PLACE}" height="{y + 16}" '
            'font-family="sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            "<style>.head{font-weight:bold}.name{text-anchor:end}.about{fill:#52606d}</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="12" y="26" font-size="16" class="head">{escape(title)}</text>',
            f'<text x="12" y="46" class="about">{escape(f"{about}; {has}")}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit("usage: python benchmarks/plot.py RESULT.json... FIGURE.svg")
    results = [json.loads(Path(name).read_text()) for name in sys.argv[1:-1]]
    Path(sys.argv[-1]).write_text(figure(results))


if __name__ == "__main__":
    main()
