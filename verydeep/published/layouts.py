"""The layouts in which people have saved this network, as rules, and the network seen from shapes.

A layout is a list of rules from the names in a file to places in the network: torchvision's key
("features.10"), the paper's name ("conv3_2", "fc6"), or a count ("conv#4": the fifth convolution). One
loop applies the rules, one other tries the networks of the table until every shape agrees.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import nets
from ..errors import NetworkError, WeightsError, log, require
from ..nets import Head, Network

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """How one kind of file names and stores the weights.

    rules: (pattern of the whole name, place). A pattern's group "part" is torch's name of the tensor;
    where it has none, a tensor of one axis is the bias, any other the weight.
    kernels: the axes of a convolution, "OIHW" (torch, Caffe) or "HWIO" (TensorFlow, Keras, JAX), in
    the order in which they are tried. With HWIO, FC weights are (in, out), and the first of them
    counts its inputs by rows, columns, channels instead of channels, rows, columns.
    """

    about: str
    rules: tuple[tuple[str, str], ...]
    kernels: tuple[str, ...] = ("OIHW",)


_PART = r"\.(?P<part>weight|bias|running_mean|running_var|num_batches_tracked)"
_END = r"(?:[/._:].*)?"  # "/kernel:0", "_W_1:0", "/vars/0", ".weights": rank tells them apart

LAYOUTS = {
    "torchvision": Layout(
        "features.N and classifier.0, .3, .6, with or without the classifier",
        ((rf"(features\.\d+|classifier(?:\.[036])?){_PART}", r"\1"),),
    ),
    "timm": Layout(
        "features.N, pre_logits.fc1 and fc2 as convolutions, head.fc",
        (
            (rf"(features\.\d+){_PART}", r"\1"),
            (rf"pre_logits\.fc1{_PART}", "fc6"),
            (rf"pre_logits\.fc2{_PART}", "fc7"),
            (rf"head\.fc{_PART}", "fc8"),
        ),
    ),
    "own head": Layout(
        "features.N, and FC layers of any names in `classifier`, `head` or `fc`, counted, as torchvision's "
        "of before 2017, dropout first: classifier.1, .4, .6",
        (
            (rf"(features\.\d+){_PART}", r"\1"),
            (rf"(?:classifier|head|fc)\b\.?(.*){_PART}", r"fc#\1"),
        ),
    ),
    "features": Layout(
        "the convolutions alone, as their Sequential or its slices name them: 0, 2, 5, ...",
        ((rf"(?:(?:slice|stage|block)_?\d+\.)?(\d+){_PART}", r"features.\1"),),
    ),
    "keras": Layout(
        "block1_conv1, fc1, fc2, predictions (.h5), or conv2d_N and dense_N (.weights.h5)",
        (
            (rf"(?:.*/)?block(\d)_conv(\d){_END}", r"conv\1_\2"),
            (rf"(?:.*/)?fc1{_END}", "fc6"),
            (rf"(?:.*/)?fc2{_END}", "fc7"),
            (rf"(?:.*/)?predictions{_END}", "fc8"),
            (r"(?:.*/)?conv2d_(\d+)/.*", r"conv#\1"),
            (r"(?:.*/)?conv2d/.*", "conv#0"),  # Keras begins to count with the second
            (r"(?:.*/)?dense_(\d+)/.*", r"fc#\1"),
            (r"(?:.*/)?dense/.*", "fc#0"),
        ),
        ("HWIO",),
    ),
    "caffe": Layout(
        "the paper's names, conv1_1 ... fc8: .caffemodel, .npz, .npy",
        ((rf"(?:.*/)?(conv\d_\d|fc[678]){_END}", r"\1"),),
        ("OIHW", "HWIO"),
    ),
    "flax": Layout(
        "Conv_N and Dense_N, counted from 0",
        (
            (r"(?:.*/)?Conv_(\d+)/(?:kernel|bias)", r"conv#\1"),
            (r"(?:.*/)?Dense_(\d+)/(?:kernel|bias)", r"fc#\1"),
        ),
        ("HWIO",),
    ),
}

# What wrappers put on the way to a network, at any depth: DataParallel, torch.compile.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")


class _TwoNetworksError(WeightsError):
    """Two trunks under different prefixes, of which nothing says which is meant."""


Places = dict[str, dict[str, NDArray[Any]]]  # place -> torch's part ("weight") -> array as stored


def arrange(
    tensors: Tensors,
    *,
    network: str | None = None,
    layout: str | None = None,
    trunk: bool = False,
    averages: tuple[str, ...] = (),
) -> tuple[Network, dict[str, NDArray[Any]], str]:
    """The network that these tensors are, and they by its keys, in its shapes; and their layout.

    network: a key of nets.NETWORKS, where shapes alone do not say (LRN and its lack look the same in
    layouts that use the paper's names). layout: a key of LAYOUTS. trunk: take the convolutions, and leave
    out all else. averages: the layers whose global averages a head of one FC layer reads, by their paper
    names; no file says them.
    A prefix that most names have is left out. What stands beside it is so as well, and said, where the
    network has its head without it, as a loss with weights of its own. Missing `num_batches_tracked` (files
    from before 2018) becomes 0.

    Raises WeightsError where no layout has all the names or no network fits, naming the nearest.
    """
    if not tensors:
        raise WeightsError("there are no tensors; expected the weights of a network")
    if layout is not None:
        require("layout", layout, LAYOUTS, WeightsError)
    if network is not None:
        require("network", network, nets.NETWORKS, WeightsError)
    only = layout
    layout, matches, beside, rival = _matched(tensors, only, anywhere=trunk)
    strangers = [name for name, match in matches.items() if match is None]
    if not trunk and (len(strangers) > len(beside) or len(strangers) == len(tensors)):
        raise WeightsError(
            f'these are not the weights of one of our networks: nearest to layout "{layout}" '
            f"({LAYOUTS[layout].about}), but it has no place for {_some(strangers)}"
            + _advice(tensors, network, only)
        )
    places = _placed(tensors, matches)
    tries = []
    for kernels in LAYOUTS[layout].kernels:
        turned = {place: _turned(parts, kernels) for place, parts in places.items()}
        for net in _candidates(turned, network, trunk, averages):
            tries.append((*_fit(net, turned, kernels, trunk), net))
            if not any(tries[-1][1:3]):
                break  # nothing is wrong, and nothing left over
    if not tries:
        raise WeightsError(
            f"no network of the table has these {len(tensors)} tensors in layout "
            f'"{layout}" ({", ".join(list(tensors)[:3])}, ...)'
            + (f" and the layers {', '.join(averages)}" if averages else ": no first convolution")
        )
    ours, problems, _, net = min(tries, key=lambda one: (len(one[1]), one[2]))
    if not problems and beside and not trunk and not net.head.classes:
        problems = [f"it has no head, and no place for {_some(beside)}, which may be one"]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise WeightsError(
            f"these tensors are no network of the table; the nearest is {net.name}, {net.widths}, "
            f"{net.in_channels} input channels: {problems[0]}{more}"
            + ("" if trunk else _advice(tensors, network, only))
        )
    if rival:
        first = next(name for name, match in matches.items() if match)
        raise _TwoNetworksError(
            f"it holds two networks, {first!r} of one and {rival!r} of the other; save the state_dict() of "
            "the one that is meant"
        )
    if beside and not trunk:
        log.info(f"left out {_some(beside)}, beside the network")
    if layout == "own head" and net.head.classes and net.head.kind != "gap":
        log.info("its head is taken to be FC layers with a ReLU after each but the last")
    return net, ours, layout


def _some(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _advice(tensors: Tensors, network: str | None, layout: str | None) -> str:
    """What helps, if it does."""
    try:
        arrange(tensors, network=network, layout=layout, trunk=True)
    except _TwoNetworksError as error:
        return f"; {error}"
    except WeightsError:
        return ""
    return "; `verydeep weights convert --trunk` takes its convolutions alone"


Matches = dict[str, tuple[str, str] | None]  # name -> its place, and torch's name for the part


def _matched(
    tensors: Tensors, only: str | None, *, anywhere: bool
) -> tuple[str, Matches, list[str], str]:
    """The layout that knows the most names, where they belong, and those without the prefix of most.

    anywhere: any prefix will do, so that a trunk is found in a larger network. Last, a name that as many
    would be known with, under another prefix; "" where there is none.
    """
    bare = {name: _WRAPPERS.sub("", name) for name in tensors}
    counts = Counter(
        name[: dot.end()] for name in bare.values() for dot in re.finditer(r"\.", name)
    )
    known: set[str] = set()
    best: tuple[str, Matches, list[str]] | None = None
    rival = ""
    for prefix in ("", *(p for p, count in counts.items() if anywhere or 2 * count > len(bare))):
        beside = [name for name, text in bare.items() if not text.startswith(prefix)]
        for layout in [only] if only else LAYOUTS:
            matches: Matches = dict.fromkeys(bare)
            for name in bare.keys() - beside:
                matches[name] = _match(bare[name].removeprefix(prefix), LAYOUTS[layout])
            here = {name for name, match in matches.items() if match}
            if best is None or len(here) > len(known):
                known, best, rival = here, (layout, matches, beside), ""
            elif known and len(here) == len(known) and known.isdisjoint(here):
                rival = next(name for name in bare if name in here)
    assert best
    return *best, rival


def _placed(tensors: Tensors, matches: Matches) -> Places:
    """The tensors by their places."""
    places: Places = {}
    for tensor, match in matches.items():
        if match is None:
            continue
        place, part = match
        array = tensors[tensor]
        if tensor.endswith("/1") and array.shape[:-1] == (1, 1, 1):  # a bias in Caffe's old format
            array = array.reshape(-1)
        part = part or ("bias" if array.ndim == 1 else "weight")
        if part in places.setdefault(place, {}):
            raise WeightsError(f"two tensors are the {part} of {place}; the second is {tensor!r}")
        places[place][part] = array
    return _counted(places)


def _match(tensor: str, layout: Layout) -> tuple[str, str] | None:
    """Where a tensor belongs, and torch's name for what it is there ("" where rank must tell)."""
    for pattern, place in layout.rules:
        match = re.fullmatch(pattern, tensor)
        if match:
            return match.expand(place), match.groupdict().get("part") or ""
    return None


def _counted(places: Places) -> Places:
    """Counts that start at 0 without gaps: Keras goes on counting over all models of a session.

    By their numbers, since some files have their names in alphabetical order; names without a number, in
    the order of the file.
    """
    counted = {place: parts for place, parts in places.items() if "#" not in place}
    for kind in ("conv#", "fc#"):
        counts = [place for place in places if place.startswith(kind)]
        numbers = {place: [int(n) for n in re.findall(r"\d+", place)] for place in counts}
        if all(numbers.values()):
            counts.sort(key=numbers.__getitem__)
        counted |= {f"{kind}{count}": places[place] for count, place in enumerate(counts)}
    return counted


def _turned(parts: dict[str, NDArray[Any]], kernels: str) -> dict[str, NDArray[Any]]:
    """Weights with their axes in torch's order: (out, in, height, width) and (out, in)."""
    weight = parts.get("weight")
    if kernels == "OIHW" or weight is None or weight.ndim not in (2, 4):
        return parts
    return {**parts, "weight": weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T}


def _names(net: Network) -> dict[str, str]:
    """torchvision's key of each layer with weights, by every name that a place may have."""
    names: dict[str, str] = {}
    for kind in ("conv", "fc"):
        for count, layer in enumerate(layer for layer in net.layers if layer.kind == kind):
            names |= dict.fromkeys((layer.key, layer.name, f"{kind}#{count}"), layer.key)
            if layer.norm_key:
                names[layer.norm_key] = layer.norm_key
    return names


def _candidates(
    places: Places, only: str | None, trunk: bool, averages: tuple[str, ...]
) -> Iterator[Network]:
    """The networks that may fit: every column, the widths that its convolutions allow, its heads."""
    for name in [only] if only else nets.NETWORKS:
        bare = nets.network(name, classes=0)
        names = _names(replace(bare, head=Head()))
        weights = {
            names[place]: parts["weight"]
            for place, parts in places.items()
            if place in names and "weight" in parts and parts["weight"].ndim == 4
        }
        convolutions = [layer for layer in bare.trunk if layer.kind == "conv"]
        first = weights.get(convolutions[0].key)
        if first is None:
            continue
        widths = [
            weights[layer.key].shape[0] / layer.outputs
            for layer in sorted(convolutions, key=lambda one: -one.outputs)
            if layer.key in weights
        ]
        for head in [Head("classic", 0)] if trunk else _heads(places, averages):
            hidden = _outputs(places, ("fc6", "classifier.0", "fc#0"))
            full = nets.HEADS[head.kind][1]
            # rounding hides the width from thin layers: ask the widest first
            said = [hidden / full, *widths] if hidden and full and head.classes else widths
            for width in list(dict.fromkeys(said))[:4]:
                try:
                    yield replace(bare, width=width, in_channels=first.shape[1], head=head)
                except NetworkError:  # a width that the table does not go to
                    continue


def _heads(places: Places, averages: tuple[str, ...]) -> Iterator[Head]:
    """The heads that the FC layers in the file may be."""
    classes = _outputs(places, ("fc8", "classifier.6", "fc#2"))
    if classes:
        yield Head("classic", classes)
        yield Head("small", classes)
        return
    classes = 0 if "fc#1" in places else _outputs(places, ("classifier", "fc#0"))
    if classes and not averages:
        weights = [parts["weight"] for parts in places.values() if "weight" in parts]
        channels = sum(len(weight) for weight in weights if weight.ndim == 4)
        if any(w.ndim == 2 and w.size > classes * channels for w in weights):
            raise WeightsError(
                "its head is one FC layer on whole maps, which the table does not have; leave it out with "
                "--trunk"
            )
        raise WeightsError(
            "its head is one FC layer on global averages, and no file says of which layers: name them "
            "with --averages (Keras's include_top=False averages pool5), or leave it out with --trunk"
        )
    yield Head("gap", classes, averages) if classes else Head("classic", 0)


def _outputs(places: Places, names: tuple[str, ...]) -> int:
    """How many numbers the first of these FC layers gives; 0 where the file has none of them."""
    for name in names:
        weight = places.get(name, {}).get("weight")
        if weight is not None and weight.ndim in (2, 4):
            # (1, 1, out, in) is Caffe's old way to write a matrix
            return int(weight.shape[2 if weight.shape[:2] == (1, 1) else 0])
    return 0


def _fit(
    net: Network, places: Places, kernels: str, trunk: bool
) -> tuple[dict[str, NDArray[Any]], list[str], int]:
    """The tensors by the network's keys, all that is wrong with them, in words, and how many are left over.

    Of a trunk nothing is wrong where some are left over, but another network may have a place for them.
    """
    names, shapes = _names(net), net.tensors
    ours: dict[str, NDArray[Any]] = {}
    problems: list[str] = []
    left = 0
    for place, parts in places.items():
        key = names.get(place)
        known = [part for part in parts if f"{key}.{part}" in shapes]
        if len(known) < len(parts):
            left += 1
            odd = next(part for part in parts if part not in known)
            if not trunk:
                kind, _, count = place.partition("#")
                what = f"{kind} layer number {int(count) + 1}" if count else place
                problems.append(f"it has no {f'{key}.{odd}' if key else what}")
        for part in known:
            name = f"{key}.{part}"
            array = _dense(parts[part], shapes[name], net, str(key), kernels)
            if array.shape != shapes[name]:
                problems.append(f"{name} is {array.shape}, expected {shapes[name]}")
            ours[name] = array
    for name in shapes:
        if name not in ours:
            if name.endswith("num_batches_tracked"):  # torch counts since 2018 only
                ours[name] = np.zeros((), np.int64)
            else:
                problems.append(f"{name} is missing")
    return {name: ours[name] for name in shapes if name in ours}, problems, left


def _dense(
    array: NDArray[Any], shape: tuple[int, ...], net: Network, key: str, kernels: str
) -> NDArray[Any]:
    """An FC weight as (out, in) with inputs in torch's order; anything else as it is."""
    if len(shape) != 2 or array.size != shape[0] * shape[1]:
        return array
    if array.ndim == 4:  # stored as a convolution over the whole map, by now in torch's order
        return array.reshape(shape)
    average = net.top[0]
    if kernels == "HWIO" and key == net.top[1].key and array.shape == shape:
        grid, channels = average.kernel, average.outputs
        rows = array.reshape(shape[0], grid, grid, channels)
        return rows.transpose(0, 3, 1, 2).reshape(shape)
    return array


def to_timm(network: Network, tensors: Tensors) -> dict[str, NDArray[Any]]:
    """A state dict for timm's vgg: FC layers 6 and 7 as convolutions of 7x7 and 1x1.

    WeightsError for the heads that timm's network does not have.
    """
    head = network.head
    if head.classes and head.kind != "classic":
        raise WeightsError(f'timm has no head "{head.kind}"; expected "classic" or a trunk')
    places = {
        "classifier.0": "pre_logits.fc1",
        "classifier.3": "pre_logits.fc2",
        "classifier.6": "head.fc",
    }
    grids = (
        {"classifier.0.weight": network.top[0].kernel, "classifier.3.weight": 1}
        if head.classes
        else {}
    )
    result = {}
    for key in network.tensors:
        layer, _, part = key.rpartition(".")
        array = tensors[key]
        if grid := grids.get(key):
            array = array.reshape(len(array), -1, grid, grid)
        result[f"{places.get(layer, layer)}.{part}"] = array
    return result
