"""Shards that are streamed: listed once, dealt out without doubles, and the same batches after a resume."""

from __future__ import annotations

import io
import os
import shlex
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from verydeep import modelfile, train
from verydeep.datasets import labelled, shards
from verydeep.errors import DataError, MissingExtraError
from verydeep.training.data import feed as feeding
from verydeep.training.data.colours import Statistics
from verydeep.training.data.feed import Feed
from verydeep.training.data.source import Batch, Source
from verydeep.training.data.views import Views
from verydeep.training.recipes import Config

from .conftest import Run
from .labelled import SETTINGS, images
from .labelled import assert_same as assert_same_models

PER_SHARD = 12
CONFIG = Config(batch=8, memory=False, cover=0, threads=1)
GREY = Statistics(np.full(3, 128.0), np.eye(3) * 900)


def write(
    folder: Path, stem: str, count: int, *, broken: str = "", seed: int = 0, size: int = 32
) -> None:
    """Shards of PER_SHARD photos of three classes; the file of that name is no image."""
    pixels, labels = images(count * PER_SHARD, seed, size)
    for shard in range(count):
        with tarfile.open(folder / f"{stem}-{shard:02}.tar", "w") as tar:
            for at in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                photo = io.BytesIO()
                Image.fromarray(pixels[at]).save(photo, "PNG")
                content = b"no image" if f"{at:04}.png" == broken else photo.getvalue()
                for suffix, value in (("png", content), ("cls", str(labels[at]).encode())):
                    info = tarfile.TarInfo(f"{at:04}.{suffix}")
                    info.size = len(value)
                    tar.addfile(info, io.BytesIO(value))


