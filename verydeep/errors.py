"""Every error that verydeep raises on purpose, and the log to which it says everything else.

A stream raises none for an image that cannot be read: it gives a `Failure` in its place.

An error says what was given, what was expected, what to do. Below them is what checks of values
share. The tree::

    VerydeepError                 catch this one to catch them all
    ├── NetworkError              a network, head, width or pooling that the table does not have
    │   └── LayerError            a layer name that this network does not have
    ├── ImageError                a file or array that is not an image we can use
    ├── PreprocessError           a pre-processing record that does not make sense
    ├── ModelFileError            a model file that is damaged, foreign or contradicts the table
    ├── EngineError               an engine that is missing, failed or does not agree with the reference
    ├── DataError                 a data set that cannot be used: no images, classes that do not match
    ├── WeightsError              published weights that cannot be had, or are not what they claim to be
    │   └── UnknownWeightsError   a name of weights that nobody published
    ├── ArgumentError             a keyword that a function does not take, or an argument of another type
    ├── OutputError               a file that cannot be written: no space, no permission, no folder
    └── MissingExtraError         an optional dependency is not installed
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

__all__ = [
    "ArgumentError", "DataError", "EngineError", "Failure", "ImageError", "LayerError",
    "MissingExtraError", "ModelFileError", "NetworkError", "OutputError", "PreprocessError",
    "UnknownWeightsError", "VerydeepError", "WeightsError",
]  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """An image of a stream that could not be read: its path, and the one line that says why."""

    path: str | None
    error: str


# Everything that is said to the person and is no error: one line each. Silent in a program, unless it gives
# the logger "verydeep" a handler, as the command line does.
log = logging.getLogger("verydeep")
log.addHandler(logging.NullHandler())


_said: dict[str, object] = {}


def warn_once(text: str) -> None:
    """One line to the log, but never twice in one process, whichever threads say it."""
    mine = object()
    if _said.setdefault(text, mine) is mine:
        log.warning(text)


def warn(text: str) -> None:
    """A UserWarning at the line of the program that called into verydeep, through torch or not."""
    level, frame, between = 2, sys._getframe(1), (__package__, "torch", "torchmetrics")
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in between:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


class VerydeepError(Exception):
    """The root of verydeep's errors. The message is one line that a person can act on."""


class NetworkError(VerydeepError, ValueError):
    """A network, head, width, pooling or channel count that cannot be built."""


class LayerError(NetworkError):
    """A layer name that the network does not have."""


class ImageError(VerydeepError, ValueError):
    """A file, array or tensor that cannot be read as an image. Names the file where there is one."""


class PreprocessError(VerydeepError, ValueError):
    """A pre-processing record with unknown keys or values that do not make sense."""


class ModelFileError(VerydeepError, ValueError):
    """A model file that is damaged, of another format or version, or contradicts its own record."""


class EngineError(VerydeepError, RuntimeError):
    """An engine that is unknown, not installed, failed, or disagrees with the reference."""


class DataError(VerydeepError, ValueError):
    """A data set without images, or whose classes do not match the model's."""


class WeightsError(VerydeepError, RuntimeError):
    """Published weights that cannot be fetched, or whose bytes or values are not what they claim."""


class UnknownWeightsError(WeightsError, KeyError, ValueError):
    """A name that no published weights have; all that torchvision raises for one."""

    __str__ = Exception.__str__  # KeyError's own puts the message in quotes


class ArgumentError(VerydeepError, TypeError):
    """A keyword that a function does not take, or an argument of a type that it does not take."""


class OutputError(VerydeepError, OSError):
    """A file that cannot be written; what was there before is untouched."""


class MissingExtraError(VerydeepError, ImportError):
    """An optional dependency is needed; the message carries the install line."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs an optional dependency; install it with: "
            f'pip install "verydeep[{extra}]"'
        )


def is_number(
    value: object, least: float = -math.inf, most: float = math.inf
) -> TypeGuard[int | float]:
    """Whether it is a finite number within those bounds, Python's or numpy's; True and False are none."""
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return bool(least <= number <= most and abs(number) < math.inf)


def is_whole(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Whether it is a whole number within those bounds, Python's or numpy's; True and False are none."""
    number: Any = value
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return bool(whole and least <= number <= most)


def require_whole(error: type[VerydeepError], least: int = 1, **given: Any) -> None:
    """Raise that error where one of the values that were given is no whole number of at least so much."""
    for name, value in given.items():
        if not is_whole(value, least):
            raise error(f"{name} is {value!r}; expected a whole number, {least} or more")


def require(what: str, name: object, known: Iterable[str], error: type[VerydeepError]) -> None:
    """Raise that error, with a hint, where a name is none of those that are known."""
    known = tuple(known)
    if not isinstance(name, str) or name not in known:
        raise error(f"{what} {name!r} is unknown{nearest(str(name), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a message: "; did you mean X or Y?", or the known names where they are few.

    >>> nearest("vgg61", ["vgg16", "vgg19"])
    '; did you mean vgg19 or vgg16?'
    >>> nearest("golden", ["gondola", "golden retriever"])
    '; did you mean golden retriever?'
    """
    known = list(known)
    word = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE)
    close = [one for one in known if word.search(one)][:3] if name else []
    close = close or difflib.get_close_matches(name, known, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(known) <= 12:
        return f"; expected one of: {', '.join(known)}"
    return ""
