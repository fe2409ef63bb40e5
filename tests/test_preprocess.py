"""The pixels are torchvision's, whatever form the image comes in; what is no image gets one line."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageCms, ImageOps, features
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms._presets import ImageClassification

from verydeep.errors import ImageError, PreprocessError
from verydeep.preprocess import (
    CAFFE,
    FEATURES,
    LPIPS,
    PRESETS,
    TORCHVISION,
    Preprocess,
    decode,
    decoded,
    decoding,
    sized,
)

AS_IS = Preprocess(resize="none", resize_size=None, crop_size=None)
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **choices: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **choices)
    return file.getvalue()


def rgb_of(source: Any, **choices: Any) -> np.ndarray:
    return np.asarray(decode(source, **choices))


def message(source: Any, **choices: Any) -> str:
    """The text of the ImageError that decode() raises: one line, that any terminal can print."""
    with pytest.raises(ImageError) as caught:
        decode(source, **choices)
    text = str(caught.value)
    assert text.isprintable()
    return text


# Equal to torchvision

sides = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(
    height=sides,
    width=sides,
    resize=sides,
    crop=sides,
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 9),
)
def test_pixels_and_input_are_torchvisions_to_the_last_bit(
    height: int, width: int, resize: int, crop: int, interpolation: str, seed: int
) -> None:
    image = Image.fromarray(noise(height, width, seed=seed))
    mode = InterpolationMode(interpolation)
    record = Preprocess(resize_size=resize, crop_size=crop, interpolation=interpolation)
    pixels = record.pixels(image)
    resized = F.center_crop(F.resize(image, [resize], interpolation=mode), [crop])
    assert pixels.dtype == np.uint8
    assert_array_equal(pixels, np.asarray(resized))
    transform = ImageClassification(crop_size=crop, resize_size=resize, interpolation=mode)
    assert_array_equal(record.normalise(pixels)[0], transform(image).numpy())


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
@pytest.mark.parametrize("suffix", ["", "_bn"])
def test_the_preset_is_that_of_every_published_weight(name: str, suffix: str) -> None:
    image = Image.fromarray(noise(301, 277))
    weights = models.get_model_weights(name + suffix)
    for weight in weights:
        record = FEATURES if weight.name == "IMAGENET1K_FEATURES" else TORCHVISION
        expected = weight.transforms()(image).numpy()
        assert_array_equal(record.normalise(record.pixels(image))[0], expected)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (64, 64)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_exact_makes_both_sides_equal(size: tuple[int, int], interpolation: str) -> None:
    image = Image.fromarray(noise(*size))
    record = Preprocess("exact", 64, None, interpolation)
    expected = F.resize(image, [64, 64], interpolation=InterpolationMode(interpolation))
    assert_array_equal(record.pixels(image), np.asarray(expected))


# The same pixels from everything


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("record", [TORCHVISION, CAFFE, LPIPS, AS_IS])
def test_file_bytes_pil_array_and_tensor_agree(
    channels: int, record: Preprocess, tmp_path: Path
) -> None:
    array = noise(41, 67, channels)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    path = tmp_path / "image.png"
    image.save(path)
    tensor = torch.from_numpy(array)
    if channels:
        tensor = tensor.permute(2, 0, 1)
    expected = record.pixels(image)
    if record is AS_IS:
        assert_array_equal(expected, np.asarray(image.convert("RGB")))
    flipped = array[::-1].copy()[::-1]  # negative strides
    forms = [path, str(path), path.read_bytes(), bytearray(path.read_bytes())]
    forms += [memoryview(path.read_bytes()), array, flipped, np.asfortranarray(array)]
    forms += [tensor, tensor.contiguous(), HasInterface(array), HasArray(array), HasDlpack(array)]
    for form in forms:
        assert_array_equal(record.pixels(form), expected)


class HasInterface:
    """An image of another library that offers ``__array_interface__`` only; below, the others."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class HasArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        assert dtype is None
        assert copy is None
        return self.array


class HasDlpack:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **how: Any) -> object:
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(60, 80), (80, 60)])
def test_floats_are_within_2_of_255_of_the_8_bit_pixels(
    interpolation: str, size: tuple[int, int]
) -> None:
    array = noise(*size)
    for resize in (25, 140):
        record = Preprocess(resize_size=resize, crop_size=None, interpolation=interpolation)
        expected = record.pixels(array)
        as_float = record.pixels(array / 255, range=(0, 1))
        signed = record.pixels(array.astype(np.float32) / 127.5 - 1, range=(-1, 1))
        deep = record.pixels(array.astype(np.uint16) * 257)
        assert as_float.dtype == signed.dtype == deep.dtype == np.float32
        assert_allclose(as_float, expected.astype(float), atol=2, rtol=0)
        assert_allclose(signed, as_float, atol=1e-3)
        assert_allclose(deep, as_float, atol=1e-3)


