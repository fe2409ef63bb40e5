"""`verydeep doctor`: one screen, a checked answer, exit 1 where an engine is wrong, and no network."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import verydeep as package
from verydeep.cli import doctor
from verydeep.engines import ENGINES
from verydeep.files import progress

from .conftest import Run


@pytest.fixture(autouse=True)
def two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime, and one that is not installed."""
    monkeypatch.setattr(doctor, "ENGINES", {name: ENGINES[name] for name in ("onnxruntime", "mnn")})
    monkeypatch.setattr(
        type(ENGINES["mnn"]), "available", property(lambda kind: kind.name == "onnxruntime")
    )


def test_all_is_well(verydeep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("doctor looked for something over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    done = verydeep("doctor")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"verydeep {package.__version__}, Python 3.")
    assert lines[-1] == "all is well"
    assert len(lines) <= 24
    assert any(line.startswith("  onnxruntime ") and "bannister 9" in line for line in lines)
    assert "  mnn          -" in done.out
    assert 'not installed: pip install "verydeep[mnn]"' in done.out


def test_it_says_which_engine_is_asked(verydeep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take minutes, and nothing stood there."""
    asked, stood = doctor._asked, []

    def noted(*words: Any) -> Any:
        assert progress._Line.standing is not None
        work = progress._Line.standing.work[-1]
        stood.append(f"{work.doing} {work.text()}")
        return asked(*words)

    monkeypatch.setattr(doctor, "_asked", noted)
    assert verydeep("doctor").status == 0
    assert [line.rpartition(",")[0] for line in stood] == ["asking onnxruntime 0 of 2 stages"]


def test_a_wrong_answer_is_told(verydeep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LABEL", "bee")
    done = verydeep("doctor")
    assert done.status == 1
    assert "FAILED: it says bannister" in done.out
    assert "expected bee with at least 90%" in done.out
    assert done.out.endswith("1 engine failed\n")


def test_an_engine_that_differs_from_the_first_is_told(
    verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = doctor._asked
    monkeypatch.setattr(doctor, "_asked", lambda kind, _: asked(kind, asked(kind, None)[1] + 2e-5))
    done = verydeep("doctor")
    assert done.status == 1
    assert "FAILED: its probabilities differ by 2.0e-05 from those of the engines above" in done.out


def test_an_extra_that_is_missing_has_its_install_line(
    verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By metadata of its own, since a checkout may not be installed."""
    from email.message import Message

    about = Message()
    for extra in ("heif", "dev", "mnn"):
        about["Provides-Extra"] = extra
    asked = ["numpy>=1", "no-such-package>=2 ; extra == 'heif'", "verydeep[mnn]; extra == 'heif'"]
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: about)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: asked)
    done = verydeep("doctor")
    assert done.status == 0
    assert "with numpy " in done.out
    assert '  heif  no-such-package missing: pip install "verydeep[heif]"' in done.out
