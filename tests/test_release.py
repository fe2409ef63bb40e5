"""What a release is made of: versions, docstrings, examples in them, and files that name what is there."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme_commands
import release

import verydeep
from verydeep.cli import CONTEXT, cli

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ("verydeep", "verydeep.errors", "verydeep.models", "verydeep.losses", "verydeep.scaling")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_one() -> None:
    assert set(release.versions().values()) == {verydeep.__version__}


def test_the_changelog_has_the_version_below_what_is_not_released() -> None:
    sections = re.findall(r"^## \[(.+?)\](?: - (.+))?$", text("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    version, date = sections[1]
    assert version == verydeep.__version__
    assert f"date-released: {date}" in text("CITATION.cff")


def test_another_version_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "tools/release.py", "--out", str(tmp_path), "--version", "9.9.9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "versions differ" in done.stderr
    assert not list(tmp_path.iterdir())


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    for folder, content in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").write_text("same")
        (tmp_path / folder / "other").write_text(content)
    (tmp_path / "b" / "more").write_text("more")
    assert release.differences(tmp_path / "a", tmp_path / "b") == ["more", "other"]


def undocumented(module: str) -> Iterator[str]:
    """Public names, and public methods of public classes, that nobody described."""
    there = importlib.import_module(module)
    for name in there.__all__:
        value = getattr(there, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{name}("):
            yield f"{module}.{name}"
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if (
                    inspect.isroutine(function)
                    and not method.startswith("_")
                    and not function.__doc__
                ):
                    yield f"{module}.{name}.{method}"


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_docstring(module: str) -> None:
    assert list(undocumented(module)) == []


def test_a_name_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verydeep.Predictor.close, "__doc__", None)
    monkeypatch.setattr(verydeep.Answer, "__doc__", "Answer(path: str)")  # what a dataclass gets
    assert list(undocumented("verydeep")) == ["verydeep.Answer", "verydeep.Predictor.close"]


def test_the_pages_of_the_api_are_of_what_is_public() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    assert sorted(re.findall(r"automodule:: (\S+)", pages)) == sorted(PUBLIC)


def modules_with_examples() -> list[str]:
    names = [one.name for one in pkgutil.walk_packages(verydeep.__path__, "verydeep.")]
    files = {name: ROOT / name.replace(".", "/") for name in ["verydeep", *names]}
    found = []
    for name, path in files.items():
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if re.search(r"^\s*>>> ", file.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_say_what_is_printed(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_typed_program_runs() -> None:
    photos = [str(ROOT / "examples" / "photos" / name) for name in ("bee.jpg", "koala.jpg")]
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "client.py"), *photos]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "koala.jpg: koala" in done.stdout


def accepted(command: str) -> None:
    """That the verb takes these words; nothing is run."""
    program, verb, *words = shlex.split(command)
    assert Path(program).name == "verydeep"
    found = cli.get_command(None, verb)  # type: ignore[arg-type]
    assert found is not None
    found.make_context(verb, words, **CONTEXT)


def test_the_container_and_the_unit_serve() -> None:
    entry = re.search(r"^ENTRYPOINT \[(.+)\]$", text("deploy/Containerfile"), re.MULTILINE)
    assert entry
    accepted(entry[1].replace(",", " "))
    start = re.search(r"^ExecStart=(.+)$", text("deploy/verydeep.service"), re.MULTILINE)
    assert start
    accepted(start[1])
    assert "USER verydeep" in text("deploy/Containerfile")
    assert "/health" in text("deploy/Containerfile")


@pytest.mark.parametrize(
    "flow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda flow: flow.stem
)
def test_actions_are_named_by_their_commits(flow: Path) -> None:
    """A tag can be moved to other code, which would publish in our name."""
    named = re.findall(r"uses: *(.*)", flow.read_text(encoding="utf-8"))
    assert named
    for one in named:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v[\d.]+", one), one


def test_workflows_run_what_people_read() -> None:
    flow = text(".github/workflows/ci.yml")
    named = set(re.findall(r"readme_commands\.py (\w+)", flow))
    assert named == readme_commands.commands(text("README.md")).keys()
    # what is built without isolation needs its backend beside it
    backend = re.search(r'^requires = \["([\w-]+)', text("pyproject.toml"), re.MULTILINE)
    installed = re.search(
        r"pip install (build .+)$", text(".github/workflows/publish.yml"), re.MULTILINE
    )
    assert backend
    assert installed
    assert {"build", "twine", backend[1]} <= set(installed[1].split())
    for tool in re.findall(r"(?:tools|\.ci)/[\w.]+", flow + text(".github/workflows/publish.yml")):
        assert (ROOT / tool).is_file(), tool
    lowest = re.search(r'requires-python = ">=([\d.]+)"', text("pyproject.toml"))
    versions = re.findall(r"Python :: (3\.\d+)", text("pyproject.toml"))
    assert lowest
    assert versions[0] == lowest[1]
    assert ", ".join(f'"{one}"' for one in versions) in flow
