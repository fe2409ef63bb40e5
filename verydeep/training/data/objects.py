"""Images that arrays and Python objects hold: .npz files, torchvision's sets, any Dataset, Hugging Face's.

No library is imported for that: an object is asked for what it has. Where it says where its photos lie,
they are read there, by many threads; else `object[index]` brings one image at a time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...files.progress import stage
from .items import Brought, Listing, as_text
from .layout import PARTS, part_of

# What people call the labels of an image, in a table or a data set.
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category", "tags")
KNOWN = (
    "expected a path, or torchvision's CIFAR10, ImageFolder and the like, any object whose [index] is "
    "(image, label), or a Hugging Face dataset with an Image column"
)


def arrays(path: Path) -> Listing:
    """An .npz of train_images (n, h, w, c) uint8, train_labels, val_ or test_ ones, and classes."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: not an .npz, or one that was cut short; expected what numpy.savez writes"
        )
    with np.load(path, allow_pickle=False) as file:
        try:
            held = {name: file[name] for name in file.files}
        except ValueError as error:
            raise DataError(f"{path}: {error}; expected plain arrays, no objects") from error
    if "images" in held and "labels" in held:
        held |= {"all_images": held["images"], "all_labels": held["labels"]}
    listing = Listing(classes=tuple(str(name) for name in held.get("classes", ())))
    for prefix, part in (("all", ""), *PARTS.items()):
        images, labels = held.get(f"{prefix}_images"), held.get(f"{prefix}_labels")
        if images is None and labels is None:
            continue
        if images is None or labels is None or len(images) != len(labels):
            raise DataError(
                f"{path}: {prefix}_images and {prefix}_labels; expected both, one label an image"
            )
        if labels.ndim != 1:
            raise DataError(
                f"{path}: {prefix}_labels is {labels.shape}; expected ({len(labels)},), a label an image"
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                f"{path}: {prefix}_images is {images.dtype} {images.shape}; expected uint8 "
                "(n, height, width, 3 or 1)"
            )
        _add(listing, str(path), part, images, labels)
    if not listing.items:
        raise DataError(
            f"{path}: holds {', '.join(held) or 'nothing'}; expected train_images (n, height, width, "
            "3) uint8, train_labels (n,), and perhaps val_images, val_labels and classes"
        )
    return listing


def held_by(data: Any) -> Listing:
    """What a Python object holds; of a mapping of parts to such objects, each part.

    Raises DataError where it is none that is known, or its images cannot be taken as they come.
    """
    if isinstance(data, Mapping):  # of Hugging Face: a DatasetDict
        return _parts(data)
    if hasattr(data, "dataset") and hasattr(data, "indices"):  # of torch: a Subset
        whole = held_by(data.dataset)
        return replace(whole, items=[whole.items[at] for at in data.indices])
    if hasattr(data, "__len__") and isinstance(getattr(data, "features", None), Mapping):
        return _hugging_face(data)
    listing, what = Listing(classes=_class_names(data)), type(data).__name__
    paths, targets = getattr(data, "samples", None), getattr(data, "targets", None)
    if _are_paths(paths):  # ImageFolder, ImageNet
        for path, label in paths:
            listing.add("", (_name_of(label, listing.classes, path),), path, path)
    elif targets is not None and hasattr(getattr(data, "data", None), "ndim"):  # CIFAR10, MNIST
        pixels = np.asarray(data.data)
        _add(listing, what, "", pixels[..., None] if pixels.ndim == 3 else pixels, targets)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, bytes):
        _add_pairs(listing, data)
    else:
        raise DataError(f"{what} is no data set that is known; {KNOWN}")
    return listing


def _parts(data: Mapping[Any, Any]) -> Listing:
    whole = Listing()
    for key, held in data.items():
        part = part_of(str(key))
        if not part:
            raise DataError(
                f"{key!r} is no part of a data set; expected train, validation and test"
            )
        one = held_by(held)
        whole.classes, whole.multi = whole.classes or one.classes, whole.multi or one.multi
        whole.loose += [f"{part} {name}" for name in one.loose]
        whole.items += [replace(item, part=part, name=f"{part} {item.name}") for item in one.items]
    return whole


def _class_names(data: Any) -> tuple[str, ...]:
    # ImageNet gives each class several names: ("tench", "Tinca tinca")
    names = getattr(data, "classes", None) or ()
    classes = tuple(as_text(n if isinstance(n, str) else str(n[0])) for n in names)
    if len(set(classes)) != len(classes):  # ImageNet has two cranes and two maillots
        classes = tuple(f"{name} {i}" for i, name in enumerate(classes))
    return classes


