"""Muon: SGD with momentum whose steps on matrices are made orthogonal, so that no direction is neglected.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": the momentum G of a matrix is
replaced by U V^T of its singular value decomposition U S V^T, which a few Newton-Schulz steps come near
enough to. A convolution is the matrix of its output channels by all that each of them reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# of a quintic that lifts small singular values quickly and leaves all of them within 0.7 to 1.2; "Muon"
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # five come nearer, and networks learn no better from it


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum on all parameters; in groups with kernel=True, orthogonal steps.

    params: groups as torch.optim takes them, each with lr, momentum, nesterov, weight_decay. kernel:
    parameters of two or more dimensions, of which the first are a matrix's rows. level: such a group's
    matrices keep the norm that they begin with, and lr is the part of it that a step moves; for
    convolutions with a batch norm after them, to which length means nothing. dtype: of the products.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9,
        nesterov: bool = True, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.dtype = dtype
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0,
             "kernel": False, "level": False},
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each parameter that has a gradient."""
        assert closure is None, "the gradient is there already"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            steps = self._steps(group, parameters)
            if not group["kernel"]:
                torch._foreach_add_(parameters, steps, alpha=-group["lr"])
                continue
            for parameter, step in zip(parameters, steps, strict=True):
                turned = orthogonal(step.reshape(len(step), -1), self.dtype).view_as(step)
                if not group["level"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(turned, alpha=-group["lr"])
                    continue
                norm = self.state[parameter].setdefault("norm", parameter.norm())
                parameter.sub_(turned * (norm * group["lr"] / len(step) ** 0.5))
                parameter.mul_(norm / parameter.norm().clamp(min=1e-12))

    def _steps(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """What momentum makes of the gradients. The decay of kernels is apart from it."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"] and not group["kernel"]:
            grads = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
        held = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            held.append(state["momentum_buffer"])
        torch._foreach_mul_(held, group["momentum"])
        torch._foreach_add_(held, grads)
        if not group["nesterov"]:
            return held
        return list(torch._foreach_add(grads, held, alpha=group["momentum"]))


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, columns) with the singular vectors of `matrix`, and singular values all near 1."""
    a, b, c = QUINTIC
    x = matrix.to(dtype)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:  # the smaller product
        x = x.T
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
