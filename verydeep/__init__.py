"""verydeep: everything people do with VGG, on the machine they have, offline from the first minute.

    >>> import verydeep
    >>> predictor = verydeep.load()            # the built-in VGG-16, no download
    >>> answer = predictor("photo.jpg")        # doctest: +SKIP
    >>> answer.label, answer.probability       # doctest: +SKIP

Names that cost an import load when they are first used: `import verydeep` itself imports no more than
the standard library, and nothing here needs torch until `verydeep.models` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> the module it comes from
_HOME = {
    "Answer": "predictor",
    "Failure": "predictor",
    "Features": "predictor",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "load": "predictor",
    "Preprocess": "preprocess",
    "bench": "benching",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "Explanation": "explanations",
    "explain": "explanations",
    "Portrait": "portraits",
    "show": "portraits",
    "Head": "nets",
    "Network": "nets",
    "network": "nets",
    "Duplicates": "retrieval",
    "FeatureFile": "retrieval",
    "Neighbours": "retrieval",
    "duplicates": "retrieval",
    "features": "retrieval",
    "similar": "retrieval",
    "Distance": "distances",
    "Distances": "distances",
    "Perceptual": "distances",
    "content_distance": "distances",
    "distance": "distances",
    "dists": "distances",
    "lpips": "distances",
    "style_distance": "distances",
    "TrainResult": "training.record.result",
    "train": "training.begin",
    "Exported": "exporting",
    "export": "exporting",
    "Quantised": "quantisation",
    "quantize": "quantisation",
    "VerydeepError": "errors",
}
_MODULES = frozenset(
    (
        "benching distances engines errors evaluation explanations exporting files graphs losses modelfile "
        "models nets pictures portraits predictor preprocess published quantisation retrieval training"
    ).split()
)

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from .benching import bench as bench
    from .distances import Distance as Distance
    from .distances import Distances as Distances
    from .distances import Perceptual as Perceptual
    from .distances import content_distance as content_distance
    from .distances import distance as distance
    from .distances import dists as dists
    from .distances import lpips as lpips
    from .distances import style_distance as style_distance
    from .errors import VerydeepError as VerydeepError
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .explanations import Explanation as Explanation
    from .explanations import explain as explain
    from .exporting import Exported as Exported
    from .exporting import export as export
    from .nets import Head as Head
    from .nets import Network as Network
    from .nets import network as network
    from .portraits import Portrait as Portrait
    from .portraits import show as show
    from .predictor import Answer as Answer
    from .predictor import Failure as Failure
    from .predictor import Features as Features
    from .predictor import Prediction as Prediction
    from .predictor import Predictor as Predictor
    from .predictor import load as load
    from .preprocess import Preprocess as Preprocess
    from .quantisation import Quantised as Quantised
    from .quantisation import quantize as quantize
    from .retrieval import Duplicates as Duplicates
    from .retrieval import FeatureFile as FeatureFile
    from .retrieval import Neighbours as Neighbours
    from .retrieval import duplicates as duplicates
    from .retrieval import features as features
    from .retrieval import similar as similar
    from .training.begin import train as train
    from .training.record.result import TrainResult as TrainResult


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'verydeep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
