"""The options by which a command is told what to compute with: the same words wherever they occur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])

size_option = click.option(
    "--size",
    type=click.IntRange(1),
    metavar="N",
    help="Pixels a side that photos are cropped to. [default: the model's own]",
)
batch_option = click.option(
    "--batch",
    default=8,
    type=click.IntRange(1),
    show_default=True,
    metavar="N",
    help="Photos in one pass.",
)
_COMPUTE = (
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto (measures, once, which is the quickest here), onnxruntime, openvino, mnn, torch, "
        "torch-eager or torch-compiled.",
    ),
    click.option(
        "--precision",
        default="fast",
        show_default=True,
        metavar="CLASS",
        help="Largest relative error of the scores: exact (1e-5), fast (1e-3) or half (3e-2; bfloat16 "
        "where the processor has it); or int8, for a model of `verydeep quantize`.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto, cpu, cuda or mps.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="Threads to compute with. [default: one a core]",
    ),
)


def engine_options(command: C) -> C:
    """Add --size, --batch and what `compute_options` adds to a click command."""
    return size_option(batch_option(compute_options(command)))


def compute_options(command: C) -> C:
    """Add --engine, --precision, --device and --threads."""
    for option in reversed(_COMPUTE):
        command = option(command)
    return command
