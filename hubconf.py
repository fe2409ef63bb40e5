"""torch.hub's door: `torch.hub.load(REPOSITORY, "vgg16", weights=...)` gives what verydeep.models gives."""

from verydeep.models import (
    VGG,
    Backbone,
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
