"""Makes modelfile_channels.safetensors, format version 3, from docs/format.md alone: nothing of verydeep.

    python tests/golden/modelfile_channels_make.py

The file never changes. It is vgg11 of channels 1, 2, 3, 1, 2, 3, 1, 2, with hidden FC layers of 3 and 4,
for two classes; all its numbers are float32 and count up.
"""

import json
import math
import runpy
import struct
from pathlib import Path

PLACE = Path(__file__).with_name("modelfile_channels.safetensors")
CHANNELS = [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
KEYS = [*(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)), "classifier.0", "classifier.3"]

FIRST = runpy.run_path(str(PLACE.with_name("modelfile_make.py")))["RECORD"]
RECORD = {
    **FIRST,
    "format_version": 3,
    "network": {
        **FIRST["network"],
        "batch_norm": False,
        "width": 1.0,
        "channels": CHANNELS,
        "head": {"kind": "classic", "classes": 2, "layers": []},
    },
}


def tensors():
    """name -> shape"""
    found, inputs = {}, 1
    for key, outputs in zip([*KEYS, "classifier.6"], [*CHANNELS, 2], strict=True):
        inputs *= 49 if key == "classifier.0" else 1  # pool5's 7 x 7 values a channel
        kernel = [3, 3] if key.startswith("features") else []
        found[f"{key}.weight"] = [outputs, inputs, *kernel]
        found[f"{key}.bias"] = [outputs]
        inputs = outputs
    return found


def file_bytes():
    record = json.dumps(RECORD, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    header, data, number = {"__metadata__": {"verydeep": record}}, b"", 0
    for name, shape in sorted(tensors().items()):
        count = math.prod(shape)
        packed = struct.pack(f"<{count}f", *((number + i) / 64 for i in range(count)))
        offsets = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data, number = data + packed, number + count
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


if __name__ == "__main__":
    PLACE.write_bytes(file_bytes())
