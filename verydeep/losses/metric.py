"""LPIPS as a metric of torchmetrics: it stands in collections, and synchronises over processes."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..errors import ImageError, NetworkError
from .features import REDUCTIONS, reduced
from .lpips import LPIPS, named


class LearnedPerceptualImagePatchSimilarity(Metric):
    """The LPIPS of all images given to `update`; of each, a number is kept, without a graph.

    net_type: "vgg" alone; torchmetrics' default is another, so one warning says so where it is not named.
    reduction: "mean", "sum", or "none" (also None). normalize: images are in 0 to 1 instead of -1 to 1.
    options: model, network, heads, as for `LPIPS`, and torchmetrics' own.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    feature_network = "net"
    all_scores: list[Tensor]

    def __init__(
        self,
        net_type: str | None = None,
        reduction: Literal["mean", "sum", "none"] | None = "mean",
        normalize: bool = False,
        **options: Any,
    ) -> None:
        ours = {key: options.pop(key) for key in ("model", "network", "heads") if key in options}
        super().__init__(**options)
        named("net_type", net_type)
        if reduction not in (*REDUCTIONS, None):
            raise NetworkError(
                f"Argument `reduction` must be one of {(*REDUCTIONS, None)}, but got {reduction}"
            )
        if not isinstance(normalize, bool):
            raise NetworkError(f"Argument `normalize` should be an bool but got {normalize}")
        self.net = LPIPS(net="vgg", range="0..1" if normalize else "-1..1", **ours)
        self.reduction, self.normalize = reduction, normalize
        self.add_state("all_scores", [], dist_reduce_fx="cat")

    def update(self, img1: Tensor, img2: Tensor) -> None:
        """Gather the distances of these images, (n, 3, h, w) each."""
        try:
            if img1.shape != img2.shape or img1.ndim != 4 or img1.shape[1] != 3:
                raise ImageError(f"their shapes are {tuple(img1.shape)} and {tuple(img2.shape)}")
            scores = self.net(img1, img2).flatten()
        except ImageError as error:
            raise ImageError(
                "Expected both input arguments to be normalized tensors with shape [N, 3, H, W]: "
                f"{error}"
            ) from None
        self.all_scores.append(scores)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """`update`, and the value of these images alone, differentiable."""
        value: Tensor = super().forward(img1, img2)
        self.all_scores = [score.detach() for score in self.all_scores]
        return value

    def compute(self) -> Tensor:
        """The value over everything that was gathered; ValueError where that is nothing."""
        return reduced(dim_zero_cat(self.all_scores), self.reduction or "none")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """A figure and its axes, of `val` or of what `compute` gives, as all metrics have it."""
        return self._plot(val, ax)
