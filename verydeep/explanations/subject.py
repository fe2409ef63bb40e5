"""The network that is explained: its values on the predictor's engine, its gradients in torch.

Nothing here is changed by a call, so that any thread may explain. Gradients are computed in a thread of
their own, whose number of threads is nobody else's, and which works in a forked child as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..engines import REFERENCE, Engine, check
from ..engines.forks import Turns
from ..errors import EngineError, Failure, ImageError, MissingExtraError
from ..predictor import Features, Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import VGG
    from ..nets import Network

T = TypeVar("T")
_turns = Turns()


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
        engine = Engine(REFERENCE, built)
        for image in images:
            rows = engine.run(image[None])
            yield Features(None, {name: rows[name][0] for name in taps}, None, REFERENCE, "exact")

    def in_torch(self, pixels: np.ndarray, compute: Callable[[VGG, Tensor], T]) -> T:
        """What `compute` makes of the module and of pixels as its input (1, channels, height, width).

        On the predictor's device, with its threads; "auto" is the CPU.
        """
        import torch

        from ..engines.torch import precise, worker

        device, threads = (self.predictor._told[key] for key in ("device", "threads"))
        device = "cpu" if device == "auto" else str(device)

        def run() -> T:
            with precise(device, "exact"):
                x = torch.from_numpy(self.preprocess.normalise(pixels)).to(device)
                return compute(self._module(device), x)

        with worker(None if threads is None else int(threads)) as thread:
            try:
                return thread.submit(run).result()
            except RuntimeError as error:
                if "fork" not in str(error):
                    raise
                # where torch finds a GPU, one backward pass in the parent is enough for it
                raise EngineError(
                    "torch computes no gradients in a process made by fork from one that computed some "
                    "beside a GPU; start it with method spawn, or take cam or occlusion"
                ) from error

    def _module(self, device: str) -> VGG:
        """In evaluation mode, without gradients to its weights; the predictor's own is kept."""
        if self._tensors is not None:
            return _assembled(self.network, self._tensors, device)
        with _turns.lock:
            held = self.predictor.held
            module: VGG | None = held.get("module")  # closing takes it out, in any thread
            if module is None:
                tensors = self.predictor.model.tensors(writable=True)
                module = held["module"] = _assembled(self.network, tensors, device)
            return module


def _assembled(network: Network, tensors: Mapping[str, np.ndarray], device: str) -> VGG:
    from ..models.loading import Trained, as_torch, assemble

    module = assemble(Trained(network, as_torch(tensors))).to(device)
    return module.eval().requires_grad_(False)


def require_gradients(predictor: Predictor) -> None:
    """MissingExtraError where there is no torch, EngineError where it has not the predictor's device."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "an explanation by gradients (cam and occlusion do without)", "torch"
        ) from error
    check("torch", "exact", str(predictor._told["device"]))
