"""Export a model for another runtime: a file that is run there, and compared, before it is handed over.

Beside the file stands a short program that runs it. Everything is made in a folder of its own and moved
into place at the end, so that a failure leaves what was there before.

Each format is a module with

write(job, file)         the model as that format's file, and files beside it where one cannot hold all
load(file, outputs, precision[, threads])
                         pixels to outputs, the way that the runtime's own documentation says; without
                         a number of threads with the runtime's own
program(outputs, precision)
                         the same as a person writes it: what is imported, and the lines that make `labels`
                         and then `outputs`, name to array, of `pixels`; `__file__[:-3]` is the file's path,
                         the program's without ".py"
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..engines import ENGINES, REFERENCE, TOLERANCES, Engine
from ..engines.race import worst_error
from ..errors import EngineError, OutputError, log, require
from ..files.atomic import ADVICE, replacing, require_other
from ..files.progress import reached
from ..files.wording import plain, quoted
from ..graphs import Source, source_of
from ..modelfile import ModelFile, read
from ..nets import named
from ..preprocess import ImageLike, Preprocess, several
from ..published import find_model

__all__ = ["Exported", "export", "synthetic_photos"]

# Two runtimes round the same values to the same 8 bits, but where a sum lies on the edge between two, its
# last digit decides, and the layers after it see a step's difference.
ALLOWED = {**TOLERANCES, "int8": 5e-2}
SPARE_BYTES = 1 << 20
PHOTO_SIDES = 224, 224  # of synthetic photos, where the model says nothing


Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Format:
    """What is known of a format before anything of it is imported.

    suffix: of its file. engine: the key of `engines.ENGINES` that runs it.
    precisions: the promises that its file can keep. beside: endings of its other files.
    """

    suffix: str
    engine: str
    precisions: tuple[str, ...]
    beside: tuple[str, ...] = ()


FLOATS = ("exact", "fast", "half")

FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", (*FLOATS, "int8")),
    "openvino": Format(".xml", "openvino", (*FLOATS, "int8"), (".bin",)),
    "ncnn": Format(".param", "ncnn", FLOATS, (".bin", ".param.json")),
    "mnn": Format(".mnn", "mnn", ("fast", "half")),
    "torch": Format(".pt2", "torch", FLOATS),
}


@dataclass(frozen=True)
class Job:
    """One model on its way into a format. taps: paper names, outputs beside the scores."""

    model: ModelFile
    precision: str
    taps: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        scores = ("scores",) if self.model.record.network.head.classes else ()
        return (*self.taps, *scores)

    @cached_property
    def source(self) -> Source:
        """Its graph is the int8 one for "int8": ModelFileError where there is none.

        LayerError for taps that the network does not have.
        """
        scores, int8 = "scores" in self.outputs, self.precision == "int8"
        return source_of(self.model, "uint8", self.taps, scores, int8=int8)

    @property
    def facts(self) -> dict[str, str]:
        """What the file says about itself; "labels" and "preprocess" are JSON."""
        record = self.model.record
        classes = range(record.network.head.classes)
        labels = record.class_names or record.class_ids or tuple(f"class {i}" for i in classes)
        return {
            "producer": f"verydeep {__version__}",
            "network": record.network.name,
            "precision": self.precision,
            "labels": json.dumps(labels, ensure_ascii=False),
            "class_ids": json.dumps(record.class_ids, ensure_ascii=False),
            "preprocess": json.dumps(record.preprocess.to_dict()),
            "licence": record.licence,
            **({"thresholds": json.dumps(record.thresholds)} if record.thresholds else {}),
        }


@dataclass(frozen=True)
class Exported:
    """What was written.

    path: the file, or folder. files: all that belong to it. program: runs it: `python PROGRAM photo.jpg`;
    or a browser does. to: a key of `FORMATS`, or "web". engine, version: where it was checked.
    errors: what it was checked on, and how far it was from the model file there (relative error, the
    worst of the outputs). size_bytes: of all files.
    """

    path: Path
    files: tuple[Path, ...]
    program: Path
    to: str
    precision: str
    engine: str
    version: str
    errors: dict[str, float]
    size_bytes: int

    @property
    def error(self) -> float:
        """The largest of `errors`."""
        return max(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """What `verydeep export --json` prints."""
        return {
            **vars(self),
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "program": str(self.program),
            "error": self.error,
        }


def export(
    model: str | os.PathLike[str] | ModelFile,
    to: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "fast",
    taps: str | Sequence[str] = (),
    photos: ImageLike | Sequence[ImageLike] = (),
    runtime: str | os.PathLike[str] | None = None,
) -> Exported:
    """Write the model to `out` as "onnx", "openvino", "ncnn", "mnn", "torch" or "web", and check it there.

    The file takes "pixels", uint8 (batch, height, width, channels) in RGB order, already resized and
    cropped; any batch, and any size that the network takes. It gives "scores" (batch, classes) and an
    output for each of `taps`, float32. Labels and the pre-processing record are inside. ncnn takes one
    image at a time, without a batch, and has labels and the record in a JSON file beside.

    precision: "exact" and "fast" keep the weights in float32, "half" stores 16 bits each, "int8" takes a
    model that `verydeep quantize` made. The file must come as close to the model file as the precision
    promises (of int8: to the int8 graph in ONNX Runtime), on two synthetic photos, on one of another shape,
    and on each of `photos`; otherwise EngineError, and nothing is written.

    "web" makes a folder, `out`: a page that classifies in the browser, without any server's help. What runs
    the model there is npm's package onnxruntime-web, fetched once, or unpacked in the folder `runtime`.
    The ONNX file in it is checked as "onnx" is.

    Raises EngineError for an unknown format, precision or a missing engine, OutputError where `out`
    cannot be written, LayerError for unknown taps, ModelFileError for int8 of a model that is not.
    """
    require("format", to, (*FORMATS, "web"), EngineError)
    out, taps = Path(out), tuple(dict.fromkeys(named(taps)))
    try:
        os.path.abspath(out).encode()
    except UnicodeEncodeError:
        raise OutputError(
            f"{out}: its path is not UTF-8, and no runtime opens that; name another file"
        ) from None
    if to == "web":
        from . import web

        if taps:
            raise EngineError("a page shows names and no layers; leave the taps out")
        return web.page(model, out, precision=precision, photos=photos, runtime=runtime)
    if runtime is not None:
        raise EngineError(f"a runtime is for web alone; leave it out for {to}")
    return written(model, to, out, precision, photos, taps)


def written(
    model: str | os.PathLike[str] | ModelFile, to: str, out: Path, precision: str,
    photos: ImageLike | Sequence[ImageLike], taps: tuple[str, ...] = (),
    write: Callable[[Job, Path], None] | None = None,
) -> Exported:  # fmt: skip
    """`export` to a file. write: what makes it, where that is not the format's own."""
    form = FORMATS[to]
    if precision not in form.precisions:
        raise EngineError(
            f"format {to} keeps precision {' or '.join(form.precisions)}; {precision!r} was asked for"
        )
    engine = ENGINES[form.engine]
    if not engine.available:
        raise EngineError(
            f"an export to {to} is checked in {engine.package}, which is not installed; "
            f"install it with: {engine.install}"
        )
    if out.suffix != form.suffix:
        raise OutputError(f"{out}: expected a name that ends in {form.suffix} for {to}")
    _require_own(out, form)
    if isinstance(model, str | os.PathLike):
        model = read(find_model(model))
    require_other(out, model.path)
    job = Job(model, precision, taps)
    record = model.record
    if not job.outputs:
        raise EngineError(
            f"{model.path} is a trunk without a head: it has no scores; name the layers to give out as "
            f"taps, such as {record.network.trunk[-2].name}"
        )
    batches = dict(_batches(record.preprocess, several(photos)[0]))
    module = engine.imported(f"{__package__}.{to}")
    # the file, and for a moment the ONNX file that it is made from
    with staged(out, 2 * job.source.graph.size_bytes + SPARE_BYTES) as stage:
        log.info(f"writing {out.name}")
        reached(1, 4, f"writing {out.name}")
        file = stage / out.name
        (write or module.write)(job, file)
        log.info("running the model file")
        reached(2, 4, "running the model file")
        kept = "int8" if precision == "int8" else "exact"
        reference = Engine(REFERENCE, job.source, precision=kept, device="cpu")
        expected = {name: reference.run(pixels) for name, pixels in batches.items()}
        log.info(f"running {out.name} in {engine.package} {engine.version}")
        reached(3, 4, f"running {out.name}")
        try:
            run = module.load(file, job.outputs, precision)
            answers = {name: run(pixels) for name, pixels in batches.items()}
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"{out}: {engine.package} cannot run the file: {line}; nothing was written"
            ) from error
        errors = {name: worst_error(answers[name], expected[name]) for name in batches}
        for name, off in errors.items():
            if not off <= ALLOWED[precision]:
                raise EngineError(
                    f"{out}: in {engine.package} the file strays from the model: relative error "
                    f"{off:.1e} on {name}, and {precision} allows {ALLOWED[precision]:.0e}; "
                    "nothing was written"
                )
        del run
        reached(4, 4, f"finishing {out.name}")
        text = program_text(
            engine.distributions[0], job, out, module.program(job.outputs, precision)
        )
        (stage / f"{out.name}.py").write_text(text, encoding="utf-8")
        *files, program = place(stage, out.parent, (out.name, f"{out.name}.py"))
    return Exported(
        path=out,
        files=tuple(files),
        program=program,
        to=to,
        precision=precision,
        engine=form.engine,
        version=engine.version,
        errors=errors,
        size_bytes=sum(file.stat().st_size for file in files),
    )


