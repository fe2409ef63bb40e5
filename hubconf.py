"""torch.hub's door: `torch.hub.load(REPOSITORY, "vgg16", weights="builtin")`, as verydeep.models."""

from verydeep import models

__all__ = [*models.list_models(), "backbone", "get_model_weights", "get_weight"]  # noqa: F822

globals().update({name: getattr(models, name) for name in __all__})

dependencies = ["torch", "numpy", "PIL", "safetensors"]  # torch.hub looks for these first
