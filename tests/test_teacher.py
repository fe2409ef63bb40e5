"""Learning from another network's answers: the distance by hand, and runs that have a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from verydeep import compress, modelfile
from verydeep.errors import WeightsError
from verydeep.training.begin import train
from verydeep.training.loop import TEMPERATURE, distance

from .test_finetune import config, epochs, flowers, own_cache, sure  # noqa: F401  # fixtures
from .tiny import model_file, tiny

pytestmark = pytest.mark.usefixtures("sure")


def test_the_distance_of_answers() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(0, 3, (2, 4, 5)).astype(np.float32)

    def softmax(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores / TEMPERATURE)
        return np.asarray(powers / powers.sum(1, keepdims=True))

    p, q = softmax(theirs), softmax(ours)
    by_hand = TEMPERATURE**2 * (p * np.log(p / q)).sum(1)
    found = distance(torch.from_numpy(ours), torch.from_numpy(theirs), several=False)
    assert_allclose(found.numpy(), by_hand, rtol=1e-4)
    p, q = (1 / (1 + np.exp(-scores)) for scores in (theirs, ours))
    by_hand = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1)
    found = distance(torch.from_numpy(ours), torch.from_numpy(theirs), several=True)
    assert_allclose(found.numpy(), by_hand, rtol=1e-3, atol=1e-5)
    for several in (False, True):
        same = distance(torch.from_numpy(ours), torch.from_numpy(ours), several)
        assert_allclose(same.numpy(), 0, atol=1e-5)


@pytest.fixture(scope="module")
def taught(flowers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A model that was trained on the photos."""
    folder = tmp_path_factory.mktemp("taught")
    trunk = model_file(folder / "trunk.safetensors", tiny("vgg11"))
    return train(config(trunk, epochs=1), flowers, out=folder / "out").model


def test_a_pruned_network_learns_from_the_whole_one(
    taught: Path, flowers: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    small = tmp_path / "small.safetensors"
    compress(taught, small, calibrate=[str(flowers)], multiply_adds=400_000, threads=1)
    own = {"epochs": 1, "rate": 1e-3}
    alone = train(config(small, **own), flowers, out=tmp_path / "alone")
    learnt = train(config(small, teacher=str(taught), **own), flowers, out=tmp_path / "learnt")
    channels = modelfile.read(small).record.network.channels
    for result in (alone, learnt):
        assert modelfile.read(result.model).record.network.channels == channels
    # what is learned is another thing
    key = "features.0.weight"
    weights = [modelfile.read(result.model).tensors([key])[key] for result in (alone, learnt)]
    assert np.abs(weights[0] - weights[1]).max() > 1e-5
    assert epochs(learnt)[-1]["train_loss"] != epochs(alone)[-1]["train_loss"]


def test_a_teacher_of_other_things_is_refused(
    taught: Path, flowers: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    other = model_file(tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"other.safetensors does not know the data's \d classes"
    ):
        train(config(taught, teacher=str(other)), flowers, out=tmp_path / "out")
    given = modelfile.read(taught)
    how = replace(given.record.preprocess, mean=(0.5, 0.5, 0.5))
    modelfile.write(other, replace(given.record, preprocess=how), given.stored)
    with pytest.raises(
        WeightsError, match=r"takes pixels with mean \(0.5, 0.5, 0.5\), and this net"
    ):
        train(config(taught, teacher=str(other)), flowers, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
