"""Weights made few bytes by training: coded first, then learnt as multiples of the same steps.

Rounding alone keeps what a network computes; training finds another that needs fewer bits. The loop is
training's own, with the whole model as the teacher (`training/coding.py` has what is in the loss).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, require_whole
from ..graphs.network import norm_factor
from ..modelfile import ModelFile, Record, read, write
from ..quantisation import made_from

CODED = 1.15  # of the bytes that are asked for: what weights are coded to before they learn
RATE, BATCH = 3e-4, 256  # of AdamW

Array = np.ndarray


def unnormed(model: ModelFile) -> tuple[Record, dict[str, Array]]:
    """The same network without batch norms, which are in its weights: fewer tensors, the same answers.

    One without any is given as it is.
    """
    network = model.record.network
    plain = replace(network, batch_norm=False)
    stored = model.tensors()
    tensors: dict[str, Array] = {}
    for layer, after in zip(
        (one for one in network.layers if one.key),
        (one for one in plain.layers if one.key),
        strict=True,
    ):
        weight, bias = stored[f"{layer.key}.weight"], stored[f"{layer.key}.bias"]
        if layer.norm_key:
            factor = norm_factor(layer, stored)
            mean, shift = (stored[f"{layer.norm_key}.{k}"] for k in ("running_mean", "bias"))
            weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            bias = (bias - mean) * factor + shift
        tensors[f"{after.key}.weight"] = np.asarray(weight, np.float32)
        tensors[f"{after.key}.bias"] = np.asarray(bias, np.float32)
    return replace(model.record, network=plain), tensors


def learnt(
    model: ModelFile,
    data: object,
    out: str | os.PathLike[str],
    *,
    size: int,
    calibrate: list[str],
    teacher: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> Path:
    """The model file of about `size` bytes that a run of training in the folder `out` makes.

    Only the price of bits makes it smaller: few steps end above `size`. ArgumentError where no file of that
    network has so few.

    data: labelled images to learn from, as `train` takes them. calibrate: photos that say how the weights
    are coded before. teacher: the model file whose answers are learned; None for the model itself.
    settings: of the recipe `small-images`. resume: go on with the run in `out`.
    on_event: is given each trial of the coding, and each line of training's log.
    """
    from ..training.begin import train
    from ..training.record.folder import refuse_another_run
    from . import compress
    from .goal import require_room

    sides, head = model.record.preprocess.sides or (224, 224), model.record.network.head
    if sides[0] != sides[1]:
        raise ArgumentError(
            f"{model.path}: it is for images of {sides[1]}x{sides[0]} pixels, and training takes squares"
        )
    if not resume:
        refuse_another_run(Path(out))
    coded = Path(f"{os.fspath(out)}.coded.safetensors")  # a run that goes on asks for it again
    require_whole(ArgumentError, size=size)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bare = Path(folder, "bare.safetensors")
        write(bare, *unnormed(model))
        require_room(read(bare), size)
        if not (resume and coded.exists()):
            compress(
                bare, coded, calibrate=calibrate, size=round(CODED * size), again=True,
                resume=resume, on_event=on_event,
            )  # fmt: skip
    first = read(coded)
    streams = sum(array.nbytes for key, array in first.stored.items() if key.endswith(".code"))
    # biases become half as many bytes, and the record some hundreds more
    rest = coded.stat().st_size - streams
    chosen = {
        "head": head.kind, "layers": head.layers, "size": sides[0], "grow": "1", "batch": BATCH,
        "optimiser": "adamw", "rate": RATE, "decay": 0.0, "smoothing": 0.0, "dropout": 0.0,
        "code_bytes": max(1, size - rest), "teacher": str(teacher or model.path), **(settings or {}),
    }  # fmt: skip
    result = train(
        "small-images", data, out=out, init=coded, settings=chosen, event=on_event,
        resume=resume and os.path.isdir(out),  # it may have been stopped before that began
    )  # fmt: skip
    made = read(result.model)
    provenance = {**made.record.provenance, "compressed_from": {**made_from(model)}}
    path = Path(out, "small.safetensors")
    write(path, replace(made.record, provenance=provenance), dict(made.stored))
    return path
