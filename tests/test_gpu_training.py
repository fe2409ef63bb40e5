"""Models and training on a CUDA device, against torchvision and the processor; skipped without one."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import verydeep
from verydeep import modelfile, models
from verydeep.engines import relative_error
from verydeep.predictor import softmax
from verydeep.training.begin import find_rate, profile, train
from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Batch
from verydeep.training.recipes import recipe

from .labelled import SETTINGS, arrays, trained
from .processes import together
from .test_gpu import GPU, ieee, of_cuda, pytestmark  # noqa: F401  # a fixture
from .test_probe import photos
from .test_training_distributed import assert_alike, learn


@pytest.mark.usefixtures("ieee")
def test_the_built_in_module() -> None:
    module = models.vgg16(weights="builtin").eval()
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = module.double()(x.double())
        ours = module.float().to(GPU, memory_format=torch.channels_last)(x.to(GPU))
    assert relative_error(ours.cpu().numpy(), theirs.numpy()) <= 1e-5


@pytest.mark.usefixtures("ieee")
def test_a_step_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device(GPU):
        theirs = torchvision.models.vgg16(num_classes=10)
        ours = models.vgg16(num_classes=10)
        x, y = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    steps: list[list[Tensor]] = []
    for module in (theirs, ours):
        before = [p.detach().clone() for p in module.parameters()]
        torch.manual_seed(0)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
        steps.append([p.detach() - b for p, b in zip(module.parameters(), before, strict=True)])
    for a, b in zip(*steps, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arrays(tmp_path_factory.mktemp("data") / "set.npz")


def interrupted(line: dict[str, Any]) -> None:
    if line["event"] == "step" and line["step"] == 7:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ieee")
@pytest.mark.parametrize("layout", ["default", "channels-last"])
@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
def test_an_epoch_is_that_of_the_processor(
    data: Path, tmp_path: Path, optimiser: str, layout: str
) -> None:
    """Without dropout, whose numbers are others on each device."""
    own = {"epochs": 1, "dropout": 0.0, "optimiser": optimiser, "layout": layout}
    here = trained(data, tmp_path / "here", **own)
    there = trained(data, tmp_path / "there", device=GPU, **own)
    assert_allclose(there.probabilities, here.probabilities, atol=1e-2)


@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
@pytest.mark.parametrize("layout", ["default", "channels-last"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_small_images_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, layout: str,
    optimiser: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    own: dict[str, Any] = {"precision": precision, "layout": layout, "optimiser": optimiser,
                           "device": GPU}  # fmt: skip
    whole = trained(data, tmp_path / "whole", **own)
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "cut", event=interrupted, **own)
    cut = trained(data, tmp_path / "cut", resume=True, **own)
    a, b = (modelfile.read(one.model).tensors() for one in (whole, cut))
    for key, value in a.items():
        assert_allclose(b[key], value, atol=2e-3 * np.abs(value).max(), err_msg=key)
    # the figures are those of the model file: what was judged was float32, not TF32
    with np.load(data) as held:
        scores = verydeep.load(whole.model, device="cpu", precision="exact").scores(
            held["val_images"]
        )
    assert_allclose(softmax(scores), whole.probabilities, atol=2e-5)


@of_cuda
def test_what_else_trains_on_the_device(data: Path, tmp_path: Path) -> None:
    changes = {**SETTINGS, "precision": "auto", "layout": "auto", "compile": False, "epochs": 2}
    told: dict[str, Any] = {"model": "vgg11_bn", "width": 1 / 16, "device": GPU}
    result = train("small-images", data, out=tmp_path / "auto", settings=changes, **told)
    assert result.config["config"]["precision"] in ("fp32", "bf16")
    assert result.config["device"] == "cuda"
    assert find_rate("small-images", data, settings=changes, **told).suggested > 0
    assert profile("small-images", data, settings=changes, **told)


@of_cuda
def test_only_the_lines_of_the_log_wait(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By CUDA's own count; tests/test_training_devices.py has the same without a device."""
    epoch = Feed.epoch

    def watched(feed: Feed, *given: int) -> Iterator[Batch]:
        for batch in epoch(feed, *given):
            torch.cuda.set_sync_debug_mode("warn")
            yield batch
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Feed, "epoch", watched)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = trained(data, tmp_path / "run", device=GPU, clip=1.0, batch=2)
    waits = [one for one in told if "synchronizing" in str(one.message)]
    assert len(waits) <= sum(line["event"] == "step" for line in result.log)


@of_cuda
def test_half_precision_with_its_loss_scaled(data: Path, tmp_path: Path) -> None:
    here = trained(data, tmp_path / "fp32", device=GPU, epochs=6)
    there = trained(data, tmp_path / "fp16", device=GPU, epochs=6, precision="fp16")
    assert there.top1 >= here.top1 - 0.1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")
def test_two_devices_learn_what_one_does(data: Path, tmp_path: Path) -> None:
    own = {"memory": True, "batch": 12}
    learn(0, data, tmp_path / "one", "vgg11_bn", own, "cuda:0")
    found = together(2, learn, data, tmp_path / "two", "vgg11_bn", own, "cuda")
    assert [code for code, _ in found] == [0, 0], found
    assert_alike(tmp_path / "one", tmp_path / "two")


@of_cuda
def test_transfer_on_the_device(model: Path, tmp_path: Path) -> None:
    flowers = tmp_path / "flowers"
    photos(flowers / "train", 12)
    photos(flowers / "val", 4, seed=1)
    found = {}
    for device in ("cpu", GPU):
        for name, more in (
            ("probe", {"sizes": (32,), "precision": "exact"}),
            ("finetune", {"size": 32, "epochs": 3, "batch": 8, "precision": "fp32", "hold": 0.25,
                          "rate": 1e-4, "dropout": 0.0}),
        ):  # fmt: skip
            out = tmp_path / f"{name} {device}"
            given: dict[str, Any] = {"model": str(model), "settings": more, "device": device}
            if (name, device) == ("finetune", GPU):
                with pytest.raises(KeyboardInterrupt):
                    train(recipe(name), flowers, out=out, event=interrupted, **given)
                given["resume"] = True
            found[name, device] = train(recipe(name), flowers, out=out, **given)
    for name in ("probe", "finetune"):
        here, there = found[name, "cpu"], found[name, GPU]
        assert there.top1 > 0.9
        assert_allclose(there.probabilities, here.probabilities, atol=2e-2)
