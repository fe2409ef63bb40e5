"""Several processes learn what one does, whatever their shares, and go on when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from verydeep import modelfile, train
from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Batch

from .labelled import CLASSES, SETTINGS, arrays, images, trained
from .processes import together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")

# Batches of 12 over two processes, with batch norm over both; no dropout, whose draws are each one's own.
TOGETHER: dict[str, Any] = {"dropout": 0.0}


def process(data: Path, out: Path, die_at: int, resume: bool) -> None:
    """Train; the second process is killed before that step, but for one that torchrun began anew."""
    epoch = Feed.epoch

    def dying(feed: Feed, number: int, first: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(epoch(feed, number, first), number * feed.steps + first):
            restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            if step == die_at and os.environ["RANK"] == "1" and not restarted:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Feed.epoch = dying  # type: ignore[method-assign]
    # as on machines that share no disk
    out = out if os.environ["RANK"] == "0" else out.with_name(f"{out.name} elsewhere")
    trained(data, out, resume=resume, **TOGETHER)


def _one_of_two(rank: int, *given: Any) -> list[str]:  # noqa: ARG001
    process(*given)
    names = Path("/proc/self/task").glob("*/comm")
    return [name for name in (path.read_text().strip() for path in names) if "gloo" in name]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in events(out) if line["event"] == "step"]


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def resumed_at(out: Path) -> list[tuple[int, int]]:
    """(step, processes) of each time that it went on."""
    return [(e["step"], e["processes"]) for e in events(out) if e["event"] == "resume"]


def assert_alike(one: Path, other: Path) -> None:
    """The losses on the way, and the weights at the end."""
    assert len(losses(one)) == 12
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-3)
    first, second = (modelfile.read(x / "model.safetensors").tensors() for x in (one, other))
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, rtol=0.05, atol=2e-3, err_msg=key)


def test_torchrun_restarts_what_was_killed(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "set.npz"), tmp_path / "run"
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.test_training_distributed import process\n"
        "process(Path(sys.argv[1]), Path(sys.argv[2]), die_at=6, resume=False)\n"
    )
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1"
    done = subprocess.run(
        [sys.executable, *torchrun.split(), str(program), str(data), str(out)],
        check=False, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # it goes on from the end of the first epoch: one interval lost
    assert resumed_at(out) == [(4, 2)]
    assert events(out)[-1]["event"] == "end"
    assert len(losses(out)) == 12


def test_one_process_tells_what_came_of_it(tmp_path: Path) -> None:
    data = arrays(tmp_path / "set.npz")
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "epochs": 1}.items()]
    done = subprocess.run(
        [
            sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split(),
            *"-m verydeep train --recipe small-images --model vgg11_bn --width 0.0625 --device cpu".split(),
            *settings, "--out", str(tmp_path / "run"), str(data),
        ],
        check=False, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1, done.stdout
    # nobody but it has a line of progress
    assert "\ntraining: " not in done.stderr, done.stderr


def test_two_processes_learn_what_one_does_even_when_one_is_killed(tmp_path: Path) -> None:
    data, out = arrays(tmp_path / "set.npz"), tmp_path / "two"
    trained(data, tmp_path / "one", **TOGETHER)
    (code, told), killed = together(2, _one_of_two, data, out, 6, False)
    assert killed == (-signal.SIGKILL, None)
    assert code == 0
    assert told.startswith("Lost: process 0 of 2 has lost another")
    assert not (out / "model.safetensors").exists()
    for _ in ("goes on", "had finished"):
        # no thread of the group is left that might want Python while it goes away
        assert together(2, _one_of_two, data, out, -1, True) == [(0, []), (0, [])]
    assert resumed_at(out) == [(4, 2)]
    assert events(out)[-1]["event"] == "end"
    assert not (tmp_path / "two elsewhere").exists()
    assert_alike(tmp_path / "one", out)


# Photos one by one, of which two cannot be read: who has them has fewer in that step, or none.
PHOTOS: dict[str, Any] = {**SETTINGS, "memory": False, "dropout": 0.0, "scales": "32", "batch": 5}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for part, count, seed in (("train", 20, 0), ("val", 7, 1)):
        for number, (pixels, label) in enumerate(zip(*images(count, seed), strict=True)):
            path = folder / part / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            if number in (4, 5):
                path.write_bytes(path.read_bytes()[:200])
    return folder


def learn(
    rank: int, folder: Path, out: Path, model: str, changes: dict[str, Any], device: str = "cpu"
) -> list[str]:
    result = train(
        "small-images", folder, out=out if rank == 0 else out / "elsewhere", model=model, width=1 / 16,
        settings={**PHOTOS, **changes}, device=device,
    )  # fmt: skip
    return sorted(name for name, _ in result.bad)


@pytest.mark.parametrize(
    ("world", "model", "changes"),
    [
        # a part of a batch has its own batch norm, so that only without one are many alike with one
        (2, "vgg11", {"accumulate": 2}),
        (3, "vgg11", {"accumulate": 2}),
        (2, "vgg11_bn", {}),
        (3, "vgg11_bn", {}),
    ],
)
def test_shares_may_differ(
    photos: Path, tmp_path: Path, world: int, model: str, changes: dict[str, Any]
) -> None:
    bad = learn(0, photos, tmp_path / "one", model, changes)
    assert len(bad) == 4
    found = together(world, learn, photos, tmp_path / "many", model, changes)
    assert found[0] == (0, bad)
    assert [code for code, _ in found] == [0] * world, found
    assert_alike(tmp_path / "one", tmp_path / "many")


def test_parts_of_unequal_shares_wait_for_nobody(photos: Path, tmp_path: Path) -> None:
    changes = {"accumulate": 2}
    found = together(2, learn, photos, tmp_path / "many", "vgg11_bn", changes)
    assert [code for code, _ in found] == [0, 0], found
    assert len(found[0][1]) == 4
    assert np.isfinite(losses(tmp_path / "many")).all()
