"""JPEG files by simplejpeg: Pillow's pixels to the last bit, or left to Pillow; with it and without.

And what precisions other than "exact" make of large photos.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile, ImageOps

from verydeep import load
from verydeep.errors import ImageError
from verydeep.preprocess import Preprocess, decode, decoded, jpeg

simplejpeg = pytest.importorskip("simplejpeg")
OWN = Preprocess(resize="none", resize_size=None, crop_size=None)
SIDES = [(1, 1), (1, 9), (7, 13), (16, 16), (17, 33), (8, 64), (65, 15), (100, 75), (131, 257)]


@pytest.fixture(autouse=True)
def room_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # or PIL cannot write progressive noise


@pytest.fixture
def decoded_by_us(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each file that was decoded, whether it was not left to Pillow."""
    said: list[bool] = []
    array = jpeg.array

    def seen(image: Image.Image, file: Any) -> np.ndarray | None:
        pixels = array(image, file)
        said.append(pixels is not None)
        return pixels

    monkeypatch.setattr(jpeg, "array", seen)
    return said


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise over a slope: edges, flat parts, and colours out of YCbCr's range."""
    luck = np.random.default_rng(seed)
    slope = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    wild = luck.integers(0, 256, (height, width, 3))
    return Image.fromarray(
        np.where(luck.random((height, width, 1)) < 0.3, wild, slope).astype(np.uint8)
    )


def encoded(image: Image.Image, **choices: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, choices.pop("format", "JPEG"), **choices)
    return file.getvalue()


def same(data: bytes) -> None:
    """The pixels are those of Pillow alone."""
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    for pixels in decoded(data), OWN.pixels(data):
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert_array_equal(pixels, expected)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_every_sampling_and_size(
    sides: tuple[int, int], progressive: bool, sampling: str, decoded_by_us: list[bool]
) -> None:
    for quality in (20, 90, 100):
        choices = {"progressive": progressive, "subsampling": sampling, "quality": quality}
        same(encoded(picture(*sides), **choices))
        same(encoded(picture(*sides).convert("L"), progressive=progressive, quality=quality))
    assert all(decoded_by_us)
    assert len(decoded_by_us) == 12


@pytest.mark.parametrize("sampling", ["440", "411"])
def test_samplings_that_pillow_does_not_write(sampling: str, decoded_by_us: list[bool]) -> None:
    for sides in SIDES:
        noise = np.asarray(picture(*sides))
        same(simplejpeg.encode_jpeg(noise, colorsubsampling=sampling, quality=70))
    assert all(decoded_by_us)


@pytest.mark.parametrize("blocks", [1, 3])
def test_restart_intervals_profiles_thumbnails_and_what_follows(
    blocks: int, decoded_by_us: list[bool]
) -> None:
    photo = picture(75, 100)
    same(encoded(photo, restart_marker_blocks=blocks))
    same(encoded(photo, restart_marker_rows=blocks, progressive=True))
    same(encoded(photo, icc_profile=bytes(100_000)))  # in two pieces; not applied
    same(encoded(photo, comment=b"\xff\xd8\xff\xd9" * 9))
    thumbnail = encoded(picture(10, 12, seed=1))
    maker = b"http://ns.adobe.com/xap/1.0/\0" + thumbnail
    plain = encoded(photo)
    same(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(maker) + 2) + maker + plain[2:])
    same(plain + bytes(1000))
    same(plain + thumbnail)
    same(plain + b"MotionPhoto" * 99)
    same(encoded(photo, format="MPO", save_all=True, append_images=[picture(30, 40)]))
    assert all(decoded_by_us)


@pytest.mark.parametrize("orientation", range(10))
def test_turned_the_same(orientation: int, decoded_by_us: list[bool]) -> None:
    photo = picture(48, 72)
    exif = photo.getexif()
    exif[0x0112] = orientation
    data = encoded(photo, exif=exif)
    assert decode(data).size == ((48, 72) if orientation in (5, 6, 7, 8) else (72, 48))
    same(data)
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'
    same(encoded(photo, xmp=xmp.encode()))
    assert decoded_by_us[-1]


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(40, 50).convert("CMYK")),
        encoded(picture(40, 50), keep_rgb=True),
        simplejpeg.encode_jpeg(np.asarray(picture(40, 50).convert("CMYK")), colorspace="CMYK"),
        encoded(picture(40, 50), format="PNG"),
        encoded(picture(40, 50), format="WEBP"),
        encoded(picture(40, 50).convert("L"), format="TIFF", compression="jpeg"),
    ],
    ids=["CMYK", "RGB", "YCCK", "PNG", "WebP", "TIFF"],
)
def test_other_colours_and_formats_are_left_to_pillow(
    data: bytes, decoded_by_us: list[bool]
) -> None:
    same(data)
    assert not any(decoded_by_us)


