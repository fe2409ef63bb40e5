"""The catalogue against torchvision's own, and a tiny published file on its way into the cache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from torchvision.models import get_model_weights, get_weight

import verydeep
from verydeep import modelfile, nets
from verydeep.cli.weights import weights as command
from verydeep.errors import DataError, MissingExtraError, ModelFileError, WeightsError
from verydeep.files import hashes
from verydeep.preprocess import PRESETS, TORCHVISION
from verydeep.published import catalog, conversion, find_model, supply
from verydeep.published import fetching as fetch
from verydeep.published.catalog import Accuracy, Entry, Published
from verydeep.published.fetching import GoneError
from verydeep.published.recognition import verdicts

TORCHVISION_ENTRIES = [
    entry for entry in catalog.ENTRIES.values() if entry.url.startswith(catalog.TORCHVISION_ADDRESS)
]


def test_every_torchvision_file_is_there() -> None:
    theirs = {
        str(member.url)
        for name in nets.NETWORKS
        if name in torchvision.models.list_models(torchvision.models)
        for member in get_model_weights(name)
    }
    assert {entry.url for entry in TORCHVISION_ENTRIES} == theirs
    assert len(theirs) == 9


@pytest.mark.parametrize("entry", TORCHVISION_ENTRIES, ids=lambda entry: str(entry.name))
def test_what_the_catalogue_says_is_what_torchvision_says(entry: Entry) -> None:
    enum = type(get_model_weights(entry.network)["IMAGENET1K_V1"]).__name__
    theirs = get_weight(f"{enum}.{entry.release}")
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    assert entry.url == theirs.url
    if entry.accuracy is None:
        assert np.isnan(metrics["acc@1"])
    else:
        assert entry.accuracy.top1 * 100 == pytest.approx(metrics["acc@1"], abs=1e-9)
        assert entry.accuracy.top5 * 100 == pytest.approx(metrics["acc@5"], abs=1e-9)
    assert nets.network(entry.network).parameters == theirs.meta["num_params"]
    assert entry.file_mebibytes == theirs.meta["_file_size"]
    ours, transforms = PRESETS[entry.preprocess], theirs.transforms()
    assert [ours.resize_size, ours.crop_size] == [*transforms.resize_size, *transforms.crop_size]
    assert ours.interpolation == transforms.interpolation.value
    assert list(ours.mean) == transforms.mean
    assert list(ours.std) == transforms.std
    if entry.classes:
        assert list(catalog.class_names()) == theirs.meta["categories"]
    assert entry.file.endswith(f"-{entry.published[0].digest.removeprefix('sha256:')}.pth")


def test_the_old_addresses_are_there() -> None:
    assert {
        entry.name: [old.url for old in entry.published[1:]] for entry in TORCHVISION_ENTRIES
    } == {
        **{entry.name: [] for entry in TORCHVISION_ENTRIES},
        "vgg11": ["https://download.pytorch.org/models/vgg11-bbd30ac9.pth"],
        "vgg13": ["https://download.pytorch.org/models/vgg13-c768596a.pth"],
    }


def test_every_entry_can_be_checked_and_used() -> None:
    lengths = {"md5": 32, "sha1": 40, "sha256": 8}
    for name, entry in catalog.ENTRIES.items():
        assert entry.name == name
        assert entry.network in nets.NETWORKS
        assert entry.preprocess in PRESETS
        assert entry.licence in ("BSD-3-Clause", "CC-BY-4.0")
        assert entry.classes in (0, 1000)
        for one in entry.published:
            algorithm, _, hexes = one.digest.partition(":")
            assert len(hexes) == lengths[algorithm]
            assert int(hexes, 16)
    assert catalog.entry("vgg16").size_bytes == 4 * 138_357_544
    assert len({supply.model_path(e) for e in catalog.ENTRIES.values()}) == len(catalog.ENTRIES)


def test_imagenet_classes() -> None:
    ids, names = catalog.class_ids(), catalog.class_names()
    assert len(ids) == len(set(ids)) == len(set(names)) == 1000
    assert list(ids) == sorted(ids)  # ILSVRC numbers its classes in the order of their ids
    # from Keras's imagenet_class_index.json
    known = {0: "n01440764", 134: "n02012849", 388: "n02510455", 517: "n03126707", 999: "n15075141"}
    assert {place: ids[place] for place in known} == known
    assert names[134] == "crane bird"
    assert names[517] == "crane"


def test_the_catalogue_imports_no_numpy_and_no_http() -> None:
    program = (
        "import sys, verydeep.published.catalog; "
        "print({'numpy', 'http', 'ssl', 'rich'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"
    program = program.replace("verydeep.published.catalog", "verydeep.published.fetching")
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "http" in run.stdout  # so the question above can be answered wrongly


# A published file, made small


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vgg11 with 1000 classes at width 1/32 as torch.save writes it."""
    torch.manual_seed(0)
    net = nets.network("vgg11", width=1 / 32)
    state = {key: torch.randn(shape) for key, shape in net.tensors.items()}
    path = tmp_path_factory.mktemp("server") / "tiny.pth"
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def entry(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """That file in the catalogue as "tiny", with every cache empty."""
    for variable, folder in (
        ("VERYDEEP_CACHE", "cache"),
        ("TORCH_HOME", "torch"),
        ("KERAS_HOME", "keras"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("VERYDEEP_MIRROR", "VERYDEEP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    head = hashlib.sha256(published.read_bytes()).hexdigest()[:8]
    entry = Entry(
        "tiny",
        "vgg11",
        "IMAGENET1K_V1",
        (
            Published("http://127.0.0.1:9/tiny.pth", f"sha256:{head}"),
            Published("http://127.0.0.1:9/tiny-old.pth", f"sha256:{head}"),
        ),
        "BSD-3-Clause",
        "torchvision",
        accuracy=Accuracy(0.5, 0.75, "by hand"),
    )
    monkeypatch.setitem(catalog.ENTRIES, "tiny", entry)
    return entry


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_in_torch_hubs_cache_is_used_and_kept_as_a_model_file(
    published: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(published, hub)
    path = supply.obtain("tiny", progress=False)
    assert path == tmp_path / "cache" / "weights" / "tiny.safetensors"
    file = modelfile.read(path)
    state = torch.load(published, weights_only=True)
    assert set(file.tensors()) == set(state)
    for key, array in file.tensors().items():
        np.testing.assert_array_equal(array, state[key].numpy())
    record = file.record
    assert record.network == nets.network("vgg11", width=1 / 32)
    assert record.preprocess == TORCHVISION
    assert record.class_ids == catalog.class_ids()
    assert record.class_names == catalog.class_names()
    assert record.licence == "BSD-3-Clause"
    assert [(one["what"], one["value"], one["protocol"]) for one in record.measured] == [
        ("top1", 0.5, "by hand"),
        ("top5", 0.75, "by hand"),
    ]
    assert record.provenance["catalogue"] == "tiny"
    assert record.provenance["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    # from now on neither the published file nor torch is needed
    (hub / "tiny.pth").unlink()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    before = path.stat().st_mtime_ns
    assert supply.obtain("tiny", progress=False) == path
    assert path.stat().st_mtime_ns == before


def test_without_torch_nothing_is_fetched_in_vain(
    monkeypatch: pytest.MonkeyPatch, entry: Entry
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(MissingExtraError, match=r'converting tiny.pth .* "verydeep\[torch\]"'):
        supply.obtain("tiny", progress=False)
    keras = replace(entry, published=(Published("http://127.0.0.1:9/tiny.h5", "md5:00"),))
    monkeypatch.setitem(catalog.ENTRIES, "tiny", keras)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'converting tiny.h5 .* "verydeep\[keras\]"'):
        supply.obtain("tiny", progress=False)


def test_a_wrong_file_in_torch_hubs_cache_is_left_alone(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hub / "tiny.pth").write_bytes(b"half a download")
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    with pytest.raises(WeightsError, match="tiny is not on this machine"):
        supply.obtain("tiny")
    assert f"{hub / 'tiny.pth'} is not sha256:" in capsys.readouterr().err
    assert (hub / "tiny.pth").read_bytes() == b"half a download"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_cached_file_that_cannot_be_read_is_left_alone(
    sealed: bool,
    entry: Entry,
    published: Path,
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusing(path: Path, *words: object, **more: object) -> object:
        if path == hub / "tiny.pth":  # the tests may run as root, who may read everything
            raise PermissionError(errno.EACCES, "Permission denied")
        return open(path, *words, **more)  # type: ignore[call-overload]

    right = tmp_path / "keras" / "models" / "tiny.pth"
    right.parent.mkdir(parents=True)
    shutil.copy(published, hub)
    shutil.copy(published, right)
    if sealed:
        hashes.seal(
            supply.weights_folder() / "tiny.pth", hashlib.sha256(published.read_bytes()).hexdigest()
        )
    monkeypatch.setattr(hashes, "open", refusing, raising=False)
    assert supply.find_source(entry, progress=False) == right
    assert f"cannot read {hub / 'tiny.pth'}: Permission denied" in capsys.readouterr().err


def test_a_folder_that_is_forbidden_has_no_file(
    entry: Entry,
    published: Path,
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, look = [], os.stat

    def refusing(path: Any, **more: Any) -> os.stat_result:
        if isinstance(path, str | Path) and Path(path).is_relative_to(hub):
            asked.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(path, **more)

    right = tmp_path / "keras" / "models" / "tiny.pth"
    right.parent.mkdir(parents=True)
    shutil.copy(published, right)
    monkeypatch.setattr(os, "stat", refusing)
    assert supply.find_source(entry, progress=False) == right
    assert [one.file for one in verdicts("tiny")] == [right]
    assert asked
    with pytest.raises(
        WeightsError, match=r"tiny\.safetensors: it cannot be read: Permission denied"
    ):
        conversion.load_weights(hub / "tiny.safetensors")


def test_a_file_that_changed_after_it_proved_right_is_not_used(
    entry: Entry, published: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(published, hub)
    assert supply.find_source(entry, progress=False) == hub / "tiny.pth"
    note = tmp_path / "cache" / "weights" / "tiny.pth.json"
    learned = json.loads(note.read_text())
    assert learned["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    # the published head alone would pass; the whole, once learned, does not
    learned["sha256"] = learned["sha256"][:8] + "0" * 56
    note.write_text(json.dumps({**learned, "stamp": []}))
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    with pytest.raises(WeightsError, match="VERYDEEP_OFFLINE is set"):
        supply.find_source(entry, progress=False)


@pytest.mark.parametrize("as_url", [False, True])
def test_a_mirror_may_be_a_folder(
    as_url: bool, entry: Entry, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published.parent
    monkeypatch.setenv("VERYDEEP_MIRROR", folder.as_uri() if as_url else str(folder))
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")  # a folder is not the network
    assert supply.find_source(entry, progress=False) == published
    assert supply.obtain("tiny", progress=False).is_file()


def test_a_mirror_without_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERYDEEP_MIRROR", str(tmp_path))
    with pytest.raises(WeightsError, match=r"which has no tiny\.pth that agrees with sha256:"):
        supply.obtain("tiny", progress=False)


@pytest.mark.parametrize("mirror", ["", "https://mirror.example/vgg/"])
def test_addresses_are_tried_in_order_and_a_mirror_replaces_their_heads(
    mirror: str, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gone(url: str, path: Path, digest: str, *, progress: bool) -> Path:
        asked.append((url, path.name, digest))
        assert not progress
        raise GoneError(f"{url} cannot be had")

    monkeypatch.setenv("VERYDEEP_MIRROR", mirror)
    monkeypatch.setattr(fetch, "fetch", gone)
    with pytest.raises(WeightsError, match=r"tiny\.pth cannot be had; set VERYDEEP_MIRROR"):
        supply.obtain("tiny", progress=False)
    head = mirror or "http://127.0.0.1:9/"
    digest = entry.published[0].digest
    names = ("tiny.pth", "tiny-old.pth")
    assert asked == [(f"{head}{name}", name, digest) for name in names]


def fetched(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is brought as `fetch` would."""

    def bring(_: str, path: Path, __: str, **___: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(published, path)
        hashes.seal(path, hashes.digests_of(path)["sha256"])
        return path

    monkeypatch.setattr(fetch, "fetch", bring)


def test_a_fetched_file_is_converted_and_one_of_the_two_is_kept(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched(published, monkeypatch)
    path = supply.obtain("tiny", progress=False)
    assert modelfile.read(path).record.network.name == "vgg11"
    kept = ["tiny.pth.json", "tiny.safetensors", "tiny.safetensors.json"]
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == kept
    twin = path.with_suffix(".pth")
    assert f"removed {twin} (" in capsys.readouterr().err
    assert isinstance(run("convert", "tiny", str(twin.with_name("mine.pth"))).exception, type(None))
    theirs, ours = (
        torch.load(p, weights_only=True) for p in (published, twin.with_name("mine.pth"))
    )
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    twin.with_name("mine.pth").unlink()
    # what an older version, or a crash, left is found
    shutil.copy(published, twin)
    assert supply.obtain("tiny", progress=False) == path
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == kept


def test_a_conversion_that_fails_keeps_what_was_fetched(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    fetched(published, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(modelfile, "write", full)
        with pytest.raises(WeightsError, match="the disk is full"):
            supply.obtain("tiny", progress=False)
    folder = supply.weights_folder()
    assert (folder / "tiny.pth").read_bytes() == published.read_bytes()
    assert not (folder / "tiny.safetensors").exists()
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("fetched again"))
    assert supply.obtain("tiny", progress=False).is_file()


def test_a_file_of_torch_hubs_is_never_removed(published: Path, hub: Path) -> None:
    shutil.copy(published, hub)
    supply.obtain("tiny", progress=False)
    assert (hub / "tiny.pth").is_file()


def test_an_unreachable_address_gives_one_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(WeightsError) as caught:
        supply.obtain("tiny", progress=False)
    assert str(caught.value) == (
        "cannot fetch http://127.0.0.1:9/tiny.pth: Connection refused; set VERYDEEP_MIRROR to an "
        "address or folder that has it, or put the file at "
        f"{tmp_path / 'cache' / 'weights' / 'tiny.pth'}, or give the path of one that you have"
    )


def test_a_model_file_that_changed_is_made_again(
    published: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(published, hub)
    path = supply.obtain("tiny", progress=False)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"x")
    assert supply.obtain("tiny") == path
    assert path.read_bytes() == right
    assert "has changed since it was made; making it again" in capsys.readouterr().err
    path.touch()  # a copy has another time and the same bytes
    assert supply.obtain("tiny") == path
    assert capsys.readouterr().err == ""


def test_a_path_is_taken_for_what_it_is(entry: Entry, published: Path, tmp_path: Path) -> None:
    path = supply.obtain(published, progress=False)  # known by its digest
    assert path == supply.model_path(entry)
    assert supply.obtain(path) == path
    elsewhere = shutil.copy(path, tmp_path / "mine.safetensors")
    assert supply.obtain(elsewhere) == Path(elsewhere)
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, other)
    with pytest.raises(WeightsError, match=r"verydeep weights convert .* --preprocess NAME"):
        supply.obtain(other)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(WeightsError, match=r"no weights 'vgg61'.* did you mean .*vgg16"):
        supply.obtain("vgg61")
    with pytest.raises(WeightsError, match=r"no weights 'vgg16bn'.*vgg16_bn"):
        catalog.entry("vgg16bn")


def test_a_cache_that_cannot_be_written_gives_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VERYDEEP_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("VERYDEEP_MIRROR", str(published.parent))
    with pytest.raises(WeightsError, match=r"cannot write .*tiny\.safetensors: .*VERYDEEP_CACHE"):
        supply.obtain("tiny", progress=False)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_disk_takes_gives_one_line(name: str) -> None:
    with pytest.raises(ModelFileError, match="neither a file, nor a built-in"):
        find_model(name)
    with pytest.raises(WeightsError, match="neither in the catalogue nor a file"):
        supply.obtain(name)
    with pytest.raises(DataError, match="no such file or folder"):
        verydeep.evaluate("builtin", name)


@pytest.mark.parametrize("name", ["tiny", "builtin"])
def test_a_folder_does_not_hide_a_name(
    name: str, published: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(published, hub)
    right = find_model(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert find_model(name) == right
    for path in (f"./{name}", f"{name}/", str(tmp_path / name)):
        with pytest.raises(ModelFileError, match="it is a folder; expected"):
            verydeep.load(path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelFileError, match="it is a folder"):
        verydeep.load("other")
    (tmp_path / name).rmdir()
    shutil.copy(right, tmp_path / name)
    assert find_model(name) == (
        Path("tiny") if name == "tiny" else right
    )  # a file is what was meant


def test_a_path_is_never_a_catalogue_name(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pathlib would make of "./tiny", a run's folder."""
    made = supply.obtain(published, progress=False)
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    monkeypatch.setattr(supply, "obtain", lambda *_: pytest.fail("obtained"))
    assert find_model(Path("./tiny")) == Path("tiny")
    assert find_model(Path("vgg16")) == Path("vgg16")
    Path("tiny", "config.json").write_text("{}")
    shutil.copy(made, "tiny/model.safetensors")
    assert find_model(Path("tiny")) == Path("tiny/model.safetensors")
    assert run("convert", "./tiny", "out.safetensors").exception is None
    record = modelfile.read("out.safetensors").record
    assert record.provenance["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()


def test_a_built_in_has_its_name_as_a_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = find_model("builtin/cifar10")
    assert find_model(Path("builtin/cifar10")) == right
    monkeypatch.setattr("os.sep", "\\")  # as on Windows, whose Path turns the separator
    assert find_model("builtin\\cifar10") == right


def test_a_model_that_is_there_needs_no_catalogue(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom verydeep.published import find_model\n"
        "find_model('builtin'), find_model(sys.argv[1])\n"
        "print('verydeep.published.catalog' in sys.modules)\n"
        "try:\n    find_model('no-such')\nexcept Exception:\n"
        "    print('verydeep.published.catalog' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "m.safetensors"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "False\nTrue\n"


# Verdicts and the command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, standalone_mode=False)


def test_verdicts_on_what_the_cache_has(published: Path, hub: Path) -> None:
    with pytest.raises(WeightsError, match="nothing of tiny is on this machine"):
        verdicts("tiny")
    shutil.copy(published, hub)
    path = supply.obtain("tiny", progress=False)
    source, made = verdicts("tiny")
    assert (source.file, made.file) == (hub / "tiny.pth", path)
    assert source.ok
    assert made.ok
    assert source.what.startswith("tiny (IMAGENET1K_V1) as published, sha256:")
    assert made.what == "model file of vgg11, 1000 classes; unchanged since it was made"
    for one in (source, made):
        assert one.sha256 == hashlib.sha256(one.file.read_bytes()).hexdigest()
    for damaged in (source.file, path):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    source, made = verdicts("tiny")
    assert not source.ok
    assert "not tiny: its sha256 is" in source.what
    assert not made.ok
    assert made.what.endswith("changed since it was made")


def test_a_folder_of_a_catalogue_name_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    monkeypatch.setattr(supply, "obtain", lambda *_: pytest.fail("obtained"))
    with pytest.raises(WeightsError, match="nothing of tiny is on this machine"):
        verdicts("tiny")


def test_verdicts_on_other_files(published: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copy(published, tmp_path / "renamed.pth"))
    assert verdicts(renamed)[0].ok
    half = tmp_path / "half.safetensors"
    half.write_bytes(supply.obtain(published, progress=False).read_bytes()[:5000])
    assert not verdicts(half)[0].ok
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    assert not verdicts(text)[0].ok
    with pytest.raises(WeightsError, match="neither a file nor in the catalogue"):
        verdicts(tmp_path / "none")


def test_list(published: Path, hub: Path) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert list(rows) == list(catalog.ENTRIES)
    assert rows["vgg16"]["top1"] == 0.71592
    assert rows["tiny"]["model_file"] is None
    shutil.copy(published, hub)
    path = supply.obtain("tiny", progress=False)
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["tiny"]["model_file"] == str(path)
    text = run("list").stdout.splitlines()
    assert len(text) == 1 + len(rows)
    assert "71.59%" in next(line for line in text if line.startswith("vgg16 "))


def test_fetch_and_verify_tell_by_their_exit_status(
    entry: Entry, published: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERYDEEP_OFFLINE", "1")
    result = run("fetch", "tiny")
    assert result.return_value == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    shutil.copy(published, hub)
    result = run("fetch", "tiny", "vgg16")
    assert result.return_value == 1
    assert result.stdout == f"{supply.model_path(entry)}\n"
    assert run("fetch", "--quiet", "tiny").return_value == 0
    result = run("verify", "tiny")
    assert result.return_value == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "ok"]
    result = run("verify", "--json", "tiny", "no-such-file")
    assert result.return_value == 1
    assert [row["ok"] for row in json.loads(result.stdout)] == [True, True, False]
    assert run("verify", "no-such-file").return_value == 2
