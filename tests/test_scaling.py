"""Features and labels by a Ray cluster: the same as without one, whatever dies; no other job mixed in."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verydeep import errors, retrieval
from verydeep.predictor import load
from verydeep.scaling import Scaled, classify, dataset, features, mapped, source, work
from verydeep.scaling.cluster import connected

from .conftest import Run
from .tiny import model_file, photo

pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photos, one of them broken, as a folder, shards and tables; and a model."""
    folder = tmp_path_factory.mktemp("scaling")
    for seed in range(20):
        photo(folder / "photos" / f"{seed:02}.png", seed=seed)
    (folder / "photos" / "07.png").write_bytes(b"no image at all")
    files = sorted((folder / "photos").iterdir())
    contents = [file.read_bytes() for file in files]
    for number in range(2):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as tar:
            for file, content in list(zip(files, contents, strict=True))[number::2]:
                for name, data in ((file.name, content), (f"{file.stem}.cls", b"3")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    pq.write_table(
        pa.table({"id": list(range(20)), "image": contents}),
        folder / "bytes.parquet",
        row_group_size=6,
    )
    paths = [f"photos/{file.name}" for file in files]
    pq.write_table(pa.table({"file": paths, "label": ["x"] * 20}), folder / "paths.parquet")
    structs = [{"bytes": content, "path": "x.png"} for content in contents]
    pq.write_table(pa.table({"image": structs}), folder / "face.parquet")
    model_file(folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
        with connected("local") as ray:
            yield ray


def made(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


# The source as parts


def names(given: list[str], size: int = 8, column: str | None = None) -> list[list[str]]:
    return [[name for name, _, _ in part.images()] for part in source.parts(given, size, column)]


def flat(parts: list[list[str]]) -> list[str]:
    return [name for part in parts for name in part]


def test_a_folder_is_parts_in_its_order(place: Path) -> None:
    parts = names([str(place / "photos")])
    assert [len(part) for part in parts] == [8, 8, 4]
    assert flat(parts) == [str(place / "photos" / f"{n:02}.png") for n in range(20)]


def test_a_shard_is_its_images(place: Path) -> None:
    parts = names([str(place / "shard-{0..1}.tar")], 4)
    assert [len(part) for part in parts] == [4, 4, 2, 4, 4, 2]
    assert parts[1][0] == str(place / "shard-0.tar" / "08.png")
    assert len(set(flat(parts))) == 20
    (first, *_) = source.parts([str(place / "shard-1.tar")], 4)
    assert (
        next(image for _, image, _ in first.images()) == (place / "photos" / "01.png").read_bytes()
    )


@pytest.mark.parametrize("table", ["bytes", "paths", "face"])
def test_a_table_is_its_rows(place: Path, table: str) -> None:
    """Across groups of rows that end elsewhere than parts."""
    images = [
        image
        for part in source.parts([str(place / f"{table}.parquet")], 7)
        for _, image, problem in part.images()
        if not problem
    ]
    files = sorted((place / "photos").iterdir())
    expected: list[Any] = (
        [str(f) for f in files] if table == "paths" else [f.read_bytes() for f in files]
    )
    assert images == expected


def test_what_lies_elsewhere_is_the_same(place: Path) -> None:
    url = f"file://{place}"
    here = [[f"file://{name}" for name in part] for part in names([str(place / "photos")])]
    assert names([f"{url}/photos"]) == names([f"{url}/photos/"]) == here
    assert flat(names([f"{url}/photos/1*.png"])) == flat(here)[10:]
    images = [
        image for part in source.parts([f"{url}/photos/0*"], 8) for _, image, _ in part.images()
    ]
    assert images[0] == (place / "photos" / "00.png").read_bytes()
    assert len(images) == 10
    assert len(flat(names([f"{url}/shard-{{0..1}}.tar"], 4))) == 20
    assert len(flat(names([f"{url}/bytes.parquet"], 4))) == 20
    (part,) = source.parts([f"{url}/none.png"], 4)
    ((_, content, problem),) = part.images()
    assert content == b""
    assert "cannot be fetched" in problem
    with pytest.raises(errors.DataError, match="odd://x/: cannot be listed"):
        list(source.parts(["odd://x/"], 4))


def test_what_is_damaged_is_images_with_an_error(place: Path, tmp_path: Path) -> None:
    whole = (place / "shard-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:7000])
    (tmp_path / "no.tar").write_bytes(b"no tar")
    (tmp_path / "no.parquet").write_bytes(b"no table")
    for file in ("cut.tar", "no.tar", "no.parquet"):
        found = [one for part in source.parts([str(tmp_path / file)], 3) for one in part.images()]
        assert found[-1][2], file
        assert "cannot be read as a" in found[-1][2]
        assert len(found) == 1 or file == "cut.tar"
    lost = source.Part((str(tmp_path / "gone.tar"),), 3)
    assert len(list(lost.images())) == 3
    assert all(problem for _, _, problem in lost.images())


def test_a_table_names_its_column(place: Path, tmp_path: Path) -> None:
    def table(**columns: Any) -> str:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return str(tmp_path / "t.parquet")

    with pytest.raises(errors.DataError, match=r"no column of images among id, label; .*--column"):
        names([table(id=[1], label=["x"])])
    with pytest.raises(
        errors.DataError, match=r"several columns may hold images, a, b; .*--column"
    ):
        names([table(a=[b"1"], b=[b"2"])])
    with pytest.raises(errors.DataError, match="no column 'imagee' of bytes or paths"):
        names([str(place / "bytes.parquet")], 8, "imagee")
    assert names([table(a=[b"1", None], b=[b"2", b"3"])], 8, "a") == [
        [f"{tmp_path}/t.parquet#0", f"{tmp_path}/t.parquet#1"]
    ]


def test_a_struct_is_known_by_its_fields(tmp_path: Path) -> None:
    """In whichever order; another struct holds no images."""
    kind = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    rows = [{"path": "x.png", "bytes": b"1"}, {"path": "/there.png", "bytes": None}]
    table = pa.table({"image": pa.array(rows, kind), "box": [{"bytesize": 1}, {"bytesize": 2}]})
    pq.write_table(table, tmp_path / "t.parquet")
    (part,) = source.parts([str(tmp_path / "t.parquet")], 8)
    assert [image for _, image, _ in part.images()] == [b"1", "/there.png"]


@pytest.mark.parametrize("now", [{"image": [b"1"] * 6}, {"image": []}, {"other": [b"1"] * 20}])
def test_a_table_that_is_another_by_now(place: Path, tmp_path: Path, now: dict[str, Any]) -> None:
    """What it has no more are images with an error; what it has are images."""
    file = tmp_path / "t.parquet"
    file.write_bytes((place / "bytes.parquet").read_bytes())
    parts = list(source.parts([str(file)], 8))
    pq.write_table(pa.table(now), file)
    found = [image for part in parts for image in part.images()]
    assert [name for name, _, _ in found] == [f"{file}#{row}" for row in range(20)]
    left = len(now.get("image", ()))
    assert [bool(problem) for _, _, problem in found] == [False] * left + [True] * (20 - left)


def test_what_pyarrow_cannot_do_is_images_with_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its errors are none of Python's."""

    def odd(*_: Any, **__: Any) -> None:
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented")

    (part,) = source.parts([str(place / "bytes.parquet")], 20)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", odd)
    assert {problem for _, _, problem in part.images()} == {
        "Nested data conversions not implemented"
    }


# What a person may get wrong: one line, exit 2


def refused(verydeep: Run, *words: object) -> str:
    done = verydeep("features", *words, "--engine", "onnxruntime")
    assert done.status == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    return line


def test_what_cannot_be_is_one_line(
    place: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    out = ("--out", tmp_path / "r", "--model", "tiny.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused(verydeep, tmp_path / "empty", "--ray", *out)
    pq.write_table(pa.table({"id": [1]}), tmp_path / "t.parquet")
    assert "no column of images among id" in refused(
        verydeep, tmp_path / "t.parquet", "--ray", *out
    )
    assert "no Ray cluster answers at '127.0.0.1:1': " in refused(
        verydeep, "photos", "--ray", "127.0.0.1:1", *out
    )
    assert "expected HOST:PORT, auto or local" in refused(
        verydeep, "photos", "--ray", "here/", *out
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert 'pip install "verydeep[ray]"' in refused(verydeep, "photos", "--ray", *out)
    done = verydeep("classify", "photos", "--out", tmp_path / "r")
    assert done.status == 2
    assert "--ray and --out FOLDER go together" in done.err


def test_numbers_that_cannot_be_are_refused_at_once(place: Path, tmp_path: Path) -> None:
    told = {"model": place / "tiny.safetensors", "threads": 0}
    words = "threads is 0; expected a whole number, 1 or more"
    with pytest.raises(errors.DataError, match=words):
        features(place / "photos", tmp_path / "r", **told)
    with pytest.raises(errors.DataError, match=words):
        mapped(None, "image", **told)
    with pytest.raises(errors.DataError, match="top is -1; expected a whole number, 0 or more"):
        mapped(None, "image", top=-1)


# A worker


def worker(place: Path, out: Path) -> work.Worker:
    model = place / "tiny.safetensors"
    about = retrieval.extraction.described(load(model), model, None, "avg", None)
    out.mkdir()
    (out / work.MANIFEST).write_text('{"id": "1"}')
    about = replace(about, engine="onnxruntime")
    return work.Worker(work.Work(about, 0, 1, "cpu", 4), str(out), "1")


def test_a_full_disk_is_said_and_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the last write of the file says, and what one in the middle of it says."""
    monkeypatch.chdir(place)
    one = worker(place, tmp_path / "out")
    assert one.ready().refusal == ""
    (part,) = source.parts(["photos"], 20)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for target in ("verydeep.files.atomic.os.fsync", "verydeep.scaling.work.Parquet.write"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            report = one.compute(0, part)
        assert report.kind is errors.OutputError
        assert "No space left on device" in report.refusal
        assert [path.name for path in (tmp_path / "out").iterdir()] == [work.MANIFEST]
    assert one.compute(0, part) == work.Report(one.node, 20, 1)


def test_a_worker_refuses_what_is_not_as_it_was_told(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    one = worker(place, tmp_path / "out")
    (tmp_path / "out" / work.MANIFEST).write_text('{"id": "2"}')
    assert "every node needs them" in one.ready().refusal
    monkeypatch.setattr(work, "__version__", "0")
    assert "has verydeep 0, and" in one.ready().refusal


# A job


@pytest.mark.usefixtures("cluster")
def test_the_folder_holds_what_the_file_would(
    place: Path, tmp_path: Path, verydeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    told = ("--model", "tiny.safetensors", "--engine", "onnxruntime")
    one = retrieval.features(
        "photos", tmp_path / "f.parquet", model="tiny.safetensors", engine="onnxruntime"
    )
    out = tmp_path / "r"
    done = verydeep(
        "features", "photos", "--ray", "--out", f"{out}/", *told, "--part", "8", "--price", "2"
    )
    assert done.status == 1, done.err
    assert f"{out}: 20 images; 20 in " in done.out
    assert "where a node costs 2 an hour" in done.out
    assert "1 of 20 images could not be read" in done.err
    whole, expected = pq.read_table(out), pq.read_table(tmp_path / "f.parquet")
    assert whole.schema.names == expected.schema.names == ["path", "error", *one.about.layers]
    assert whole.schema.types == expected.schema.types
    assert whole.column("path") == expected.column("path")
    assert whole.column("error") == expected.column("error")
    layer = next(iter(one.about.layers))
    for ours, theirs in zip(
        whole.column(layer).to_pylist(), expected.column(layer).to_pylist(), strict=True
    ):
        assert (ours is None) == (theirs is None)
        assert ours is None or np.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    # each part is a file of features by itself
    assert retrieval.open_features(out / "part-0000001.parquet").about == one.about
    again = verydeep("features", "photos", "--ray", "auto", "--out", out, *told, "--part", "8")
    assert "20 images, all done before" in again.out
    assert again.status == 1


@pytest.mark.parametrize("given", ["shard-{0..1}.tar", "bytes.parquet", "paths.parquet"])
@pytest.mark.usefixtures("cluster")
def test_labels_of_shards_and_tables(
    place: Path,
    tmp_path: Path,
    verydeep: Run,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    monkeypatch.chdir(place)
    told = ("--model", "tiny.safetensors", "--engine", "onnxruntime", "--part", "7", "--top", "2")
    done = verydeep("classify", given, "--ray", "--out", tmp_path / "r", *told)
    assert done.status == 1, done.err
    rows = made(tmp_path / "r")
    assert len({row["path"] for row in rows}) == len(rows) == 20
    (broken,) = [row for row in rows if row["error"]]
    assert broken["error"].startswith(broken["path"])
    assert "not an image that can be read" in broken["error"]
    assert broken["labels"] is None
    good = next(row for row in rows if row["path"].endswith(("02.png", "#2")))
    answer = load("tiny.safetensors", engine="onnxruntime")("photos/02.png", top=2)
    assert good["labels"] == [one.label for one in answer.predictions]
    assert np.allclose(
        good["probabilities"], [one.probability for one in answer.predictions], rtol=1e-4
    )


def job(place: Path, out: Path, given: str = "photos", **more: Any) -> Scaled:
    how = {"model": place / "tiny.safetensors", "engine": "onnxruntime", "part": 4, **more}
    return features(place / given, out, **how)


@pytest.mark.usefixtures("cluster")
def test_it_goes_on_where_it_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost and damaged parts are made again, byte for byte, and what was unfinished goes."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "r"
    assert job(place, out).computed == 20
    before = {path.name: path.read_bytes() for path in out.glob("part-*")}
    assert len(before) == 5
    (out / "part-0000002.parquet").unlink()
    (out / "part-0000003.parquet").write_bytes(b"damaged")
    (out / "_part-0000004.parquet.0.part").write_bytes(b"unfinished")
    stamp = (out / "part-0000001.parquet").stat().st_mtime_ns
    done = job(place, out)
    assert (done.images, done.errors, done.computed) == (20, 1, 8)
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == before
    assert (out / "part-0000001.parquet").stat().st_mtime_ns == stamp
    assert not list(out.glob("_part*"))


@pytest.mark.usefixtures("cluster")
def test_another_job_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "r"
    for number in range(6):
        photo(tmp_path / "own" / f"{number}.png", seed=number)
    how = {"model": place / "tiny.safetensors", "engine": "onnxruntime", "part": 4}
    features("own", out, **how)
    with pytest.raises(errors.DataError, match=r"another job \(layers .*now"):
        features("own", out, "relu3_2", **how)
    with pytest.raises(errors.DataError, match=r"another job \(part 4, now 5\)"):
        features("own", out, **{**how, "part": 5})
    with pytest.raises(errors.DataError, match=r"another job \(engine onnxruntime, now openvino\)"):
        features("own", out, **{**how, "engine": "openvino"})
    with pytest.raises(errors.DataError, match=r"another job .*top 0, now 5"):
        classify("own", out, **how)
    (tmp_path / "own" / "5.png").unlink()
    with pytest.raises(errors.DataError, match="the source has changed"):
        features("own", out, **how)
    (tmp_path / "own" / "4.png").unlink()
    with pytest.raises(errors.DataError, match="of which the source has nothing any more"):
        features("own", out, **how)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(errors.DataError, match="holds files of something else"):
        features("own", tmp_path / "other", **how)
    (out / work.MANIFEST).write_text("{")
    with pytest.raises(errors.DataError, match=r"_manifest.json: cannot be gone on with"):
        features("own", out, **how)
    with pytest.raises(errors.OutputError, match="cannot be written"):
        features("own", tmp_path / "other" / "mine.txt", **how)


@pytest.mark.usefixtures("cluster")
def test_two_at_once_are_refused(
    place: Path,
    tmp_path: Path,
) -> None:
    seen = []

    def on_event(_: Any) -> None:
        with pytest.raises(errors.DataError, match="another process is writing"):
            job(place, tmp_path / "r")
        seen.append(1)

    job(place, tmp_path / "r", on_event=on_event)
    assert len(seen) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_costs_its_part(
    place: Path,
    tmp_path: Path,
) -> None:
    """Nothing is lost or doubled, and the files are those of a run without a death."""
    kills = []

    def on_event(_: Any) -> None:
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if len(kills) < 2 and b"ray::Worker" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
                    kills.append(entry.name)

    job(place, tmp_path / "calm")
    done = job(place, tmp_path / "killed", on_event=on_event, part=4)
    assert kills
    assert (done.images, done.computed) == (20, 20)
    for path in (tmp_path / "calm").glob("part-*"):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.usefixtures("cluster")
def test_a_map_over_any_dataset(place: Path, top: int) -> None:
    import ray

    model = place / "tiny.safetensors"
    dataset = ray.data.read_parquet(str(place / "bytes.parquet"))
    rows = mapped(dataset, "image", model=model, engine="onnxruntime", top=top).take_all()
    rows.sort(key=lambda row: row["id"])
    assert len(rows) == 20
    assert "not an image that can be read" in rows[7]["error"]
    assert not rows[2]["error"]
    predictor = load(model, engine="onnxruntime")
    if top:
        answer = predictor(place / "photos" / "02.png", top=top)
        assert list(rows[2]["labels"]) == [one.label for one in answer.predictions]
    else:
        ((layer, values),) = predictor.features([place / "photos" / "02.png"], pool="avg").items()
        assert np.allclose(rows[2][layer], values[0], rtol=1e-4, atol=1e-6)
        assert np.isnan(rows[7][layer]).all()


@pytest.mark.parametrize("top", [0, 2])
def test_a_batch_without_an_image_that_can_be_read(place: Path, top: int) -> None:
    """Its rows have an error each, and what says nothing; as in a batch that has a good one."""
    model = place / "tiny.safetensors"
    about = retrieval.extraction.described(load(model), model, None, "avg", None)
    about = replace(about, engine="onnxruntime", **({"layers": {}} if top else {}))
    mapping = dataset._Mapping(work.Work(about, top, 1, "cpu", 4), "image")
    good = (place / "photos" / "02.png").read_bytes()
    for given in ([b"junk", None], [b"junk", None, good], []):
        column = np.empty(len(given), object)
        column[:] = given
        rows = mapping({"image": column})
        assert [bool(error) for error in rows["error"]] == [one is not good for one in given]
        if top:
            assert [len(labels) for labels in rows["labels"]] == [0, 0, 2][: len(given)]
            assert rows["sure"][:2] == [False, False][: len(given)]
            continue
        ((layer, shape),) = about.layers.items()
        assert rows[layer].shape == (len(given), *shape)
        assert np.isnan(rows[layer]).all(1).tolist() == [one is not good for one in given]


@pytest.mark.usefixtures("cluster")
def test_who_ends_a_program_does_so_with_ray_too() -> None:
    """Ray's own way to end at a SIGTERM had taken the place of the program's."""
    program = """
import signal
from verydeep.scaling.cluster import connected

def own(*_): ...

signal.signal(signal.SIGTERM, own)
with connected("local"):
    print(signal.getsignal(signal.SIGTERM) is own)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n", done.stderr


def test_nothing_is_reported_to_anybody() -> None:
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.usefixtures("cluster")
def test_the_manifest_says_the_engine(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few images are not worth a race; what goes on takes the same engine."""
    monkeypatch.chdir(place)
    done = features("photos", tmp_path / "r", model="tiny.safetensors", part=10)
    manifest = json.loads((tmp_path / "r" / work.MANIFEST).read_text())
    assert manifest["engine"] == done.engine != "auto"
    about = retrieval.open_features(tmp_path / "r" / work.part_name(0)).about
    assert about.engine == done.engine
