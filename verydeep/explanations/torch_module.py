"""The torch module of a predictor's model, for the methods that need gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MissingExtraError
from ..predictor import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import VGG


def module_of(predictor: Predictor, tensors: Mapping[str, np.ndarray] | None = None) -> VGG:
    """The module in evaluation mode, without gradients to its weights; or one of other weights.

    MissingExtraError where torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "an explanation by gradients (cam and occlusion do without)", "torch"
        ) from error
    from ..models import load

    module = load(predictor.model.path).requires_grad_(False)
    if tensors is not None:
        own = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        module.load_state_dict(own, strict=True, assign=True)
        module.requires_grad_(False)
    if threads := predictor._told["threads"]:
        torch.set_num_threads(int(threads))
    return module


def normalised(predictor: Predictor, pixels: np.ndarray) -> Tensor:
    """One image's pixels as the network's input, (1, channels, height, width) float32."""
    import torch

    return torch.from_numpy(predictor.preprocess.normalise(pixels))
