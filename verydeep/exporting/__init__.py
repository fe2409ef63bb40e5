"""Export a model for another runtime: a file that is run there, and compared, before it is handed over.

Beside the file stands a short program that runs it. Everything is made in a folder of its own and moved
into place at the end, so that a failure leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines import (
    ENGINES,
    REFERENCE,
    TOLERANCES,
    Source,
    open_engine,
    relative_error,
)
from ..errors import EngineError, OutputError, log, nearest
from ..files.atomic import ADVICE
from ..modelfile import ModelFile, read
from ..nets import named
from ..preprocess import several
from ..published.finding import find_model
from .formats import FORMATS, Job, program_text

if TYPE_CHECKING:
    from ..preprocess import ImageLike, Preprocess

__all__ = ["Exported", "export", "synthetic_photos"]

# Two runtimes round the same values to the same 8 bits, but where a sum lies on the edge between two, its
# last digit decides, and the layers after it see a step's difference.
ALLOWED = {**TOLERANCES, "int8": 5e-2}
SPARE_BYTES = 1 << 20
PHOTO_SIDE = 224  # of synthetic photos, where the model says nothing


@dataclass(frozen=True)
class Exported:
    """What was written.

    path: the file. files: all that belong to it, `path` among them. program: runs it:
    `python PROGRAM photo.jpg`. to: a key of `formats.FORMATS`. engine, version: where it was checked.
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
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "program": str(self.program),
            "to": self.to,
            "precision": self.precision,
            "engine": self.engine,
            "version": self.version,
            "error": self.error,
            "errors": self.errors,
            "size_bytes": self.size_bytes,
        }


