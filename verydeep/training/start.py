"""The network that a run starts from: drawn at random, or taken from weights with a head that fits.

Under the recipe `paper` a deeper network takes a trained A's first four convolutions and its FC layers
(arXiv:1409.1556, section 3.1).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .. import nets
from ..errors import NetworkError, WeightsError
from ..modelfile import Record
from ..models import VGG, build, loading, warm_start
from ..models.adapting import adapt
from ..models.widening import widened
from ..nets import Network
from ..preprocess import Preprocess
from ..published import conversion as convert
from ..published import find_model
from .learner import folded
from .recipes import Config
from .record import checkpoint
from .record import folder as run_folder


def network_of(config: Config, classes: int, like: Network | None = None) -> Network:
    """The network that a config asks for; `like` has the column and width where given weights do.

    NetworkError where images of the config's size are too small for it.
    """
    base, layers = like or nets.network(config.model), config.layers
    if config.head == "gap" and not layers:
        relus = [one.name for one in base.trunk if one.kind == "relu"]
        layers = tuple(relus[-6:] if config.start == "probe" else relus[-1:])
    own = {key: getattr(like or config, key) for key in ("width", "channels", "pool")}
    made = nets.network(
        base.name,
        classes=classes,
        head=config.head,
        layers=layers,
        in_channels=base.in_channels,
        **own,
    )
    least = made.cut(("fc8",)).minimum_size
    if config.size < least:
        raise NetworkError(
            f"images of {config.size} pixels are too small for {made.name}, which needs at least {least}; "
            f"set size={least} or more"
        )
    if min(config.sides) < least:
        raise NetworkError(
            f"images of {config.size} pixels are shown at {min(config.sides)} at first, too small for "
            f"{made.name}, which needs at least {least}; set grow=1"
        )
    return made


def started(
    config: Config,
    classes: int,
    init: str | os.PathLike[str] | None = None,
    *,
    named: Collection[str] = (),
) -> tuple[VGG, Preprocess | None, list[str]]:
    """The network, the pre-processing that its weights expect (None: any), and notes for people.

    init: a built-in's or catalogue name, a model file, weights in a layout that `weights convert` knows, or
    the folder of a run, whose model is taken, or its last checkpoint where it is not at its end.
    named: settings that were asked for, and are not only the recipe's defaults. Of "model": the weights
    must be of that network, but for the paper's warm start. Of "width": narrower weights are made wider.
    Random weights are drawn from torch's generator. WeightsError or NetworkError where the weights are of
    another network.
    """
    if init is None:
        return _drawn(network_of(config, classes), config), None, []
    found = _weights(init)
    record, theirs = found.record, found.network
    assert record is not None  # a model file has one
    probed = config.start == "probe"  # then the model is the weights
    if not probed and "model" in named and theirs.name != config.model:
        if config.recipe != "paper" or theirs.column != "A":
            raise WeightsError(
                f"--init {init} is {theirs.name}, and --model is {config.model}; leave --model out "
                "to train the network that the weights are of"
            )
        model = _drawn(network_of(config, classes), config)
        # FC layers for as many classes
        adapted, notes = adapt(found, network_of(config, classes, theirs))
        copied = warm_start(model, loading.assemble(adapted))
        return model, record.preprocess, [*notes, f"from {init}: {', '.join(copied)}"]
    if "channels" in named and theirs.channels != config.channels:
        raise WeightsError(f"--init {init} has {theirs.widths}; leave channels out")
    wider: list[str] = []
    if "width" in named and theirs.width != config.width:
        if probed:
            raise WeightsError(
                f"{config.recipe} goes on from weights of width {theirs.width:g}, and width is "
                f"{config.width:g}; leave width out"
            )
        if theirs.width > config.width:
            raise WeightsError(
                f"--init {init} has width {theirs.width:g}, and --width is {config.width:g}; a "
                "network can be made wider, not narrower"
            )
        wider = [f"made wider, from {theirs.width:g} to {config.width:g}, with the same answers"]
        found = widened(found, config.width)
    net = network_of(config, classes, found.network)
    adapted, notes = adapt(found, net)
    notes = [] if probed else notes  # they are of the head, which is solved next
    tensors = {k: t.clone() for k, t in adapted.tensors.items()}
    model = loading.assemble(loading.Trained(net, tensors, adapted.record), dropout=config.dropout)
    model.train()
    return model, record.preprocess, [f"from {init}: {found.network.name}", *wider, *notes]


def teacher_of(given: str, preprocess: Preprocess, classes: Sequence[str]) -> VGG | None:
    """The network of that name or path, whose answers are to be learned; None for "".

    WeightsError where it is of other classes, or takes pixels on another scale.
    """
    if not given:
        return None
    teacher = loading.load(find_model(given))
    record = teacher.record
    assert record is not None  # a model file has one
    if list(record.class_names or record.class_ids) != list(classes):
        raise WeightsError(
            f"teacher {given} does not know the data's {len(classes)} classes, in their order, and no "
            "others; leave teacher out"
        )
    for key in ("channel_order", "range", "mean", "std"):
        theirs, ours = getattr(record.preprocess, key), getattr(preprocess, key)
        if theirs != ours:
            raise WeightsError(
                f"teacher {given} takes pixels with {key} {theirs}, and this network with {ours}; begin "
                "with what was pruned from the teacher, or leave teacher out"
            )
    return teacher


def _drawn(network: Network, config: Config) -> VGG:
    if config.start == "probe":
        raise WeightsError("start=probe needs weights to start from; name them with --init")
    return build(network, init=config.start, dropout=config.dropout)


def _weights(init: str | os.PathLike[str]) -> loading.Trained:
    if os.path.isdir(init):
        return _of_run(Path(init))
    path = find_model(init)
    with suppress(WeightsError):  # the converter says it better
        found = loading.read(path)
        if found.record is not None:
            return found
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "init.safetensors")
        convert.convert(path, target)
        found = loading.read(target)
        # the map of a file that is about to vanish is not to be relied on everywhere
        return loading.Trained(
            found.network, {k: t.clone() for k, t in found.tensors.items()}, found.record
        )


def _of_run(folder: Path) -> loading.Trained:
    """What a run came to, or, of one that is not at its end, what it validates at its last checkpoint."""
    if (folder / "model.safetensors").is_file():
        return loading.read(folder / "model.safetensors")
    notes: list[str] = []
    found = checkpoint.latest(folder / "checkpoints", notes.append)
    begun = run_folder.begun(folder)
    if found is None or "position" not in found.facts or "preprocess" not in begun:
        raise WeightsError(
            f"{'; '.join([*notes, str(folder)])}: no run of the loop with a checkpoint in it; expected a "
            "name, a file of weights, or the folder of such a run"
        )
    facts = found.facts
    network = network_of(Config.from_dict(facts["config"]), facts["data"]["classes"])
    prefix = "average." if facts["config"]["average"] else "model."
    held = folded(found.under(prefix))
    network = replace(network, in_channels=held[f"{network.trunk[0].key}.weight"].shape[1])
    tensors = {key: held[key] for key in network.tensors}
    record = Record(
        network, Preprocess.from_dict(begun["preprocess"]),
        provenance={"made_by": "verydeep train", "command": begun["command"], "step": facts["step"]},
    )  # fmt: skip
    return loading.Trained(network, tensors, record)
