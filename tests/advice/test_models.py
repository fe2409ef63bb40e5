"""Advice on networks, torch modules and losses, followed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import verydeep as package
from verydeep import models
from verydeep.distances.metrics import METRICS
from verydeep.losses import DISTS, LPIPS, PerceptualLoss, StyleLoss, TotalVariation
from verydeep.models import backbone, build, make_layers, vgg
from verydeep.models.module import VGG
from verydeep.nets import NETWORKS, Network, network
from verydeep.preprocess import RANGES

from ..tiny import model_file, pixels, tiny, weights
from .following import Row, all_followed, evaluated, follows, refused, said, taken

TRUNK = tiny(head="classic", classes=0)
COLUMN = "A"


def seed(*shape: int) -> Tensor:
    """An image (n, c, h, w) from 0 to 1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


SMALL: list[Row] = [
    ("layers are {}; expected names of layers",
     lambda: network("vgg11", head="gap", layers=3),  # type: ignore[arg-type]
     lambda _: network("vgg11", head="gap", layers="relu5_2")),
    ("classes is {}; expected a whole number of 0 or more",
     lambda: network("vgg11", classes=-1), lambda _: network("vgg11", classes=0)),
    ("batch_norm is {}; expected true or false",
     lambda: Network(COLUMN, 1), lambda _: [Network(COLUMN, one) for one in (True, False)]),  # type: ignore[arg-type]
    ("width is {}; expected a number above 0, at most 16",
     lambda: network("vgg11", width=0), lambda _: [network("vgg11", width=w) for w in (0.1, 16)]),
    ("in_channels is {}; expected a whole number, 1 to 4096",
     lambda: network("vgg11", in_channels=0),
     lambda _: [network("vgg11", in_channels=n) for n in (1, 4096)]),
    ('no taps were named; expected at least one, such as "pool5"',
     lambda: backbone("vgg11", (), None), lambda: backbone("vgg11", "pool5", None, width=1 / 16)),
    ('cfg has {}; expected output channels such as 64 or "256:1", "M" or "LRN"',
     lambda: make_layers(["x"]), lambda _: make_layers([64, "256:1", "M", "LRN"])),
    ("{} given beside a Network, which already has its own; give a name with choices, or a Network alone",
     lambda: build(TRUNK, classes=3), lambda _: [build("vgg11", classes=3, width=1 / 16), build(TRUNK)]),
    ("a tensor {}; expected (3, height, width) or (n, 3, height, width)",
     lambda: vgg.ImageClassification(crop_size=8)(seed(5, 8, 8)),
     lambda _: [vgg.ImageClassification(crop_size=8)(seed(*s)) for s in ((3, 8, 8), (2, 3, 8, 8))]),
    ("power is {}; expected 1 or 2", lambda: TotalVariation(3),  # type: ignore[arg-type]
     lambda _: [TotalVariation(1), TotalVariation(2)]),
    ("image is {} of shape {}; expected floats (n, c, h, w)",
     lambda: TotalVariation()(seed(3, 8, 8)), lambda *_: TotalVariation()(seed(1, 3, 8, 8))),
]  # fmt: skip


@follows(*(words for words, _, _ in SMALL))
def test_what_networks_and_losses_take() -> None:
    all_followed(SMALL)


