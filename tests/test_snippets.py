"""Every snippet of the README and the docs is run as it stands; what stands in for it, or why not, is here.

A ```text block right after one is what it prints; a line "..." there stands for any lines.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from verydeep import train

from .conftest import Run
from .tiny import model_file, photo

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("start", "classify", "explain", "features", "distance", "losses", "torch", "train", "evaluate",
         "compress", "engines", "export", "serve", "scale")  # fmt: skip
PASTED = ("README.md", *(f"docs/{task}.md" for task in TASKS))  # each snippet by itself
PAGES = (*PASTED, "CONTRIBUTING.md", "docs/architecture.md", "docs/format.md", "docs/lpips.md",
         "docs/torchvision.md", "docs/why-3x3.md", "docs/why-3x3.zh.md",
         "docs/runs/README.md")  # fmt: skip

QUICK = "sizes=32 layers=relu5_3 engine=onnxruntime"
FEW = "--set epochs=1 --set batch=8"
STAND_INS = (  # what takes minutes or a network: on less data, by a smaller network
    (r"(quantize|bench)$", r"\1 tiny.safetensors"),
    (r"quantize builtin(.*)", r"quantize tiny.safetensors\1 --count 32"),
    (r"compress builtin --size 6MB(.*)", r"compress tiny.safetensors --size 20KB\1 --count 32"),
    (r'compress\("builtin"(.*)size=6_000_000', r'compress("tiny.safetensors"\1size=20_000'),
    (r'quantize\("builtin"', 'quantize("tiny.safetensors"'),
    (r"(bench tiny.safetensors)", r"\1 --rounds 1 --batch 1 --engines onnxruntime --precision exact"),
    (r"--model vgg16 (examples/photos)", r"--model tiny.safetensors \1"),
    (r"evaluate flowers", "evaluate trained"),
    (r'evaluate\("flowers"', 'evaluate("trained"'),
    (r"--check$", "--check --size 64"),
    (r"(.*--recipe probe.*)", rf"\1 {' '.join(f'--set {one}' for one in QUICK.split())}"),
    (r"train (photos/|labels.csv)( --out \w+)?$",
     rf"train \1\2 {' '.join(f'--set {one}' for one in QUICK.split())}"),
    (r'out="of-pairs"', f'out="of-pairs", settings="{QUICK}".split()'),
    (r'out="from-python"', f'out="from-python", settings="{QUICK}".split()'),
    (r"(.*--recipe finetune.*)", r"\1 --set epochs=1 --set size=32"),
    (r"(.*--recipe small-images.*)--width 0.5(.*)", rf"\1--width 0.0625\2 {FEW}"),
    (r"(.*--recipe small-images.*)--width 1(.*)", rf"\1--width 0.125\2 {FEW}"),
    (r"^(verydeep.*)--recipe paper --model vgg11(.*)",
     rf"\1--recipe paper --model vgg11\2 --width 0.0625 --set size=32 --set scales=36 {FEW}"),
)  # fmt: skip
NOT_HERE = {  # what begins like this, or is in a block of these, and why it is not run here
    "pip install": "CI runs it in an environment of its own",
    "torchrun": "it takes a machine of four processes; test_training_distributed.py runs two",
    'verydeep train "https://': "it takes a network; test_training_streams.py has a server of its own",
    "verydeep weights convert": "Keras' file is 528 MB; test_convert.py converts narrow ones",
    "verydeep serve": "it ends when it is told; test_serve.py tells it", "VERYDEEP_TOKEN": "so does this",
    "ray start": "it takes a cluster", "export RAY": "so does this",
    "verydeep features 's3": "so does this",
    "python -m http.server": "it never ends; test_web_page.py has a server of its own",
    "curl": "it takes that server", "st run": "so does this",
    "python -m pytest": "it is these", "git clone": "it takes a network", "cd ": "so does this",
    "sed -i": "so does this", "USE_PYTEST_POOL": "so does this",
    "python benchmarks/": "it takes a GPU",
    "python -m venv": "what developers do by hand", ". .venv": "so is this",
    "sphinx-build": "CI runs it",
    "pytest": "it is this", "ruff": "CI runs it", "mypy": "CI runs it",
    "python tools/": "CI runs it, or it takes hours",
    "verydeep train cifar10.npz --recipe small-images --model vgg16_bn --width 0.5 --out run": "85 minutes",
}  # fmt: skip


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    output: str | None


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    return [
        Snippet(page, text.count("\n", 0, match.start()) + 1, *match.groups())
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
        if match[1] != "text"
    ]


SNIPPETS = [one for page in PAGES for one in snippets(page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: the examples of a clone, and photos of their own."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for data in ("photos", "labelled-photos", "imagenet"):
        for number in range(36):
            photo(
                folder / data / ("daisy", "rose")[number % 2] / f"{number}.png",
                240,
                240,
                seed=number,
            )
    labels = ("cat", "dog", "cat;dog")
    rows = [f"photos/{('daisy', 'rose')[n % 2]}/{n}.png,{labels[n % 3]}" for n in range(36)]
    rows.insert(0, "photo,labels")
    (folder / "labels.csv").write_text("\n".join(rows))
    for data in ("originals", "compressed"):
        photo(folder / data / "a.png", 64, 64, seed=len(data))
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "cifar10.npz", images=images, labels=np.arange(24) % 2)
    model_file(folder / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERYDEEP_CACHE", str(folder / "cache"))
        train("probe", folder / "photos", out=folder / "trained", settings=QUICK.split())
    return folder


def stood_in(line: str) -> str:
    for pattern, other in STAND_INS:
        line = re.sub(pattern, other, line)
    return line


def assert_printed(printed: str, expected: str) -> None:
    pattern = "".join(
        r"(?:.*\n)*" if line == "..." else re.escape(line.rstrip()) + r"\s*\n"
        for line in expected.splitlines()
    )
    assert re.search(f"^{pattern}", printed, re.MULTILINE), printed


@pytest.fixture(scope="module")
def names() -> dict[str, dict[str, object]]:
    """What the snippets of a page have defined so far."""
    return {page: {"__name__": "__main__"} for page in PAGES}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started once."""
    pytest.importorskip("ray")
    from verydeep.scaling.cluster import connected

    with connected("local"):
        yield