def test_floats_are_filtered_as_pil_filters_them() -> None:
    array = noise(50, 70).astype(np.float32)
    planes = [Image.fromarray(array[..., i]).resize((28, 20), 2) for i in range(3)]
    expected = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    record = Preprocess(resize_size=20, crop_size=None)
    assert_allclose(record.pixels(array, range=(0, 255)), expected, atol=1e-3)


def test_nothing_changes_its_input_and_the_pixels_are_ours() -> None:
    array = noise(20, 20)
    array.flags.writeable = False
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    image = Image.fromarray(array)
    floats = torch.rand(3, 20, 20, requires_grad=True)
    for source, choices in [
        (array, {}),
        (tensor, {}),
        (image, {}),
        (floats, {"range": (0, 1)}),
        (array / 255, {"range": (0, 1)}),
    ]:
        plain = source.detach().numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
        before = plain.copy()
        pixels = AS_IS.pixels(source, **choices)
        pixels[:] = 7
        TORCHVISION.normalise(pixels)
        assert (pixels == 7).all()
        again = source.detach().numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
        assert_array_equal(again, before)
    assert floats.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_float(dtype: torch.dtype) -> None:
    tensor = torch.linspace(0, 1, 60, dtype=dtype).reshape(3, 4, 5)
    expected = tensor.double().permute(1, 2, 0).numpy() * 255
    assert_allclose(rgb_of(tensor, range=(0, 1)), expected, atol=1e-4)


# Modes and formats


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_is_what_convert_makes_of_it(mode: str) -> None:
    rgba = Image.fromarray(noise(12, 17, 4))
    image = rgba.convert("LA" if mode == "PA" else "RGBA" if mode == "RGBa" else "RGB")
    image = image.convert(mode)
    if mode == "RGBA":
        image = rgba
    assert image.mode == mode
    assert_array_equal(rgb_of(image), np.asarray(image.convert("RGB")))


def test_transparent_pixels_show_the_colour_stored_under_them() -> None:
    rgba = noise(8, 8, 4)
    rgba[..., 3] = 0
    assert_array_equal(rgb_of(encoded(Image.fromarray(rgba))), rgba[..., :3])
    palette = Image.fromarray(noise(8, 8)).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes(range(16))):  # bytes: PIL warns of these
        assert_array_equal(rgb_of(encoded(palette, transparency=transparency)), expected)


def test_premultiplied_grey() -> None:
    image = Image.merge("LA", [Image.new("L", (3, 2), 100), Image.new("L", (3, 2), 255)])
    assert_array_equal(rgb_of(image.convert("La")), np.full((2, 3, 3), 100))


def test_lab_is_converted_as_colour_management_does() -> None:
    colours = np.array([[[255, 0, 0], [0, 128, 0], [200, 200, 200], [20, 40, 90]]], np.uint8)
    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colours), rgb, lab, outputMode="LAB")
    assert image is not None
    # sRGB red under D50 has L* 54.3, which is stored as 255 / 100 of it
    assert image.getpixel((0, 0))[0] == pytest.approx(54.3 * 2.55, abs=1)
    assert_allclose(rgb_of(image).astype(int), colours.astype(int), atol=6)  # 8 bits of a* and b*


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_formats(kind: str) -> None:
    data = encoded(Image.fromarray(noise(19, 23)), kind)
    assert_array_equal(rgb_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_jpegs_are_decoded_in_full() -> None:
    """No draft mode: a large photo is decoded at its full size and then resized."""
    large = Image.fromarray(noise(40, 50)).resize((1000, 800), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG")
    record = Preprocess(resize_size=64, crop_size=56)
    expected = F.center_crop(F.resize(Image.open(io.BytesIO(data)), [64]), [56])
    assert_array_equal(record.pixels(data), np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(kind: str, orientation: int) -> None:
    image = Image.fromarray(noise(6, 9).repeat(8, 0).repeat(8, 1))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(opened))
    assert expected.shape[:2] == ((72, 48) if orientation in (5, 6, 7, 8) else (48, 72))
    assert_array_equal(rgb_of(data), expected)
    assert_array_equal(rgb_of(Image.open(io.BytesIO(data))), expected)
    assert_array_equal(rgb_of(decode(data)), expected)  # turned once


def test_exif_orientation_of_16_bits_and_palettes() -> None:
    deep = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 257)
    exif = deep.getexif()
    exif[0x0112] = 6
    assert_array_equal(rgb_of(encoded(deep, exif=exif))[..., 0], [[3, 0], [4, 1], [5, 2]])
    palette = Image.fromarray(noise(8, 5)).quantize(8)
    expected = np.asarray(palette.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    assert_array_equal(rgb_of(encoded(palette, exif=exif)), expected)


def test_damaged_exif_does_not_cost_the_image() -> None:
    array = noise(8, 8)
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0" + bytes(40),
        b"nonsense",
    ):
        data = encoded(Image.fromarray(array), exif=exif)
        assert_array_equal(rgb_of(data), array)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    colours = [(200, 30, 10), (10, 220, 40), (30, 20, 210)]
    frames = [Image.new("RGB", (16, 12), colour) for colour in colours]
    choices = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **choices)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_array_equal(rgb_of(data), np.broadcast_to(colours[0], (12, 16, 3)))
    opened = Image.open(io.BytesIO(data))
    opened.seek(2)  # an image is used as it is shown
    assert_array_equal(rgb_of(opened), np.broadcast_to(colours[2], (12, 16, 3)))


