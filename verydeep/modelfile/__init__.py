"""The model file: weights under torchvision's names, with the record of what they are.

A safetensors file; the specification is docs/format.md. It is checked against the table (`nets.py`)
when it is opened, but its weights are not read: `stored` holds views of a memory map. Nothing in a
model file is ever executed.
"""

from .reading import ModelFile, is_model_file, read
from .record import FORMAT_VERSION, Activation, Record
from .writing import write

__all__ = ["FORMAT_VERSION", "Activation", "ModelFile", "Record", "is_model_file", "read", "write"]