@pytest.mark.filterwarnings(
    "ignore:.*new and untrained", "ignore:images this small", "ignore::DeprecationWarning:ray"
)
@pytest.mark.parametrize("one", SNIPPETS, ids=lambda one: f"{one.page}:{one.line}")
def test_a_snippet_runs(
    one: Snippet, place: Path, names: dict[str, dict[str, object]], verydeep: Run,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    if one.page == "docs/scale.md":
        request.getfixturevalue("cluster")
    if one.language == "json":
        assert json.loads(one.text)
        return
    printed = io.StringIO()
    if one.language == "python":
        # these can be pasted one by one; the pages that are read from top to bottom, in order
        known = {"__name__": "__main__"} if one.page in PASTED else names[one.page]
        with contextlib.redirect_stdout(printed):
            exec("\n".join(map(stood_in, one.text.splitlines())), known)
    else:
        assert one.language == "sh"
        for line in one.text.splitlines():
            for command in line.split(" && "):
                run_line(command.strip(), printed, verydeep)
    if one.output is not None:
        assert_printed(printed.getvalue(), one.output)


def run_line(line: str, printed: io.StringIO, verydeep: Run) -> None:
    if any(line.startswith(beginning) for beginning in NOT_HERE):
        return
    words = shlex.split(stood_in(shlex.join(shlex.split(line, comments=True))))
    out = None
    if ">" in words:
        out = words.pop()
        words.remove(">")
    if words[0] == "verydeep":
        done = verydeep(*words[1:])
        assert done.status == 0, (line, done.err)
        text = done.out
    else:
        command = [sys.executable, *words[1:]] if words[0] == "python" else words
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        text = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, timeout=300
        ).stdout
    if out:
        Path(out).write_text(text, encoding="utf-8")
    printed.write(text)


def test_what_is_not_run_is_there() -> None:
    """A reason whose snippet is gone goes as well."""
    text = "\n".join(one.text for one in SNIPPETS)
    for beginning in NOT_HERE:
        assert re.search(rf"^(.* && )?{re.escape(beginning)}", text, re.MULTILINE), beginning


def test_every_page_with_snippets_is_among_these() -> None:
    pages = {
        p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    }
    others = pages - set(PAGES) - {"docs/commands.md", "CHANGELOG.md", "docs/log.md"}
    assert not {page for page in others if snippets(page)}
