"""What a file of features says of itself: enough to compute a query's features in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ..errors import DataError
from ..files import strict_json
from ..preprocess import Size

FORMAT = 1


@dataclass(frozen=True)
class About:
    """How the features of a file were made.

    model: as it was named, a file by its absolute path. sha256: of the model file. network: its name.
    layers: paper names, with the shape that one photo has in each. pool, size: as `Predictor.features`
    takes them. precision: a class, as "fast". version: of verydeep. engine: the last one that computed.
    """

    model: str
    sha256: str
    network: str
    layers: Mapping[str, tuple[int, ...]] = field(hash=False)
    pool: str | None
    size: Size
    precision: str
    version: str
    engine: str = "auto"

    def width(self, layer: str) -> int:
        """How many numbers a photo has in that layer."""
        return math.prod(self.layers[layer])

    def layer(self, name: str | None = None) -> str:
        """That layer, or the only one; DataError where it is not there or there are several."""
        if name is None and len(self.layers) == 1:
            return next(iter(self.layers))
        if name is None or name not in self.layers:
            asked = "the layer to compare by is not named" if name is None else f"no layer {name!r}"
            raise DataError(f"{asked}; the features are of {', '.join(self.layers)}")
        return name

    def to_json(self) -> str:
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["layers"] = {name: list(shape) for name, shape in self.layers.items()}
        values["order"] = list(self.layers)  # JSON's keys are sorted
        return strict_json.dumps({"format": FORMAT, **values})

    @classmethod
    def from_json(cls, text: str) -> About:
        """The inverse of `to_json`; DataError where it is not what that writes."""
        try:
            values = strict_json.loads(text)
            assert isinstance(values, dict)
            number = values.pop("format")
            if isinstance(number, int) and number > FORMAT:
                raise DataError(
                    f"written by a newer verydeep: its format is {number}, and this one reads {FORMAT}; "
                    "upgrade with: pip install --upgrade verydeep"
                )
            shapes, order, size = values["layers"], values.pop("order"), values["size"]
            assert number == FORMAT
            assert isinstance(shapes, dict)
            assert isinstance(order, list)
            layers = {str(name): tuple(shapes[str(name)]) for name in order}  # type: ignore[arg-type]
            values |= {"layers": layers, "size": tuple(size) if isinstance(size, list) else size}  # type: ignore[dict-item]
            return cls(**values)  # type: ignore[arg-type]  # unknown and missing keys are TypeErrors
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AssertionError):
            raise DataError(
                "its record is damaged: make it again with `verydeep features`"
            ) from None

    def difference(self, other: About) -> str:
        """In what the other's command differs, "layer relu5_3, now relu4_3"; empty where in nothing."""
        words = []
        for name in ("sha256", "layers", "pool", "size", "precision"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                what = "model" if name == "sha256" else name
                shown = (self.model, other.model) if name == "sha256" else (ours, theirs)
                if name == "layers":
                    shown = (", ".join(ours), ", ".join(theirs))
                words.append(f"{what} {shown[0]}, now {shown[1]}")
        return "; ".join(words)
