"""The engine protocol: what it promises, and one clear line for what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from verydeep import graph
from verydeep.engines import ENGINES, open_engine
from verydeep.errors import EngineError
from verydeep.preprocess import TORCHVISION

from .tiny import pixels, tiny, weights


@pytest.fixture(scope="module")
def graph_bytes() -> bytes:
    net = tiny(head="small")
    return graph.build(net, weights(net), TORCHVISION, taps=("relu1_1",)).SerializeToString()


@pytest.mark.parametrize("name", ENGINES)
def test_protocol(name: str, graph_bytes: bytes) -> None:
    engine = open_engine(name, graph_bytes, precision="exact", threads=1)
    assert (engine.name, engine.precision) == (name, "exact")
    outputs = engine.run(pixels(32, 40, 3))
    assert {k: (v.shape, v.dtype.name) for k, v in outputs.items()} == {
        "relu1_1": ((3, 4, 32, 40), "float32"),
        "scores": ((3, 7), "float32"),
    }
    again = engine.run(pixels(32, 40, 3)[:1])
    np.testing.assert_allclose(again["scores"], outputs["scores"][:1], rtol=1e-5)


def test_refusals(graph_bytes: bytes) -> None:
    with pytest.raises(EngineError, match="engine 'onyx' is unknown; .*onnxruntime"):
        open_engine("onyx", graph_bytes)
    with pytest.raises(EngineError, match="precision exact; 'half' was asked for"):
        open_engine("onnxruntime", graph_bytes, precision="half")
    with pytest.raises(EngineError, match="did not take the graph"):
        open_engine("onnxruntime", b"not a graph")
    with pytest.raises(EngineError, match="failed on 1x32x32x3 float32 pixels"):
        open_engine("onnxruntime", graph_bytes).run(np.zeros((1, 32, 32, 3), np.float32))