def _require_own(out: Path, form: Format) -> None:
    """OutputError where a file that comes beside `out` is there, and no earlier export that it is of."""
    if out.exists():
        return
    for ending in (*form.beside, f"{form.suffix}.py"):
        file = out.with_name(f"{out.stem}{ending}")
        if os.path.lexists(file):
            raise OutputError(
                f"{out}: its {file.name} would replace one that is not of this export; name another file"
            )


def synthetic_photos(height: int, width: int, count: int = 1, channels: int = 3) -> np.ndarray:
    """(count, height, width, channels) uint8 that look like nothing, but have a photo's statistics.

    Noise whose amplitude falls with its frequency, as that of natural images does (Field 1987), in
    correlated colours; the same every time.
    """
    draw = np.random.default_rng(19)
    across = np.fft.rfftfreq(width)[None, :]
    down = np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    shape = (count, channels + 1, *frequency.shape)
    spectrum = draw.normal(size=shape) + 1j * draw.normal(size=shape)
    noise = np.fft.irfft2(spectrum / frequency, (height, width))
    # what the channels share, and what each has of its own
    noise = noise[:, :1] + 0.5 * noise[:, 1:]
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(115 + 60 * noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def _batches(
    preprocess: Preprocess, photos: Sequence[ImageLike]
) -> Iterator[tuple[str, np.ndarray]]:
    """What the file is checked on: (name, uint8 pixels)."""
    channels = len(preprocess.mean)
    height, width = preprocess.sides or PHOTO_SIDES
    yield f"two synthetic photos of {height}x{width}", synthetic_photos(height, width, 2, channels)
    height, width = height + 17, width + 40  # any size: no multiple of a stride
    name = f"a synthetic photo of {height}x{width}"
    yield name, synthetic_photos(height, width, 1, channels)
    for number, photo in enumerate(photos, 1):
        pixels = preprocess.pixels(photo)
        if pixels.dtype != np.uint8:
            pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        path = os.fspath(photo) if isinstance(photo, str | os.PathLike) else f"photo {number}"
        yield path, pixels[None]


@contextmanager
def staged(out: Path, size_bytes: int, new: bool = False) -> Iterator[Path]:
    """A folder beside `out` to make everything in; it and what is left in it vanish at the end.

    new: whether the folder of `out` is to be made; where it is empty in the end it vanishes too.
    """
    try:
        if new:
            out.parent.mkdir()
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if out.exists() and not out.is_file():  # such as /dev/null, which must not be replaced
            raise OSError(errno.EINVAL, "it is no regular file")
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", suffix=".part", dir=out.parent, ignore_cleanup_errors=True
        ) as place:
            free = shutil.disk_usage(place).free
            if free < size_bytes:
                raise OutputError(
                    f"{out}: needs {size_bytes / 1e6:.0f} MB for a while, and its folder has "
                    f"{free / 1e6:.0f} MB free; free some space and try again"
                )
            yield Path(place)
    except OutputError:
        raise
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "name another")
        reason = error.strerror or error
        raise OutputError(f"{out}: cannot be written: {reason}; {advice}") from error
    finally:
        if new:
            with suppress(OSError):
                out.parent.rmdir()


