"""Makes modelfile_coded.safetensors, format version 2: a VGG-11 trunk of two channels, its weights coded.

    python tests/golden/modelfile_coded_make.py

The file never changes: every later verydeep must read these numbers of it, which `numbers` gives by
arithmetic alone. It has steps for rows and columns, a layer of zeros, one of large numbers, and 1,152
weights that run through every part of the code.
"""

from pathlib import Path

import numpy as np

PLACE = Path(__file__).with_name("modelfile_coded.safetensors")

RECORD = {"column": "A", "classes": 0, "width": 1 / 32}


def numbers(shape, layer):
    """Multiples, and the exponents of rows and columns, for the layer-th convolution."""
    places = np.arange(int(np.prod(shape)), dtype=np.int64)
    hashed = (places * 2654435761 + layer * 40503) % 2**32 >> 16  # 0 to 65535
    wave = np.array([3, 2, 0, 2, 4, 2, 0, 1, 2])[places % 9] * (places // 9 % 5 - 2)
    multiples = (hashed % 7 - 3) * (hashed % 3 > 0) + wave
    if layer == 1:
        multiples = multiples * 0
    if layer == 2:
        multiples = multiples * 2000 + hashed % 1000
    rows = np.arange(shape[0]) % 3 - 1 if layer % 2 else np.zeros(shape[0])
    columns = (
        np.arange(int(np.prod(shape[1:]))) * 5 % 11 - 5
        if layer % 3
        else np.zeros(int(np.prod(shape[1:])))
    )
    return multiples.reshape(shape), rows.astype(int), columns.astype(int)


def step(layer):
    return (layer + 1) / 1024


if __name__ == "__main__":
    from verydeep.modelfile import Record, codec, write
    from verydeep.nets import network

    net = network("vgg11", classes=0, width=RECORD["width"])
    tensors = {}
    for key, shape in net.tensors.items():
        layer = len(tensors) // 2
        if len(shape) == 1:
            tensors[key] = (np.arange(shape[0]) / 8).astype(np.float32)
            continue
        multiples, rows, columns = (part.astype(np.int16) for part in numbers(shape, layer))
        coded = codec.Coded(multiples, step(layer), rows, columns, 9, 3)
        tensors[f"{key}.code"] = np.frombuffer(codec.encode(coded), np.uint8)
    write(PLACE, Record(net, licence="CC0-1.0"), tensors)