def _are_paths(held: Any) -> TypeGuard[list[tuple[str, int]]]:
    """Whether these are torchvision's pairs of path and label."""
    return bool(held) and isinstance(held, list) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in held
    )  # fmt: skip


def _add(
    listing: Listing, what: str, part: str, images: NDArray[Any], labels: Iterable[Any]
) -> None:
    """Arrays (n, h, w, c), which are taken as they are."""
    for index, label in enumerate(labels):
        text = _name_of(label, listing.classes, f"{what}: label {label} of image {index}")
        listing.add(part, (text,), f"{part or 'image'} {index}", images[index])


def _name_of(label: Any, classes: Sequence[str], what: str) -> str:
    """The class that a label stands for: a number of one, or its name."""
    label = label.item() if hasattr(label, "item") else label
    if not classes or not isinstance(label, int):
        return str(label)
    if not 0 <= label < len(classes):
        raise DataError(f"{what}; expected 0 to {len(classes) - 1}")
    return classes[label]


def _add_pairs(listing: Listing, data: Any) -> None:
    """Of an object whose [index] is (image, label): a number, a name, or 0 and 1 for each class."""
    what, count, lock = type(data).__name__, len(data), Lock()
    first = data[0] if count else (None, None)
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(f"{what}[0] is {type(first).__name__}; expected (image, label)")
    labels = getattr(data, "targets", None)
    if labels is None or len(labels) != count or getattr(data, "target_transform", None):
        labels = _labels_of(data, count)
    for index, label in enumerate(labels):
        about = f"{what}: label {label} of image {index}"
        if np.ndim(label) == 1:
            which = [at for at, one in enumerate(label) if one]
            if not set(map(float, label)) <= {0.0, 1.0}:
                raise DataError(f"{about}; expected a class, or 0 and 1 for each class")
        else:
            which = [label]
        names = tuple(_name_of(one, listing.classes, about) for one in which)
        listing.add("", names, f"image {index}", Brought(data, index, 0, lock))
    listing.multi = any(len(item.labels) != 1 for item in listing.items)
    _try(listing, what)


def _labels_of(data: Any, count: int) -> Iterator[Any]:
    """The label of each image, for which each is asked once, as nothing else says them."""
    for at in stage(range(count), "reading labels", "image", count):
        try:
            yield data[at][1]
        except Exception as error:  # the object's own code may raise anything
            why = str(error) or type(error).__name__
            raise DataError(
                f"{type(data).__name__}: image {at}: {why}; no label is known"
            ) from error


def _hugging_face(data: Any) -> Listing:
    """A Dataset with a column of the kind Image and one of labels, of the kind ClassLabel if it has one."""
    columns = dict(data.features)
    kinds = {name: type(feature).__name__ for name, feature in columns.items()}
    of_images = [name for name, kind in kinds.items() if kind == "Image"]
    inner = {name: getattr(feature, "feature", feature) for name, feature in columns.items()}
    of_labels = [name for name, one in inner.items() if type(one).__name__ == "ClassLabel"]
    of_labels = of_labels or [name for name in LABEL_COLUMNS if name in kinds]
    if len(of_images) != 1 or len(of_labels) != 1:
        raise DataError(
            f"a data set of the columns {', '.join(kinds)}; expected one of the kind Image, and one "
            "of the kind ClassLabel or named label; choose two with select_columns"
        )
    (image,), (label,) = of_images, of_labels
    stored = data.cast_column(image, type(columns[image])(decode=False))
    listing = Listing(classes=tuple(getattr(inner[label], "names", None) or ()))
    listing.multi = inner[label] is not columns[label]
    lock = Lock()
    for index, value in enumerate(data[label]):
        if value is None or value == -1:  # as the test sets of competitions have
            listing.loose.append(f"image {index}")
            continue
        about = f"{label} {value} of image {index}"
        which = value if listing.multi else [value]
        names = tuple(_name_of(one, listing.classes, about) for one in which)
        listing.add("", names, f"image {index}", Brought(stored, index, image, lock))
    _try(listing, type(data).__name__)
    return listing


def _try(listing: Listing, what: str) -> None:
    """DataError where the first image cannot be taken, before anything else is done."""
    if listing.items:
        source = listing.items[0].source
        assert isinstance(source, Brought)
        try:
            source.read()
        except OSError as error:
            raise DataError(f"{what}: {error}") from error
