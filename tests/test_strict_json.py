"""Strict JSON: what two readers could understand differently is refused, by both directions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verydeep.files.strict_json import MAX_DEPTH, checked, dumps, loads, shown

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text('ab\n"é日\U0001f98a', max_size=3), inner)
    ),
    max_leaves=15,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types: 1, 1.0 and True are three values, and so are 0.0 and -0.0."""
    return repr(a) == repr(b)


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(dumps(value).encode("utf-8")) == value
    assert json.loads(dumps(value)) == value  # an independent reader
    if not isinstance(value, dict | list):
        assert same(loads(dumps(value)), value)


def test_text_is_canonical() -> None:
    assert dumps({"b": (1, 2.0, None), "a": {"é": True, "z": "\n"}}) == (
        '{"a":{"z":"\\n","é":true},"b":[1,2.0,null]}'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', r"^it has the key 'a' twice$"),
        ('[{"b": {"a": 1, "b": 2, "a": 3}}]', r"^it has the key 'a' twice$"),
        ("NaN", r"^it has the number nan; expected a finite one$"),
        ("[Infinity]", r"^it has the number inf; expected a finite one$"),
        ("-Infinity", r"^it has the number -inf; expected a finite one$"),
        ("1e309", r"^it has the number inf; expected a finite one$"),
        ("-1e309", r"^it has the number -inf; expected a finite one$"),
        (str(2**63), r"^it has an integer that does not fit in 64 bits$"),
        (str(-(2**63) - 1), r"^it has an integer that does not fit in 64 bits$"),
        ("1" * 5000, r"^it has an integer that does not fit in 64 bits$"),
        (r'"\ud800"', r"^it has a lone surrogate in '\\ud800'$"),
        (r'{"\udfff": 1}', r"^it has a lone surrogate in '\\udfff'$"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), r"^it is nested deeper than 32 levels$"),
        ("[" * 10**6, r"^it is nested deeper than 32 levels$"),
        ('{"a":' * 10**5, r"^it is nested deeper than 32 levels$"),
        ("", r"^Expecting value"),
        ("1 2", r"^Extra data"),
        ("'a'", r"^Expecting value"),
        ("[1,]", r"^(Expecting value|Illegal trailing comma)"),
        (b"\xff", r"^'utf-8' codec can't decode"),
        ('"\n"', r"^Invalid control character"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        loads(text)
    assert str(caught.value).isprintable()


def test_limits_themselves_are_allowed() -> None:
    for text in (str(2**63 - 1), str(-(2**63)), "1.7976931348623157e308", "[" * 32 + "]" * 32):
        assert json.loads(text) == loads(text)
    assert loads(r'"\ud83e\udd8a"') == "\N{FOX FACE}"
    assert math.copysign(1, loads("-0.0")) == -1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"^it has the number nan; expected a finite one$"),
        ([{"a": -math.inf}], r"^it has the number -inf; expected a finite one$"),
        (2**63, r"^it has an integer that does not fit in 64 bits$"),
        ({1: 2}, r"^it has the key 1; expected text$"),
        ({"a": b""}, r"^it has a bytes, which JSON does not have$"),
        ("\ud800", r"^it has a lone surrogate in '\\ud800'$"),
    ],
)
def test_what_is_not_written(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dumps(value)


def test_values_that_contain_themselves_are_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(ValueError, match=r"^it is nested deeper than 32 levels$"):
        checked(ring)


def test_checked_is_a_deep_copy_without_tuples() -> None:
    inner = [1]
    copy = checked({"a": (inner, True)})
    inner.append(2)
    assert copy == {"a": [[1], True]}


def test_subclasses_become_plain_values() -> None:
    class Named(str):
        __slots__ = ()

    class Counted(int):
        pass

    found = checked([Named("a"), Counted(1)])
    assert isinstance(found, list)
    assert [type(value) for value in found] == [str, int]


def test_shown_is_short_and_on_one_line() -> None:
    for value in ("a\nb" * 10**5, ["x" * 1000] * 1000, {"k\x1b": {"k": {"k": [[[[[[1]]]]]]}}}):
        assert len(shown(value)) < 1000
        assert shown(value).isprintable()
    assert shown("a\n'") == '"a\\n\'"'
