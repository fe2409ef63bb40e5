"""A look inside a network against torch's values and gradients, and pages that need nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

import verydeep
from verydeep import modelfile, models, pictures
from verydeep.errors import (
    DataError,
    ImageError,
    ModelFileError,
    OutputError,
    PreprocessError,
    VerydeepError,
)
from verydeep.pictures import layout as lettering
from verydeep.portraits import show, strongest_channels
from verydeep.portraits.views import filter_picture
from verydeep.preprocess import Preprocess

from .conftest import Run
from .test_imports import BLOCK, python
from .tiny import model_file, photo, tiny, weights

GOLDEN = Path(__file__).parent / "golden"
SMALL = Preprocess(resize_size=40, crop_size=32)


def test_the_strongest_channels_are_torchs(tmp_path: Path) -> None:
    path = model_file(
        tmp_path / "m.safetensors", tiny("vgg16_bn", "classic", width=1 / 4), preprocess=SMALL
    )
    image = photo(tmp_path / "a.png")
    predictor = verydeep.load(path, precision="exact")
    seen = show(predictor, image, size=(48, 64), strongest=5)
    names = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    assert [block.layer for block in seen.blocks] == names
    x = torch.from_numpy(predictor.preprocess.normalise(np.array(Image.open(image))))
    with torch.no_grad():
        values = models.load(path).taps(x, names)
    for block in seen.blocks:
        maps = values[block.layer][0].numpy()
        assert block.row.shape == maps.shape
        order = maps.mean((1, 2)).argsort()[::-1][:5]
        assert [channel.index for channel in block.channels] == order.tolist()
        for channel in block.channels:
            assert_allclose(channel.map, maps[channel.index], atol=1e-4 * maps.max())
            assert channel.mean == pytest.approx(maps[channel.index].mean(), rel=1e-3)
            assert maps[channel.index][channel.peak] == maps[channel.index].max()
    assert seen.answer == predictor(image)
    assert str(seen) == (
        f"vgg16_bn (m.safetensors), {image} at 64x48 pixels: "
        f"{seen.answer.label} {seen.answer.probability:.1%}"
    )


def test_a_model_that_takes_images_as_they_are(tmp_path: Path) -> None:
    whole = dataclasses.replace(SMALL, resize="none", resize_size=None, crop_size=None)
    predictor = verydeep.load(model_file(tmp_path / "m.safetensors", preprocess=whole))
    image = photo(tmp_path / "a.png", 48, 64)
    assert show(predictor, image).pixels.shape == (48, 64, 3)
    assert len(strongest_channels(predictor, image)) == 5


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_filters_are_per_step_of_a_pixel(tmp_path: Path, order: Any) -> None:
    """What the first convolution gains where one pixel gets one step brighter, by running it."""
    record = Preprocess(
        resize_size=32, crop_size=32, channel_order=order, range=(0, 255), std=(0.5, 2, 4)
    )
    path = model_file(tmp_path / "m.safetensors", tiny("vgg11_bn"), preprocess=record)
    predictor = verydeep.load(path, precision="exact")
    seen = show(predictor)
    assert seen.filters.shape == (4, 3, 3, 3)
    plain = np.full((16, 16, 3), 100, np.uint8)
    for channel in range(3):
        brighter = plain.copy()
        brighter[8, 8, channel] += 50
        before, after = (
            predictor.features(image, ["conv1_1"], size="own")["conv1_1"][0]
            for image in (plain, brighter)
        )
        gain = (after - before)[:, 7:10, 7:10] / 50
        # a filter is seen turned round from where its pixel lies
        assert_allclose(gain[:, ::-1, ::-1], seen.filters[:, channel], atol=1e-3)


def test_a_tile_shows_signs() -> None:
    weights = np.zeros((3, 3, 3), np.float32)
    weights[0, 0, 0], weights[1, 2, 1] = 2, -1
    shown = np.asarray(filter_picture(weights))
    assert shown[0, 0].tolist() == [255, 128, 128]
    assert shown[2, 1].tolist() == [128, 64, 128]
    assert shown[1, 1].tolist() == [128, 128, 128]
    assert np.asarray(filter_picture(weights[:1]))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("pool", ["avg", "l2"])
def test_fields_are_where_gradients_are(tmp_path: Path, pool: str) -> None:
    """With positive weights on a white photo every pixel of a field matters, and none beside it."""
    net = tiny("vgg11", pool=pool, width=1 / 16)
    path = model_file(tmp_path / "m.safetensors", net, preprocess=SMALL)
    white = Image.new("RGB", (150, 150), (255, 255, 255))
    seen = show(verydeep.load(path), white, size="own", strongest=1)
    module = models.load(path).double()
    for weight in module.parameters():
        weight.data = weight.data.abs()
    x = torch.ones(1, 3, 150, 150, dtype=torch.float64, requires_grad=True)
    values = module.taps(x, [block.layer for block in seen.blocks])
    for block in seen.blocks:
        _, height, width = block.row.shape
        unit = height // 2, width // 2 - 1
        value = values[block.layer][0, 0][unit]
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        rows, columns = np.nonzero(gradient[0].abs().sum(0).numpy())
        centre = tuple(block.row.position + block.row.stride * at for at in reversed(unit))
        left, top, right, bottom = block.field(centre)  # type: ignore[arg-type]
        seen_part = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        inside = max(left, 0), max(top, 0), min(right, 150), min(bottom, 150)
        assert seen_part == inside


def test_fields_share_a_centre(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.safetensors", preprocess=SMALL)
    seen = show(verydeep.load(path), photo(tmp_path / "a.png"), size=(96, 128))
    boxes = seen.fields
    last = seen.blocks[-1]
    row, column = last.channels[0].peak
    for block, (left, top, right, bottom) in zip(seen.blocks, boxes, strict=True):
        assert right - left == bottom - top == block.row.receptive_field
        assert abs((left + right) / 2 - (7.5 + 16 * column + 0.5)) <= block.row.stride / 2
        assert abs((top + bottom) / 2 - (7.5 + 16 * row + 0.5)) <= block.row.stride / 2


class Page(HTMLParser):
    """What a page refers to, and whether its tags close."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        assert tag not in ("script", "link", "iframe")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    names = ("ant", "bee", "<b>bus</b>", "daisy", "tabby", "espresso", "violin")
    path = model_file(tmp_path / "m.safetensors", class_names=names)
    file = photo(tmp_path / "a & b.png", 64, 80)
    seen = show(path, file, size="own", strongest=3)
    text = seen.page()
    page = Page(text)
    assert page.open == []
    inside = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert set(page.links) - set(inside) == {"#photo"}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    pictures = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in inside]
    sizes = [picture.size for picture in pictures]
    assert sizes == [(80, 64), *[(3, 3)] * 4, *(
        (block.row.shape[2], block.row.shape[1]) for block in seen.blocks for _ in range(3)
    ), (80, 64)]  # fmt: skip
    assert (np.asarray(pictures[0]) == np.asarray(Image.open(file))).all()
    assert "&lt;b&gt;bus" in text
    assert "<b>bus" not in text
    assert "a &amp; b.png" in text
    alone = show(path).page()
    assert "The 4 filters" in alone
    assert "What a unit sees" not in alone