def test_what_a_range_is_given_for_is_left_to_pillow(decoded_by_us: list[bool]) -> None:
    data = encoded(picture(60, 81))
    assert decoded(data, range=(0, 255)).dtype == np.uint8
    assert decoded(data, range=(-5, 300)).dtype == np.float32
    grey = Preprocess("none", None, 28, channel_order="L", mean=(0.5,), std=(0.25,))
    assert_array_equal(grey.pixels(data), grey.pixels(Image.open(io.BytesIO(data))))
    cropped = Preprocess("none", None, 28)
    assert_array_equal(cropped.pixels(data), cropped.pixels(Image.open(io.BytesIO(data))))
    assert decoded_by_us == [True]


def outcome(data: bytes) -> Any:
    try:
        return decoded(data).tolist()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_and_truncated_files_are_what_pillow_makes_of_them(
    progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture(40, 56), progressive=progressive, exif=exif)
    luck = np.random.default_rng(5)
    damaged = [whole[:length] for length in range(0, len(whole), 61)]
    damaged += [whole[: len(whole) * 3 // 4] + b"\xff\xd9"]
    for _ in range(120):
        data = bytearray(whole)
        for place in luck.integers(0, len(whole), luck.integers(1, 4)):
            data[place] = luck.integers(256)
        damaged.append(bytes(data))
    ours = [outcome(data) for data in damaged]
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    theirs = [outcome(data) for data in damaged]
    assert ours == theirs
    assert sum(isinstance(said, str) for said in ours) > 20


def test_samplings_that_nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(picture(40, 56), subsampling="4:4:4")
    at = whole.index(b"\xff\xc0") + 11  # sampling of the first of three components
    luck = np.random.default_rng(6)
    odd = []
    for _ in range(150):
        data = bytearray(whole)
        for component in range(3):
            high, wide = luck.integers(0, 5, 2)
            data[at + 3 * component] = high * 16 + wide
        odd.append(bytes(data))
    ours = [outcome(data) for data in odd]
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    assert ours == [outcome(data) for data in odd]


def test_progressive_files_that_lack_scans(decoded_by_us: list[bool]) -> None:
    """libjpeg smooths what it does not know yet, and does not complain."""
    whole = encoded(picture(64, 80), progressive=True, quality=95)
    scans = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for at in scans[1:]:
        same(whole[:at] + b"\xff\xd9")
    assert decoded_by_us


def test_limits_hold_before_pixels_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    monkeypatch.setattr(jpeg, "array", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="larger than 1400 pixels"):
        decoded(data)


def test_a_file_too_large_to_be_read_whole(
    monkeypatch: pytest.MonkeyPatch, decoded_by_us: list[bool]
) -> None:
    monkeypatch.setattr(jpeg, "MOST_BYTES", 1000)
    same(encoded(picture(40, 50)))
    assert not any(decoded_by_us)


def test_a_decoder_that_differs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, decoded_by_us: list[bool]
) -> None:
    jpeg._agrees.cache_clear()
    right = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *given: right(*given) ^ 1)
    try:
        same(encoded(picture(40, 50)))
    finally:
        jpeg._agrees.cache_clear()
    assert not any(decoded_by_us)


