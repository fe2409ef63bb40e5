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

__version__ = "1.0.0rc1"

if TYPE_CHECKING:
    from .benching import bench
    from .compression import Compressed, compress
    from .distances import (
        Distance,
        Distances,
        Perceptual,
        content_distance,
        distance,
        dists,
        lpips,
        style_distance,
    )
    from .errors import VerydeepError
    from .evaluation import Evaluation, evaluate
    from .explanations import Explanation, explain
    from .exporting import Exported, export
    from .nets import Head, Network, network
    from .portraits import Portrait, show
    from .predictor import Answer, Failure, Features, Prediction, Predictor, load
    from .preprocess import Preprocess
    from .quantisation import Quantised, quantize
    from .retrieval import Duplicates, FeatureFile, Neighbours, duplicates, features, similar
    from .training.begin import train
    from .training.record.result import TrainResult

__all__ = [
    "__version__", "Answer", "Compressed", "Distance", "Distances", "Duplicates", "Evaluation",
    "Explanation", "Exported", "Failure", "FeatureFile", "Features", "Head", "Neighbours",
    "Network", "Perceptual", "Portrait", "Prediction", "Predictor", "Preprocess", "Quantised",
    "TrainResult", "VerydeepError", "bench", "compress", "content_distance", "distance", "dists",
    "duplicates", "evaluate", "explain", "export", "features", "load", "lpips", "network",
    "quantize", "show", "similar", "style_distance", "train",
]  # fmt: skip

# the module that each of them comes from
_HOME: dict[str, str] = {}
for _module, _names in {
    "benching": "bench",
    "compression": "Compressed compress",
    "distances": "Distance Distances Perceptual content_distance distance dists lpips style_distance",
    "errors": "VerydeepError",
    "evaluation": "Evaluation evaluate",
    "explanations": "Explanation explain",
    "exporting": "Exported export",
    "nets": "Head Network network",
    "portraits": "Portrait show",
    "predictor": "Answer Failure Features Prediction Predictor load",
    "preprocess": "Preprocess",
    "quantisation": "Quantised quantize",
    "retrieval": "Duplicates FeatureFile Neighbours duplicates features similar",
    "training.begin": "train",
    "training.record.result": "TrainResult",
}.items():
    _HOME |= dict.fromkeys(_names.split(), _module)
_MODULES = frozenset(
    (
        "benching compression datasets distances engines errors evaluation explanations exporting "
        "files graphs losses modelfile models nets pictures portraits predictor preprocess published "
        "quantisation retrieval training"
    ).split()
)


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
