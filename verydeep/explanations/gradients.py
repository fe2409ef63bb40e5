"""Methods that follow gradients of a class's score, before the soft-max, through torch's module.

Grad-CAM weights each map of a layer by its mean gradient (arXiv:1610.02391, equations 1 and 2), Grad-CAM++
by a sum over its positive gradients with a weight for each position (arXiv:1710.11063, equations 5, 7 and
19). Both keep what is above zero.

Integrated gradients are summed along the straight way from a plain image (arXiv:1703.01365), the mean
colour of the pre-processing, zero to the network. The integral is a Gauss-Legendre sum, as captum's. The
values of all pixels add up to what the score gains on the way (completeness, the paper's proposition 1); a
pixel's value is the sum over its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .methods import Maps, Pick, centres
from .subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import VGG
    from . import Explainer

BATCH = 10  # points of the way in one pass


def gradcam(
    subject: Subject,
    explainer: Explainer,
    pixels: np.ndarray,
    pick: Pick,
    weights: Callable[[Tensor, Tensor], Tensor] = lambda gradient, _: gradient.mean((1, 2)),
) -> Maps:
    """The layer's maps, by weights that follow from gradients and maps, (channels, h, w) each."""
    import torch

    (layer,) = explainer.layers

    def compute(module: VGG, x: Tensor) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        values = module.taps(x.requires_grad_(), [layer, "fc8"])
        maps, scores = values[layer], values["fc8"][0]
        numbers = scores.detach().cpu().numpy()
        classes, sums = pick(numbers), []
        for index in classes:
            (gradient,) = torch.autograd.grad(scores[index], maps, retain_graph=True)
            with torch.no_grad():
                total = torch.tensordot(weights(gradient[0], maps[0]), maps[0], 1).relu()
            sums.append(total.cpu().numpy())
        return numbers, classes, sums

    ys, xs = centres(subject.network, layer, *pixels.shape[:2])
    return Maps(*subject.in_torch(pixels, compute), ys, xs, "torch", "exact")


def gradcam_plus(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    return gradcam(subject, explainer, pixels, pick, weights_plus)


def weights_plus(gradient: Tensor, maps: Tensor) -> Tensor:
    """A weight for each map (channels,), of its gradient and values (channels, h, w).

    Equation 19 writes the higher derivatives of exp(score) as powers of the first; its common factor
    exp(score) is left out, as in all programs, since it would overflow.
    """
    import torch

    squares = gradient**2
    below = 2 * squares + maps.sum((1, 2), keepdim=True) * squares * gradient
    alpha = torch.where(below != 0, squares / torch.where(below != 0, below, 1), 0)
    return (alpha * gradient.relu()).sum((1, 2))


def ig(subject: Subject, explainer: Explainer, pixels: np.ndarray, pick: Pick) -> Maps:
    import torch

    points, weights = np.polynomial.legendre.leggauss(explainer.steps)

    def compute(module: VGG, x: Tensor) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        with torch.no_grad():
            scores = module(x)[0].cpu().numpy()
        classes = pick(scores)
        sums = [torch.zeros_like(x[0]) for _ in classes]
        for start in range(0, explainer.steps, BATCH):
            part = slice(start, start + BATCH)
            along = torch.from_numpy((points[part] + 1) / 2).to(x)  # from -1..1 to 0..1
            share = torch.from_numpy(weights[part] / 2).to(x)
            way = (along[:, None, None, None] * x).requires_grad_()
            values = module(way)
            for total, index in zip(sums, classes, strict=True):
                (gradient,) = torch.autograd.grad(values[:, index].sum(), way, retain_graph=True)
                total += torch.tensordot(share, gradient, 1)
        return scores, classes, [(total * x[0]).sum(0).cpu().numpy() for total in sums]

    ys, xs = (np.arange(side) for side in pixels.shape[:2])
    return Maps(*subject.in_torch(pixels, compute), ys, xs, "torch", "exact")
