"""The files that other runtimes read: one small module a format, behind one protocol.

Each module has

write(job, file)         the model as that format's file, and files beside it where one cannot hold all
load(file, outputs, precision)
                         pixels to outputs, the way that the runtime's own documentation says
program(outputs, precision)
                         the same as a person writes it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__

if TYPE_CHECKING:
    from ..graphs.writer import Graph
    from ..modelfile import ModelFile
    from ..preprocess import Preprocess

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Format:
    """What is known of a format before anything of it is imported.

    name: what `--to` takes. suffix: of its file. engine: the key of `engines.ENGINES` that runs it.
    packages: what the program beside it needs, as pip calls them.
    precisions: the promises that its file can keep.
    """

    name: str
    suffix: str
    engine: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]


FLOATS = ("exact", "fast", "half")

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("onnx", ".onnx", "onnxruntime", ("onnxruntime",), (*FLOATS, "int8")),
        Format("openvino", ".xml", "openvino", ("openvino",), (*FLOATS, "int8")),
        Format("mnn", ".mnn", "mnn", ("MNN",), ("fast", "half")),
        Format("torch", ".pt2", "torch", ("torch",), FLOATS),
    )
}


@dataclass(frozen=True)
class Program:
    """How a person runs the file, in Python. `__file__[:-3]` is its path: the program's, without ".py".

    imports: what is imported. setup: makes `labels`. run: makes `outputs`, name to array, of `pixels`.
    """

    imports: str
    setup: tuple[str, ...]
    run: str


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
    def graph(self) -> Graph:
        """Weights beside it. The int8 graph for "int8": ModelFileError where there is none."""
        from ..graphs import network as graph

        record = self.model.record
        scores = bool(record.network.head.classes)
        if self.precision == "int8":
            from ..graphs import int8 as qdq

            return qdq.build(self.model, taps=self.taps, scores=scores)
        needed = (*self.taps, *(("fc8",) if scores else ()))
        return graph.build(
            record.network,
            self.model.tensors(record.network.cut(needed).tensors),
            record.preprocess,
            taps=self.taps,
            scores=scores,
        )

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
        }


def program_text(form: Format, job: Job, name: str, lines: Program) -> str:
    """The program beside the file, called `name`."""
    ending = ["print({name: value.shape for name, value in outputs.items()})"]
    if "scores" in job.outputs:
        ending = [
            'chances = numpy.exp(outputs["scores"][0] - outputs["scores"][0].max())',
            "chances /= chances.sum()",
            'for i in chances.argsort()[:-6:-1]: print(f"{chances[i]:6.1%}  {labels[i]}")',
        ]
    text = [
        f"# python {name} photo.jpg        after: pip install {' '.join(form.packages)} numpy pillow",
        f"import json, sys, {lines.imports}",
        "import numpy",
        "from PIL import Image, ImageOps",
        "",
        *preparation(job.model.record.preprocess),
        "",
        *lines.setup,
        lines.run,
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
        sides = f"({size}, {size})"
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
