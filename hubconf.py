"""torch.hub's door: `torch.hub.load(REPOSITORY, "vgg16", weights="builtin")`, as verydeep.models."""

from verydeep import models
from verydeep.nets import NETWORKS

__all__ = [*NETWORKS, "backbone"]  # noqa: F822

globals().update({name: getattr(models, name) for name in __all__})

dependencies = ["torch", "numpy", "PIL", "safetensors"]  # torch.hub looks for these first
