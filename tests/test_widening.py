"""A widened network answers as the narrow one did, and its copies of a channel do not stay alike."""

from __future__ import annotations

import pytest
import torch

from verydeep.errors import WeightsError
from verydeep.models import build
from verydeep.models.loading import Trained, assemble
from verydeep.models.widening import widened
from verydeep.nets import network


def narrow(name: str, head: str, layers: tuple[str, ...], **choices: object) -> Trained:
    torch.manual_seed(0)
    model = build(name, classes=4, head=head, layers=layers, width=1 / 16, init="he", **choices)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.5)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return Trained(model.table, dict(model.state_dict()))


CASES = [
    ("vgg11_bn", "gap", ("relu5_2",), 2.0),
    ("vgg13", "gap", ("relu4_2", "relu5_2"), 1.7),
    ("vgg16c_bn", "small", (), 3.0),
    ("vgg11_lrn", "small", (), 1.0),
]


@pytest.mark.parametrize(("name", "head", "layers", "times"), CASES)
def test_the_answers_stay(name: str, head: str, layers: tuple[str, ...], times: float) -> None:
    before = narrow(name, head, layers)
    wide = network(name, classes=4, head=head, layers=layers, width=times / 16)
    after = widened(before, times / 16)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = (assemble(w).eval()(x) for w in (before, after))
    # LRN sums squares over neighbours, which widening moves; at equal width nothing does
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert {k: v.shape for k, v in after.tensors.items()} == wide.tensors


def test_defaults_of_torch_change_nothing() -> None:
    before = narrow("vgg11_bn", "gap", ("relu5_2",))
    torch.manual_seed(1)
    expected = widened(before, 1 / 8).tensors
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(1)
        with torch.device("meta"):
            after = widened(before, 1 / 8).tensors
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(after, expected, rtol=0, atol=0)  # the type, and the device, too


def test_copies_learn_different_things() -> None:
    before = narrow("vgg11_bn", "gap", ("relu5_2",))
    model = assemble(widened(before, 1 / 8)).train()
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for key in ("features.0", "features.4", "features.25"):
        gradient = model.get_parameter(f"{key}.weight").grad
        assert gradient is not None
        half = len(gradient) // 2
        gap = (gradient[:half] - gradient[half:]).norm() / gradient.norm()
        assert gap > 0.05, key


def test_what_cannot_be_widened_is_refused() -> None:
    for name, width, words in (
        ("vgg11_bn", 1 / 32, "vgg11_bn of width 0.0625 cannot become one of width 0.03125"),
        ("vgg11_lrn", 1, "expected a greater width, and a network without LRN"),
    ):
        with pytest.raises(WeightsError, match=words):
            widened(narrow(name, "small", ()), width)