DEEP = np.array([[0, 1, 257], [65535, 300, 40000]], np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_files_keep_their_values(kind: str) -> None:
    data = b"P5 3 2 65535\n" + DEEP.astype(">u2").tobytes()
    if kind != "PPM":
        data = encoded(Image.fromarray(DEEP), kind)
    decoded = decode(data)
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == np.float32
    assert_array_equal(decoded, np.repeat((DEEP / 257).astype(np.float32)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_16_bit_grey_in_every_order(mode: str) -> None:
    stored = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (3, 2), DEEP.astype(stored).tobytes())
    assert_allclose(rgb_of(image)[..., 1], DEEP / 257, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_arrays_and_tensors(dtype: str) -> None:
    colour = np.stack([DEEP, DEEP // 2, DEEP // 3], axis=-1).astype(dtype)
    assert_allclose(rgb_of(colour), colour / 257, rtol=1e-6)
    tensor = torch.from_numpy(colour.astype(np.uint16)).permute(2, 0, 1)
    assert_array_equal(rgb_of(tensor), rgb_of(colour))
    assert_allclose(rgb_of(DEEP // 16, range=(0, 4095))[1, 0], 255)


def test_range_says_what_is_black_and_white() -> None:
    values = np.array([[16, 126, 236]], np.uint8)
    assert_allclose(rgb_of(values, range=(16, 236))[0, :, 0], [0, 127.5, 255])
    assert_allclose(rgb_of(Image.fromarray(values), range=(16, 236))[0, :, 0], [0, 127.5, 255])
    assert_array_equal(rgb_of(values, range=(0, 255))[0, :, 0], values[0])
    grey = Image.fromarray(np.array([[-2.0, 0.5, 3.0]], np.float32))
    assert_allclose(rgb_of(encoded(grey, "TIFF"), range=(-2, 3))[0, :, 2], [0, 127.5, 255])
    wide = np.array([[1e9, 1e9 + 1]])  # beyond the digits of float32
    assert_allclose(rgb_of(wide, range=(1e9, 1e9 + 1))[0, :, 0], [0, 255])
    small = np.array([[0, 1]], np.int64)
    assert_allclose(rgb_of(small, range=(0, 1))[0, :, 0], [0, 255])


def test_grey_networks_get_one_channel() -> None:
    grey = Preprocess("shorter", 32, 28, channel_order="L", mean=(0.5,), std=(0.25,))
    array = noise(40, 50)
    expected = F.center_crop(F.resize(Image.fromarray(array).convert("L"), [32]), [28])
    assert_array_equal(grey.pixels(array)[..., 0], np.asarray(expected))
    assert grey.pixels(array).shape == (28, 28, 1)
    floats = grey.pixels(array / 255, range=(0, 1))
    assert_allclose(floats[..., 0], np.asarray(expected, float), atol=2)
    assert_allclose(
        grey.normalise(grey.pixels(array))[0, 0],
        (np.asarray(expected) / 255 - 0.5) / 0.25,
        atol=1e-6,
    )
    assert_array_equal(grey.pixels(array[..., 0]), grey.pixels(Image.fromarray(array[..., 0])))


# Normalisation, by hand


def test_normalise_by_hand() -> None:
    pixels = noise(5, 4)[None].repeat(2, axis=0)
    red, green, blue = (pixels[..., i].astype(float) for i in range(3))
    caffe = np.stack([blue - 103.939, green - 116.779, red - 123.68], axis=1)
    assert_allclose(CAFFE.normalise(pixels), caffe, atol=1e-4)
    shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    channels = (red, green, blue)
    lpips = [(c / 127.5 - 1 - m) / s for c, m, s in zip(channels, shift, scale, strict=True)]
    assert_allclose(LPIPS.normalise(pixels), np.stack(lpips, axis=1), atol=2e-6)
    paper = np.stack([red - 123.0, green - 117.0, blue - 104.0], axis=1)  # FEATURES, in other words
    assert_allclose(FEATURES.normalise(pixels), paper, atol=2e-3)
    for record in PRESETS.values():
        got = record.normalise(pixels)
        assert got.shape == (2, 3, 5, 4)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert_array_equal(record.normalise(pixels.astype(np.float32)), got)
        assert_array_equal(record.normalise(pixels[0]), got[:1])


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.zeros((4, 4), np.uint8), "(4, 4)"),
        (np.zeros((1, 3, 4, 4), np.uint8), "(1, 3, 4, 4)"),
        (np.zeros((4, 4, 1), np.uint8), "(4, 4, 1)"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
    ],
)
def test_normalise_refuses_what_pixels_does_not_give(pixels: np.ndarray, text: str) -> None:
    with pytest.raises(ImageError, match=re.escape(text)):
        TORCHVISION.normalise(pixels)


# The record


@pytest.mark.parametrize("name", PRESETS)
def test_a_record_survives_json(name: str) -> None:
    record = PRESETS[name]
    again = Preprocess.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record
    assert hash(again) == hash(record)
    assert json.loads(json.dumps(record.to_dict())) == record.to_dict()


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (20, 30)])
def test_detail_is_lost_before_an_image_is_enlarged(size: tuple[int, int]) -> None:
    record = Preprocess(resize_size=64, crop_size=None, detail=32)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    photo = Image.fromarray(pixels)
    scale = 32 / min(size)
    seen = photo
    if scale < 1:
        seen = seen.resize([round(scale * side) for side in size], Image.Resampling.BILINEAR)
    sides = [int(64 * side / min(size)) for side in size]
    expected = np.asarray(seen.resize(sides, Image.Resampling.BILINEAR))
    assert_array_equal(record.pixels(photo), expected)
    assert_allclose(  # of more than 8 bits
        record.pixels(pixels.astype(np.float32), range=(0, 255)), expected, atol=2
    )
    assert Preprocess.from_dict(record.to_dict()) == record
    assert "detail" not in TORCHVISION.to_dict()  # files say it only where it is so


def test_a_record_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TORCHVISION.crop_size = 5  # type: ignore[misc]


def test_unknown_and_missing_keys_are_refused() -> None:
    record = TORCHVISION.to_dict()
    with pytest.raises(PreprocessError, match=r"'crop_sise'.*did you mean crop_size"):
        Preprocess.from_dict({**record, "crop_sise": 224})
    del record["mean"], record["std"]
    with pytest.raises(PreprocessError, match="has no 'mean'"):
        Preprocess.from_dict(record)
    with pytest.raises(PreprocessError, match=r"is \[\]; expected a JSON object"):
        Preprocess.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resize", "longer"),
        ("resize", None),
        ("resize", "none"),  # with a size
        ("resize_size", None),  # without "none"
        ("resize_size", 0),
        ("resize_size", 256.0),
        ("crop_size", -1),
        ("crop_size", True),
        ("crop_size", "224"),
        ("interpolation", "cubic"),
        ("interpolation", ["bilinear"]),
        ("antialias", 1),
        ("antialias", None),
        ("channel_order", "GRB"),
        ("channel_order", "L"),  # with three means
        ("range", (0.0,)),
        ("range", (1.0, 0.0)),
        ("range", (0.0, float("inf"))),
        ("range", "01"),
        ("mean", (0.5,)),
        ("mean", (0.5, 0.5, "0.5")),
        ("mean", (0.5, 0.5, float("nan"))),
        ("mean", (0.5, 0.5, True)),
        ("mean", 0.5),
        ("std", (1.0, 1.0, 0.0)),
        ("std", (1.0, -1.0, 1.0)),
    ],
)
def test_values_that_make_no_sense_are_refused(key: str, value: object) -> None:
    with pytest.raises(PreprocessError) as caught:
        Preprocess.from_dict({**TORCHVISION.to_dict(), key: value})
    assert str(caught.value).isprintable()
    assert key in str(caught.value) or key == "channel_order"
    assert "expected" in str(caught.value) or "; did you mean " in str(caught.value)


def test_a_record_of_no_antialiasing_is_refused_in_one_line() -> None:
    assert TORCHVISION.to_dict()["antialias"] is True
    with pytest.raises(PreprocessError) as caught:
        Preprocess.from_dict({**TORCHVISION.to_dict(), "antialias": False})
    assert str(caught.value) == (
        "antialias is False; expected true, since the filter always grows with the scale: "
        "this verydeep has no resize without"
    )


@pytest.mark.parametrize("range_", [(0, 1), (-1, 1), (0, 255)])
def test_what_rounding_leaves_outside_the_range_is_cut_off(range_: tuple[int, int]) -> None:
    low, high = range_
    spare = (high - low) * 9e-7
    values = np.array([[[low - spare], [high + spare], [low], [high]]])
    pixels = AS_IS.pixels(values, range=range_)
    assert_array_equal(pixels[0, :, 0], [0, 255, 0, 255])
    image = torch.tensor([[[1.0 + 1.2e-7, -1e-7]]])  # as bicubic resizing in float32 gives
    assert_array_equal(AS_IS.pixels(image, range=(0, 1))[0, :, 0], [255, 0])
    with pytest.raises(ImageError, match=r"outside"):
        AS_IS.pixels(values + 3 * spare, range=range_)


@pytest.mark.parametrize(
    ("record", "size", "resize_size", "crop_size"),
    [
        (TORCHVISION, 448, 512, 448),
        (TORCHVISION, 128, 146, 128),
        (TORCHVISION, 1, 1, 1),
        (TORCHVISION, 5, 6, 5),
        (Preprocess("exact", 224, None), 96, 96, None),
        (Preprocess("none", None, 224), 96, None, 96),
        (Preprocess("shorter", 224, 224), 96, 96, 96),
    ],
)
def test_a_number_is_a_size(
    record: Preprocess, size: int, resize_size: int | None, crop_size: int | None
) -> None:
    expected = dataclasses.replace(record, resize_size=resize_size, crop_size=crop_size)
    assert sized(record, size) == expected


def test_what_is_no_size() -> None:
    with pytest.raises(PreprocessError, match="neither resizes nor crops"):
        sized(LPIPS, 64)
    for size in (0, -5, 1.5, True):
        with pytest.raises(PreprocessError, match="size is"):
            sized(TORCHVISION, size)  # type: ignore[arg-type]


# Refusals


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"hello, this is some text", "expected JPEG, PNG"),
        (b"\n <!DOCTYPE html><html>", "a web page, probably of a failed download; fetch it again"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG; export it as JPEG or PNG"),
        (b"%PDF-1.7 ...", "a PDF; export it as JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "a video; export it as JPEG"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "numpy.load"),
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "damaged"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (encoded(Image.fromarray(noise(30, 30)))[:-900], "damaged, cut short"),
        (encoded(Image.fromarray(noise(30, 30)), "JPEG")[:-300], "damaged, cut short"),
        (encoded(Image.fromarray(noise(30, 30)), "WEBP")[:-300], "damaged"),
        (encoded(Image.fromarray(noise(30, 30)), "TIFF")[:-300], "damaged"),
        (encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "range=(0, 1)"),
        (
            encoded(Image.fromarray(np.full((3, 3), 70000, np.int32)), "TIFF"),
            "from 70000 to 70000, outside 0 to 65535",
        ),
    ],
)
def test_what_is_not_an_image_is_refused_by_name(data: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert text in message(data)
    assert text in message(path)
    assert message(path).startswith(f"{path}: ")
    assert message(str(path)).startswith(f"{path}: ")
    with pytest.raises(ImageError, match=re.escape(str(path))):
        TORCHVISION.pixels(path)


def test_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.jpg"
    assert message(missing) == f"{missing}: no such file; check the path"
    assert message(missing / "deeper").startswith(f"{missing}")
    assert message("https://example.org/a.jpg").endswith("no such file; download it first")
    assert message("") == "'': no such file; check the path"
    assert message(os.devnull) == (
        f"{os.devnull}: a device or socket, not a file; give an image file"
    )
    assert message("a\0b").startswith("a\\x00b: cannot be opened")
    assert message(tmp_path) == f"{tmp_path}: a folder, not an image; give the files in it"
    assert "device" in message("/dev/null")
    assert "cannot be opened" in message(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be opened" in message(tmp_path / "loop")
    odd = tmp_path / "two\nlines"
    assert "two\\nlines: no such file" in message(odd)
    of_a_mac = str(
        tmp_path / "Screenshot at 10.00.00\u202fAM.png"
    )  # a narrow space, as macOS has it
    with pytest.raises(ImageError, match=re.escape(of_a_mac)):
        decode(of_a_mac)
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")
    assert "\\udcff" in message(undecodable)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.fromarray(noise(3, 3))))
    monkeypatch.setattr("builtins.open", refuse)  # chmod does not stop root, who may run the tests
    text = message(path)
    monkeypatch.undo()
    assert text == (f"{path}: no permission to read it; change its permissions, or give a copy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_read(tmp_path: Path) -> None:
    array = noise(9, 9)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = encoded(Image.fromarray(array))
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    assert_array_equal(rgb_of(pipe), array)
    writer.join()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(50_000, 50_000))
    assert message(path).startswith(
        f"{path}: larger than 178956970 pixels, perhaps a decompression"
    )


