"""The published weights: where each file is, what it is, what it scored, and which classes it knows.

Sources: torchvision 0.29, `models/vgg.py` (addresses, hash heads, accuracy); Keras,
`applications/vgg16.py` and `vgg19.py` (addresses, MD5); the Caffe model zoo's pages of the Oxford
release (addresses, SHA-1). `imagenet.tsv` holds ImageNet's 1000 classes, one a line, as ILSVRC 2012 numbers
them, which is in the order of their WordNet ids (Russakovsky et al., arXiv:1409.0575), with torchvision's
names (`_IMAGENET_CATEGORIES`, BSD-3-Clause), which tell apart the two cranes and the two maillots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

from .. import nets
from ..errors import WeightsError, nearest

TORCHVISION_ADDRESS = "https://download.pytorch.org/models/"
KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
OXFORD_ADDRESS = "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"


@dataclass(frozen=True)
class Published:
    """One file at one address. digest: "algorithm:hex", whole or its head (`hashes.matches`)."""

    url: str
    digest: str

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Accuracy:
    """Fractions of ImageNet's validation images, as the publisher measured them by `protocol`."""

    top1: float
    top5: float
    protocol: str


@dataclass(frozen=True)
class Entry:
    """Weights that somebody published.

    name: what the catalogue calls them. network: a key of nets.NETWORKS. release: torchvision's enum
    member, or the publisher's word. published: the file, then older files of the same weights, used where
    one is at hand or the new one is gone.
    preprocess: a key of preprocess.PRESETS. classes: 1000, or 0 for convolutions alone.
    accuracy: None where nothing was published for this file. file_mebibytes: its size, where torchvision
    tells it.
    """

    name: str
    network: str
    release: str
    published: tuple[Published, ...]
    licence: str
    preprocess: str
    classes: int = 1000
    accuracy: Accuracy | None = None
    file_mebibytes: float | None = None

    otherwise: ClassVar[str] = "give the path of one that you have"

    @property
    def url(self) -> str:
        return self.published[0].url

    @property
    def file(self) -> str:
        return self.published[0].file

    @property
    def size_bytes(self) -> int:
        """Of the weights in float32: what the model file takes, but for its header."""
        return 4 * nets.network(self.network, classes=self.classes).parameters


_ONE_CROP = (
    "ImageNet validation, one view: shorter side 256, centre crop 224; published by torchvision"
)
_KERAS_TABLE = "ImageNet validation; published at keras.io/api/applications"


# network, file (and older files), top-1, top-5, MiB. The hex in a name heads the file's SHA-256.
_TORCHVISION = (
    ("vgg11", "vgg11-8a719046.pth vgg11-bbd30ac9.pth", 0.69020, 0.88628, 506.84),
    ("vgg11_bn", "vgg11_bn-6002323d.pth", 0.70370, 0.89810, 506.881),
    ("vgg13", "vgg13-19584684.pth vgg13-c768596a.pth", 0.69928, 0.89246, 507.545),
    ("vgg13_bn", "vgg13_bn-abd245e5.pth", 0.71586, 0.90374, 507.59),
    ("vgg16", "vgg16-397923af.pth", 0.71592, 0.90382, 527.796),
    ("vgg16_bn", "vgg16_bn-6c64b313.pth", 0.73360, 0.91516, 527.866),
    ("vgg19", "vgg19-dcbb9e9d.pth", 0.72376, 0.90876, 548.051),
    ("vgg19_bn", "vgg19_bn-c79401a0.pth", 0.74218, 0.91842, 548.143),
)

