"""Total variation: how much neighbouring pixels differ; little of it means a smooth picture.

Rudin, Osher and Fatemi 1992; as a loss, Mahendran and Vedaldi 2014, arXiv:1412.0035.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..errors import ImageError, NetworkError
from .features import Reduction, known_reduction


class TotalVariation(nn.Module):
    """The differences of vertical and horizontal neighbours, summed, for each value of the image.

    power: 1 takes their absolute values, 2 their squares. reduction: over the batch, as for
    `PerceptualLoss`.
    """

    def __init__(self, power: Literal[1, 2] = 1, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        if power not in (1, 2):
            raise NetworkError(f"power is {power!r}; expected 1 or 2")
        known_reduction(reduction)
        self.power = power
        self.reduction: Reduction = reduction

    def forward(self, image: Tensor) -> Tensor:
        """One number, or (n,) for reduction "none". image: floats (n, c, h, w) in any range."""
        if image.ndim != 4 or not image.is_floating_point():
            raise ImageError(
                f"image is {image.dtype} of shape {tuple(image.shape)}; expected floats (n, c, h, w)"
            )
        down, right = image.diff(dim=2), image.diff(dim=3)
        if self.power == 1:
            total = down.abs().sum((1, 2, 3)) + right.abs().sum((1, 2, 3))
        else:
            total = down.square().sum((1, 2, 3)) + right.square().sum((1, 2, 3))
        total = total / image[0].numel()
        if self.reduction == "none":
            return total
        return total.mean() if self.reduction == "mean" else total.sum()
