"""The options that several verbs share, each declared once: one word means one thing everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..files.photo_paths import is_read

if TYPE_CHECKING:
    from ..preprocess import Size

C = TypeVar("C", bound=Callable[..., Any])


def number(
    *names: str,
    default: int | None = None,
    most: int | None = None,
    metavar: str = "N",
    **words: Any,
) -> Callable[[C], C]:
    """An option that is a whole number, 1 or more."""

    def whole(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
        if text is None:
            return None
        # more digits than 18 are beyond the numbers of any engine, and int() refuses thousands
        if not text.isdecimal() or len(text) > 18 or not 1 <= int(text) <= (most or int(text)):
            upto = "or more" if most is None else f"to {most}"
            raise click.BadParameter(f"{text} is not a whole number, 1 {upto}")
        return int(text)

    return click.option(
        *names, type=str, default=default, callback=whole, metavar=metavar,
        show_default=default is not None, **words,
    )  # fmt: skip


def names(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """The callback of an option that is a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def whole_numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """The callback of an option that is a list of whole numbers, 1 or more, with commas."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", part):
            raise click.BadParameter(
                f"{part!r} is not a whole number, 1 or more, as in 256,384,512"
            )
    return tuple(map(int, parts))


def some(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The callback of an option that may be repeated: None where it was not given at all."""
    return given or None


def pixels(_: click.Context, __: click.Parameter, text: str | None) -> Size:
    """The callback of a size: "224", "480x640" (height x width) or "own"."""
    if text is None or text == "own":
        return text  # type: ignore[return-value]  # narrowed by the comparison
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})?", text):
        raise click.BadParameter(
            f'size is {text!r}; expected "224", "480x640" (height x width) or "own"'
        )
    height, *width = map(int, text.split("x"))
    return (height, width[0]) if width else height


class Place(click.Path):
    """The name of a file or folder, given as a Path. "-" is none: nothing is written to stdout by it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", "-"):
            self.fail(f"{value!r} is not the name of a file; expected one", param, ctx)
        return super().convert(value, param, ctx)


def path(*names: str, metavar: str = "FILE", **words: Any) -> Callable[[C], C]:
    """An option that names a file or folder; given as a Path."""
    return click.option(*names, type=Place(), metavar=metavar, **words)


def no_photo(_: click.Context, __: click.Parameter, out: Path) -> Path:
    """The callback of a model file's name, in place of which a photo, of a folder that is read, may be."""
    if is_read(out.suffix.lower()):
        raise click.BadParameter(f"{out} is named as a photo; write model.safetensors or the like")
    return out


def calibrate(*, required: bool) -> Callable[[C], C]:
    """The photos that say how weights may be rounded."""
    return click.option(
        "--calibrate", required=required, multiple=True, metavar="IMAGES",
        help="A photo, a folder, a glob in quotes, or what `verydeep train` takes; may be repeated. Labels "
        "are not needed.",
    )  # fmt: skip


model_file = path("--out", required=True, callback=no_photo, help="The model file to write.")
json_object = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
exact = click.option(
    "--exact", is_flag=True,
    help="Look at every photo, of more than 100,000 too. [default: at those that an index proposes]",
)  # fmt: skip
json_list = click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
model = click.option(
    "--model", default="builtin", metavar="NAME|FILE", show_default=True,
    help="A built-in model, a published one by its name, or a model file.",
)  # fmt: skip
size = number("--size", help="Pixels a side that photos are cropped to. [default: the model's own]")
batch = number("--batch", default=8, help="Photos in one pass.")
engine = click.option(
    "--engine", default="auto", metavar="NAME", show_default=True,
    help="auto (measures once which is the quickest here), onnxruntime, openvino, ncnn, mnn or torch.",
)  # fmt: skip
precision = click.option(
    "--precision", default="fast", metavar="CLASS", show_default=True,
    help="Largest relative error of the scores: exact (1e-5), fast (1e-3) or half (3e-2; bfloat16 where "
    "the processor has it); or int8, for a model of `verydeep quantize`.",
)  # fmt: skip
device = click.option(
    "--device", default="auto", metavar="NAME", show_default=True, help="auto, cpu, cuda or mps."
)
threads = number("--threads", help="Threads to compute with. [default: one a core]")


def compute(command: C) -> C:
    """--engine, --precision, --device and --threads, in this order."""
    for option in (threads, device, precision, engine):
        command = option(command)
    return command


def cluster(command: C) -> C:
    """What a verb takes that can have a cluster do it."""
    for option in (
        click.option(
            "--price", "prices", type=float, multiple=True, metavar="AMOUNT",
            help="With --ray: what a node costs an hour, to be told what a million costs; may be repeated.",
        ),
        click.option(
            "--column", metavar="NAME",
            help="With --ray: the column of Parquet tables that holds images, bytes or paths.",
        ),
        number("--part", help="With --ray: images in a file of FOLDER. [default: 500]"),
        click.option(
            "--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]",
            help="Compute on a Ray cluster (HOST:PORT, or auto for the one that this machine is in; "
            "without an address on this machine alone), and write a folder of Parquet files.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