# network, MD5 of the whole, MD5 of the convolutions alone, top-1, top-5
_KERAS = (
    ("vgg16", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc", 0.713, 0.901),
    ("vgg19", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6", 0.713, 0.900),
)

# network, file, SHA-1
_OXFORD = (
    ("vgg16", "VGG_ILSVRC_16_layers.caffemodel", "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24"),
    ("vgg19", "VGG_ILSVRC_19_layers.caffemodel", "239785e7862442717d831f682bb824055e51e9ba"),
)


def _torchvision_file(file: str) -> Published:
    head = file.removesuffix(".pth").rsplit("-", 1)[1]
    return Published(TORCHVISION_ADDRESS + file, f"sha256:{head}")


def _entries() -> Iterator[Entry]:
    for network, files, top1, top5, mebibytes in _TORCHVISION:
        published = tuple(_torchvision_file(file) for file in files.split())
        yield Entry(
            network, network, "IMAGENET1K_V1", published, "BSD-3-Clause", "torchvision",
            accuracy=Accuracy(top1, top5, _ONE_CROP), file_mebibytes=mebibytes,
        )  # fmt: skip
    # The paper's pre-processing in torchvision's terms; the classifier in the file is NaN throughout.
    features = (_torchvision_file("vgg16_features-amdegroot-88682ab5.pth"),)
    yield Entry(
        "vgg16_features", "vgg16", "IMAGENET1K_FEATURES", features, "BSD-3-Clause", "features", 0,
        file_mebibytes=527.802,
    )  # fmt: skip
    for network, whole, trunk, top1, top5 in _KERAS:
        stem = f"{KERAS_ADDRESS}{network}/{network}_weights_tf_dim_ordering_tf_kernels"
        yield Entry(
            f"{network}-keras", network, "imagenet", (Published(f"{stem}.h5", f"md5:{whole}"),),
            "CC-BY-4.0", "caffe",
            accuracy=Accuracy(top1, top5, _KERAS_TABLE),
        )  # fmt: skip
        yield Entry(
            f"{network}-keras-features", network, "imagenet, no top",
            (Published(f"{stem}_notop.h5", f"md5:{trunk}"),), "CC-BY-4.0", "caffe", 0,
        )  # fmt: skip
    for network, file, sha1 in _OXFORD:
        published = (Published(OXFORD_ADDRESS + file, f"sha1:{sha1}"),)
        yield Entry(f"{network}-oxford", network, "ILSVRC-2014", published, "CC-BY-4.0", "caffe")


ENTRIES: dict[str, Entry] = {one.name: one for one in _entries()}


def entry(name: str) -> Entry:
    """The entry of that name; WeightsError, with the nearest names, where there is none."""
    if name not in ENTRIES:
        raise WeightsError(f"the catalogue has no weights {name!r}{nearest(name, ENTRIES)}")
    return ENTRIES[name]


@cache
def _classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = resources.files(__package__).joinpath("imagenet.tsv").read_text(encoding="utf-8")
    ids, names = zip(*(line.split("\t") for line in text.splitlines()), strict=True)
    return ids, names


def class_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of the scores, "n01440764" first."""
    return _classes()[0]


def class_names() -> tuple[str, ...]:
    """Their names, "tench" first; all different."""
    return _classes()[1]


# WordNet ids, first and last of each stretch: WordNet numbers what is of one kind together
KINDS = {
    "bird": ("n01503061-n01624833", "n01789386-n01861330", "n01999186-n02058221"),
    "cat": ("n02120997-n02124623",),
    "dog": ("n02084071-n02113978",),
    "fish": ("n01439121-n01501160", "n02512053-n02666195"),
    "insect": ("n02159955-n02322992",),
    "monkey": ("n02484322-n02493793",),
    "snake": ("n01726692-n01757901",),
}


def of_kind(word: str, ids: Iterable[str], names: Iterable[str]) -> str:
    """A hint for whoever asks for "dog" where classes are breeds; "" for a word that is no kind we know.

    ids, names: of the classes.
    """
    kind = word.strip().lower()
    kind = kind if kind in KINDS else kind.removesuffix("s")
    if kind not in KINDS:
        return ""
    spans = [span.split("-") for span in KINDS[kind]]
    its = [n for i, n in zip(ids, names, strict=True) if any(a <= i <= b for a, b in spans)]
    if not its:
        return f"; it knows no {kind}"
    more = f" and {len(its) - 12} more" if len(its) > 12 else ""
    return f"; of this kind it knows {', '.join(its[:12])}{more}"