@pytest.mark.parametrize(
    "why", ["not installed", "broken", "half-removed", "another libjpeg", "an old one"]
)
def test_without_it_all_is_the_same(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded_by_us: list[bool]
) -> None:
    jpeg._simplejpeg.cache_clear()
    if why == "not installed":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    elif why in ("broken", "half-removed"):
        (tmp_path / "simplejpeg").mkdir()
        if why == "broken":
            (tmp_path / "simplejpeg" / "__init__.py").write_text("raise SystemError('no such ABI')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "simplejpeg")
    elif why == "another libjpeg":
        monkeypatch.setattr("PIL.features.check", lambda _: False)
    else:
        monkeypatch.setattr("PIL.features.version", lambda _: "2.0.6")
    try:
        same(encoded(picture(40, 50)))
    finally:
        jpeg._simplejpeg.cache_clear()
    assert not any(decoded_by_us)


def test_threads_decode_at_once() -> None:
    files = [encoded(picture(300, 400, seed)) for seed in range(6)]
    expected = [decoded(file) for file in files]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            assert_array_equal(list(pool.map(decoded, files)), expected)


# Large photos in other precisions

CROPPED = Preprocess(resize_size=37, crop_size=32)
PHOTOS = sorted(Path("examples/photos").absolute().glob("*.jpg"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize(
    "sides",
    [(300, 400), (400, 300), (150, 700), (311, 293), (450, 300)],
    ids=str,
)
def test_only_what_the_crop_keeps_is_resized(sides: tuple[int, int], interpolation: Any) -> None:
    record = Preprocess(resize_size=37, crop_size=32, interpolation=interpolation)
    for seed in range(3):
        photo = picture(*sides, seed)
        assert record._is_cut(photo, record._resized_size(*sides))
        whole = record.pixels(photo)
        middle = record.pixels(photo, precision="half")
        assert whole.shape == middle.shape == (32, 32, 3)
        apart = np.abs(whole.astype(int) - middle)
        assert apart.max() <= 1
        assert apart.mean() < 0.01


@pytest.mark.parametrize(
    ("record", "sides"),
    [
        (CROPPED, (50, 70)),  # not much larger
        (CROPPED, (70, 60)),
        (CROPPED, (500, 310)),  # much taller than wide
        (CROPPED, (20, 30)),  # smaller than the crop
        (Preprocess(resize_size=37, crop_size=32, interpolation="nearest"), (300, 400)),
        (Preprocess(resize_size=37, crop_size=32, detail=35), (300, 400)),
        (Preprocess(resize_size=32, crop_size=32), (300, 300)),  # nothing is cut off
        (Preprocess(resize_size=32, crop_size=48), (300, 400)),  # padded
        (Preprocess("exact", 32, None), (300, 400)),
        (Preprocess("none", None, 32), (300, 400)),
    ],
)
def test_all_else_is_pillows(record: Preprocess, sides: tuple[int, int]) -> None:
    for source in (picture(*sides), encoded(picture(*sides)), np.asarray(picture(*sides))):
        assert_array_equal(record.pixels(source, precision="half"), record.pixels(source))
    values = np.asarray(picture(*sides)) / 255
    for precision in ("fast", "half"):
        assert_array_equal(
            record.pixels(values, range=(0, 1), precision=precision),
            record.pixels(values, range=(0, 1)),
        )


@pytest.mark.parametrize("sides", [(300, 400), (400, 300), (700, 90), (50, 60)], ids=str)
def test_fast_has_the_pixels_of_exact(sides: tuple[int, int]) -> None:
    data = encoded(picture(*sides))
    assert_array_equal(CROPPED.pixels(data, precision="fast"), CROPPED.pixels(data))


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_files_are_decoded_smaller_in_int8(orientation: int) -> None:
    record = Preprocess(resize_size=24, crop_size=None)
    for sides, times in (
        ((192, 256), 2), ((190, 250), 1), ((194, 250), 2), ((193, 250), 1), ((400, 404), 4),
        ((400, 402), 2), ((768, 1024), 8), ((240, 800), 2),
    ):  # fmt: skip
        photo = picture(*sides)
        exif = photo.getexif()
        exif[0x0112] = orientation
        data = encoded(photo, exif=exif)
        drafted = Image.open(io.BytesIO(data))
        drafted.draft(None, (sides[1] // times, sides[0] // times))
        assert drafted.size == (sides[1] // times, sides[0] // times)
        assert_array_equal(record.pixels(data, precision="int8"), record.pixels(drafted))
        assert_array_equal(record.pixels(data, precision="half"), record.pixels(data))
        lossless = encoded(photo, format="PNG")
        assert_array_equal(record.pixels(lossless, precision="int8"), record.pixels(lossless))
    for other in (
        Preprocess("exact", (24, 32), None), Preprocess("none", None, 24),
        Preprocess(resize_size=24, crop_size=None, detail=16),
    ):  # fmt: skip
        data = encoded(picture(400, 400))
        assert_array_equal(other.pixels(data, precision="int8"), other.pixels(data))


def test_scores_and_features_of_real_photos_are_within_the_promise() -> None:
    predictor = load(size=32, engine="onnxruntime", precision="exact")
    record = predictor.preprocess
    layers = ["relu1_2", "relu3_3", "relu5_3"]
    expected, features = predictor.scores(PHOTOS), predictor.features(PHOTOS, layers)
    pixels = [record.pixels(photo, precision="half") for photo in PHOTOS]
    apart = np.abs(predictor.scores(pixels) - expected).max() / np.abs(expected).max()
    assert apart <= 3e-3  # of 3e-2: the rest is the engine's
    for layer, values in predictor.features(pixels, layers).items():
        apart = np.linalg.norm(values - features[layer]) / np.linalg.norm(features[layer])
        assert apart <= 3e-3, layer
    rough = predictor.scores([record.pixels(photo, precision="int8") for photo in PHOTOS])
    assert (rough != expected).any(1).all()
    assert (rough.argmax(1) == expected.argmax(1)).mean() >= 0.9  # of nine


@pytest.mark.parametrize("precision", ["exact", "fast", "half"])
def test_a_predictor_prepares_photos_for_its_precision(precision: str) -> None:
    predictor = load(size=32, engine="onnxruntime", precision=precision)
    (photo,) = PHOTOS[:1]
    asked = predictor._pass((), scores=True)
    _, pixels = predictor._prepared(photo, asked)
    assert_array_equal(pixels, predictor.preprocess.pixels(photo, precision=precision))
