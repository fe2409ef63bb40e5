"""What is imported and what is not: the base runs without torch, and `import verydeep` is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import verydeep

# Run before the program: any import of torch fails loudly.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision"}:
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Block())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def classify(model: Path, *words: str) -> str:
    argv = ["verydeep", "classify", "--model", str(model), *words]
    return f"{BLOCK}\nsys.argv = {argv!r}\nfrom verydeep.cli import main\nmain()"


def test_classify_without_torch(model: Path, tmp_path: Path) -> None:
    from .tiny import photo

    done = python(classify(model, str(photo(tmp_path / "a.png")), "--csv", str(tmp_path / "a.csv")))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    done = python(f"{BLOCK}\nimport verydeep\nverydeep.load({str(model)!r}); verydeep.evaluate")
    assert done.returncode == 0, done.stderr


def test_the_test_above_can_fail(model: Path, tmp_path: Path) -> None:
    from .tiny import photo

    for planted in ("import torch", "import torchvision.models", "from torch import nn"):
        done = python(f"{BLOCK}\n{planted}")
        assert done.returncode != 0
        assert "blocked: torch" in done.stderr
    code = classify(model, str(photo(tmp_path / "a.png"))).replace(
        "main()", "import verydeep.models"
    )
    done = python(code)
    assert done.returncode != 0
    assert "blocked: torch" in done.stderr or "verydeep[torch]" in done.stderr


def test_import_is_light() -> None:
    code = "import sys; import verydeep; print(' '.join(sys.modules))"
    loaded = set(python(code).stdout.split())
    assert "verydeep" in loaded
    heavy = {"numpy", "PIL", "onnx", "onnxruntime", "torch", "click", "rich", "safetensors"}
    assert not heavy & loaded


def test_silent_as_a_library_unless_asked() -> None:
    say = "import verydeep.errors as e; e.warn_once('a note')"
    assert python(say).stderr == ""
    asked = python(f"import logging; logging.basicConfig(); {say}; e.warn_once('a note')")
    assert asked.stderr == "WARNING:verydeep:a note\n"


def test_public_names() -> None:
    assert verydeep.__all__ == [
        "__version__",
        "Answer",
        "Compressed",
        "Distance",
        "Distances",
        "Duplicates",
        "Evaluation",
        "Explanation",
        "Exported",
        "Failure",
        "FeatureFile",
        "Features",
        "Head",
        "Neighbours",
        "Network",
        "Perceptual",
        "Portrait",
        "Prediction",
        "Predictor",
        "Preprocess",
        "Quantised",
        "TrainResult",
        "VerydeepError",
        "bench",
        "compress",
        "content_distance",
        "distance",
        "dists",
        "duplicates",
        "evaluate",
        "explain",
        "export",
        "features",
        "load",
        "lpips",
        "network",
        "quantize",
        "show",
        "similar",
        "style_distance",
        "train",
    ]
    for name in verydeep.__all__:
        assert getattr(verydeep, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'clasify'"):
        _ = verydeep.clasify
