"""The published weights: where each file is, what it is, and what it scored.

Sources: torchvision 0.29, `models/vgg.py` (addresses, hash heads, accuracy); Keras,
`applications/vgg16.py` and `vgg19.py` (addresses, MD5); the Caffe model zoo's pages of the Oxford
release (addresses, SHA-1). A catalogue name is used wherever a model file is: `obtain` fetches the
published file once, converts it once, and keeps the model file, which needs neither again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .. import nets
from ..errors import MissingExtraError, OutputError, WeightsError, nearest
from ..folders import cache_folder, download_folders
from ..lock import locked
from .digests import Learned, beside, file_digests, learn, learned, matches

__all__ = [
    "ENTRIES",
    "Accuracy",
    "Entry",
    "Published",
    "entry",
    "find_source",
    "obtain",
    "weights_folder",
]

TORCHVISION_ADDRESS = "https://download.pytorch.org/models/"
KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
OXFORD_ADDRESS = "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"


@dataclass(frozen=True)
class Published:
    """One file at one address. digest: "algorithm:hex", whole or its head (`digests.matches`)."""

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

    name: what the catalogue calls them. network: a key of nets.NETWORKS. weights: torchvision's enum
    member, or the publisher's word. published: the file, then older files of the same weights.
    preprocess: a key of preprocess.PRESETS. classes: 1000, or 0 for convolutions alone.
    accuracy: None where nothing was published for this file.
    """

    name: str
    network: str
    weights: str
    published: tuple[Published, ...]
    licence: str
    preprocess: str
    classes: int = 1000
    accuracy: Accuracy | None = None

    @property
    def url(self) -> str:
        return self.published[0].url

    @property
    def file(self) -> str:
        return self.published[0].file

    @property
    def old(self) -> tuple[Published, ...]:
        """Older files of the same weights; used where one is at hand or the new one is gone."""
        return self.published[1:]

    @property
    def sha256_head(self) -> str:
        """The head of the file's SHA-256, in hex; "" where the publisher gave another digest."""
        algorithm, _, head = self.published[0].digest.partition(":")
        return head if algorithm == "sha256" else ""

    @property
    def size_bytes(self) -> int:
        """Of the weights in float32: what the model file takes, but for its header."""
        return 4 * nets.network(self.network, classes=self.classes).parameters


_ONE_CROP = (
    "ImageNet validation, one view: shorter side 256, centre crop 224; published by torchvision"
)
_KERAS_TABLE = "ImageNet validation; published at keras.io/api/applications"

# network, file (and older files), top-1 %, top-5 %. The hex in a name heads the file's SHA-256.
_TORCHVISION = (
    ("vgg11", "vgg11-8a719046.pth vgg11-bbd30ac9.pth", 69.020, 88.628),
    ("vgg11_bn", "vgg11_bn-6002323d.pth", 70.370, 89.810),
    ("vgg13", "vgg13-19584684.pth vgg13-c768596a.pth", 69.928, 89.246),
    ("vgg13_bn", "vgg13_bn-abd245e5.pth", 71.586, 90.374),
    ("vgg16", "vgg16-397923af.pth", 71.592, 90.382),
    ("vgg16_bn", "vgg16_bn-6c64b313.pth", 73.360, 91.516),
    ("vgg19", "vgg19-dcbb9e9d.pth", 72.376, 90.876),
    ("vgg19_bn", "vgg19_bn-c79401a0.pth", 74.218, 91.842),
)

