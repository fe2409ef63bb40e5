"""`verydeep explain`: show where a network sees a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ImageError
from ..files import photo_paths as photos
from ..files.progress import progress
from .engine_options import compute_options, size_option
from .output_folder import Names, output_folder

if TYPE_CHECKING:
    from ..explanations import Explanation
    from ..explanations.fidelity import Fidelity

METHODS = ("cam", "gradcam", "gradcam++", "occlusion", "ig")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PHOTO...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Where the pictures go: one PNG a photo. Made where there is none.",
)
@click.option(
    "--model",
    default="builtin",
    metavar="NAME|FILE",
    show_default=True,
    help="A built-in model, a published one by its name, or a model file.",
)
@click.option(
    "--method",
    default="cam",
    show_default=True,
    metavar="NAME",
    help="cam (exact, for heads that average their maps), gradcam, gradcam++, occlusion or ig; "
    "gradcam, gradcam++ and ig need torch.",
)
@click.option(
    "--class",
    "labels",
    multiple=True,
    metavar="LABEL",
    help="A class by name, id or number, instead of the first answers; may be repeated.",
)
@click.option(
    "--top",
    default=1,
    type=click.IntRange(1),
    show_default=True,
    metavar="K",
    help="For how many of the first answers to draw a heat map.",
)
@click.option(
    "--layer",
    metavar="NAME",
    help="The layer whose maps are read. [default: cam all that the head averages, gradcam the last "
    "ReLU]",
)
@click.option(
    "--check",
    is_flag=True,
    help="Also measure how far the heat map can be believed: deletion and insertion curves, and "
    "whether it depends on the weights. Takes seconds a photo.",
)
@size_option
@compute_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def command(
    paths: tuple[str, ...],
    out: Path,
    model: str,
    method: str,
    labels: tuple[str, ...],
    top: int,
    layer: str | None,
    check: bool,
    size: int | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Show where a network sees a class: heat maps over photos.

    PHOTO is a photo, a folder (searched recursively), a glob in quotes, or - for a list of paths on
    stdin. Files that cannot be read are reported and skipped: the exit status is then 1, and 2 where not
    one could be read.
    """
    files, several = photos.find_some(paths)
    from .. import predictor
    from ..explanations import Explainer

    loaded = predictor.load(
        model, size=size, engine=engine, precision=precision, device=device, threads=threads
    )
    explainer = Explainer(loaded, method, layer=layer)
    if labels:
        explainer.classes(labels)  # an unknown one is said before the first photo
    names = Names(output_folder(out))
    records, good, bad = [], 0, 0
    for file in progress(files) if several else files:
        try:
            explanation = explainer(file, label=labels or None, top=top)
        except ImageError as error:
            bad += 1
            click.echo(f"verydeep: {error}", err=True)
            records.append({"path": file, "error": str(error)})
            continue
        good += 1
        picture = names(f"{Path(file).stem}-{method}", ".png")
        explanation.save(picture)
        fidelity = explainer.check(explanation) if check else None
        records.append(_record(explanation, picture, fidelity))
        if not as_json:
            _say(explanation, picture, fidelity)
    if as_json:
        click.echo(json.dumps(records, ensure_ascii=False, indent=1))
    if bad:
        click.echo(f"verydeep: {bad} of {good + bad} files could not be read", err=True)
    return 0 if not bad else 1 if good else 2


def _say(explanation: Explanation, picture: Path, fidelity: Fidelity | None) -> None:
    click.echo(click.style(explanation.path or "", bold=True) + f"  {picture}")
    width = max(len(heat.label) for heat in explanation.maps)
    for heat in explanation.maps:
        click.echo(f"  {heat.label:<{width}}  {heat.probability:6.1%}")
    if fidelity is not None:
        for line in str(fidelity).splitlines():
            click.echo(f"  {line}")


def _record(explanation: Explanation, picture: Path, fidelity: Fidelity | None) -> dict[str, Any]:
    return {
        "path": explanation.path,
        "picture": str(picture),
        "method": explanation.method,
        "layers": list(explanation.layers),
        "engine": explanation.engine,
        "precision": explanation.precision,
        "seconds": round(explanation.seconds, 4),
        "maps": [
            {
                "label": heat.label,
                "id": heat.id,
                "probability": round(heat.probability, 6),
                "score": round(heat.score, 5),
                "shape": list(heat.map.shape),
                "lowest": float(heat.map.min()),
                "highest": float(heat.map.max()),
                "peak": _peak(explanation, heat.peak),
            }
            for heat in explanation.maps
        ],
        **({} if fidelity is None else {"check": fidelity.to_dict()}),
    }


def _peak(explanation: Explanation, peak: tuple[int, int]) -> list[float]:
    """Where in the photo the peak lies: shares of its width and height, 0 to 1."""
    left, top, right, bottom = explanation.box
    height, width = explanation.pixels.shape[:2]
    x = left + (peak[1] + 0.5) / width * (right - left)
    y = top + (peak[0] + 0.5) / height * (bottom - top)
    photo = explanation.photo
    return [round(x / photo.width, 4), round(y / photo.height, 4)]