def place(stage: Path, folder: Path, last: tuple[str, ...]) -> tuple[Path, ...]:
    """Move what was made to the folder: what these files need first, and these, in this order.

    What is a link stays one, and the file behind it is replaced: a runtime looks for a file's other files
    under the name that it was given, beside the link.
    """
    order = {name: at for at, name in enumerate(last, 1)}
    files = sorted(stage.iterdir(), key=lambda file: (order.get(file.name, 0), file.name))
    places = tuple(folder / file.name for file in files)
    for file, place in zip(files, places, strict=True):
        if place.is_dir():  # found before anything is moved
            raise IsADirectoryError(errno.EISDIR, f"{place.name} is a folder")
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    for file, place in zip(files, places, strict=True):
        if place.is_symlink():  # to another disk, perhaps
            with open(file, "rb") as made, replacing(place) as opened:
                shutil.copyfileobj(made, opened)
        else:
            os.replace(file, place)
    return places


def program_text(package: str, job: Job, out: Path, program: tuple[str, str]) -> str:
    """The program beside the file `out`. package: what runs the file, as pip calls it."""
    ending = ["print({name: value.shape for name, value in outputs.items()})"]
    thresholds = job.model.record.thresholds
    if "scores" in job.outputs and thresholds:
        ending = [
            f"thresholds = {list(thresholds)}  # from which on a class is said",
            'chances = numpy.exp(-numpy.logaddexp(0, -outputs["scores"][0]))',
            "order = chances.argsort()[::-1]",
            "said = [i for i in order if chances[i] >= thresholds[i]]",
            'if not said: print("not sure:")',
            'for i in said or order[:5]: print(f"{chances[i]:6.1%}  {labels[i]}")',
        ]
    elif "scores" in job.outputs:
        ending = [
            'chances = numpy.exp(outputs["scores"][0] - outputs["scores"][0].max())',
            "chances /= chances.sum()",
            'for i in chances.argsort()[:-6:-1]: print(f"{chances[i]:6.1%}  {labels[i]}")',
        ]
    name = quoted(plain(f"{out.name}.py"))  # what ends a line would end the comment
    text = [
        f"# python {name} photo.jpg        after: pip install {package} numpy pillow",
        f"import json, sys, {program[0]}",
        "import numpy",
        "from PIL import Image, ImageOps",
        "",
        *preparation(job.model.record.preprocess),
        "",
        program[1],
        *ending,
    ]
    return "\n".join(text) + "\n"


