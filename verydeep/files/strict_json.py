"""JSON that means one thing to every reader, after RFC 7493 (I-JSON).

RFC 8259 leaves it to the reader what a key given twice means, or a number that overflows; Python's
`json` takes the last key, and reads NaN and Infinity, which are not JSON at all. Here these are
errors, as are integers outside 64 bits, lone surrogates (no UTF-8 can hold them) and deep nesting.

Plain Python: importing this module imports nothing outside the standard library.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, TypeAlias

from ..errors import VerydeepError, nearest

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# Levels of arrays and objects within each other. Model files use four; the free parts may use more.
MAX_DEPTH = 32

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """A value as a short piece of a message: quoted, escaped, its middle left out if long."""
    return _short.repr(value)


def loads(text: str | bytes) -> JSON:
    """The value that `text` (bytes: UTF-8) stands for. ValueError, one line, if not strict JSON."""
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_object,
            # 21 digits are too large already, and thousands of them would take long
            parse_int=lambda digits: int(digits[:21]),
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    return checked(value)


def dumps(value: object) -> str:
    """The one canonical text: keys sorted, no spaces, UTF-8 unescaped. ValueError as `checked`."""
    return json.dumps(
        checked(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def checked(value: object, depth: int = 0) -> JSON:
    """A deep copy of a JSON value, tuples as lists. ValueError, one line, where JSON has none."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"it has a lone surrogate in {value[:40]!a}") from None
        return str(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("it has an integer that does not fit in 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"it has the number {value}; expected a finite one")
        return float(value)
    if depth == MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list | tuple):
        return list(map(checked, value, repeat(depth + 1)))
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"it has the key {shown(key)}; expected text")
            result[str(checked(key))] = checked(item, depth + 1)
        return result
    raise ValueError(f"it has a {type(value).__name__}, which JSON does not have")


def members(
    value: object,
    keys: Sequence[str],
    what: str,
    error: type[VerydeepError],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """A JSON object's members, which must be all of `keys`, without some of the optional ones perhaps."""
    if not isinstance(value, Mapping):
        raise error(f"the {what} is {shown(value)}; expected a JSON object")
    for key in value:
        if key not in keys:
            raise error(f"the {what} has an unknown key {shown(key)}{nearest(str(key), keys)}")
    for key in keys:
        if key not in value and key not in optional:
            raise error(f"the {what} has no {key!r}")
    return dict(value)


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    result = dict(pairs)
    if len(result) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {shown(twice)} twice")
    return result
