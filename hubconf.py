"""torch.hub's door: `torch.hub.load(REPOSITORY, "vgg16", weights="builtin")`, as verydeep.models."""

from verydeep.models import (
    backbone,
    vgg11,
    vgg11_bn,
    vgg11_lrn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg16c,
    vgg16c_bn,
    vgg19,
    vgg19_bn,
)

__all__ = [
    "backbone",
    "vgg11",
    "vgg11_bn",
    "vgg11_lrn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg16c",
    "vgg16c_bn",
    "vgg19",
    "vgg19_bn",
]

dependencies = ["torch", "numpy", "PIL", "safetensors"]  # torch.hub looks for these first
