"""VGG in torch: every network of the table as a module, under the names torchvision's readers know.

The four ways to one::

    vgg16(weights="builtin")             as torchvision.models has it, and more
    build("vgg16", classes=5)            random weights, any head, width, pooling
    load("photos.safetensors")           from any model file
    backbone("vgg16", ("relu4_3",))      named layers, for other people's networks
"""

from __future__ import annotations

from . import vgg
from .adapting import warm_start
from .backbones import Backbone, backbone
from .layers import initialise
from .loading import load
from .module import build
from .vgg import *  # noqa: F403  (torchvision's names, and the paper's other networks)

__all__ = ["Backbone", "backbone", "build", "initialise", "load", "warm_start"]
__all__ += vgg.__all__