def test_large_images_pass_without_a_warning_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = noise(30, 50)
    data = encoded(Image.fromarray(array))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL warns from here
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert_array_equal(rgb_of(data), array)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "larger than 1400 pixels" in message(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # the person's own decision
    assert_array_equal(rgb_of(data), array)


def test_a_sliver_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match=r"300 x 1 pixels would be resized to 76800 x 256, more"):
        TORCHVISION.pixels(np.zeros((1, 300), np.uint8))


GREY = np.zeros((4, 5), np.float32)


@pytest.mark.parametrize(
    ("source", "choices", "text"),
    [
        (GREY, {}, "ndarray (4, 5) float32: the scale of its numbers is not known"),
        (torch.zeros(3, 4, 5), {}, "range=(0, 1)"),
        (Image.new("F", (2, 2)), {}, "PIL image (F): the scale of its numbers is not known"),
        (GREY.astype(np.int64), {}, "the scale of its numbers is not known"),
        (GREY + 1.5, {"range": (0, 1)}, "from 1.5 to 1.5, outside 0 to 1"),
        (GREY - 0.1, {"range": (0, 1)}, "outside 0 to 1"),
        (GREY + np.nan, {"range": (0, 1)}, "not finite"),
        (GREY + np.inf, {"range": (0, 1)}, "not finite"),
        (
            np.full((2, 2), 200, np.uint8),
            {"range": (0, 1)},
            "from 200 to 200, outside 0 to 1",
        ),
        (GREY, {"range": (1, 0)}, "expected (black, white)"),
        (GREY, {"range": (0, float("inf"))}, "expected (black, white)"),
        (GREY, {"range": (0, float("nan"))}, "expected (black, white)"),
        (GREY, {"range": 1}, "expected (black, white)"),
        (GREY, {"range": (0, 1, 2)}, "expected (black, white)"),
        (GREY, {"range": "ab"}, "expected (black, white)"),
        (GREY > 0, {}, "astype('uint8') * 255"),
        (torch.zeros(4, 5, dtype=torch.bool), {}, "image.byte() * 255"),
        (np.ma.masked_equal(np.eye(4, 5, dtype=np.uint8), 1), {}, "some of it is masked; give it"),
        (torch.zeros(8, 3, 20), {}, "give one image, with at least one pixel"),
        (GREY.astype(complex), {}, "expected numbers"),
        (np.array([["a", "b"]]), {}, "expected numbers"),
        (np.array([[None]]), {}, "expected numbers"),
        (np.zeros((3, 20, 30), np.uint8), {}, "image.transpose(1, 2, 0)"),
        (torch.zeros(20, 30, 3, dtype=torch.uint8), {}, "image.permute(2, 0, 1)"),
        (np.zeros((2, 20, 30, 3), np.uint8), {}, "one by one"),
        (torch.zeros(1, 3, 20, 30, dtype=torch.uint8), {}, "one by one"),
        (np.zeros((20, 30, 2), np.uint8), {}, "(20, 30, 2)"),
        (np.zeros((0, 30, 3), np.uint8), {}, "at least one pixel"),
        (np.zeros(7, np.uint8), {}, "ndarray (7,) uint8"),
        (np.float32(1), {}, "float32 ()"),
        (torch.zeros(3, 2, 2).to_sparse(), {"range": (0, 1)}, "cannot become an array"),
        (Image.new("RGB", (0, 3)), {}, "0 x 3 pixels"),
        (None, {}, "NoneType: not an image; expected a path"),
        (7, {}, "int: not an image"),
        ([[1, 2], [3, 4]], {}, "list: not an image"),
        (io.BytesIO(b"x"), {}, "BytesIO: not an image"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_and_others_that_are_refused(
    source: object, choices: dict[str, Any], text: str
) -> None:
    assert text in message(source, **choices)


def test_a_closed_or_damaged_pil_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(30, 30)), "JPEG")[:-300])
    with Image.open(path) as image:
        assert message(image).startswith(f"{path}: damaged")
    closed = Image.fromarray(noise(3, 3))
    closed.close()
    assert message(closed).startswith("PIL image (RGB)")