@follows(
    "the model is {}; expected a name or a path", "the model is {}; expected the path of a file"
)  # fmt: skip
def test_what_a_model_may_be_called(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.safetensors")
    wrong: Any = path.read_bytes()[:9]
    said("the model is {}; expected a name or a path", refused(lambda: package.load(wrong)))
    for one in ("builtin", path, str(path)):
        package.load(one)
    said("the model is {}; expected the path of a file", refused(lambda: models.load(wrong)))
    models.load(path)


@follows(
    'no taps were named; expected at least one, such as "{}"',
    "expected one of verydeep.nets.NETWORKS, or take the values by hooks",
    'for 32x32 images build the network with head="small"',
    "antialias=False is of tensors alone",
)  # fmt: skip
def test_modules() -> None:
    own = build("vgg11", width=1 / 16)
    text = refused(lambda: own.taps(seed(1, 3, 32, 32), ()))
    (name,) = said('no taps were named; expected at least one, such as "{}"', text)
    small = build("vgg11", width=1 / 16, head="small").eval()
    assert small.taps(seed(1, 3, 32, 32), name)[name].shape == (1, 1000)
    other = VGG(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), num_classes=2)
    text = refused(lambda: other.taps(seed(1, 3, 32, 32), "relu1_1"))
    said("expected one of verydeep.nets.NETWORKS, or take the values by hooks", text)
    for one in evaluated(
        taken(r"one of (verydeep\.\S+),", text), verydeep=__import__("verydeep.nets")
    ):
        assert one in NETWORKS
    small.taps(seed(1, 3, 32, 32), "relu1_1")
    seen: list[Tensor] = []
    other.features[1].register_forward_hook(lambda _, __, value: seen.append(value))
    other.features(seed(1, 3, 32, 32))
    assert seen[0].shape == (1, 5, 30, 30)

    with pytest.warns(UserWarning, match="head=") as warned:
        own.eval()(seed(1, 3, 32, 32))
    said('for 32x32 images build the network with head="small"', warned[0].message)
    choice: dict[str, Any] = evaluated(f"dict({taken('(head=.*)', str(warned[0].message))})")
    build("vgg11", width=1 / 16, **choice).eval()(seed(1, 3, 32, 32))
    transform = vgg.ImageClassification(crop_size=8, antialias=False)
    with pytest.warns(UserWarning, match="antialias") as warned:
        transform(pixels(40, 44)[0])
    said("antialias=False is of tensors alone", warned[0].message)
    transform(torch.from_numpy(pixels(40, 44)[0]).permute(2, 0, 1))


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    return model_file(tmp_path / "trunk.safetensors", TRUNK)


def loss(trunk: Path, layers: Any = "relu1_1", kind: Any = PerceptualLoss, **told: Any) -> Any:
    return kind(layers, model=trunk, network="vgg11", **told)


