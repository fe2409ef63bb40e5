"""Average the compressed trunk's layers over every photo of a data set, for training heads on.

    python tools/extract_features.py --trunk trunk.safetensors --data DIR --size 128 --out train_128

DIR holds class folders of photos; `--annotations FILE` instead reads Tiny-ImageNet's validation list
(file, class, ...), with the photos in DIR. Writes OUT.npy (photos, channels) float16, a memory map that is
filled batch by batch, and OUT.json (labels, layers, progress): a run that was stopped goes on where it was.
Uses OpenVINO in bfloat16 where the processor computes in it: error about 1e-2, far below what the
averages vary by from photo to photo.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from verydeep.graphs import network as graph
from verydeep.nets import network
from verydeep.preprocess import TORCHVISION

LAYERS = ("relu3_3", "relu4_1", "relu4_2", "relu4_3", "relu5_1", "relu5_2", "relu5_3")
BATCH = 32


def trunk_tensors(path: Path) -> dict[str, np.ndarray]:
    """The compressed trunk, dequantised, by torchvision's keys."""
    stored = load_file(path)
    net = network("vgg16", classes=0)
    tensors = {}
    for layer in net.trunk:
        if layer.key:
            q, scale = stored[f"{layer.name}.weight.q"], stored[f"{layer.name}.weight.scale"]
            tensors[f"{layer.key}.weight"] = q.astype(np.float32) * scale
            tensors[f"{layer.key}.bias"] = stored[f"{layer.name}.bias"]
    return tensors


def listing(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """(photo, class id), in an order that does not depend on the file system."""
    if args.annotations:
        lines = (line.split("\t") for line in args.annotations.read_text().splitlines())
        return [(args.data / line[0], line[1]) for line in lines]
    photos = sorted(
        p for p in args.data.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png")
    )
    return [(p, p.relative_to(args.data).parts[0]) for p in photos]


def pixels(path: Path, size: int, flip: bool) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if flip:
        image = ImageOps.mirror(image)
    return np.asarray(image)


def batches(
    photos: list[Path], args: argparse.Namespace, start: int
) -> Iterator[tuple[int, np.ndarray]]:
    with ThreadPoolExecutor(1) as pool:

        def load(at: int) -> np.ndarray:
            return np.stack([pixels(p, args.size, args.flip) for p in photos[at : at + BATCH]])

        waiting = [
            (at, pool.submit(load, at))
            for at in range(start, min(len(photos), start + 8 * BATCH), BATCH)
        ]
        upcoming = iter(range(start + 8 * BATCH, len(photos), BATCH))
        while waiting:
            at, future = waiting.pop(0)
            following = next(upcoming, None)
            if following is not None:
                waiting.append((following, pool.submit(load, following)))
            yield at, future.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trunk", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="take every Nth photo")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    listed = listing(args)[:: args.every]
    net = network("vgg16", head="gap", layers=LAYERS, classes=1)
    model = graph.build(
        net, trunk_tensors(args.trunk), TORCHVISION, taps=("avgpool",), scores=False
    )
    core = openvino.Core()
    read = core.read_model(model.inline().SerializeToString())
    read.reshape({"pixels": [-1, args.size, args.size, 3]})
    bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    compiled = core.compile_model(read, "CPU", settings)

    channels = net.top[0].outputs
    data_path, state_path = args.out.with_suffix(".npy"), args.out.with_suffix(".json")
    done = 0
    if state_path.exists():
        done = json.loads(state_path.read_text())["done"]
        out = np.lib.format.open_memmap(data_path, mode="r+")
    else:
        shape = (len(listed), channels)
        out = np.lib.format.open_memmap(data_path, mode="w+", dtype=np.float16, shape=shape)
    state = {
        "layers": LAYERS,
        "labels": [label for _, label in listed],
        "size": args.size,
        "flip": args.flip,
    }

    def keep(request: openvino.InferRequest, at: int) -> None:
        values = request.get_output_tensor().data
        out[at : at + len(values)] = values.reshape(len(values), channels)

    queue = openvino.AsyncInferQueue(compiled)
    queue.set_callback(keep)
    began, first = time.time(), done
    for count, (at, batch) in enumerate(batches([p for p, _ in listed], args, done), 1):
        queue.start_async({"pixels": batch}, at)
        if count % 100 == 0 or at + BATCH >= len(listed):
            queue.wait_all()
            out.flush()
            done = at + len(batch)
            state_path.write_text(json.dumps({"done": done, **state}))
            rate = (done - first) / (time.time() - began)
            print(
                f"{done}/{len(listed)}, {rate:.1f} photos/s, "
                f"{(len(listed) - done) / rate / 60:.1f} min left",
                flush=True,
            )


if __name__ == "__main__":
    main()
