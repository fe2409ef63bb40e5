"""What is asked of a small model, and whether that can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, ModelFileError, NetworkError, is_number, require_whole
from ..modelfile import ModelFile
from ..modelfile.codec import least_bytes


def whole(name: str, value: float | None) -> int | None:
    """That number as an int, as of 78e6, or None; ArgumentError where it is none, or less than 1."""
    if value is None:
        return None
    asked: Any = int(value) if isinstance(value, float) and value.is_integer() else value
    require_whole(ArgumentError, **{name: asked})
    return int(asked)


def require_room(model: ModelFile, size: int) -> None:
    """ArgumentError where no file of that model's network can be so small."""
    tensors = model.record.network.tensors
    head = model.size_bytes - sum(array.nbytes for array in model.stored.values())
    rest = sum(
        array.nbytes for key, array in model.stored.items() if len(tensors.get(key, ())) == 1
    )
    least = head + rest + sum(least_bytes(shape) for shape in tensors.values() if len(shape) > 1)
    if size < least:
        raise ArgumentError(
            f"size is {size}; no file of this network has fewer than {least} bytes, so ask for more"
        )


@dataclass(frozen=True)
class Goal:
    """As `verydeep.compress` takes it; None for what is not asked."""

    size: int | None = None
    max_drop: float | None = None
    multiply_adds: int | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_drop", "speedup"):
            value = getattr(self, name)
            if is_number(value) and not isinstance(value, int | float):
                vars(self)[name] = float(value)  # numpy's are none of JSON's

    @property
    def prunes(self) -> bool:
        """Whether channels go."""
        return self.multiply_adds is not None or self.speedup is not None

    @property
    def searches(self) -> bool:
        """Whether it is looked for how coarsely weights are to be rounded."""
        return self.size is not None or self.max_drop is not None

    @property
    def rounds(self) -> bool:
        return self.searches or not self.prunes

    def met(self, size: int, drop: float) -> bool:
        """By a file of so many bytes that loses so many points."""
        if self.size is not None:
            return size <= self.size
        # 85 of 100 photos less 84 are a bit more than a point, in floats
        return self.max_drop is None or drop <= self.max_drop + 1e-9

    def __str__(self) -> str:
        asked = {
            "at most {:,} bytes": self.size, "at most {:g} points less accurate": self.max_drop,
            "at most {:,} multiply-adds": self.multiply_adds, "{:g} times as fast": self.speedup,
        }  # fmt: skip
        told = [text.format(value) for text, value in asked.items() if value is not None]
        return " and ".join(told) or "none: steps are an eighth of each layer's deviation"

    def require(
        self, model: ModelFile, whole: int, *, photos: bool, data: bool, again: bool
    ) -> None:
        """Refuse what makes no sense, of that model and with what is there to measure on.

        whole: the multiply-adds of an image.
        """
        if self.size is not None and self.max_drop is not None:
            raise ArgumentError("size and max_drop are two goals; give one of them")
        if self.multiply_adds is not None and self.speedup is not None:
            raise ArgumentError("multiply_adds and speedup are two goals; give one of them")
        if self.max_drop is not None and not is_number(self.max_drop, 0, 100):
            raise ArgumentError(f"max_drop is {self.max_drop!r}; expected 0 to 100")
        if self.prunes and not photos:
            raise ArgumentError(
                "which channels can go is measured on photos: name some with --calibrate (calibrate= in "
                "Python)"
            )
        if self.speedup is not None and not (is_number(self.speedup, 1, 100) and self.speedup > 1):
            raise ArgumentError(
                f"speedup is {self.speedup!r}; expected more than 1, and at most 100"
            )
        if self.size is not None and not self.prunes:
            require_room(model, self.size)
        if self.multiply_adds is not None and self.multiply_adds >= whole:
            raise ArgumentError(
                f"multiply_adds is {self.multiply_adds:,}; {model.path} needs {whole:,}, so expected less"
            )
        if self.max_drop is not None and not photos and not data:
            raise ArgumentError("max_drop needs photos to measure it on: give data or calibrate")
        if model.record.activations:
            raise ModelFileError(
                f"{model.path}: it was quantised; expected the float model that it was made from"
            )
        trunk = not model.record.network.head.classes
        if trunk and (data or self.max_drop is not None):
            raise NetworkError(
                f"{model.path}: a trunk has no answers to drop; give size instead, and no data"
            )
        if trunk and self.speedup is not None:
            raise NetworkError(
                f"{model.path}: a speed is measured of scores, which a trunk does not have; give "
                "--multiply-adds instead (multiply_adds= in Python)"
            )
        made = model.record.provenance
        before = "compressed_from" in made or (self.prunes and "pruned_from" in made)
        if before and not again:
            raise ModelFileError(
                f"{model.path}: it was compressed already, and would lose twice; take the model that it "
                "was made from, or add --again (again=True in Python)"
            )
