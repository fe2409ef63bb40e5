"""The engine protocol: what it promises, and one clear line for what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from verydeep import graph
from verydeep.engines import ENGINES, open_engine
from verydeep.errors import EngineError
from verydeep.graph import Graph
from verydeep.preprocess import TORCHVISION

from .tiny import pixels, tiny, weights


@pytest.fixture(scope="module")
def built() -> Graph:
    net = tiny(head="small")
    return graph.build(net, weights(net), TORCHVISION, taps=("relu1_1",))


@pytest.mark.parametrize("name", ENGINES)
def test_protocol(name: str, built: Graph) -> None:
    engine = open_engine(name, built, precision="exact", threads=1)
    assert (engine.name, engine.precision) == (name, "exact")
    outputs = engine.run(pixels(32, 40, 3))
    assert {k: (v.shape, v.dtype.name) for k, v in outputs.items()} == {
        "relu1_1": ((3, 4, 32, 40), "float32"),
        "scores": ((3, 7), "float32"),
    }
    again = engine.run(pixels(32, 40, 3)[:1])
    np.testing.assert_allclose(again["scores"], outputs["scores"][:1], rtol=1e-5)


def test_refusals(built: Graph) -> None:
    with pytest.raises(EngineError, match=r"engine 'onyx' is unknown; .*onnxruntime"):
        open_engine("onyx", built)
    with pytest.raises(EngineError, match="precision exact; 'half' was asked for"):
        open_engine("onnxruntime", built, precision="half")
    with pytest.raises(EngineError, match="did not take the graph"):
        open_engine("onnxruntime", Graph(onnx.ModelProto(), {}))
    with pytest.raises(EngineError, match="failed on 1x32x32x3 float32 pixels"):
        open_engine("onnxruntime", built).run(np.zeros((1, 32, 32, 3), np.float32))
