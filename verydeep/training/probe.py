"""The recipe `probe`: a linear head solved on averages of a trained network's layers, in minutes.

The trunk is never trained. Each photo goes through it once, by the fastest engine; what its layers
average to is kept, and a logistic regression is solved on that (`probing/`). Which layers, how strong a
penalty and, where several are given, which input size: cross-validation on the training photos says, never
the validation photos. The model file that comes out has a head "gap" on those layers, so every engine runs
it, and what comes after the last of them is not computed.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import modelfile
from ..datasets.labelled import Sample, targets
from ..errors import DataError
from ..files.progress import reached
from ..nets import Head
from ..predictor import Predictor
from ..preprocess import Preprocess, sized
from ..probing import linear
from ..probing.choosing import JUDGED, Chosen, candidates, choose, finished, limits
from ..probing.features import Averages, averages
from ..published import find_model
from .recipes import hold_to
from .record import folder
from .record.result import TrainResult
from .run import Outcome, Run, trunk_of

FEW = 500  # photos, or less: a larger size and mirror images are worth their time
SIZES = 160, 224  # pixels a side of many photos, of few


@dataclass(frozen=True)
class ProbeConfig:
    """What a probe is made of; config.json and the model file record it. DataError for what makes no sense.

    model: the weights, a built-in's or catalogue name or a model file.
    sizes: pixels a side that photos are brought to; with several, cross-validation takes one, and each
    costs a pass over the training photos. None: 160, or 224 where there are few photos.
    stretch: whether a photo is stretched to the square, so that nothing is cut away; else it is resized and
    cropped as the model's record does.
    layers: paper names that the head averages; none for those that cross-validation chooses.
    l2: the penalty; 0 for the one that cross-validation chooses. folds: of cross-validation.
    epochs: passes over the features that the solver takes at most. batch: photos in one pass of the engine.
    seed: of the folds.
    engine, precision, threads: of the features, as `verydeep.load` has them; threads 0 for one a core.
    val_fraction: of each class, set aside to validate with where the data has nothing for it.
    multi: whether a photo of a CSV may have several labels: "auto" for as it looks, or a DataError.
    """

    recipe: str = "probe"
    model: str = "builtin"
    sizes: tuple[int, ...] = ()
    stretch: bool = True
    layers: tuple[str, ...] = ()
    l2: float = 0.0
    folds: int = 3
    epochs: int = 500
    batch: int = 16
    seed: int = 0
    engine: str = "auto"
    precision: Literal["exact", "fast", "half"] = "half"
    threads: int = 0
    val_fraction: float = 0.1
    multi: Literal["auto", "true", "false"] = "auto"

    def __post_init__(self) -> None:
        if min(self.sizes, default=1) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise DataError(f"sizes is {self.sizes}; expected different numbers of pixels, as 160")
        hold_to(self, {
            "l2": (0, None), "folds": (2, None), "epochs": (1, None), "batch": (1, None),
            "seed": (0, 2**63 - 1), "threads": (0, None), "val_fraction": (0, 0.9),
        })  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def probe() -> ProbeConfig:
    """A linear head on the built-in trunk, solved; nothing of the trunk is trained.

    Command: verydeep train photos/ --recipe probe --out run
    Expected: 93 % of five kinds of flowers told apart from 2,400 photos.
    Duration: two minutes for 3,000 photos on two cores with bf16; seconds for photos seen before.
    """
    return ProbeConfig()


def learnt(run: Run) -> TrainResult:
    """Solve a head on the run's data. What a stopped run has computed of its features is there still."""
    run.init = run.init or run.config.model
    run.config = replace(run.config, model=run.init)
    if run.resume:
        run.refuse_changes(folder.begun(run.folder))
        if run.finished():
            return run.again()
    probe = Probe(run, run.config)
    run.open()
    return run.finish(probe.solved())


def shown(own: Preprocess, size: int, stretch: bool) -> Preprocess:
    """How photos are prepared at that size: stretched to the square, or as the model's record has it."""
    if stretch:
        return replace(own, resize="exact", resize_size=size, crop_size=None)
    return sized(own, size)


