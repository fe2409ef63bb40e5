"""VGG in torch: every network of the table as a module, under the names torchvision's readers know.

vgg16(weights="builtin")             as torchvision.models has it, and more
build("vgg16", classes=5)            random weights, any head, width, pooling
load("photos.safetensors")           from any model file
backbone("vgg16", ("relu4_3",))      named layers, for other people's networks
"""

from __future__ import annotations

from .backbones import Backbone, backbone
from .enums import (
    VGG11_BN_Weights,
    VGG11_Weights,
    VGG13_BN_Weights,
    VGG13_Weights,
    VGG16_BN_Weights,
    VGG16_Weights,
    VGG19_BN_Weights,
    VGG19_Weights,
    Weights,
    WeightsEnum,
)
from .initialisation import initialise, warm_start
from .layers import cfgs, make_layers
from .listing import get_model, get_model_builder, get_model_weights, get_weight, list_models
from .loading import load
from .module import VGG, build
from .vgg import (
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
    "VGG",
    "VGG11_BN_Weights",
    "VGG11_Weights",
    "VGG13_BN_Weights",
    "VGG13_Weights",
    "VGG16_BN_Weights",
    "VGG16_Weights",
    "VGG19_BN_Weights",
    "VGG19_Weights",
    "Backbone",
    "Weights",
    "WeightsEnum",
    "backbone",
    "build",
    "cfgs",
    "get_model",
    "get_model_builder",
    "get_model_weights",
    "get_weight",
    "initialise",
    "list_models",
    "load",
    "make_layers",
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
    "warm_start",
]
