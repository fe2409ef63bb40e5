"""Advice on images, followed: files, arrays, tensors, sizes, and what black and white are."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

import verydeep as package
from verydeep.predictor import Predictor
from verydeep.preprocess import Preprocess, decode, decoding, sized

from ..conftest import Run
from ..tiny import photo
from .following import brought, evaluated, follows, refused, said, taken

GREY = np.random.default_rng(0).random((40, 44), np.float32)
COLOUR = np.random.default_rng(0).random((40, 44, 3), np.float32)
BYTES = (COLOUR * 255).round().astype(np.uint8)


@pytest.fixture
def tiny(model: Path) -> Predictor:
    return package.load(model)


# Files


@follows("fetch or export it again", "; fetch or export it again")
def test_a_file_that_is_exported_again(tmp_path: Path) -> None:
    empty, damaged = tmp_path / "empty.jpg", tmp_path / "damaged.tif"
    empty.touch()
    said("; fetch or export it again", refused(lambda: decode(empty)))
    damaged.write_bytes(b"II*\0" + bytes(60))
    said("fetch or export it again", refused(lambda: decode(damaged)))
    for file in (empty, damaged):
        Image.fromarray(BYTES).save(file)
        decode(file)


@follows("; fetch it again, or convert it to PNG")
def test_a_file_that_is_fetched_again_or_converted(tmp_path: Path) -> None:
    file = photo(tmp_path / "a.jpg")
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    said("; fetch it again, or convert it to PNG", refused(lambda: decode(file)))
    file.write_bytes(whole)
    decode(file)
    with Image.open(file) as image:
        image.save(tmp_path / "a.png")
    decode(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"some words, no picture", bytes(range(128, 250))])
@follows("expected JPEG, PNG, WebP, TIFF or the like; convert it to one of these")
def test_the_formats_that_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.photo"
    file.write_bytes(content)
    words = "expected JPEG, PNG, WebP, TIFF or the like; convert it to one of these"
    text = refused(lambda: decode(file))
    said(words, text)
    named = re.findall(r"[A-Z][A-Za-z]+", text[text.index("expected") :].partition(" or ")[0])
    assert len(named) == 4
    for form in named:
        Image.fromarray(BYTES).save(file, format=form.upper())
        decode(file)


@follows("export it as JPEG or PNG")
def test_another_kind_of_file_exported(tmp_path: Path) -> None:
    file = tmp_path / "page.pdf"
    Image.fromarray(BYTES).save(file)
    said("export it as JPEG or PNG", refused(lambda: decode(file)))
    for suffix in (".jpg", ".png"):
        Image.fromarray(BYTES).save(file.with_suffix(suffix))
        decode(file.with_suffix(suffix))


@follows("unpack it", "unpack it first")
def test_archives_unpacked(tmp_path: Path) -> None:
    import gzip

    file = photo(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "inside.png")
    said("unpack it", refused(lambda: decode(tmp_path / "a.zip")))
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path)
    decode(tmp_path / "inside.png")
    (tmp_path / "a.png.gz").write_bytes(gzip.compress(file.read_bytes()))
    said("unpack it first", refused(lambda: decode(tmp_path / "a.png.gz")))
    (tmp_path / "b.png").write_bytes(gzip.decompress((tmp_path / "a.png.gz").read_bytes()))
    decode(tmp_path / "b.png")


@follows("give the array that numpy.load makes of it, or export it as PNG")
def test_an_array_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, BYTES)
    text = refused(lambda: decode(file))
    said("give the array that numpy.load makes of it, or export it as PNG", text)
    array = evaluated(taken(r"(numpy\.\w+)", text))(file)
    decode(array)
    Image.fromarray(array).save(tmp_path / "a.png")
    decode(tmp_path / "a.png")


@follows('pip install "verydeep[heif]" to read HEIC', "pip install -U pillow")
def test_formats_that_a_package_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heic, avif = tmp_path / "a.heic", tmp_path / "a.avif"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    monkeypatch.setattr(decoding, "reads_heif", lambda: False)
    text = refused(lambda: decode(heic))
    said('pip install "verydeep[heif]" to read HEIC', text)
    assert "pillow-heif" in brought(taken('(pip install ".*?")', text))
    here = features.check("avif")
    avif.write_bytes(b"\0\0\0\x18ftypavif" + bytes(50))
    with monkeypatch.context() as old:
        old.setattr(features, "check", lambda _: False)
        said("pip install -U pillow", refused(lambda: decode(avif)))
    if here:  # Pillow 11.3 or later, which is said to read it
        Image.fromarray(BYTES).save(avif)
        decode(avif)


@follows("fetch it again")
def test_a_page_in_place_of_a_photo(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_text("<!doctype html><p>404")
    said("fetch it again", refused(lambda: decode(file)))
    decode(photo(file))


@follows("download it first", "check the path", "; check the path")
def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    url = photo(tmp_path / "a.png").as_uri()
    said("download it first", refused(lambda: decode(url)))
    from urllib.request import urlretrieve

    decode(urlretrieve(url, tmp_path / "b.png")[0])
    said("check the path", refused(lambda: decode(tmp_path / "c.png")))
    said("; check the path", refused(lambda: decode(f"{tmp_path}/a\0.png")))
    decode(tmp_path / "a.png")


@follows("give the files in it")
def test_a_folder_in_place_of_a_photo(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    said("give the files in it", refused(lambda: decode(tmp_path)))
    for file in tmp_path.iterdir():
        decode(file)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="has no devices in folders")
@follows("give an image file")
def test_a_device_in_place_of_a_photo(tmp_path: Path) -> None:
    said("give an image file", refused(lambda: decode("/dev/null")))
    decode(photo(tmp_path / "a.png"))


@follows("change its permissions, or give a copy")
def test_a_photo_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = photo(tmp_path / "a.png")
    words = "change its permissions, or give a copy"
    with monkeypatch.context() as patched:

        def closed(path: object, mode: str = "r") -> io.BytesIO:
            if path == file:
                raise PermissionError(13, "Permission denied")
            return open(path, mode)  # type: ignore[arg-type,call-overload,no-any-return]

        patched.setattr(decoding, "open", closed, raising=False)
        said(words, refused(lambda: decode(file)))
        decode(shutil.copy(file, tmp_path / "copy.png"))
    decode(file)


@follows("convert pictures to JPEG or PNG")
def test_pictures_that_are_not_read_converted(tmp_path: Path, verydeep: Run, model: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "a.png")
    (folder / "b.cr2").write_bytes(b"a camera's own")
    before = verydeep("classify", "--model", model, folder)
    said("convert pictures to JPEG or PNG", before.err)
    (folder / "b.cr2").unlink()
    photo(folder / "b.jpg", seed=1)
    after = verydeep("classify", "--model", model, folder)
    assert after.status == 0
    assert "b.jpg" in after.out
    assert "not used" not in after.err


@follows("; scale it down first; a program that trusts it may raise PIL.Image.MAX_IMAGE_PIXELS")
def test_more_pixels_than_are_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    file, small = photo(tmp_path / "a.png"), tmp_path / "small.png"
    words = "; scale it down first; a program that trusts it may raise PIL.Image.MAX_IMAGE_PIXELS"
    command = ("classify", "--model", model)
    text = verydeep(*command, file).err
    said(words, text)
    Image.fromarray(BYTES[:20, :20]).save(small)
    assert verydeep(*command, small).status == 0
    monkeypatch.setattr(taken(r"may raise (\S+)", text), 48 * 64)
    decode(file)


@follows("; scale it down first")
def test_a_photo_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = photo(tmp_path / "a.png")
    load = Image.Image.load

    def full(image: Image.Image) -> Any:
        if image.width > 40:
            raise MemoryError
        return load(image)

    small = Image.open(file).resize((40, 30))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
    said("; scale it down first", refused(lambda: decode(file)))
    decode(small)


@follows("; crop it first, or ask for a smaller size")
def test_a_photo_so_long_that_it_would_grow(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    file = photo(tmp_path / "a.png", 4, 90)
    command = ("classify", "--model", model, file, "--size")
    said("; crop it first, or ask for a smaller size", verydeep(*command, 100).err)
    assert verydeep(*command, 40).status == 0
    photo(file, 20, 20)
    assert verydeep(*command, 100).status == 0
    said("; crop it first, or ask for a smaller size", verydeep(*command, 400).err)


@follows("ask for a smaller size")
def test_a_size_that_memory_cannot_hold(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    resize = Image.Image.resize

    def full(image: Image.Image, size: tuple[int, int], *more: Any) -> Image.Image:
        if max(size) > 100:
            raise MemoryError
        return resize(image, size, *more)

    monkeypatch.setattr(Image.Image, "resize", full)
    words = ("classify", "--model", model, photo(tmp_path / "a.jpg"), "--size")
    said("ask for a smaller size", verydeep(*words, 200).err)
    assert verydeep(*words, 60).status == 0


@follows("expected at least 1 x 1")
def test_an_image_of_nothing() -> None:
    said("expected at least 1 x 1", refused(lambda: decode(Image.new("RGB", (0, 3)))))
    decode(Image.new("RGB", (1, 1)))


# Arrays and tensors


@follows(
    "write image.permute(2, 0, 1)", "write image.transpose(1, 2, 0)", "write image.astype('uint8') * 255",
    "write image.byte() * 255", "give it a colour, as image.filled(0) does",
)  # fmt: skip
def test_lines_to_write() -> None:
    for image, words in (
        (torch.from_numpy(BYTES), "write image.permute(2, 0, 1)"),
        (BYTES.transpose(2, 0, 1), "write image.transpose(1, 2, 0)"),
        (BYTES > 99, "write image.astype('uint8') * 255"),
        (torch.from_numpy(BYTES > 99).permute(2, 0, 1), "write image.byte() * 255"),
        (np.ma.masked_less(BYTES, 99), "give it a colour, as image.filled(0) does"),
    ):
        text = refused(lambda image=image: decode(image))  # type: ignore[misc]
        said(words, text)
        line = taken(r"(image\.(?:.+\)|.+ \* 255))", text)
        assert decode(evaluated(line, image=image)).size == (44, 40)  # type: ignore[union-attr]


@follows(
    "cannot become an array ({}); give numpy's", "give one image, with at least one pixel",
    "give the images of a batch one by one",
    "give uint8", "expected numbers, uint8, uint16 or float; {}", "expected (channels, height, width)",
    "expected (height, width) or (height, width, 1, 3 or 4), for tensors (1, 3 or 4, height, width",
    "expected a path, the bytes of an image file, a PIL image, an array or a tensor",
)  # fmt: skip
def test_what_an_image_may_be(tmp_path: Path) -> None:
    class Odd:
        __array_interface__ = "nonsense"

    said("cannot become an array ({}); give numpy's", refused(lambda: decode(Odd())))  # type: ignore[arg-type]
    said("give one image, with at least one pixel", refused(lambda: decode(BYTES[:0])))
    tensor = torch.zeros(8, 3, 20)  # which has no line that makes one of it
    said("give one image, with at least one pixel", refused(lambda: decode(tensor)))
    batch = np.stack([BYTES, BYTES])
    said("give the images of a batch one by one", refused(lambda: decode(batch)))
    for image in batch:
        decode(image)
    text = refused(lambda: decode(BYTES.astype(str)))
    said("give uint8", text)
    (more,) = said("expected numbers, uint8, uint16 or float; {}", text)
    assert more == "give uint8"
    for dtype in ("uint8", "uint16", "float32", "float64"):
        decode(BYTES.astype(dtype), range=(0, 255))
    last = torch.from_numpy(BYTES)
    said("expected (channels, height, width)", refused(lambda: decode(last)))
    decode(last.permute(2, 0, 1))
    shapes = "expected (height, width) or (height, width, 1, 3 or 4), for tensors (1, 3 or 4, height, width"
    said(shapes, refused(lambda: decode(BYTES[:, :, :2])))
    for shape in ((40, 44), (40, 44, 1), (40, 44, 3), (40, 44, 4)):
        decode(np.zeros(shape, np.uint8))
        decode(torch.zeros(shape[2:] + shape[:2], dtype=torch.uint8))
    kinds = "expected a path, the bytes of an image file, a PIL image, an array or a tensor"
    said(kinds, refused(lambda: decode(3)))  # type: ignore[arg-type]
    file = photo(tmp_path / "a.png")
    for one in (
        file,
        str(file),
        file.read_bytes(),
        Image.fromarray(BYTES),
        BYTES,
        last.permute(2, 0, 1),
    ):
        decode(one)


# Black and white


@follows(
    "convert it to 8 or 16 bits, or name black and white to what takes a range, as in range=(0, 1)"
)
def test_range_is_taken_as_it_is_advised(tiny: Predictor, verydeep: Run, tmp_path: Path) -> None:
    words = "convert it to 8 or 16 bits, or name black and white to what takes a range, as in range=(0, 1)"
    text = refused(lambda: tiny(COLOUR))
    said(words, text)
    keyword, value = taken(r"as in (\w+=.*)", text).split("=")
    black_white = {keyword: ast.literal_eval(value)}
    answer = tiny(COLOUR, **black_white)
    assert tiny(BYTES).label == answer.label
    for verb in (tiny.scores, tiny.features, partial(package.explain, tiny),
                 partial(package.show, tiny, size=40)):  # fmt: skip
        said(words, refused(lambda verb=verb: verb(COLOUR)))  # type: ignore[misc]
        verb(COLOUR, **black_white)
    assert package.explain(tiny, COLOUR, range="0..1").label == answer.label
    shown = package.show(tiny, COLOUR, size=40, **black_white).answer
    assert shown
    assert shown.label == answer.label
    # a file of floats, which a command can only be given converted
    Image.fromarray(GREY).save(tmp_path / "a.tif")
    command = ("classify", "--model", tiny.model.path)
    said(words, verydeep(*command, tmp_path / "a.tif").err)
    for dtype, most in (("uint8", 255), ("uint16", 65535)):
        Image.fromarray((GREY * most).astype(dtype)).save(tmp_path / f"{dtype}.png")
        assert verydeep(*command, tmp_path / f"{dtype}.png").status == 0


@follows("expected (black, white), as in (0, 1), or {}")
def test_ranges_that_are_none(tiny: Predictor) -> None:
    for wrong in ("0-1", (1, 0), 3):
        text = refused(lambda wrong=wrong: tiny(COLOUR, range=wrong))  # type: ignore[misc]
        (names,) = said("expected (black, white), as in (0, 1), or {}", text)
        for right in ((0, 1), *names.split(" or ")):
            tiny(COLOUR, range=right)


@follows(
    "replace them, as with numpy.nan_to_num",
    "; clip them, or name the black and white that they have to what takes a range",
)
def test_values_outside_their_range() -> None:
    odd = COLOUR.copy()
    odd[0, 0] = np.nan
    text = refused(lambda: decode(odd, range="0..1"))
    said("replace them, as with numpy.nan_to_num", text)
    numpys, torchs = map(evaluated, taken("as with (.+)", text).split(" or "))
    decode(numpys(odd), range="0..1")
    decode(torchs(torch.from_numpy(odd).permute(2, 0, 1)), range="0..1")
    words = "; clip them, or name the black and white that they have to what takes a range"
    said(words, refused(lambda: decode(COLOUR * 2, range="0..1")))
    decode((COLOUR * 2).clip(0, 1), range="0..1")
    decode(COLOUR * 2, range=(0, 2))


# Records and sizes


@follows(
    "expected a whole number of pixels, at least 1",
    "expected a size in pixels, or resize 'none' with resize_size None",
    "expected {} finite number{}", "expected (what 0 becomes, what 255 becomes)",
    "expected numbers above 0, one a channel",
    "expected true, since the filter always grows with the scale",
    "expected (n, height, width, {}) or (height, width, {}), as Preprocess.pixels gives",
    "expected uint8, or float32 from 0 to 255, as Preprocess.pixels gives",
)  # fmt: skip
def test_records_of_preprocessing() -> None:
    def no(words: str, call: Callable[[], object]) -> tuple[str, ...]:
        return said(words, refused(call))

    no("expected a whole number of pixels, at least 1", lambda: Preprocess(crop_size=0))
    Preprocess(crop_size=1)
    words = "expected a size in pixels, or resize 'none' with resize_size None"
    no(words, lambda: Preprocess(resize="none"))
    Preprocess(resize="none", resize_size=None)
    Preprocess(resize="shorter", resize_size=20)
    (count, _) = no("expected {} finite number{}", lambda: Preprocess(mean=(0.0,)))
    Preprocess(mean=(0.0,) * {"three": 3}.get(count, 0) or (0.0,) * int(count))  # type: ignore[arg-type]
    no("expected (what 0 becomes, what 255 becomes)", lambda: Preprocess(range=(1, 1)))
    Preprocess(range=(0, 1))
    no("expected numbers above 0, one a channel", lambda: Preprocess(std=(0.0, 1.0, 1.0)))
    Preprocess(std=(1.0, 1.0, 1.0))
    record = Preprocess().to_dict()
    no(
        "expected true, since the filter always grows with the scale",
        lambda: Preprocess.from_dict({**record, "antialias": False}),
    )
    Preprocess.from_dict({**record, "antialias": True})
    words = "expected (n, height, width, {}) or (height, width, {}), as Preprocess.pixels gives"
    text = refused(lambda: Preprocess().normalise(np.zeros((4, 4), np.uint8)))
    n, c = said(words, text)
    Preprocess().normalise(np.zeros((2, 4, 4, int(n)), np.uint8))
    Preprocess().normalise(np.zeros((4, 4, int(c)), np.uint8))
    words = "expected uint8, or float32 from 0 to 255, as Preprocess.pixels gives"
    said(words, refused(lambda: Preprocess().normalise(BYTES.astype(int))))
    Preprocess().normalise(BYTES)
    Preprocess().normalise(BYTES.astype(np.float32))
    Preprocess().normalise(Preprocess().pixels(BYTES))


@follows(
    'expected pixels a side, (height, width), "own", or None for the model\'s own resize',
    "; resize the images, or give a record that does",
)
def test_sizes(tiny: Predictor) -> None:
    words = 'expected pixels a side, (height, width), "own", or None for the model\'s own resize'
    said(words, refused(lambda: tiny.features(BYTES, size="all")))  # type: ignore[arg-type]
    for size in (40, (40, 44), "own", None):
        tiny.features(BYTES, size=size)  # type: ignore[arg-type]
    bare = Preprocess(resize="none", resize_size=None, crop_size=None)
    said(
        "; resize the images, or give a record that does",
        refused(lambda: sized(bare, 40)),
    )
    small = np.asarray(Image.fromarray(BYTES).resize((40, 40)))
    assert (
        bare.pixels(small).shape[:2] == sized(Preprocess(), 40).pixels(BYTES).shape[:2] == (40, 40)
    )
