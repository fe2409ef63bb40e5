"""Muon's steps, against the singular value decomposition and against SGD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verydeep.models import build
from verydeep.training.optim import Muon, grouped, orthogonal
from verydeep.training.recipes import changed, small_images


@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix[:, 0] *= 5
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    # the same singular vectors: U' X V is diagonal
    inner = u.T @ found @ v.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-3, rtol=0)
    # and each value is what the quintic makes of it, one after the other
    expected = s / s.norm()
    for _ in range(3):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(inner.diagonal(), expected, atol=1e-3, rtol=0)
    assert found.norm() == pytest.approx(min(shape) ** 0.5, rel=0.4)


def test_a_step_by_hand() -> None:
    draw = torch.Generator().manual_seed(1)
    start, grads = (
        torch.randn(4, 2, 3, 3, generator=draw),
        torch.randn(2, 4, 2, 3, 3, generator=draw),
    )
    kernel = torch.nn.Parameter(start.clone())
    optimiser = Muon([{"params": [kernel], "kernel": True, "level": True}], lr=0.1, momentum=0.5)
    held, expected, norm = torch.zeros_like(start), start.clone(), start.norm()
    for grad in grads:
        kernel.grad = grad.clone()
        optimiser.step()
        held = 0.5 * held + grad
        turned = orthogonal((grad + 0.5 * held).reshape(4, 18)).reshape(4, 2, 3, 3)
        expected -= 0.1 * norm * turned / 2  # the root of four rows
        expected *= norm / expected.norm()
    torch.testing.assert_close(kernel.detach(), expected)


def test_at_rate_0_nothing_moves() -> None:
    start = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    kernel = torch.nn.Parameter(start.clone())
    optimiser = Muon([{"params": [kernel], "kernel": True, "level": True}], lr=0.0)
    for _ in range(3):
        kernel.grad = torch.ones_like(start)
        optimiser.step()
    assert torch.equal(kernel, start)


def test_where_length_counts_it_decays() -> None:
    kernel = torch.nn.Parameter(torch.ones(2, 3, 1, 1))
    group = {"params": [kernel], "kernel": True, "weight_decay": 0.25}
    optimiser = Muon([group], lr=0.5)
    kernel.grad = torch.zeros_like(kernel)
    optimiser.step()
    np.testing.assert_allclose(kernel.detach(), 1 - 0.5 * 0.25)


@pytest.mark.parametrize("nesterov", [True, False])
def test_all_else_is_sgd(nesterov: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    start, grads = torch.randn(5, 3, generator=draw), torch.randn(4, 5, 3, generator=draw)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.2, momentum=0.9, nesterov=nesterov)
    other = torch.optim.SGD([theirs], lr=0.2, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_kernels_are_the_convolutions() -> None:
    config = changed(small_images(), {"optimiser": "muon", "kernel_rate": 0.03, "rate": 0.1})
    for name, level in (("vgg11_bn", True), ("vgg11", False)):
        model = build(name, classes=3, head="gap", layers=("relu5_2",), width=1 / 16)
        groups = grouped(model, config)
        assert [g["kernel"] for g in groups] == [True, False, False]
        assert all(p.dim() == 4 for p in groups[0]["params"])
        assert len(groups[0]["params"]) == 8
        assert groups[0]["level"] is level
        assert groups[0]["share"] * config.rate == pytest.approx(0.03)
        assert [p.shape for p in groups[1]["params"]] == [model.classifier.weight.shape]
