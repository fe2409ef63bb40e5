"""What a step does with gradients: which parameters learn alike, by which rule, at which rate.

Muon is Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": SGD with momentum
whose steps on matrices are made orthogonal, so that no direction is neglected. The momentum G of a matrix
is replaced by U V^T of its singular value decomposition U S V^T, which a few Newton-Schulz steps come near
enough to. A convolution is the matrix of its output channels by all that each of them reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import VGG
from .recipes import Config

# of a quintic that lifts small singular values quickly and leaves all of them within 0.7 to 1.2; "Muon"
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 3  # five come nearer, and networks learn no better from it


def grouped(model: VGG, config: Config) -> list[dict[str, Any]]:
    """The parameters that learn, those alike together, as torch's optimisers take them.

    Of each group "share" says which part of the schedule's rate it has, "kernel" whether it learns by
    Muon's orthogonal steps, "level" whether a batch norm follows, so that its length means nothing.
    The decay pulls on weights, and on biases and batch norms if decay_all. Each convolution below the top
    one learns at `fall` times the rate of the one above it, the head at head_rate. Under Muon kernels are
    groups of their own. With `blocks`, only that many from the top learn.
    """
    layers = [layer for layer in model.table.trunk if layer.kind == "conv"]
    depth: dict[str, int] = {}  # of a key's module: how many convolutions stand above it
    for above, layer in enumerate(reversed(layers)):
        depth |= {key: above for key in (layer.key, layer.norm_key) if key}
    held = _held(model, config.blocks)
    head = config.head_rate / config.rate if config.head_rate and config.rate else 1.0
    found: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if module in held:
            parameter.requires_grad_(False)
            continue
        kernel = parameter.dim() == 4 and config.optimiser == "muon"
        share = config.fall ** depth[module] if module in depth else head
        if kernel:
            share *= config.kernel_rate / (config.rate or 1)
        decay = config.decay if parameter.dim() > 1 or config.decay_all else 0.0
        level = kernel and model.table.batch_norm
        new = {
            "params": [],
            "share": share,
            "weight_decay": decay,
            "kernel": kernel,
            "level": level,
        }
        found.setdefault((share, decay, kernel), new)["params"].append(parameter)
    return sorted(found.values(), key=lambda group: (not group["kernel"], -group["weight_decay"]))


def _held(model: VGG, blocks: int) -> set[str]:
    """Keys of the modules below the last so many blocks, which keep what they have; none for 0 blocks."""
    trunk = model.table.trunk
    pools = [at for at, layer in enumerate(trunk) if layer.kind == "pool"]
    first = pools[-blocks - 1] + 1 if 0 < blocks < len(pools) else 0
    return {key for layer in trunk[:first] for key in (layer.key, layer.norm_key) if key}


def optimiser(
    groups: Sequence[dict[str, Any]], config: Config, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's rule over these groups."""
    fused = {"fused": device.type in ("cpu", "cuda")}
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.rate, betas=(config.momentum, 0.999), **fused)
    heavy: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.rate, **heavy, **fused)
    short = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return Muon(groups, lr=config.rate, **heavy, dtype=short)


# What changes as a run goes on


def rate_at(config: Config, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """The rate of step `step`, counted from 0; after so many drops where the schedule has plateaus."""
    warmup = min(config.warmup, config.epochs / 2) * steps_per_epoch
    if step < warmup:
        return config.rate * min(1.0, (step + 1) / warmup)
    if config.schedule == "plateau":
        return float(config.rate * 0.1**drops)
    if config.schedule == "constant":
        return config.rate
    total = config.epochs * steps_per_epoch
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return config.rate * (1 - done)
    # SGDR without restarts, arXiv:1608.03983
    return config.rate * (1 + math.cos(math.pi * done)) / 2


def side_at(config: Config, epoch: int) -> int:
    """How many pixels a side images have in that epoch, counted from 0."""
    return config.sides[min(epoch, config.epochs - 1) * len(config.sides) // config.epochs]


def effort(config: Config, done: float) -> float:
    """What the first `done` epochs take, in a unit of its own: arithmetic goes with the pixels."""
    pixels = [side_at(config, epoch) ** 2 for epoch in range(config.epochs)]
    whole = int(done)
    return sum(pixels[:whole]) + (pixels[whole] * (done - whole) if whole < config.epochs else 0)


def drops_after(config: Config, epochs: Sequence[Mapping[str, Any]]) -> int:
    """How often the accuracy after each epoch has stopped rising: `patience` epochs without a new best.

    epochs: the log's lines. After a drop the count of epochs begins anew; the best stays. 0 where the
    schedule has no plateaus.
    """
    drops, best, waited = 0, -math.inf, 0
    for row in epochs if config.schedule == "plateau" else ():
        trained = row["train_top1"]  # where there is nothing to validate with
        accuracy = row.get("top1", row.get("mean_average_precision", trained))
        best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
        if waited >= config.patience:
            drops, waited = drops + 1, 0
    return drops


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