class Host(ThreadingHTTPServer):
    """Serves a folder; asked: the names that were fetched whole, in order."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        host = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path[1:])
                with suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # all that was wanted had come
                    super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "shards").mkdir()
    with Host(tmp_path / "shards") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def piped(folder: Path, stem: str, last: int) -> str:
    return f"pipe:cat {shlex.quote(str(folder))}/{stem}-{{00..{last:02}}}.tar"


class Watched(Source):
    """asked: the numbers of the images of each batch, in order."""

    asked: list[list[int]]

    def batch(self, epoch: int, indices: np.ndarray) -> Batch:
        self.asked.append(indices.tolist())
        return super().batch(epoch, indices)


def feed_of(found: labelled.Labelled, rank: int = 0, world: int = 1, **changes: Any) -> Feed:
    config = replace(CONFIG, **changes)
    return Feed(Watched(found.train, config, GREY), config, rank, world)


def numbers(feed: Feed, epoch: int, first: int = 0) -> list[list[int]]:
    """Of the images of each batch."""
    assert isinstance(feed._source, Watched)
    feed._source.asked = []
    assert len(list(feed.epoch(epoch, first))) == feed.steps - first
    return feed._source.asked


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_what_is_found_is_what_files_hold_and_is_listed_once(host: Host, tmp_path: Path) -> None:
    write(tmp_path / "shards", "a", 4)
    url = f"{host.url}/a-{{00..03}}.tar"
    found = labelled.find(url)
    local = labelled.find(str(tmp_path / "shards" / "a-{00..03}.tar"), val_fraction=0.0)
    assert sorted(host.asked) == [f"a-{n:02}.tar" for n in range(4)]
    assert found.classes == local.classes == ("0", "1", "2")
    assert found.split == "1 of 4 shards, seed 0"
    assert (len(found.train), len(found.val)) == (3 * PER_SHARD, PER_SHARD)
    assert found.counts().tolist() == [12, 12, 12]
    by_name = {s.name: s for s in local.train}
    for sample in (*found.train, *found.val):
        assert by_name[sample.name].label == sample.label
    one = found.val[5]
    assert labelled.open(one) == labelled.open(by_name[one.name])

    host.asked.clear()
    again = labelled.find(url)
    assert host.asked == []
    assert again.digest == found.digest
    kept = shards._kept(f"{host.url}/a-03.tar")
    kept.write_text('{"url": "", "identity": "", "images": []}')  # as older versions kept it
    assert labelled.find(url).digest == found.digest
    assert host.asked == ["a-03.tar"]
    host.asked.clear()
    write(tmp_path / "shards", "a", 2, size=33)  # two have changed
    for number in range(2):  # in another second: HTTP's dates know no finer
        os.utime(tmp_path / "shards" / f"a-{number:02}.tar", (2e9, 2e9))
    changed = labelled.find(url)
    assert set(host.asked) == {"a-00.tar", "a-01.tar"}
    assert changed.digest != found.digest


@pytest.mark.parametrize(
    ("batch", "sizes"), [(8, [8] * 6), (10, [10, 10, 10, 10, 8]), (47, [48]), (100, [48])]
)
def test_an_epoch_holds_every_image_once_and_looks_as_files_do(
    tmp_path: Path, batch: int, sizes: list[int]
) -> None:
    write(tmp_path, "a", 4)
    feed = feed_of(labelled.find(piped(tmp_path, "a", 3), val_fraction=0.0), batch=batch)
    first, second = numbers(feed, 0), numbers(feed, 1)
    for parts in (first, second):
        assert [len(part) for part in parts] == sizes
        assert sorted(flat(parts)) == list(range(4 * PER_SHARD))
    assert first != second
    local = labelled.find(str(tmp_path / "a-{00..03}.tar"), val_fraction=0.0)
    plain = Source(local.train, CONFIG, GREY)
    expected = [plain.batch(1, np.array(part)) for part in second]
    assert_same(list(feed.epoch(1)), expected)


def test_a_small_buffer_still_holds_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "BUFFER", 5)
    write(tmp_path, "a", 4)
    order = flat(numbers(feed_of(labelled.find(piped(tmp_path, "a", 3), val_fraction=0.0)), 0))
    assert sorted(order) == list(range(4 * PER_SHARD))
    shards = [number // PER_SHARD for number in order]
    assert sum(a != b for a, b in pairwise(shards)) > 3  # not one by one


@pytest.mark.parametrize(("first", "done"), [(3, 2), (4, 2), (5, 3)])
def test_resumed_within_an_epoch_it_goes_on_at_the_shard_and_opens_none_before(
    host: Host, tmp_path: Path, first: int, done: int
) -> None:
    write(tmp_path / "shards", "a", 4)
    feed = feed_of(labelled.find(f"{host.url}/a-{{00..03}}.tar", val_fraction=0.0))
    host.asked.clear()
    whole = flat(numbers(feed, 2))
    order = [int(name[2:4]) for name in host.asked]
    host.asked.clear()
    rest = numbers(feed, 2, first)
    assert [int(name[2:4]) for name in host.asked] == order[done:]
    seen = flat(rest)
    assert len(set(seen)) == len(seen) == len(whole) - 8 * first
    assert {number // PER_SHARD for number in seen} <= set(order[done:])
    assert numbers(feed, 2, first) == rest
    assert (
        numbers(feed, 2, feed.steps) == []
    )  # it was stopped between the last step and the validation


def test_two_processes_share_an_epoch_without_doubles(tmp_path: Path) -> None:
    write(tmp_path, "a", 5)
    found = labelled.find(piped(tmp_path, "a", 4), val_fraction=0.0)
    feeds = [feed_of(found, rank, 2, batch=9) for rank in range(2)]
    for epoch in range(3):
        shares = [numbers(feed, epoch) for feed in feeds]
        seen = flat(shares[0] + shares[1])
        assert len(set(seen)) == len(seen)
        assert [len(part) for part in shares[1]] == [4] * 5
        assert [len(part) for part in shares[0]] in ([5] * 4 + [4], [5] * 5)  # of 2 or 3 shards
    with pytest.raises(
        DataError,
        match="5 shards to train on, and 6 processes; take fewer processes, or more shards",
    ):
        feed_of(found, 0, 6)


def test_what_is_validated_is_every_image_once_over_two_processes(tmp_path: Path) -> None:
    from verydeep.preprocess import Preprocess

    write(tmp_path, "a", 3, broken="0013.png")
    found = labelled.find(piped(tmp_path, "a", 2), val_fraction=0.0)
    local = labelled.find(str(tmp_path / "a-{00..02}.tar"), val_fraction=0.0)
    fit = Preprocess(resize_size=32, crop_size=32)
    seen: dict[int, np.ndarray] = {}
    bad: list[str] = []
    for rank in range(2):
        views = Views(found.train, fit, threads=1)
        for numbers, pixels in views.batches(rank, 2):
            assert not seen.keys() & set(numbers.tolist())
            seen |= dict(zip(numbers.tolist(), pixels, strict=True))
        bad += views.bad
    assert bad == ["a-01.tar/0013.png"]
    for numbers, pixels in Views(local.train, fit, threads=1).batches():
        assert sorted(seen) == numbers.tolist()
        np.testing.assert_array_equal(np.stack([seen[n] for n in numbers]), pixels)


def trained(source: str, out: Path, val: str | None, **changes: Any) -> Any:
    settings = {
        **SETTINGS,
        "epochs": 2,
        "memory": False,
        "cover": 0,
        "threads": 1,
        "checkpoint_minutes": 0.0,
    }
    return train(
        "small-images", source, val, out=out, model="vgg11_bn", width=1 / 16, device="cpu",
        settings=settings, **changes,
    )  # fmt: skip


def test_a_run_that_is_resumed_between_epochs_ends_as_one_that_was_not(
    host: Host, tmp_path: Path
) -> None:
    write(tmp_path / "shards", "a", 4, broken="0003.png")
    write(tmp_path / "shards", "v", 2, seed=1)
    source, val = f"{host.url}/a-{{00..03}}.tar", piped(tmp_path / "shards", "v", 1)
    result = trained(source, tmp_path / "one", val)
    assert [name for name, _ in result.bad] == ["a-00.tar/0003.png"]
    assert len(result.labels) == 2 * PER_SHARD
    assert (tmp_path / "one" / "report.html").exists()

    class Interrupted(Exception):  # noqa: N818
        pass

    for name, last in (("two", 5), ("three", 6)):  # the checkpoint is of the step before

        def at(line: Any, last: int = last) -> None:
            if line["event"] == "step" and line["step"] == last:
                raise Interrupted

        with pytest.raises(Interrupted):
            trained(source, tmp_path / name, val, event=at)
        assert trained(source, tmp_path / name, val, resume=True).log[-1]["step"] == 8
    assert_same_models(tmp_path / "one", tmp_path / "two")
    three = modelfile.read(tmp_path / "three" / "model.safetensors").tensors()
    assert all(
        np.isfinite(value).all() for value in three.values()
    )  # within an epoch, not to the bit


def test_what_cannot_be_streamed_is_one_line(
    host: Host, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{host.url}/a-{{00..01}}.tar"
    for words, line in (
        (("train", url, "--recipe", "probe"), "recipe probe reads images in any order, which a"),
        (("train", url, "--recipe", "finetune"), "recipe finetune reads images in any order"),
        (("train", url, "--recipe", "small-images"), "memory=True needs all images at hand"),
        (("train", url, "--recipe", "paper", "--set", "balance=sampling"), "--set balance=weights"),
        (("check", url), "a check compares images in any order, which a stream cannot give"),
        (("train", url, "--recipe", "paper"), "the command that fetches it ended with status 22"),
        (
            ("train", "pipe:exit 3", "--recipe", "paper"),
            "the command that fetches it ended with status 3",
        ),
        (("train", "scp:///{a", "--recipe", "paper"), "expected braces as in train-{000..099}.tar"),
        (("train", "pipe:echo {1,1}", "--recipe", "paper"), "names a shard twice"),
    ):
        out = ("--out", tmp_path / "out") if words[0] == "train" else ()
        status, stdout, err = verydeep(*words, *out)
        assert (status, stdout) == (2, ""), words
        assert line in err
        assert err.count("\n") == 1
    assert host.asked.count("a-00.tar") + host.asked.count("a-01.tar") <= 2  # refused before that
    assert not (tmp_path / "out" / "config.json").exists()
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingExtraError, match=r'pip install "verydeep\[webdataset\]"'):
        labelled.find(url)


def test_shards_that_are_wrong_or_have_changed_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a", 2)
    whole = (tmp_path / "a-01.tar").read_bytes()
    url = piped(tmp_path, "a", 1)
    found = labelled.find(url, val_fraction=0.0)
    with tarfile.open(tmp_path / "a-01.tar") as tar:
        places = [(info.offset, info.offset_data) for info in tar]
    begins, holds = places[6]
    lines = {begins: "it ends before its end", begins + 100: "it ends before its end",
             holds: "unexpected end of data", holds + 9: "unexpected end of data"}  # fmt: skip
    for length, line in lines.items():
        (tmp_path / "a-01.tar").write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=rf"a-01\.tar: cannot be read as a shard, a tar: {line}"
        ):
            list(feed_of(found).epoch(0))
        shards._kept(url.replace("{00..01}", "01")).unlink(missing_ok=True)
        with pytest.raises(
            DataError, match=rf"a-01\.tar: cannot be read as a shard, a tar: {line}"
        ):
            labelled.find(url)
    write(tmp_path, "a", 2, size=33)
    with pytest.raises(DataError, match=r"is not there as it was when the shard was listed; the"):
        list(feed_of(found).epoch(0))
    with tarfile.open(tmp_path / "b-00.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0001.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"0001\.png has no 0001\.cls beside it"):
        labelled.find(piped(tmp_path, "b", 0))


def test_a_shard_with_other_labels_is_another_one(tmp_path: Path) -> None:
    """Its images may well have the names and sizes that they had."""
    write(tmp_path, "a", 1)
    url = (tmp_path / "a-00.tar").as_uri()
    first = labelled.find(url, val_fraction=0.0)
    whole = tmp_path / "a-00.tar"
    turned = tmp_path / "turned.tar"
    with tarfile.open(whole) as old, tarfile.open(turned, "w") as new:
        members = old.getmembers()
        texts = [old.extractfile(one).read() for one in members]  # type: ignore[union-attr]
        labels = [
            text for one, text in zip(members, texts, strict=True) if one.name.endswith("cls")
        ]
        for one, text in zip(members, texts, strict=True):
            new.addfile(one, io.BytesIO(labels.pop() if one.name.endswith("cls") else text))
    turned.replace(whole)
    with pytest.raises(DataError, match=r"is not there as it was when the shard was listed; the"):
        list(feed_of(first).epoch(0))
    second = labelled.find(url, val_fraction=0.0)
    told = [[found.classes[s.label] for s in found.train] for found in (first, second)]
    assert told[0] == told[1][::-1] != told[1]


def test_a_single_shard_is_not_split(tmp_path: Path) -> None:
    write(tmp_path, "a", 1)
    found = labelled.find(piped(tmp_path, "a", 0))
    assert (len(found.train), len(found.val), found.split) == (PER_SHARD, 0, "")
    assert found.warnings == ("a single shard is not split; to validate, give a second data set",)


def test_two_members_of_one_name_are_refused(host: Host, tmp_path: Path) -> None:
    """Else images would be lost, or have the labels of others."""
    with tarfile.open(tmp_path / "shards" / "a-00.tar", "w") as tar:
        for name in ("0.png", "0.cls", "1.png", "1.cls", "0.png", "0.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
    for where in (str(tmp_path / "shards"), host.url):
        with pytest.raises(DataError, match=r"a-00\.tar: holds 0\.png twice"):
            labelled.find(f"{where}/a-{{00..00}}.tar")
