"""Images that arrays and Python objects hold: .npz files, torchvision's sets, any Dataset, Hugging Face's.

No library is imported for that: an object is asked for what it has. Where it says where its photos lie,
they are read there, by many threads; else `object[index]` brings one image at a time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files.progress import stage
from .items import Brought, Listing, Source
from .layout import PARTS, part_of

# What people call the labels of an image, in a table or a data set.
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category", "tags")
TRIED = 8  # images that fail one after the other before it is the object's own fault
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
    listing, known = Listing(classes=_names(held.get("classes", ()))), False
    if len(set(listing.classes)) < len(listing.classes):
        raise DataError(f"{path}: classes names one twice; expected each once")
    parts = {f"{name}_": part for name, part in PARTS.items()}
    if "images" in held and "labels" in held:
        parts[""] = ""
    for prefix, part in parts.items():
        images, labels = held.get(f"{prefix}images"), held.get(f"{prefix}labels")
        if images is None and labels is None:
            continue
        if images is None or labels is None or images.shape[:1] != labels.shape[:1]:
            raise DataError(
                f"{path}: {prefix}images and {prefix}labels; expected both, one label an image"
            )
        if not _are_pixels(images) or images.ndim != 4:
            raise DataError(
                f"{path}: {prefix}images is {images.dtype} {images.shape}; expected uint8 "
                "(n, height, width, 3 or 1)"
            )
        known = True
        _add(listing, str(path), labels, images.__getitem__, part)
    if not listing.items:
        what = "no image with a label" if known else ", ".join(held) or "nothing"
        raise DataError(
            f"{path}: holds {what}; expected train_images (n, height, width, "
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
        return _some(data.dataset, data.indices)
    listing, what = Listing(classes=_class_names(data)), type(data).__name__
    paths, targets = getattr(data, "samples", None), getattr(data, "targets", None)
    # of Hugging Face a table, which would be read whole
    held = getattr(data, "data", None)
    pixels = np.asarray(held if hasattr(held, "dtype") and hasattr(held, "shape") else None)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    changed = getattr(data, "target_transform", None)  # then data[index] alone knows the label
    if paths and isinstance(paths, list) and listing.classes and not changed and all(
        isinstance(one[0], str) for one in paths
    ):  # fmt: skip
        _add(listing, what, (label for _, label in paths), lambda at: paths[at][0])  # ImageFolder
        listing.items = [replace(one, name=str(one.source)) for one in listing.items]
    elif targets is not None and not changed and _are_pixels(pixels):  # CIFAR10, MNIST
        _add(listing, what, targets, pixels.__getitem__)
    elif (
        not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or isinstance(data, bytes)
    ):
        raise DataError(f"{what} is no data set that is known; {KNOWN}")
    elif isinstance(getattr(data, "features", None), Mapping):
        _add_rows(listing, data)
    elif len(data):
        _add_pairs(listing, data)
    _require_images(what, [item.source for item in listing.items[:TRIED]])
    return listing


def _require_images(what: str, sources: list[Source]) -> None:
    """DataError where the object brings none of these: that is no photo's fault, but a transform's."""
    first: OSError | None = None
    for source in sources:
        try:
            if isinstance(source, Brought):
                source.read()
            return
        except OSError as error:
            first = first or error
    if first:
        raise DataError(f"{what}: {first}") from first


def _are_pixels(held: np.ndarray) -> bool:
    """Whether these are images, (n, height, width, 3 or 1) uint8, as they can be taken."""
    return bool(
        held.dtype == np.uint8
        and held.ndim == 4
        and held.shape[3] in (1, 3)
        and all(held.shape[1:])
    )


def _some(data: Any, indices: Iterable[int]) -> Listing:
    """Of a torch Subset: those of what the whole holds; an image without a label has its number, too."""
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        return _some(data.dataset, [data.indices[at] for at in indices])
    whole = held_by(data)
    loose, known = set(whole.loose), iter(whole.items)
    names = [f"image {at}" for at in range(len(data))]
    every = [None if name in loose else next(known) for name in names]
    return replace(
        whole,
        items=[one for at in indices if (one := every[at])],
        loose=[names[at] for at in indices if not every[at]],
    )


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
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple | np.ndarray):  # a count, or a function of some other use
        return ()
    classes = _names(name[0] if isinstance(name, list | tuple) else name for name in names)
    if len(set(classes)) != len(classes):  # ImageNet has two cranes and two maillots
        classes = tuple(f"{name} {i}" for i, name in enumerate(classes))
    return classes


def _names(held: Any) -> tuple[str, ...]:
    """The names of classes as text, which arrays may hold as bytes."""
    names = np.atleast_1d(held).tolist() if isinstance(held, np.ndarray) else held
    return tuple(n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names)


def _add(
    listing: Listing, what: str, labels: Iterable[Any], source: Callable[[int], Any], part: str = ""
) -> None:
    """Images in order, by the label of each: a number or name, several names, or 0 and 1 for each class."""
    classes, width = listing.classes, None
    for index, label in enumerate(labels):
        held, names = np.asarray(label), []
        if held.dtype.kind == "f" and (held == np.rint(held)).all():
            held = held.astype(np.int64)
        flags = held.size if held.dtype.kind in "iub" and held.size > 1 else 0
        width = flags if width is None else width  # numbers of classes have lists of any length
        fits = flags == width and flags in (0, len(classes) or flags)
        texts = held.dtype.kind != "O" or all(isinstance(one, str | None) for one in held.flat)
        if (
            not fits
            or not texts
            or held.dtype.kind == "f"
            or (flags and not np.isin(held, (0, 1)).all())
        ):
            raise DataError(
                f"{what}: the label of image {index} is {label}; expected a class, or 0 and 1 for each"
            )
        held = np.flatnonzero(held) if flags else held
        for one in held.reshape(-1).tolist():
            one = one.decode(errors="replace") if isinstance(one, bytes) else one
            if isinstance(one, int) and classes and not -1 <= one < len(classes):
                raise DataError(
                    f"{what}: label {one} of image {index}; expected 0 to {len(classes) - 1}"
                )
            names.append(classes[one] if isinstance(one, int) and classes else str(one))
        name = f"{part or 'image'} {index}"
        one = held.item() if held.size == 1 else ""
        if one is None or (classes and one == -1):  # as in the test sets of competitions
            listing.loose.append(name)
        else:
            listing.add(part, tuple(names), name, source(index))
    listing.multi = any(len(item.labels) != 1 for item in listing.items)


def _add_pairs(listing: Listing, data: Any) -> None:
    """Of an object whose [index] is (image, label)."""
    what, count = type(data).__name__, len(data)

    def pair(at: int) -> Any:
        try:
            return data[at]
        except Exception as error:  # the object's own code may raise anything
            why = str(error) or type(error).__name__
            raise DataError(f"{what}: image {at}: {why}; no label is known") from error

    if not isinstance(first := pair(0), tuple | list) or len(first) != 2:
        raise DataError(f"{what}[0] is {type(first).__name__}; expected (image, label)")

    def labels() -> Iterator[Any]:
        """Each image is asked for once, as nothing else says its label."""
        for at in stage(range(count), "reading labels", "image", count):
            yield pair(at)[1]

    known = getattr(data, "targets", None)
    if known is None or len(known) != count or getattr(data, "target_transform", None):
        known = labels()
    _add(listing, what, known, lambda index: Brought(data, index, 0))


def _add_rows(listing: Listing, data: Any) -> None:
    """Of a Hugging Face Dataset: a column of the kind Image, and one ClassLabel, or named as labels are."""
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    inner = {name: getattr(feature, "feature", feature) for name, feature in data.features.items()}
    of_images = [name for name, kind in kinds.items() if kind == "Image"]
    of_labels = [name for name, one in inner.items() if type(one).__name__ == "ClassLabel"]
    of_labels = of_labels or [name for name in LABEL_COLUMNS if name in kinds]
    if len(of_images) != 1 or len(of_labels) != 1:
        raise DataError(
            f"a data set of the columns {', '.join(kinds)}; expected one of the kind Image, and one "
            "of the kind ClassLabel or named label; choose two with select_columns"
        )
    (image,), (label,) = of_images, of_labels
    stored = data.cast_column(image, type(inner[image])(decode=False))
    listing.classes = tuple(getattr(inner[label], "names", None) or ())
    labels = data[label]
    if several := kinds[label] != type(inner[label]).__name__:  # lists of numbers or names
        names = dict(enumerate(listing.classes))
        labels = [[str(names.get(one, one)) for one in some] for some in labels]
    _add(listing, type(data).__name__, labels, lambda index: Brought(stored, index, image))
    listing.multi = several
