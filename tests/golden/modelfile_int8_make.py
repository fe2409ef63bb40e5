"""Makes modelfile_int8.safetensors, an int8 model of format version 1, from docs/format.md alone.

    python tests/golden/modelfile_int8_make.py

The file never changes: every later verydeep must read it, write it again byte for byte, and make an int8
graph of it that gives `scores()`, which are computed here in whole numbers. It is vgg11 with one channel
everywhere. Its first convolution is stored as floats and computes in float32, the second one reads what
is rounded after the first pool, the third one's input is not rounded, and so on with every other layer.
"""

import json
import struct
from pathlib import Path

PLACE = Path(__file__).with_name("modelfile_int8.safetensors")

CONVOLUTIONS = (0, 3, 6, 8, 11, 13, 16, 18)  # torchvision's indices of vgg11, "features.N"
FLOATS = (0, 13)  # those that are stored as floats

RECORD = {
    "format_version": 1,
    "network": {
        "column": "A",
        "batch_norm": False,
        "width": 1 / 512,
        "in_channels": 1,
        "pool": "max",
        "head": {"kind": "gap", "classes": 2, "layers": ["relu5_2"]},
    },
    "preprocess": {
        "resize": "none",
        "resize_size": None,
        "crop_size": None,
        "interpolation": "bilinear",
        "antialias": True,
        "channel_order": "L",
        "range": [0.0, 255.0],
        "mean": [0.0],
        "std": [1.0],
    },
    "class_ids": [],
    "class_names": [],
    "threshold": None,
    "licence": "CC0-1.0",
    "provenance": {"command": "python tests/golden/modelfile_int8_make.py"},
    "measured": [],
    "activations": {
        "relu1_1": {"scale": 1.5, "zero_point": 0},
        "relu2_1": {"scale": 0.75, "zero_point": 3},
        "relu3_1": {"scale": 0.5, "zero_point": 0},
        "relu4_1": {"scale": 0.25, "zero_point": 0},
        "relu5_1": {"scale": 0.125, "zero_point": 0},
        "relu5_2": {"scale": 0.5, "zero_point": 0},
    },
}


def tensors():
    """name -> (dtype, shape, struct format, values)"""
    found = {}
    for number, i in enumerate(CONVOLUTIONS):
        key = f"features.{i}"
        if i in FLOATS:
            values = [n / 8 for n in (1, 2, 1, 0, 3, 1, -1, 2, 1)]
            found[f"{key}.weight"] = "F32", [1, 1, 3, 3], "f", values
        else:
            values = [5 + number, -9, 12, 30, 127, 25, -8, 14, 3 - number]
            found[f"{key}.weight.q"] = "I8", [1, 1, 3, 3], "b", values
            found[f"{key}.weight.scale"] = "F32", [1, 1, 1, 1], "f", [2.0**-8]
        found[f"{key}.bias"] = "F32", [1], "f", [number / 4]
    found["classifier.weight.q"] = "I8", [2, 1], "b", [-100, 101]
    found["classifier.weight.scale"] = "F32", [2, 1], "f", [0.5, 0.25]
    found["classifier.bias"] = "F32", [2], "f", [0.125, -1.0]
    return found


def file_bytes():
    found = tensors()
    record = json.dumps(RECORD, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    header, data = {"__metadata__": {"verydeep": record}}, b""
    for name in sorted(found, key=lambda name: (-struct.calcsize(found[name][2]), name)):
        dtype, shape, code, values = found[name]
        packed = struct.pack(f"<{len(values)}{code}", *values)
        offsets = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += packed
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def scores(image):
    """The two scores of an image, a list of rows of numbers from 0 to 255, in integers where int8 is."""
    found, rounding = tensors(), RECORD["activations"]
    layers = iter(zip(CONVOLUTIONS, "1_1 2_1 3_1 3_2 4_1 4_2 5_1 5_2".split(), strict=True))
    value, scale = image, None  # scale None: a float
    for block in (1, 2, 3, 4, 5):
        for _ in range(2 if block > 2 else 1):
            i, name = next(layers)
            value = _convolution(found, f"features.{i}", value, scale)
            value = [[max(0.0, number) for number in row] for row in value]
            if f"relu{name}" in rounding:
                how = rounding[f"relu{name}"]
                scale, zero = how["scale"], how["zero_point"]
                value = [[min(255 - zero, round(n / scale)) for n in row] for row in value]
            else:
                scale = None
        if block < 5:
            value = [
                [max(value[y + a][x + b] for a in (0, 1) for b in (0, 1))
                 for x in range(0, len(value[0]) - 1, 2)]
                for y in range(0, len(value) - 1, 2)
            ]  # fmt: skip
    numbers = [number * scale for row in value for number in row]
    average = sum(numbers) / len(numbers)  # not rounded, so the FC layer computes in floats
    q, scales = found["classifier.weight.q"][3], found["classifier.weight.scale"][3]
    bias = found["classifier.bias"][3]
    return [q[k] * scales[k] * average + bias[k] for k in (0, 1)]


def _convolution(found, key, value, scale):
    """Floats: the sums of 3x3 products, by integers where the value has a scale and the weights have q."""
    whole = scale is not None and f"{key}.weight.q" in found
    if f"{key}.weight.q" in found:
        weights, step = found[f"{key}.weight.q"][3], found[f"{key}.weight.scale"][3][0]
    else:
        weights, step = found[f"{key}.weight"][3], 1.0
    product = step * (1.0 if scale is None else scale)
    bias = found[f"{key}.bias"][3][0] / product
    if whole:
        bias = round(bias)
    height, width = len(value), len(value[0])
    return [
        [
            product
            * (
                bias
                + sum(
                    weights[3 * a + b] * value[y + a - 1][x + b - 1]
                    for a in range(3)
                    for b in range(3)
                    if 0 <= y + a - 1 < height and 0 <= x + b - 1 < width
                )
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


if __name__ == "__main__":
    PLACE.write_bytes(file_bytes())
