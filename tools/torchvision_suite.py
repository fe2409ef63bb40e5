"""torchvision's own tests, run on verydeep: a plugin of pytest that puts our functions in its registry.

    cd vision/test  # of torchvision's sources; they need pytest-mock
    export PYTHONPATH=VERYDEEP:VERYDEEP/tools PYTORCH_TEST_WITH_EXTENDED=1
    python -m pytest -p torchvision_suite --verydeep builders -k "vgg or ssd300" \\
        test_models.py test_extended_models.py test_backbone_utils.py

--verydeep builders: its names mean our builders, and so its detectors stand on our trunk.
--verydeep registry: our `list_models`, `get_model`, `get_model_builder`, `get_model_weights` and
`get_weight` too, for the names that we have. Without it, the original: what must pass.
docs/torchvision.md has the results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torchvision.models
from torchvision.models import _api

from verydeep import models

REGISTRY = ("get_model", "get_model_builder", "get_model_weights", "get_weight")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--verydeep", choices=("builders", "registry"))


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("--verydeep")
    if wanted is None:
        return
    modules = [
        module for name, module in sys.modules.items() if name.startswith("torchvision.models")
    ]
    for name in set(models.list_models()) & set(_api.BUILTIN_MODELS):
        builder, original = models.get_model_builder(name), _api.BUILTIN_MODELS[name]
        _api.BUILTIN_MODELS[name] = builder
        for module in modules:  # the detectors have names of their own for it
            if vars(module).get(name) is original:
                setattr(module, name, builder)
        if wanted == "builders":
            builder.__module__ = "torchvision.models.vgg"  # where its list_models looks for them
    if wanted == "registry":
        for name in REGISTRY:
            setattr(torchvision.models, name, _ours_first(name))
        theirs = torchvision.models.list_models

        def list_models(module: Any = None, **filters: Any) -> list[str]:
            if module is torchvision.models:
                ours = models.list_models(models, **filters)
                return [name for name in ours if name in _api.BUILTIN_MODELS]
            names: list[str] = theirs(module, **filters)
            return names

        torchvision.models.list_models = list_models


def _ours_first(name: str) -> Callable[..., Any]:
    """Our function of that name; torchvision's for the models that are not VGG."""
    ours, theirs = getattr(models, name), getattr(torchvision.models, name)

    def function(model: Any, **config: Any) -> Any:
        text = model if isinstance(model, str) else getattr(model, "__name__", "")
        return (ours if text.lower().startswith("vgg") else theirs)(model, **config)

    return function