class Probe:
    """A trunk at work on a run's photos, and the head that is solved on what its layers average to.

    device: that computes features, "" for the run's.
    DataError where the model has not the layers that are asked for, or the sizes are too small for them.
    """

    def __init__(self, run: Run, config: ProbeConfig, device: str = "") -> None:
        self.run, self.config = run, config
        self.model = modelfile.read(find_model(config.model))
        network = self.model.record.network
        self.sets = candidates(network, config.layers)  # of layers, to try
        used = [one for one in network.trunk if any(one.name in names for names in self.sets)]
        self.widths, last = {one.name: one.outputs for one in used}, used[-1].name
        least = network.cut((last,)).minimum_size
        for size in config.sizes:
            if size < least:
                raise DataError(
                    f"sizes has {size}, too small for {last} of {network.name}; expected {least} or more"
                )
        self.predictor = Predictor(
            self.model, engine=config.engine, precision=config.precision,
            threads=config.threads or None, device=device or run.device,
        )  # fmt: skip

    def solved(self) -> Outcome:
        """The head by the training photos, of the best of `sizes`; few are learned from mirrored, too."""
        run, config, classes = self.run, self.config, len(self.run.data.classes)
        labels = targets(run.data.train, classes)
        few = len(labels) <= FEW
        tried = []
        reached(1, 2, "choosing layers")
        for size in config.sizes or (SIZES[few],):
            made = [self.averages(run.data.train, size, "to train on")]
            if few:
                made += [
                    self.averages(run.data.train, size, "to train on, mirrored", mirrored=True)
                ]
            good = self.good(made[0], "to train on")
            features = np.stack([one.values[good] for one in made])
            names = np.array(made[0].digests)[good]
            chosen = self.choose(features, labels[good], names)
            for line in chosen.tried:
                run.tell({"event": "tried", "size": size, **line})
            tried.append((size, features, good, names, chosen))
        size, features, good, names, chosen = min(tried, key=lambda one: one[-1].loss)
        reached(2, 2, "solving the head")
        head = finished(
            features, labels[good], classes, self.widths, chosen, groups=names, seed=config.seed,
            limit=config.epochs,
        )  # fmt: skip
        run.tell({
            "event": "chosen", "size": size, "layers": list(chosen.layers), "l2": chosen.l2,
            "temperature": chosen.temperature, chosen.figure: chosen.top1, "loss": chosen.loss,
            "steps": head.steps, "seconds": run.seconds,
        })  # fmt: skip

        def judge(
            samples: Sequence[Sample], what: str
        ) -> tuple[tuple[Sample, ...], NDArray[np.float32]]:
            if not samples:
                return (), np.zeros((0, classes), np.float32)
            found = self.averages(samples, size, what)
            fine = ~np.isnan(found.values[:, 0])  # where it is none, there is nothing to measure
            read = tuple(s for s, one in zip(samples, fine, strict=True) if one)
            return read, head.scores(found.values[fine][:, chosen.columns])

        sure = limits(chosen.held_out, chosen.labels, chosen.temperature)
        if labels.ndim == 1:
            sure["least_mean"] = 0.0
        record = self.model.record
        network = replace(record.network, head=Head("gap", classes, chosen.layers))
        how = "stretched to" if config.stretch else "one crop of"
        view = f"one view, {how} {size} pixels, features in {config.precision} precision"
        folds = f"{chosen.folds} folds of {len(chosen.labels)} training photos, held out; {view}"
        trunk = trunk_of(self.model, network)
        return Outcome(
            network, shown(record.preprocess, size, config.stretch),
            {**trunk, "classifier.weight": head.weight, "classifier.bias": head.bias},
            judge, view, licence=record.licence, **sure,
            measured=[{
                "what": f"{chosen.figure.replace('_', ' ')}, cross-validated",
                "value": round(chosen.top1, 6), "protocol": folds,
            }],
            provenance={
                "chosen": {"layers": list(chosen.layers), "l2": chosen.l2,
                           "temperature": round(chosen.temperature, 6)},
                "trunk": {"sha256": self.model.sha256, "provenance": dict(record.provenance)},
            },
        )  # fmt: skip

    def averages(
        self, samples: Sequence[Sample], size: int, what: str, *, mirrored: bool = False
    ) -> Averages:
        """What all the layers average to; the run is told of photos that cannot be read."""
        run = self.run
        made = averages(
            self.predictor, samples, tuple(self.widths), batch=self.config.batch,
            size=(size, size) if self.config.stretch else size, mirrored=mirrored,
            passed=run.passed(what, size, len(samples)),
        )  # fmt: skip
        for at, why in made.faults.items():
            run.bad.setdefault(samples[at].name, why)
        engine = f" by {made.by}" if made.by else ""
        run.note(
            f"features of {len(samples)} photos {what} at {size} pixels: {made.computed} "
            f"computed{engine}, {len(samples) - made.computed - len(made.faults)} kept from before; "
            f"{run.seconds:.1f} s"
        )
        return made

    def good(self, made: Averages, what: str) -> NDArray[np.bool_]:
        """Which could be read; DataError where none could."""
        good = ~np.isnan(made.values[:, 0])
        if not good.any():
            name, why = next(iter(self.run.bad.items()))
            raise DataError(f"no photo {what} can be read; {name}: {why}")
        return good

    def choose(
        self, features: NDArray[np.float32], labels: NDArray[Any], names: NDArray[Any]
    ) -> Chosen:
        """Layers and penalty, by at most `JUDGED` of the photos; features are (views, photos, channels)."""
        config = self.config
        at = np.arange(len(labels))
        if len(at) > JUDGED:
            at = at[linear.folds(labels, -(-len(at) // JUDGED), seed=config.seed) == 0]
        return choose(
            features[:, at], labels[at], len(self.run.data.classes), self.widths, self.sets, l2=config.l2,
            folds=config.folds, seed=config.seed, groups=names[at], limit=config.epochs,
        )  # fmt: skip