# Damage, by the thousand


def _small(kind: str, **choices: Any) -> bytes:
    image = Image.fromarray(noise(5, 6).repeat(5, 0).repeat(5, 1))
    exif = image.getexif()
    exif[0x0112] = 6
    return encoded(image, kind, exif=exif, **choices)


SEEDS = {
    "jpeg": _small("JPEG"),
    "progressive": _small("JPEG", progressive=True),
    "png": _small("PNG"),
    "webp": _small("WEBP", lossless=True),
    "gif": encoded(Image.fromarray(noise(9, 9)), "GIF"),
    "tiff": _small("TIFF"),
}


@pytest.mark.parametrize("kind", SEEDS)
def test_every_truncation_is_refused_or_complete(kind: str) -> None:
    """A file without its last bytes may still hold every pixel (PNG's IEND); never fewer."""
    data = SEEDS[kind]
    whole = rgb_of(data)
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 300)):
        try:
            assert_array_equal(rgb_of(data[:length]), whole)
        except ImageError:
            refused += 1
    assert refused >= 100


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(set(SEEDS) - {"tiff"})),  # libtiff writes to stderr by itself
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    head=st.booleans(),
)
def test_damaged_files_give_an_image_or_an_image_error(
    kind: str, edits: list[tuple[float, int]], head: bool
) -> None:
    data = bytearray(SEEDS[kind])
    span = min(len(data), 150) if head else len(data)
    for place, value in edits:
        data[int(place * (span - 1))] = value
    try:
        decoded = decode(bytes(data))
    except ImageError:
        message(bytes(data))
    else:
        assert np.asarray(decoded).shape[2] == 3


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_wild_bytes_are_refused(data: bytes) -> None:
    message(data)


