"""Integrated gradients: gradients summed along the straight way from a plain image (arXiv:1703.01365).

The plain image is the mean colour of the pre-processing, zero to the network. The integral is a
Gauss-Legendre sum, as captum's. The values of all pixels add up to what the score gains on the way
(completeness, the paper's proposition 1); a pixel's value is the sum over its channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..predictor import Predictor
from .method import Found, Method, Options, Pick
from .torch_module import module_of, normalised

BATCH = 10  # points of the way in one pass


def prepare(
    predictor: Predictor, options: Options, tensors: Mapping[str, np.ndarray] | None = None
) -> Method:
    module = module_of(predictor, tensors)
    points, weights = np.polynomial.legendre.leggauss(options.steps)

    def run(pixels: np.ndarray, pick: Pick) -> Found:
        import torch

        x = normalised(predictor, pixels)
        with torch.no_grad():
            scores = module(x)[0].numpy()
        classes = pick(scores)
        sums = [torch.zeros_like(x[0]) for _ in classes]
        for start in range(0, options.steps, BATCH):
            part = slice(start, start + BATCH)
            along = torch.from_numpy((points[part] + 1) / 2).to(x.dtype)  # from -1..1 to 0..1
            share = torch.from_numpy(weights[part] / 2).to(x.dtype)
            way = (along[:, None, None, None] * x).requires_grad_()
            values = module(way)
            for total, index in zip(sums, classes, strict=True):
                (gradient,) = torch.autograd.grad(values[:, index].sum(), way, retain_graph=True)
                total += torch.tensordot(share, gradient, 1)
        maps = [(total * x[0]).sum(0).numpy() for total in sums]
        height, width = pixels.shape[:2]
        return Found(
            scores, classes, maps, np.arange(height), np.arange(width), (), "torch", "exact"
        )

    return run
