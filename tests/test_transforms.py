"""What `weights.transforms()` gives is torchvision's ImageClassification, value by value."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification as Theirs

from verydeep import models
from verydeep.errors import ImageError, PreprocessError
from verydeep.models.vgg import ENUMS, ImageClassification

ROOT = Path(__file__).parents[1]
ATTRIBUTES = ("crop_size", "resize_size", "mean", "std", "interpolation", "antialias")
OF_TENSORS = [InterpolationMode(m) for m in ("nearest", "nearest-exact", "bilinear", "bicubic")]
scripting = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
pil_antialiases = pytest.mark.filterwarnings("ignore:Anti-alias option", "ignore:antialias=False")


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng([height, width, seed])
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def forms(t: Tensor) -> list[Tensor]:
    """A uint8 image in every dtype, floats outside 0..1 too, alone and as a batch."""
    floats = [t.double() / 255, t.float() / 100 - 1, t.half() / 255, t.bfloat16()]
    integers = [t.to(torch.int8), t.to(torch.int16) * 99, t.to(torch.int32), t.to(torch.int64)]
    both = torch.stack([t, t.flip(2)])
    return [t, *floats, *integers, both, both.float() * 3]


sides = st.integers(1, 80)
overrides = st.fixed_dictionaries(
    {"crop_size": sides, "resize_size": sides, "antialias": st.sampled_from([True, False, None])},
    optional={
        "mean": st.just((0.5, 0.25, 0.125)), "std": st.just((0.1, 2.0, 0.3)),
        "interpolation": st.sampled_from([*InterpolationMode]),
    },
)  # fmt: skip


@pil_antialiases
@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, options=overrides)
def test_values_are_torchvisions_to_the_last_bit(
    height: int, width: int, options: dict[str, Any]
) -> None:
    ours, theirs = ImageClassification(**options), Theirs(**options)
    image = picture(height, width)
    assert_array_equal(ours(image), theirs(image))
    if options.get("interpolation", InterpolationMode.BILINEAR) in OF_TENSORS:
        for form in forms(tensor(image)):
            a, b = ours(form), theirs(form)
            assert a.dtype == b.dtype == torch.float32
            assert_array_equal(a, b, str(form.dtype))
    assert repr(ours) == repr(theirs)
    for name in ATTRIBUTES:
        assert getattr(ours, name) == getattr(theirs, name), name


@scripting
@pytest.mark.parametrize("antialias", [True, False, None])
@pytest.mark.parametrize("mode", OF_TENSORS)
def test_scripted_values_are_torchvisions(mode: InterpolationMode, antialias: bool | None) -> None:
    options: dict[str, Any] = {"interpolation": mode, "antialias": antialias}
    for crop, resize in ((17, 24), (30, 21), (9, 9)):
        ours = ImageClassification(crop_size=crop, resize_size=resize, **options)
        theirs = Theirs(crop_size=crop, resize_size=resize, **options)
        scripted, saved = torch.jit.script(ours), io.BytesIO()
        torch.jit.save(scripted, saved)
        saved.seek(0)
        again = torch.jit.load(saved)
        for size in ((31, 20), (21, 42), (9, 9)):
            for form in forms(tensor(picture(*size))):
                assert_array_equal(scripted(form), theirs(form))
                assert_array_equal(again(form), ours(form))


@pytest.mark.parametrize("name", [*ENUMS])
def test_every_members_are_torchvisions(name: str) -> None:
    image = picture(301, 277)
    for member in ENUMS[name]:
        theirs = torchvision.models.get_model_weights(name)[member.name]
        ours, given = member.transforms(), theirs.transforms()
        assert repr(ours) == repr(given)
        for form in (image, tensor(image), tensor(image) / 255):
            assert_array_equal(ours(form), given(form))
        assert member.transforms(crop_size=96, resize_size=100)(image).shape == (3, 96, 96)


@scripting
def test_it_is_a_module_like_any_other() -> None:
    transform = models.VGG16_Weights.DEFAULT.transforms(crop_size=32, resize_size=40)
    assert isinstance(transform, nn.Module)
    assert transform.eval() is transform.to("cpu", torch.float32) is transform
    assert not list(transform.state_dict())
    body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    whole = nn.Sequential(transform, body).eval()
    batch = torch.stack([tensor(picture(50, 60))] * 2)
    expected = body(transform(batch))
    assert expected.shape == (2, 2, 30, 30)
    for form in (whole, torch.jit.script(whole), copy.deepcopy(whole)):
        assert_array_equal(form(batch).detach(), expected.detach())
    restored = pickle.loads(pickle.dumps(transform))
    assert repr(restored) == repr(transform)
    assert_array_equal(restored(batch), transform(batch))
    floats = torch.rand(3, 50, 60, requires_grad=True)
    transform(floats).sum().backward()
    assert floats.grad is not None
    assert floats.grad.any()
    transform.crop_size, transform.resize_size = [20], [30]  # attributes are read when it is called
    transform.interpolation = InterpolationMode.BICUBIC
    other = Theirs(crop_size=20, resize_size=30, interpolation=InterpolationMode.BICUBIC)
    for form in (picture(50, 60), batch):
        assert_array_equal(transform(form), other(form))


def test_a_mode_may_be_said_in_many_ways() -> None:
    image = tensor(picture(50, 60))
    expected = Theirs(crop_size=32, interpolation=InterpolationMode.BICUBIC)(image)
    ours = models.vgg.InterpolationMode.BICUBIC
    for mode in (InterpolationMode.BICUBIC, ours, "bicubic"):
        transform = ImageClassification(crop_size=32, interpolation=mode)
        assert transform.interpolation is InterpolationMode.BICUBIC
        assert_array_equal(transform(image), expected)
    assert [m.name for m in models.vgg.InterpolationMode] == [m.name for m in InterpolationMode]


def test_without_torchvision_all_is_there() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from verydeep.models import VGG16_Weights\n"
        "t = VGG16_Weights.DEFAULT.transforms()\n"
        "print(t, t.interpolation.value, repr(t.interpolation))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    expected = f"{Theirs(crop_size=224)} bilinear <InterpolationMode.BILINEAR: 'bilinear'>\n"
    assert done.stdout == expected


def test_files_arrays_and_grey(tmp_path: Path) -> None:
    transform = models.VGG16_Weights.DEFAULT.transforms()
    image = picture(50, 60)
    expected = transform(image)
    image.save(tmp_path / "a.png")
    for form in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.array(image)):
        assert_array_equal(transform(form), expected)
    grey = image.convert("L")
    assert_array_equal(transform(grey), transform(grey.convert("RGB")))
    one = tensor(grey.convert("RGB"))[:1]
    assert_array_equal(transform(one), transform(one.expand(3, -1, -1)))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (transform(deep) - transform(grey)).abs().max() < 0.018  # one level of 8 bits


def test_exif_turns_files_and_no_pil_image_as_in_torchvision(tmp_path: Path) -> None:
    image = picture(50, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    transform, opened = ImageClassification(crop_size=32), Image.open(tmp_path / "turned.png")
    assert_array_equal(transform(opened), Theirs(crop_size=32)(opened))
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert_array_equal(transform(tmp_path / "turned.png"), transform(upright))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.zeros(3, 4), {}, r"a tensor \(3, 4\); expected \(3, height, width\) or \(n, 3"),
        (torch.zeros(30, 40, 3), {}, r"a tensor \(30, 40, 3\); expected"),
        (torch.zeros(0, 3, 8, 8), {}, r"a tensor \(0, 3, 8, 8\); expected"),
        ("none.png", {}, "none.png: no such file"),
        (None, {"interpolation": "linear"}, "interpolation 'linear' is unknown; did you mean bilinear"),
        (None, {"interpolation": None}, "interpolation 'None' is unknown"),
        (None, {"crop_size": 0}, "crop_size is 0; expected a whole number"),
        (None, {"resize_size": [256]}, r"resize_size is \[256\]; expected"),
        (None, {"std": (1, 0, 1)}, "std is .*; expected numbers above 0"),
        (None, {"mean": (0.5,)}, "mean is .*; expected 3 finite numbers"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ImageError, PreprocessError), match=message) as caught:
        ImageClassification(**{"crop_size": 8, **options})(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["box", "hamming", "lanczos"])
def test_modes_of_pil_alone_fail_on_tensors_as_in_torchvision(mode: str) -> None:
    with pytest.raises((NotImplementedError, ValueError)) as theirs:
        Theirs(crop_size=8, interpolation=InterpolationMode(mode))(torch.zeros(3, 8, 8))
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        ImageClassification(crop_size=8, interpolation=mode)(torch.zeros(3, 8, 8))
