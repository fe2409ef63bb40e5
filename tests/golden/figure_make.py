"""Makes figure.svg, the block figure of a small network, as `verydeep.pictures.block_figure` draws it.

    python tests/golden/figure_make.py

The test compares the drawing with the file, so that no change of the picture goes unseen. Where a
change is meant: run this, look at the picture in a browser, and commit it with the change.
"""

from pathlib import Path

from verydeep.nets import network
from verydeep.pictures.block_figure import block_figure

PLACE = Path(__file__).with_name("figure.svg")


def figure() -> str:
    net = network(
        "vgg16c_bn", width=1 / 16, head="gap", layers=("relu4_3", "relu5_3"), classes=7, pool="avg"
    )
    return block_figure(net, 32, 48, title="A small network & every kind of part")


if __name__ == "__main__":
    PLACE.write_text(figure(), encoding="utf-8", newline="\n")
