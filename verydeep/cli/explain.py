"""`verydeep explain`: show where a network sees a class."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ImageError
from ..files import photo_paths
from ..files.progress import progress
from ..files.wording import column, plain
from . import options
from .output import Listing, exit_status, output_folder

if TYPE_CHECKING:
    from ..explanations import Explanation
    from ..explanations.fidelity import Fidelity


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PHOTO...")
@options.path(
    "--out", required=True, metavar="FOLDER",
    help="Where the pictures go, a PNG for each photo. Made if it is not there.",
)  # fmt: skip
@options.model
@click.option(
    "--method", default="cam", show_default=True, metavar="NAME",
    help="cam (exact, for heads that average their maps), gradcam, gradcam++, occlusion or ig; "
    "gradcam, gradcam++ and ig need torch.",
)  # fmt: skip
@click.option(
    "--class", "labels", multiple=True, callback=options.some, metavar="LABEL",
    help="A class by name, id or number, instead of the first answers; may be repeated.",
)  # fmt: skip
@options.number(
    "--top", default=1, metavar="K", help="For how many of the first answers to draw a heat map."
)
@click.option(
    "--layer", metavar="NAME",
    help="The layer whose maps are read. [default: for cam every layer that the head averages, for "
    "gradcam the last ReLU]",
)  # fmt: skip
@click.option(
    "--check", is_flag=True,
    help="Also measure how far the heat map can be believed: deletion and insertion curves, and "
    "whether it depends on the weights. Takes seconds a photo.",
)  # fmt: skip
@options.size
@options.compute
@options.json_list
def explain(
    paths: tuple[str, ...],
    out: Path,
    model: str,
    method: str,
    labels: tuple[str, ...] | None,
    top: int,
    layer: str | None,
    check: bool,
    as_json: bool,
    **compute: Any,
) -> int:
    """Show where a network sees a class: heat maps over photos.

    PHOTO is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on
    stdin. Files that cannot be read are reported and skipped: the exit status is then 1, and 2 where not
    one could be read.
    """
    files, _ = photo_paths.find_some(paths)
    from .. import predictor
    from ..explanations import Explainer

    explainer = Explainer(predictor.load(model, **compute), method, layer=layer)
    if labels:
        explainer.classes(labels)  # an unknown one is said before the first photo
    out = output_folder(out)
    stems: Counter[str] = Counter()  # photos of two folders may bear the same name
    with Listing(as_json) as listing:
        for file in progress(files, "explaining", total=photo_paths.counter(paths)):
            try:
                explanation = explainer(file, label=labels, top=top)
            except ImageError as error:
                listing({"path": file, "error": str(error)})
                continue
            seen = "+".join(heat.label for heat in explanation.maps[:3])
            label = _cut(re.sub(r"[^\w+]+", "-", seen), 60).strip("-")
            stem = f"{_cut(Path(file).stem, 150)}-{label}"
            key = photo_paths.composed(stem).casefold()
            stems[key] += 1
            again = f"-{stems[key]}" if stems[key] > 1 else ""
            picture = out / f"{stem}-{method}{again}.png"
            explanation.save(picture)
            fidelity = explainer.check(explanation) if check else None
            record = _record(explanation, picture, fidelity)
            listing(record, _text(explanation, picture, fidelity))
    return exit_status(listing.failed, listing.count)


def _cut(name: str, most: int) -> str:
    """A name's first bytes: a file's has room for 255."""
    return (
        name
        if len(os.fsencode(name)) <= most
        else os.fsencode(name)[:most].decode("utf-8", "ignore")
    )


def _text(explanation: Explanation, picture: Path, fidelity: Fidelity | None) -> str:
    labels = column(heat.label for heat in explanation.maps)
    heats = zip(labels, explanation.maps, strict=True)
    lines = [f"{label}  {heat.probability:6.1%}" for label, heat in heats]
    lines += str(fidelity).splitlines() if fidelity is not None else []
    title = click.style(plain(explanation.path or ""), bold=True) + f"  {plain(str(picture))}"
    return "\n  ".join([title, *lines])


def _record(explanation: Explanation, picture: Path, fidelity: Fidelity | None) -> dict[str, Any]:
    check = {} if fidelity is None else {"check": fidelity.to_dict()}
    return {"path": explanation.path, "picture": str(picture), **explanation.to_dict(), **check}
