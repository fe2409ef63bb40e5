"""Makes modelfile.safetensors, format version 1, from docs/format.md alone: nothing of verydeep.

    python tests/golden/modelfile_make.py

The file never changes: every later verydeep must read it, and write it again byte for byte. It is
vgg11_bn with one channel everywhere, a "gap" head for two classes, and each form of tensor once:
8 and 16 bits with scales, float16, float32, int64.
"""

import json
import struct
from pathlib import Path

PLACE = Path(__file__).with_name("modelfile.safetensors")

CONVOLUTIONS = (0, 4, 8, 11, 15, 18, 22, 25)  # torchvision's indices of vgg11_bn, "features.N"

RECORD = {
    "format_version": 1,
    "network": {
        "column": "A",
        "batch_norm": True,
        "width": 1 / 512,
        "in_channels": 1,
        "pool": "avg",
        "head": {"kind": "gap", "classes": 2, "layers": ["relu4_2", "relu5_2"]},
    },
    "preprocess": {
        "resize": "exact",
        "resize_size": 48,
        "crop_size": None,
        "interpolation": "bicubic",
        "antialias": True,
        "channel_order": "L",
        "range": [-1.0, 1.0],
        "mean": [0.25],
        "std": [0.5],
    },
    "class_ids": ["n02119789", "n03000134"],
    "class_names": ["Vulpes macrotis", "Zaun – „chainlink“"],
    "threshold": 0.25,
    "licence": "CC0-1.0",
    "provenance": {"command": "python tests/golden/modelfile_make.py", "seeds": [1, 2, None]},
    "measured": [
        {"what": "top1", "value": 0.5, "protocol": "two images, one centre crop", "n": 2},
    ],
}


def tensors():
    """name -> (dtype, shape, struct format, values)"""
    found = {}
    for i in CONVOLUTIONS:
        key = f"features.{i}"
        ramp = range(-4, 5)
        if i == 0:
            found[f"{key}.weight.q"] = "I16", [1, 1, 3, 3], "h", [8191 * n for n in ramp]
            found[f"{key}.weight.scale"] = "F32", [1, 1, 1, 1], "f", [2.0**-15]
        elif i == 8:
            found[f"{key}.weight"] = "F16", [1, 1, 3, 3], "e", [n / 8 for n in ramp]
        elif i == 25:
            found[f"{key}.weight"] = "F32", [1, 1, 3, 3], "f", [n / 3 for n in ramp]
        else:
            found[f"{key}.weight.q"] = "I8", [1, 1, 3, 3], "b", [31 * n for n in ramp]
            found[f"{key}.weight.scale"] = "F32", [1, 1, 1, 1], "f", [i / 1024]
        found[f"{key}.bias"] = "F32", [1], "f", [-i / 64]
        norm = f"features.{i + 1}"
        found[f"{norm}.weight"] = "F32", [1], "f", [1.5]
        found[f"{norm}.bias"] = "F16", [1], "e", [-0.5]
        found[f"{norm}.running_mean"] = "F32", [1], "f", [0.1 * i]
        found[f"{norm}.running_var"] = "F32", [1], "f", [1 + i / 7]
        found[f"{norm}.num_batches_tracked"] = "I64", [], "q", [2**40 + i]
    found["classifier.weight.q"] = "I8", [2, 2], "b", [-128, 127, 1, 0]
    found["classifier.weight.scale"] = "F32", [2, 1], "f", [0.5, 0.25]
    found["classifier.bias"] = "F32", [2], "f", [0.125, -0.0]
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


if __name__ == "__main__":
    PLACE.write_bytes(file_bytes())