@follows(
    "expected a tensor (n, c, h, w)",
    "expected (n, {}, height, width), one image of these, or one channel for all",
    "expected at least {}x{}", "move one of them, as in loss.to({})", "expected floats, or uint8",
    "expected one or as many, of the same size", "expected the same, or one image against several",
    "the reference was remembered by another loss: it has {}; expected {}",
    "; scale it, or say which of {} or (black, white) it is", "expected weights for pictures",
    "{} weights were given for {} layers ({}); expected one for each", "expected one or as many",
)  # fmt: skip
def test_what_a_loss_looks_at(trunk: Path, tmp_path: Path) -> None:
    look, deeper = loss(trunk), loss(trunk, "relu2_1")
    image, two = seed(1, 3, 16, 18), seed(2, 3, 16, 18)
    bytes_ = torch.from_numpy(pixels(16, 18)[0]).permute(2, 0, 1)[None]
    style, styles = loss(trunk, kind=StyleLoss), seed(2, 3, 16, 18)
    deep = loss(trunk, "relu5_2")
    on_meta = image.to("meta")

    def moved(device: str) -> Any:
        return loss(trunk, check=False).to(evaluated(device))._seen(on_meta, "image")

    def ranges(names: str) -> None:
        for name in names.split(", "):
            low, high = RANGES[name]
            loss(trunk, range=name)(image * (high - low) + low, image * (high - low) + low)
        loss(trunk, range=(0, 300))(300 * image, 300 * image)
        look(300 * image / 300, image)

    all_followed([
        ("expected a tensor (n, c, h, w)", lambda: look(image.numpy(), image), lambda: look(image, image)),
        ("expected (n, {}, height, width), one image of these, or one channel for all",
         lambda: look(seed(1, 2, 16, 18), image),
         lambda c: [look(one, one) for one in
                    (seed(2, int(c), 16, 18), seed(int(c), 16, 18), seed(1, 16, 18))]),
        ("expected at least {}x{}", lambda: deep(image[..., :8, :8], image[..., :8, :8]),
         lambda a, b: deep(seed(1, 3, int(a), int(b)), seed(1, 3, int(a), int(b)))),
        ("expected floats, or uint8", lambda: look(bytes_.int(), image),
         lambda: [look(bytes_, image), look(bytes_ / 255, image)]),
        ("expected one or as many, of the same size", lambda: look(two, look.remember(seed(3, 3, 16, 18))),
         lambda: [look(two, look.remember(one)) for one in (image, two)]),
        ("expected the same, or one image against several", lambda: look(two, seed(3, 3, 16, 18)),
         lambda: [look(two, two), look(image, two), look(two, image)]),
        ("the reference was remembered by another loss: it has {}; expected {}",
         lambda: look(image, deeper.remember(image)),
         lambda _, layers: look(image, loss(trunk, layers.split(", ")).remember(image))),
        ("; scale it, or say which of {} or (black, white) it is",
         lambda: look(300 * image, image), ranges),
        ("{} weights were given for {} layers ({}); expected one for each",
         lambda: loss(trunk, weights=(1, 2)), lambda _, n, __: loss(trunk, weights=(1,) * int(n))),
        ("expected one or as many", lambda: style(seed(3, 3, 16, 18), styles),
         lambda: [style(two, styles), style(two, image)]),
    ])  # fmt: skip
    text = refused(lambda: look(on_meta, image))
    said("move one of them, as in loss.to({})", text)
    moved(taken(r"loss\.to\((.*)\)", text))
    look(image, image)

    state = weights(tiny(head="classic", classes=0, in_channels=4))
    torch.save(
        {key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "four.pth"
    )
    said("expected weights for pictures", refused(lambda: loss(tmp_path / "four.pth")))
    loss(trunk)


@follows(
    'and give other values; write {}="vgg"', 'expected "0.1", whose values are others',
    "the head of {} has shape {}; expected ({},), a weight for each of its channels",
    "{} has shape {}; expected ({},), a weight for each channel of the image and of the layers",
    "Expected both input arguments to be normalized tensors with shape [N, 3, H, W]: {}",
)  # fmt: skip
def test_lpips_and_dists(tmp_path: Path) -> None:
    from verydeep.losses import LearnedPerceptualImagePatchSimilarity

    net = tiny("vgg16", head="classic", classes=0)
    model = model_file(tmp_path / "vgg16.safetensors", net)
    layers = METRICS["lpips"].layers
    heads = {layer: torch.ones(net.layer(layer).outputs) for layer in layers}
    ours: dict[str, Any] = {"model": model, "heads": heads}
    lpips: Any = partial(LPIPS, model=model)
    metric: Any = partial(LearnedPerceptualImagePatchSimilarity, model=model)
    dists: Any = partial(DISTS, model=model, load_weights=False)
    image = 2 * seed(1, 3, 32, 32) - 1
    for kind in (lpips, metric):
        with pytest.warns(UserWarning, match="was not named") as warned:
            kind(heads=heads)
        (argument,) = said('and give other values; write {}="vgg"', warned[0].message)
        told: dict[str, Any] = evaluated(f"dict({taken('write (.*)', str(warned[0].message))})")
        assert argument in told
        kind(heads=heads, **told)
    measure = metric(net_type="vgg", heads=heads)
    all_followed([
        ('expected "0.1", whose values are others', lambda: LPIPS(net="vgg", version="0.0", **ours),
         lambda: LPIPS(net="vgg", version="0.1", **ours)),
        ("the head of {} has shape {}; expected ({},), a weight for each of its channels",
         lambda: lpips(net="vgg", heads={**heads, layers[0]: torch.ones(3)}),
         lambda layer, _, n: lpips(net="vgg", heads={**heads, layer: torch.ones(int(n))})),
        ("{} has shape {}; expected ({},), a weight for each channel of the image and of the layers",
         lambda: dists(alpha=torch.ones(3)),
         lambda name, _, n: dists(**{name: torch.ones(int(n))})),
        ("Expected both input arguments to be normalized tensors with shape [N, 3, H, W]: {}",
         lambda: measure.update(seed(3, 32, 32), seed(3, 32, 32)),
         lambda _: measure.update(image, image)),
    ])  # fmt: skip
    assert not float(measure.compute())


@follows("nothing can be moved from there; make the loss anew")
def test_a_loss_without_values() -> None:
    images = torch.rand(1, 3, 32, 32)
    loss = LPIPS(net="vgg", range="0..1").to("meta")
    said(
        "nothing can be moved from there; make the loss anew", refused(lambda: loss(images, images))
    )
    assert LPIPS(net="vgg", range="0..1")(images, images) == 0
