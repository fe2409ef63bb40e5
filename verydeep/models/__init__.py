"""VGG in torch: every network of the table as a module, under the names torchvision's readers know.

build("vgg16", classes=5)            random weights
load("photos.safetensors")           from any model file
"""

from __future__ import annotations

from .initialisation import initialise, warm_start
from .loading import load
from .module import VGG, build

__all__ = ["VGG", "build", "initialise", "load", "warm_start"]
