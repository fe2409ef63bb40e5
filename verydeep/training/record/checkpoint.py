"""Checkpoints: all that a run is, in one safetensors file, written whole or not at all, the last two kept.

The file holds tensors ("model.*", "average.*", "optimiser.*") and, in its metadata, the facts as JSON and a
SHA-256 of both. There is nothing else to save: random numbers are functions of the step (`draws`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...errors import OutputError
from ...files.atomic import replacing

FORMAT = "verydeep checkpoint 1"
KEPT = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """tensors by name, on the CPU; facts: whatever JSON holds; path: where it lies."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    path: Path

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint after `step` steps; of the others, one stays. OutputError where it cannot be."""
    # copies in one piece: safetensors takes neither views nor channels-last
    held = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    text = json.dumps(facts)
    metadata = {"format": FORMAT, "facts": text, "sha256": _digest(held, text)}
    path = folder / f"step-{step:09}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob(".step-*.part"):  # of a process that was killed as it wrote
            half.unlink()
        with replacing(path) as file:
            file.write(safetensors.torch.save(held, metadata))
        found = _paths(folder)
        now = found.index(path)
        for other in (*found[:now], *found[now + KEPT :]):  # those of later steps were damaged
            other.unlink()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def latest(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The last checkpoint that is whole; `note` is told of each that is not. None where there is none."""
    for path in _paths(folder):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            note(f"{path} is damaged ({error}); the checkpoint before it is tried")
    return None


def there(run: Path) -> bool:
    """Whether that run's folder has a checkpoint."""
    return bool(_paths(run / "checkpoints"))


def _read(path: Path) -> Checkpoint:
    with safetensors.safe_open(os.fspath(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError("it is no checkpoint of this version of verydeep")
        # copies: a map of the file would keep Windows from dropping it when its time comes
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if _digest(tensors, metadata["facts"]) != metadata["sha256"]:
        raise ValueError("its content does not match its SHA-256")
    return Checkpoint(tensors, json.loads(metadata["facts"]), path)


def _paths(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