def test_threads_share_the_silence_and_give_it_back() -> None:
    """catch_warnings alone would leave the filters of another thread behind."""
    palette = Image.fromarray(noise(64, 64)).quantize(16)
    loud = encoded(palette, transparency=bytes(range(16)))  # PIL warns on conversion
    expected = np.asarray(palette.convert("RGB"))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: rgb_of(loud), range(200)):
            assert_array_equal(got, expected)
    assert [one for one in warnings.filters if one != decoding._SILENCE] == before
    with pytest.raises(UserWarning, match="Transparency"):  # PIL's own voice is back
        Image.open(io.BytesIO(loud)).convert("RGB")


@pytest.mark.parametrize("first", ["decoding", "caller"])
def test_decoding_takes_no_filter_back_from_the_caller(first: str) -> None:
    """A thread that decodes is entered and left while the caller has filters of its own."""
    inside, leave = threading.Event(), threading.Event()

    def decode_slowly() -> None:
        with decoding._quiet():
            inside.set()
            assert leave.wait(30)

    thread = threading.Thread(target=decode_slowly)
    before, showing = list(warnings.filters), warnings.showwarning
    if first == "decoding":
        thread.start()
        assert inside.wait(30)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if first == "caller":
            thread.start()
            assert inside.wait(30)
        else:
            leave.set()
            thread.join()
        warnings.warn("mine", stacklevel=1)
        assert [str(one.message) for one in caught] == ["mine"]
    leave.set()
    thread.join()
    assert [one for one in warnings.filters if one != decoding._SILENCE] == before
    assert warnings.showwarning is showing