def test_the_picture(tmp_path: Path) -> None:
    """Against a golden that was looked at; tests/golden/portrait_make.py makes it again."""
    from .golden.portrait_make import picture

    drawn = picture(tmp_path)
    golden = Image.open(GOLDEN / "portrait.png").convert("RGB")
    assert drawn.size == golden.size
    off = np.abs(np.asarray(drawn, np.float32) - np.asarray(golden, np.float32))
    assert off.mean() < 1.5


def test_without_photo_head_or_colour(tmp_path: Path) -> None:
    trunk = model_file(tmp_path / "trunk.safetensors", tiny(classes=0), preprocess=SMALL)
    seen = show(trunk, photo(tmp_path / "a.png"))
    assert seen.answer is None
    assert seen.picture().mode == "RGB"
    assert "What it says" not in seen.page()
    alone = show(trunk)
    layouts = re.findall(r'viewBox="0 0 (1200|340) ', alone.page())
    assert layouts == ["1200", "340"]
    assert alone.picture().height < seen.picture().height
    with pytest.raises(DataError, match="made without a photo"):
        _ = alone.photo
    with pytest.raises(DataError, match="made without a photo"):
        _ = alone.fields
    assert alone.blocks[0].row.shape == (4, 224, 224)
    grey = model_file(
        tmp_path / "grey.safetensors", tiny(in_channels=1),
        preprocess=Preprocess(channel_order="L", mean=(0.5,), std=(0.2,)),
    )  # fmt: skip
    deep = tmp_path / "deep.png"
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)).save(deep)
    seen = show(grey, deep, size=64)
    assert seen.filters.shape == (4, 1, 3, 3)
    assert seen.picture().mode == "RGB"


def test_saving(tmp_path: Path, model: Path) -> None:
    seen = show(model, photo(tmp_path / "a.png"), size=64)
    assert seen.save(tmp_path / "seen.png") == tmp_path / "seen.png"
    assert seen.save(tmp_path / "new" / "seen") == tmp_path / "new" / "seen" / "portrait.png"
    seen.save(tmp_path / "seen.JPG")
    for name, kind in (("seen.png", "PNG"), ("seen.JPG", "JPEG")):
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (kind, seen.picture().size)
    with pytest.raises(
        OutputError, match=r"seen\.gif: expected a name that ends in \.png or \.jpg"
    ):
        seen.save(tmp_path / "seen.gif")
    with pytest.raises(OutputError, match=r"seen\.png: expected a name that ends in \.html or"):
        seen.write_page(tmp_path / "seen.png")
    with pytest.raises(OutputError, match=r"a\.png/x: cannot be made a folder"):
        seen.save(tmp_path / "a.png" / "x")