# network, MD5 of the whole, MD5 of the convolutions alone, top-1 %, top-5 %
_KERAS = (
    ("vgg16", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc", 71.3, 90.1),
    ("vgg19", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6", 71.3, 90.0),
)

# network, file, SHA-1
_OXFORD = (
    ("vgg16", "VGG_ILSVRC_16_layers.caffemodel", "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24"),
    ("vgg19", "VGG_ILSVRC_19_layers.caffemodel", "239785e7862442717d831f682bb824055e51e9ba"),
)


# what `foreign` needs to read a file of that kind: the package, and the extra that brings it
_READERS = {".pth": ("torch", "torch"), ".h5": ("h5py", "keras")}


def _torchvision_file(file: str) -> Published:
    head = file.removesuffix(".pth").rsplit("-", 1)[1]
    return Published(TORCHVISION_ADDRESS + file, f"sha256:{head}")


def _accuracy(top1_percent: float, top5_percent: float, protocol: str) -> Accuracy:
    return Accuracy(round(top1_percent / 100, 5), round(top5_percent / 100, 5), protocol)


def _entries() -> Iterator[Entry]:
    for network, files, top1, top5 in _TORCHVISION:
        published = tuple(_torchvision_file(file) for file in files.split())
        yield Entry(
            network, network, "IMAGENET1K_V1", published, "BSD-3-Clause", "torchvision",
            accuracy=_accuracy(top1, top5, _ONE_CROP),
        )  # fmt: skip
    # The paper's pre-processing in torchvision's terms; the classifier in the file is NaN throughout.
    features = (_torchvision_file("vgg16_features-amdegroot-88682ab5.pth"),)
    yield Entry(
        "vgg16_features", "vgg16", "IMAGENET1K_FEATURES", features, "BSD-3-Clause", "features", 0
    )
    for network, whole, trunk, top1, top5 in _KERAS:
        stem = f"{KERAS_ADDRESS}{network}/{network}_weights_tf_dim_ordering_tf_kernels"
        yield Entry(
            f"{network}-keras", network, "imagenet", (Published(f"{stem}.h5", f"md5:{whole}"),),
            "CC-BY-4.0", "caffe",
            accuracy=_accuracy(top1, top5, _KERAS_TABLE),
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


def weights_folder() -> Path:
    """Where published files and the model files made of them are kept."""
    return cache_folder() / "weights"


def obtain(name: str | os.PathLike[str], progress: bool = True) -> Path:
    """The path of a model file with these weights, fetched and converted first where that is needed.

    name: a catalogue name, or a path: a model file is returned as it is, any other weights are
    converted if they prove to be published ones (`convert.convert` takes the rest).
    progress: a bar, and notes on stderr.

    Reads $VERYDEEP_CACHE, $VERYDEEP_MIRROR (an address or a folder that holds the files under their
    own names), $VERYDEEP_OFFLINE. Raises WeightsError for an unknown name, weights that cannot be had
    or are not what they claim to be; MissingExtraError where converting needs torch or h5py.
    """
    known = ENTRIES.get(os.fspath(name))
    if known is None:
        path = Path(name)
        if not path.exists():
            raise WeightsError(
                f"no weights {os.fspath(name)!r}: neither in the catalogue nor a file"
                f"{nearest(os.fspath(name), ENTRIES)}"
            )
        return path if _is_model_file(path) else _converted(path, None, progress)
    target = model_path(known)
    if _unchanged(target, progress):
        return target
    package, extra = _READERS.get(Path(known.file).suffix, ("", ""))
    if package and not find_spec(package):  # said before 500 MB are fetched, not after
        raise MissingExtraError(f"converting {known.file}", extra)
    return _converted(find_source(known, progress), known, progress)


def model_path(known: Entry) -> Path:
    """Where the model file of an entry is kept, whether or not it is there."""
    return weights_folder() / f"{known.file.rsplit('.', 1)[0]}.safetensors"


def find_source(known: Entry, progress: bool = True) -> Path:
    """The published file of an entry, verified: from a folder where it already is, or fetched."""
    mirror = os.environ.get("VERYDEEP_MIRROR", "")
    mirror_folder = _local(mirror)
    for published in known.published:
        for folder in filter(None, (weights_folder(), mirror_folder, *download_folders())):
            path = folder / published.file
            if path.is_file():
                if _verified(path, published):
                    return path
                _note(f"{path} is not {published.digest}, so it is left alone", progress)
    if mirror_folder is not None:
        raise WeightsError(
            f"VERYDEEP_MIRROR is the folder {mirror_folder}, which has no {known.file} "
            f"that agrees with {known.published[0].digest}; put it there, or unset the variable"
        )
    place = weights_folder() / known.file
    if os.environ.get("VERYDEEP_OFFLINE", "0") not in ("", "0"):
        raise WeightsError(
            f"{known.name} is not on this machine and VERYDEEP_OFFLINE is set; put {known.file} at "
            f"{place}, or unset the variable"
        )
    return _fetched(known, mirror, progress)


def _fetched(known: Entry, mirror: str, progress: bool) -> Path:
    from . import fetch  # http and ssl take a while to load: most calls never come here

    gone: fetch.GoneError | None = None
    for published in known.published:
        url = f"{mirror.rstrip('/')}/{published.file}" if mirror else published.url
        place = weights_folder() / published.file
        advice = (
            "set VERYDEEP_MIRROR to an address or folder that has it, "
            f"or put the file at {place}, or give the path of one that you have"
        )
        try:
            return fetch.fetch(
                url, place, digest=published.digest, progress=progress, advice=advice
            )
        except fetch.GoneError as error:
            gone = gone or error
    raise WeightsError(f"{gone}; {advice}")


def _converted(source: Path, known: Entry | None, progress: bool) -> Path:
    from . import convert

    if known is None:
        known = convert.identify(source)
        if known is None:
            raise WeightsError(
                f"{source} is neither a model file nor one of the catalogue's; make a model file of "
                f"it with: verydeep weights convert {source} OUT --preprocess NAME"
            )
    target = model_path(known)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock")
        waiting = f"another process is converting {target.name}; waiting for it"
        with locked(lock, lambda: _note(waiting, progress)):
            if _unchanged(target, progress):  # made by another process while we waited
                return target
            _note(f"converting {source.name} to {target}, once", progress)
            convert.convert(source, target, claim=known.name)
            learn(target, file_digests(target)["sha256"], str(source))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise WeightsError(
            f"cannot write {target}: {error.strerror or error}; set VERYDEEP_CACHE to a folder that "
            "you may write to"
        ) from error
    return target


def _verified(path: Path, published: Published) -> bool:
    """Whether a file is what was published: whole if that was learned before, else by its digest."""
    note = beside(weights_folder() / path.name)
    before = learned(path, at=note)
    if before is None:
        found = file_digests(path, ("sha256", published.digest.partition(":")[0]))
        if not matches(published.digest, found):
            return False
        _remember(path, found["sha256"], published.url, note)
        return True
    if _same(path, before):
        return True
    found = file_digests(path, ("sha256", published.digest.partition(":")[0]))
    right = found["sha256"] == before.sha256 and matches(published.digest, found)
    if right:
        _remember(path, found["sha256"], before.source, note)
    return right


def _unchanged(path: Path, progress: bool) -> bool:
    """Whether a model file that we made is there and still what it was."""
    before = learned(path)
    if before is None or not path.is_file():
        return False
    if _same(path, before):
        return True
    if file_digests(path)["sha256"] == before.sha256:
        _remember(path, before.sha256, before.source, beside(path))
        return True
    _note(f"{path} has changed since it was made; making it again", progress)
    return False


def _same(path: Path, before: Learned) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (before.size_bytes, before.modified_ns)


def _remember(path: Path, sha256: str, source: str, at: Path) -> None:
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        learn(path, sha256, source, at)
    except OSError:
        pass  # a read-only cache still works: what was learned is learned again next time


def _is_model_file(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    from .. import modelfile
    from ..errors import ModelFileError

    try:
        modelfile.read(path)
    except ModelFileError:
        return False
    return True


def _local(mirror: str) -> Path | None:
    """The folder that $VERYDEEP_MIRROR names, None where it is an address or unset."""
    if mirror.startswith("file:"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        return Path(url2pathname(urlsplit(mirror).path))
    if not mirror or "://" in mirror:
        return None
    return Path(mirror).expanduser()


def _note(text: str, progress: bool) -> None:
    if progress:
        print(f"verydeep: {text}", file=sys.stderr, flush=True)