def test_the_filter_is_sent_as_any_other() -> None:
    """scikit-learn, for one, sends them to its workers; and a decoder there finds its own."""
    assert pickle.loads(pickle.dumps(decoding._SILENCE)) == decoding._SILENCE
    assert copy.deepcopy(decoding._SILENCE)[3] is decoding._SILENCE[3]


# What it costs to load


def test_the_record_loads_no_pil_and_nothing_here_needs_torch() -> None:
    code = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None  # importing it now fails
from verydeep.preprocess import TORCHVISION
assert "PIL" not in sys.modules, "the record alone loaded PIL"
import numpy
assert TORCHVISION.pixels(numpy.zeros((9, 9), "uint8")).shape == (224, 224, 3)
assert "PIL" in sys.modules
assert "PIL.PngImagePlugin" not in sys.modules, "an array needs no file formats"
import torch
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # the last line shows that the block works
    assert "import of torch halted" in done.stderr.splitlines()[-1], done.stderr


def test_presets() -> None:
    assert set(PRESETS) == {"torchvision", "features", "caffe", "lpips"}
    assert PRESETS["torchvision"] == Preprocess()


class Picture(Image.Image):
    """As frameworks subclass it, in a module of their own."""


def test_an_image_of_a_subclass_is_an_image_and_no_array() -> None:
    palette = Image.fromarray(noise(8, 8)).quantize(4)
    mine = palette.copy()
    mine.__class__ = Picture
    np.testing.assert_array_equal(decoded(mine), np.asarray(palette.convert("RGB")))


