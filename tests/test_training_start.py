"""The network a run starts from: random, others' weights with a new head, or the paper's warm start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from verydeep import modelfile
from verydeep.errors import NetworkError, WeightsError
from verydeep.models.loading import assemble, read
from verydeep.nets import Head
from verydeep.preprocess import CAFFE, sized
from verydeep.training.recipes import Config, changed, paper, small_images
from verydeep.training.start import started

from .labelled import arrays, trained
from .tiny import model_file, tiny, weights

NARROW = {"width": 1 / 16}


def narrow(config: Config, **changes: object) -> Config:
    return changed(config, {**NARROW, **changes})


def test_weights_with_a_new_head(tmp_path: Path) -> None:
    file = model_file(tmp_path / "a.safetensors", tiny("vgg13_bn"), preprocess=sized(CAFFE, 64))
    model, preprocess, notes = started(narrow(small_images()), 4, file)
    assert model.table.name == "vgg13_bn"  # the weights' own, where none is named
    assert (model.table.head.kind, model.table.head.classes) == ("gap", 4)
    assert model.table.head.layers == ("relu5_2",)
    assert preprocess == sized(CAFFE, 64)
    assert notes == [f"from {file}: vgg13_bn", "fc8 is new and untrained"]
    stored = modelfile.read(file).tensors()
    state = model.state_dict()
    for key in state:
        if key.startswith("features."):
            np.testing.assert_array_equal(state[key].numpy(), stored[key], err_msg=key)
    with torch.no_grad():
        state["features.0.weight"].zero_()
    assert modelfile.read(file).tensors()["features.0.weight"].any()  # the file is not touched


def test_the_record_comes_along(tmp_path: Path) -> None:
    file = model_file(
        tmp_path / "a.safetensors", tiny("vgg11_bn"), preprocess=CAFFE, licence="CC-BY-4.0"
    )
    from verydeep import train

    result = train(
        "small-images", arrays(tmp_path / "set.npz"), out=tmp_path / "run", init=file, device="cpu",
        settings={"epochs": 1, "precision": "fp32", "layout": "default", "rate": 0.0, "average": 0.0,
                  "grow": ()},
    )  # fmt: skip
    record = modelfile.read(result.model).record
    assert record.preprocess.detail == 32  # what the images had before they were enlarged
    assert record.licence == "CC-BY-4.0"
    assert record.preprocess.channel_order == "BGR"
    assert record.preprocess.mean == CAFFE.mean
    assert (record.preprocess.resize_size, record.preprocess.crop_size) == (64, 64)
    np.testing.assert_array_equal(  # at rate 0 nothing is learned
        modelfile.read(result.model).tensors()["features.0.weight"],
        modelfile.read(file).tensors()["features.0.weight"],
    )


def test_a_warm_start_from_net_a(tmp_path: Path) -> None:
    net = tiny("vgg11", head="classic")
    file = model_file(tmp_path / "a.safetensors", net)
    config = narrow(paper(), model="vgg16", size=64, scales=(64,))
    torch.manual_seed(0)
    model, _, notes = started(config, 7, file, named=("model",))
    assert notes[-1].endswith("conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8")
    stored, state, deeper = modelfile.read(file).tensors(), model.state_dict(), model.table
    for name in ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"):
        theirs, ours = net.layer(name).key, deeper.layer(name).key
        np.testing.assert_array_equal(state[f"{ours}.weight"].numpy(), stored[f"{theirs}.weight"])
    key = deeper.layer("conv4_1").key
    assert (state[f"{key}.weight"].numpy() != stored[f"{net.layer('conv4_1').key}.weight"]).any()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = model_file(tmp_path / "a.safetensors", tiny("vgg11"))
    with pytest.raises(WeightsError, match="is vgg11, and --model is vgg16_bn; leave --model out"):
        started(narrow(small_images()), 3, file, named=("model",))
    with pytest.raises(
        WeightsError, match=r"has width 0\.0625, and --width is 0\.03125; .* not narrower"
    ):
        started(changed(small_images(), {"width": 1 / 32}), 3, file, named=("width",))
    with pytest.raises(NetworkError, match="images of 8 pixels are too small for vgg11"):
        started(narrow(small_images(), size=8), 3, file)
    with pytest.raises(NetworkError, match=r"images of 20 pixels are shown at 10 at first.*grow=1"):
        started(narrow(small_images(), size=20), 3, file)


def test_narrower_weights_are_made_wider(tmp_path: Path) -> None:
    net = replace(tiny("vgg11_bn"), head=Head("gap", 7, ("relu5_2",)))
    file = model_file(tmp_path / "a.safetensors", net, preprocess=CAFFE)
    config = changed(small_images(), {"model": "vgg11_bn", "width": 2 * net.width})
    model, preprocess, notes = started(config, net.head.classes, file, named=("width",))
    assert model.table.width == 2 * net.width
    assert preprocess == CAFFE
    assert notes[1] == "made wider, from 0.0625 to 0.125, with the same answers"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        narrow_one = assemble(read(file)).eval()
        torch.testing.assert_close(model.eval()(x), narrow_one(x), rtol=1e-3, atol=1e-3)


def test_from_the_checkpoint_of_a_run(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz")
    run = trained(data, tmp_path / "run", epochs=2)
    config = changed(small_images(), {"head": "small", "grow": "1"})
    models = [started(config, 3, init) for init in (run.folder, run.model)]
    for key, value in models[0][0].state_dict().items():
        torch.testing.assert_close(value, models[1][0].state_dict()[key], msg=key)
    assert models[0][1] == models[1][1]
    again = trained(data, tmp_path / "again", epochs=1, init=run.folder)
    assert again.config["init"] == str(run.folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty: no run of the loop with a checkpoint in it"):
        started(small_images(), 3, tmp_path / "empty")


def test_a_foreign_file_must_say_its_preprocessing(tmp_path: Path) -> None:
    net = tiny("vgg11", head="classic")
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file(weights(net), path)
    with pytest.raises(WeightsError, match="does not say which pre-processing its weights expect"):
        started(narrow(small_images()), 3, path)


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz")
    tensors = [
        modelfile.read(trained(data, tmp_path / name, seed=seed, epochs=1).model).tensors()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    key = "features.0.weight"
    np.testing.assert_array_equal(tensors[0][key], tensors[1][key])
    assert (tensors[0][key] != tensors[2][key]).any()