def preparation(preprocess: Preprocess) -> Iterator[str]:
    """The lines that make `pixels` of the photo named by sys.argv[1], to the last bit those of
    `Preprocess.pixels`; 16 bits of grey become 8 first.
    """
    yield "photo = ImageOps.exif_transpose(Image.open(sys.argv[1]))"
    yield 'if photo.mode[0] == "I":  # 16 bits of grey'
    yield '    photo = Image.fromarray(numpy.rint(numpy.array(photo) / 257).astype("uint8"))'
    yield 'photo = photo.convert("RGB")'
    if preprocess.channel_order == "L":
        yield 'photo = photo.convert("L")'
    size, crop = preprocess.resize_size, preprocess.crop_size
    how = f"Image.Resampling.{preprocess.interpolation.upper()}"
    sides = "photo.size"
    if preprocess.resize == "exact":
        height, width = size if isinstance(size, tuple) else (size, size)
        sides = f"({width}, {height})"
    elif preprocess.resize == "shorter":
        sides = f"[int({size} * side / min(photo.size)) for side in photo.size]"
    if preprocess.detail is not None:
        yield f"sides, scale = {sides}, {preprocess.detail} / min(photo.size)"
        yield "if scale < 1:  # no more detail than the network was trained on"
        yield f"    photo = photo.resize([max(1, round(scale * s)) for s in photo.size], {how})"
        sides = "sides"
    if preprocess.resize != "none" or preprocess.detail is not None:
        yield f"photo = photo.resize({sides}, {how})"
    if crop is not None:
        yield "x, y = (  # of the centre; where the photo is smaller, it stands amid black"
        yield f"    round((s - {crop}) / 2) if s > {crop} else -(({crop} - s) // 2) for s in photo.size"
        yield ")"
        yield f"photo = photo.crop((x, y, x + {crop}, y + {crop}))"
    yield f"pixels = numpy.array(photo)[None{', ..., None' if preprocess.channel_order == 'L' else ''}]"