def test_sizes_beyond_all_memory_are_one_line() -> None:
    record = Preprocess(resize="none", resize_size=None, crop_size=10**7)
    with pytest.raises(ImageError, match=r"not enough memory to resize it; ask for a smal"):
        record.pixels(noise(4, 4))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many"])
@pytest.mark.parametrize("end", [False, True])
def test_a_png_with_more_text_than_pil_reads(kind: str, end: bool, tmp_path: Path) -> None:
    """Photoshop's XMP, a scanner's profile, a generator's workflow: 2 MB and more, before or after."""
    file = io.BytesIO()
    picture = Image.new("RGB", (20, 10), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    picture.save(file, "PNG", exif=exif)
    packed = zlib.compress(bytes(2 << 20))
    bodies = {
        "zTXt": b"note\0\0" + packed, "iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        "iCCP": b"profile\0\0" + packed, "many": b"note\0\0" + zlib.compress(bytes(1000 << 10)),
    }  # fmt: skip
    tag = b"zTXt" if kind == "many" else kind.encode()
    body = bodies[kind]
    chunk = struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    at = len(file.getvalue()) - 12 if end else 33
    content = file.getvalue()[:at] + chunk * (70 if kind == "many" else 1) + file.getvalue()[at:]
    image = decode(content)
    assert isinstance(image, Image.Image)
    assert (image.size, image.getpixel((0, 0))) == ((10, 20), (10, 200, 30))
    (tmp_path / "a.png").write_bytes(content)
    assert np.asarray(decode(tmp_path / "a.png")).shape == (20, 10, 3)
    assert decoding.header(content) == ("PNG", 20, 10)


def test_text_within_an_icon_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PNG has more text than PIL reads, which stays: 2 KB must not be read a thousand times."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    body = b"note\0\0" + zlib.compress(bytes(2 << 20))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    png = file.getvalue()[:33] + chunk + file.getvalue()[33:]
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    tries = []
    opened = decoding.opened
    monkeypatch.setattr(decoding, "opened", lambda file: tries.append(1) or opened(file))
    with pytest.raises(ImageError, match="damaged, cut short or of a kind that cannot be decoded"):
        decode(struct.pack("<HHH", 0, 1, 1) + entry + png)
    assert len(tries) == 1


def test_heic_without_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "reads_heif", lambda: False)
    text = message(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert text.endswith('it looks like HEIC; pip install "verydeep[heif]" to read HEIC')
    monkeypatch.setattr("PIL.features.check", lambda _: False)  # as Pillow had it before 11.3
    text = message(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf")
    assert text.endswith(
        "it looks like AVIF, which Pillow 11.3 or later reads; pip install -U pillow"
    )


def test_heic_is_read_upright(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:, 0] = 255
    photo, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6  # turn it to the right
    heif.from_pillow(photo).save(tmp_path / "a.heic", quality=95, exif=turned.tobytes())
    for source in (tmp_path / "a.heic", (tmp_path / "a.heic").read_bytes()):
        found = np.asarray(decode(source)).astype(int)
        assert found.shape == (96, 64, 3)
        assert abs(found - np.asarray(photo.rotate(-90, expand=True))).mean() < 5
    text = message((tmp_path / "a.heic").read_bytes()[:300])
    assert "a HEIC image, but damaged" in text or "damaged, cut short" in text


@pytest.mark.skipif(not features.check("avif"), reason="Pillow reads it from 11.3 on")
def test_avif_is_read() -> None:
    photo = Image.fromarray(np.full((32, 48, 3), 120, np.uint8))
    assert np.asarray(decode(encoded(photo, "AVIF"))).shape == (32, 48, 3)
