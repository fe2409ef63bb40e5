"""The network that is explained: its values on the predictor's engine, its gradients in torch.

Nothing here is changed by a call, so that any thread may explain. After a fork torch hangs where its
threads were used before, so gradients are refused there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ..engines import REFERENCE, Source, open_engine
from ..errors import EngineError, ImageError, MissingExtraError
from ..predictor import Failure, Features, Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import VGG
    from ..nets import Network

_modules: WeakKeyDictionary[Predictor, VGG] = WeakKeyDictionary()  # they go with their predictors
_lock = Lock()
_forked = False  # away from a process in which torch had computed gradients


def _after_fork() -> None:
    global _forked, _lock
    _forked, _lock = _forked or bool(_modules), Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Images:
    """So many images, each made when it is its turn, so that memory stays flat."""

    count: int
    make: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.make, range(self.count))


class Subject:
    """A predictor's network, with its own weights or with `tensors`, others of the same names and shapes.

    Other weights run in the reference engine, and nothing of them is kept.
    """

    def __init__(
        self, predictor: Predictor, tensors: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.predictor = predictor
        self.network = predictor.record.network
        self.preprocess = predictor.preprocess
        self._tensors = tensors

    def tensor(self, key: str) -> np.ndarray:
        """A weight by torchvision's key."""
        if self._tensors is not None:
            return self._tensors[key]
        return self.predictor.model.tensors([key])[key]

    def values(
        self, images: Images | list[np.ndarray], taps: tuple[str, ...] = ()
    ) -> Iterator[Features]:
        """Of each image's pixels (height, width, channels) the taps and "fc8", the scores, as they come."""
        taps = (*taps, "fc8")
        dtype = next(iter(images)).dtype
        if self._tensors is None:
            deep = (0, 255) if dtype != np.uint8 else None
            for item in self.predictor.features_stream(images, taps, size="own", range=deep):
                if isinstance(item, Failure):
                    raise ImageError(item.error)
                yield item
            return
        from ..graphs import network as graph

        built = graph.build(
            self.network, self._tensors, self.preprocess, taps=taps, scores=False,
            pixels=dtype.name,  # type: ignore[arg-type]
        )  # fmt: skip
        engine = open_engine(REFERENCE, Source(built))
        for image in images:
            rows = engine.run(image[None])
            yield Features(None, {name: rows[name][0] for name in taps}, None, REFERENCE, "exact")

    @contextmanager
    def torch(self, pixels: np.ndarray) -> Iterator[tuple[VGG, Tensor]]:
        """The module, and pixels as its input (1, channels, height, width), on the predictor's device.

        "auto" is the CPU. Threads are the predictor's, and the process's own again afterwards.
        """
        import torch

        device = device_for_gradients(self.predictor)
        threads, before = self.predictor._told["threads"], torch.get_num_threads()
        module = self._module(device)
        if threads:
            torch.set_num_threads(int(threads))  # it is the whole process's
        try:
            with torch.backends.cudnn.flags(allow_tf32=False):  # which keeps ten bits
                yield module, torch.from_numpy(self.preprocess.normalise(pixels)).to(device)
        finally:
            if threads:
                torch.set_num_threads(before)

    def _module(self, device: str) -> VGG:
        """In evaluation mode, without gradients to its weights; the predictor's own is kept."""
        if self._tensors is not None:
            return _assembled(self.network, self._tensors, device)
        with _lock:
            module = _modules.get(self.predictor)
            if module is None:
                tensors = self.predictor.model.tensors(writable=True)
                module = _modules[self.predictor] = _assembled(self.network, tensors, device)
            return module


def _assembled(network: Network, tensors: Mapping[str, np.ndarray], device: str) -> VGG:
    import torch

    from ..models.loading import Trained, assemble

    # what is read-only is copied, since torch shares memory
    own = {
        key: torch.from_numpy(value if value.flags.writeable else value.copy()).to(device)
        for key, value in tensors.items()
    }
    return assemble(Trained(network, own)).eval().requires_grad_(False)


def device_for_gradients(predictor: Predictor) -> str:
    """Where torch computes: MissingExtraError or EngineError where it cannot, or not there."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "an explanation by gradients (cam and occlusion do without)", "torch"
        ) from error
    if _forked:
        raise EngineError(
            "this process was forked after gradients had been computed, where torch would hang; start it "
            'with multiprocessing\'s "spawn" method'
        )
    device = str(predictor._told["device"])
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("torch finds no CUDA device here; expected one, or --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise EngineError("torch finds no Apple GPU (mps) here; expected one, or --device cpu")
    return "cpu" if device == "auto" else device