def test_the_command(verydeep: Run, tmp_path: Path, model: Path) -> None:
    image = photo(tmp_path / "a.png")
    words = ("show", model, image, "--size", "48x64", "--strongest", 2)
    done = verydeep(*words, "--out", tmp_path / "out", "--html", tmp_path / "a.html")
    assert done.status == 0
    assert "relu5_2" in done.out
    assert "64x48 pixels" in done.out
    assert done.err.count("wrote ") == 2
    assert (tmp_path / "out" / "portrait.png").exists()
    rows = done.out.splitlines()
    assert rows[1].split() == "layer maps of units a unit sees strongest channels".split()
    assert rows[-1].split()[:4] == ["relu5_2", "32", "4x3", "134x134"]
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    plain = verydeep("show", model).out
    assert plain.count("relu") == 5
    assert "strongest" not in plain
    done = verydeep("show", tmp_path / "gone.safetensors")
    assert done.status == 2
    assert "there is no such file" in done.err
    assert "did you mean builtin" in verydeep("show", "bultin").err
    done = verydeep("show", model, tmp_path / "gone.jpg", "--html", tmp_path / "b.html")
    assert (done.status, done.out) == (2, "")
    assert "gone.jpg: no such file" in done.err
    assert not (tmp_path / "b.html").exists()
    assert "size is 'x'" in verydeep("show", model, "--size", "x").err
    assert "make the folder first" in verydeep(*words, "--html", tmp_path / "no" / "a.html").err
    assert "it is a folder; name a file in it" in verydeep(*words, "--html", tmp_path).err
    assert (
        "a.html: expected a name that ends in .png"
        in verydeep(*words, "--out", tmp_path / "a.html").err
    )
    assert (
        "b.png: expected a name that ends in .html"
        in verydeep(*words, "--html", tmp_path / "b.png").err
    )


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    net = tiny()
    tensors = weights(net)
    tensors["features.3.bias"][:] = np.nan
    path = tmp_path / "nan.safetensors"
    modelfile.write(path, modelfile.Record(network=net), tensors)
    show(path)  # of the filters all is known
    with pytest.raises(VerydeepError, match="finite"):
        show(path, photo(tmp_path / "a.png"))


def test_one_photo_at_a_time(model: Path) -> None:
    with pytest.raises(ImageError, match=r"not an image; expected a path|one by one"):
        show(model, np.zeros((2, 40, 40, 3), np.uint8))


def test_refusals(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError, match="strongest is 0; expected a whole number, 1 or more"):
        show(model, strongest=0)
    with pytest.raises(ImageError, match=r"too small"):
        show(model, photo(tmp_path / "a.png", 12, 40), size="own")
    for size in ("x", -3, 2.5):
        with pytest.raises(PreprocessError, match="expected pixels a side"):
            show(model, size=size)  # type: ignore[arg-type]
    assert show(model, size=(96, 64)).blocks[0].row.shape[1:] == (96, 64)
    assert show(model, size="own").blocks[0].row.shape[1:] == (224, 224)
    with pytest.raises(ModelFileError, match="no such file"):
        show(tmp_path / "gone.safetensors")


def test_show_without_torch(tmp_path: Path, model: Path) -> None:
    words = ["verydeep", "show", str(model), str(photo(tmp_path / "a.png"))]
    words += ["--html", str(tmp_path / "a.html"), "--out", str(tmp_path / "a")]
    done = python(f"{BLOCK}\nsys.argv = {words!r}\nfrom verydeep.cli import main\nmain()")
    assert done.returncode == 0, done.stderr


def test_lettering() -> None:
    assert lettering.shortened("Pekinese", 20, 1000) == "Pekinese"
    short = lettering.shortened("a very long name of a class", 20, 120)
    assert short.endswith("...")
    assert lettering.length(short, 20) <= 120
    assert lettering.shortened("Spätzle \N{SNOWMAN}", 20, 1000) == "Spatzle ?"
    rows = lettering.lines("one two three four five six", 16, 90)
    assert " ".join(rows) == "one two three four five six"
    assert len(rows) > 1
    assert all(lettering.length(line, 16) <= 90 for line in rows)
    assert lettering.shortened("a very long name.jpg", 20, 120, end=True).endswith("name.jpg")


def test_long_words_are_cut_and_quickly() -> None:
    assert lettering.shortened("x" * 1_000_000, 16, 200).endswith("x...")
    assert all(
        lettering.length(line, 16) <= 90 for line in lettering.lines("of " + "x" * 99, 16, 90)
    )


def test_a_file_name_that_is_no_utf8(tmp_path: Path, model: Path) -> None:
    seen = show(model, photo(tmp_path / "a.png"), size=64)
    odd = dataclasses.replace(seen, path="a\udcff.png")
    odd.write_page(tmp_path / "a.html")
    assert "a?.png" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert odd.picture().size == seen.picture().size


def test_a_picture_too_long_for_jpeg(tmp_path: Path) -> None:
    tall = Image.new("RGB", (1, 65501))
    with pytest.raises(OutputError, match=r"a\.jpg: 1x65501 pixels are too many .* name a \.png"):
        pictures.save(tall, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
    pictures.save(tall, tmp_path / "a.png")