def export(
    model: str | os.PathLike[str] | ModelFile,
    to: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "fast",
    taps: str | Sequence[str] = (),
    photos: ImageLike | Sequence[ImageLike] = (),
) -> Exported:
    """Write the model to `out` as "onnx", "openvino", "mnn" or "torch", and check it there.

    The file takes "pixels", uint8 (batch, height, width, channels) in RGB order, already resized and
    cropped; any batch, and any size that the network takes. It gives "scores" (batch, classes) and an
    output for each of `taps`, float32. Labels and the pre-processing record are inside.

    precision: "exact" and "fast" keep the weights in float32, "half" stores 16 bits each, "int8" takes a
    model that `verydeep quantize` made. The file must come as close to the model file as the precision
    promises (of int8: to the int8 graph in ONNX Runtime), on two synthetic photos, on one of another shape,
    and on each of `photos`; otherwise EngineError, and nothing is written.

    Raises EngineError for an unknown format, precision or a missing engine, OutputError where `out`
    cannot be written, LayerError for unknown taps, ModelFileError for int8 of a model that is not.
    """
    if to not in FORMATS:
        raise EngineError(f"format {to!r} is unknown{nearest(to, FORMATS)}")
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
    out = Path(out)
    if out.suffix != form.suffix:
        raise OutputError(f"{out}: expected a name that ends in {form.suffix} for {to}")
    if isinstance(model, str | os.PathLike):
        model = read(find_model(model))
    taps = tuple(dict.fromkeys(named(taps)))
    job = Job(model, precision, taps)
    record = model.record
    if not job.outputs:
        raise EngineError(
            f"{model.path} is a trunk without a head: it has no scores; name the layers to give out as "
            f"taps, such as {record.network.trunk[-2].name}"
        )
    record.network.cut(taps)  # refuses unknown ones before anything is written
    batches = dict(_batches(record.preprocess, several(photos)[0]))
    module = import_module(f".{to}", __package__)
    weights_bytes = job.graph.size_bytes
    # the file, and for a moment the ONNX file that it is made from
    with _staged(out, 2 * weights_bytes + SPARE_BYTES) as stage:
        log.info(f"writing {out.name}")
        file = stage / out.name
        module.write(job, file)
        log.info("running the model file")
        reference = _run_reference(job, batches)
        log.info(f"running {out.name} in {engine.package} {engine.version}")
        try:
            run = module.load(file, job.outputs, precision)
            answers = {name: run(pixels) for name, pixels in batches.items()}
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"{out}: {engine.package} cannot run the file: {line}; nothing was written"
            ) from error
        errors = {name: _error(answers[name], reference[name]) for name in batches}
        for name, off in errors.items():
            if not off <= ALLOWED[precision]:
                raise EngineError(
                    f"{out}: in {engine.package} the file strays from the model: relative error "
                    f"{off:.1e} on {name}, and {precision} allows {ALLOWED[precision]:.0e}; "
                    "nothing was written"
                )
        del run
        script = stage / f"{out.name}.py"
        script.write_text(
            program_text(form, job, script.name, module.program(job.outputs, precision)),
            encoding="utf-8",
        )
        placed = _place(stage, out)
    files = tuple(file for file in placed if file.name != script.name)
    return Exported(
        path=out,
        files=files,
        program=out.parent / script.name,
        to=to,
        precision=precision,
        engine=form.engine,
        version=engine.version,
        errors=errors,
        size_bytes=sum(file.stat().st_size for file in files),
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
    noise = (
        noise[:, :1] + 0.5 * noise[:, 1:]
    )  # what the channels share, and what each has of its own
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(115 + 60 * noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def _batches(
    preprocess: Preprocess, photos: Sequence[ImageLike]
) -> Iterator[tuple[str, np.ndarray]]:
    """What the file is checked on: (name, uint8 pixels)."""
    channels = len(preprocess.mean)
    side = preprocess.crop_size or PHOTO_SIDE
    yield f"two synthetic photos of {side}x{side}", synthetic_photos(side, side, 2, channels)
    height, width = side + 17, side + 40  # any size: no multiple of a stride
    name = f"a synthetic photo of {height}x{width}"
    yield name, synthetic_photos(height, width, 1, channels)
    for number, photo in enumerate(photos, 1):
        pixels = preprocess.pixels(photo)
        if pixels.dtype != np.uint8:
            pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        path = os.fspath(photo) if isinstance(photo, str | os.PathLike) else f"photo {number}"
        yield path, pixels[None]


def _run_reference(job: Job, batches: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    precision = "int8" if job.precision == "int8" else "exact"
    engine = open_engine(REFERENCE, Source(job.graph), precision=precision, device="cpu")
    return {name: engine.run(pixels) for name, pixels in batches.items()}


def _error(answers: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The worst relative error of any output; nan where one is not finite or of another shape."""
    errors = [
        relative_error(np.asarray(answers[name]), value, scores=name == "scores")
        for name, value in reference.items()
    ]
    return float(np.max(errors))  # numpy's max hands nan on


@contextmanager
def _staged(out: Path, size_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to make everything in; it and what is left in it vanish at the end."""
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if out.exists() and not out.is_file():  # such as /dev/null, which must not be replaced
            raise OSError(errno.EINVAL, "it is no regular file")
        free = shutil.disk_usage(out.parent).free
        place = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "name another")
        raise OutputError(f"{out}: cannot be written: {error.strerror}; {advice}") from error
    try:
        if free < size_bytes:
            raise OutputError(
                f"{out}: needs {size_bytes / 1e6:.0f} MB for a while, and its folder has "
                f"{free / 1e6:.0f} MB free; free some space and try again"
            )
        yield Path(place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"{out}: cannot be written: {error.strerror}; free some space and try again"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _place(stage: Path, out: Path) -> tuple[Path, ...]:
    """Move what was made beside `out`: what the file needs first, the file itself, its program."""
    order = {out.name: 1, f"{out.name}.py": 2}
    files = sorted(stage.iterdir(), key=lambda file: (order.get(file.name, 0), file.name))
    for file in files:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    for file in files:
        os.replace(file, out.parent / file.name)
    return tuple(out.parent / file.name for file in files)
