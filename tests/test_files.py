"""The disk: hashes that are never another file's, files that appear whole, and life without a home."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import verydeep
from verydeep import modelfile
from verydeep.errors import DataError, OutputError, WeightsError
from verydeep.evaluation import class_of, class_table
from verydeep.files import folders, hashes, photo_paths
from verydeep.files.atomic import is_replaced, locked, replacing, require_other, require_writable
from verydeep.files.cache import Cache
from verydeep.files.folders import MOST, Notebook
from verydeep.graphs import source_of
from verydeep.probing.features import _space

from .tiny import model_file, photo, pixels, tiny, weights

DATA = np.random.default_rng(0).bytes(30_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


# Hashes


def test_digests_of_a_file_larger_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "BLOCK_BYTES", 1000)
    (tmp_path / "file").write_bytes(DATA)
    digests = hashes.digests_of(tmp_path / "file", ("sha256", "md5"))
    assert hashes.remembered(hashes.stamp((tmp_path / "file").stat())) == SHA256
    assert digests == {"sha256": SHA256, "md5": hashlib.md5(DATA).hexdigest()}
    assert hashes.matches(f"sha256:{SHA256}", digests)
    assert not hashes.matches("sha256:", digests)  # an empty head would match everything
    assert not hashes.matches("sha1:00", digests)
    with pytest.raises(WeightsError, match="cannot read"):
        hashes.digests_of(tmp_path / "none")


def test_a_seal_holds_as_long_as_the_bytes_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    note = path.with_name("file.json")
    assert hashes.sealed(path) is None
    assert not hashes.unbroken(path)
    hashes.seal(path, SHA256)
    assert hashes.unbroken(path)
    path.touch()
    assert hashes.unbroken(path)
    assert hashes.sealed(path) == SHA256
    before = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not hashes.unbroken(path)
    for text in ("", "[]", "{}", '{"sha256": 1, "other": 2}'):
        note.write_text(text)
        assert hashes.sealed(path) is None


def test_a_note_of_an_earlier_version_is_a_seal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    old = {"sha256": SHA256, "size_bytes": len(DATA), "modified_ns": 1, "source": "there"}
    path.with_name("file.json").write_text(json.dumps(old))
    assert hashes.unbroken(path)
    assert hashes.sealed(path) == SHA256


def test_a_hash_is_remembered_for_the_file_that_was_opened(tmp_path: Path) -> None:
    model = modelfile.read(model_file(tmp_path / "a.safetensors"))
    assert hashes.remembered(model.stamp) is None
    assert model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert hashes.remembered(model.stamp) == model.sha256
    assert hashes.remembered(modelfile.read(model.path).stamp) == model.sha256
    hashes.forget()
    assert hashes.remembered(model.stamp) is None


def replaced(old: Path, new: Path) -> None:
    os.replace(new, old)


def overwritten(old: Path, new: Path) -> None:
    """In place, with the old one's date."""
    before = old.stat()
    old.write_bytes(new.read_bytes())
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("change", [replaced, overwritten])
def test_an_old_models_hash_is_never_a_new_files(
    tmp_path: Path, change: Callable[[Path, Path], None], used_before: bool
) -> None:
    """Every caller that keys something on a model file's bytes: load, change it, use old, load new."""
    path, other = model_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    net = tiny()
    modelfile.write(other, modelfile.read(path).record, weights(net, seed=1))
    assert path.stat().st_size == other.stat().st_size
    right = hashlib.sha256(other.read_bytes()).hexdigest()

    def uses(predictor: verydeep.Predictor) -> list[str]:
        return [
            predictor.sha256,
            predictor.model.sha256,
            source_of(predictor.model, "uint8").key,
            source_of(predictor.model, "uint8", ("relu1_1",), scores=False, pool="avg").key,
            _space(predictor, ("relu1_1",), None, False)["space"],
        ]

    old = verydeep.load(path, engine="onnxruntime")
    before = uses(old) if used_before else []
    change(path, other)
    uses(old)
    new = verydeep.load(path, engine="onnxruntime")
    keys = uses(new)
    assert keys[:2] == [right, right]
    assert not set(keys) & set(before)
    # in another process, or without a memory, the keys are the same
    hashes.forget()
    assert uses(verydeep.load(path, engine="onnxruntime")) == keys


def test_mnn_answers_with_the_weights_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("MNN")
    path, image = model_file(tmp_path / "a.safetensors"), pixels(32, 32)
    old = verydeep.load(path, engine="mnn", threads=1)
    record = old.record
    modelfile.write(path, record, weights(record.network, seed=1))
    old.scores(image)
    new = verydeep.load(path, engine="mnn", threads=1).scores(image)
    expected = verydeep.load(path, engine="onnxruntime", threads=1).scores(image)
    np.testing.assert_allclose(new, expected, rtol=1e-2, atol=1e-2)
    assert (
        np.abs(new - old.scores(image)).max() > 0.1
    )  # so the question above can be answered wrongly


# Notebooks


def test_a_notebook_keeps_the_latest(tmp_path: Path) -> None:
    book = Notebook(tmp_path / "deep" / "book.json")
    book.write("a", 1)
    rows = json.loads(book.path.read_text())
    rows["rows"] = {str(n): n for n in range(MOST)}
    book.path.write_text(json.dumps(rows))
    book.write("0", "again")
    book.write("new", 2)
    assert list(book.rows())[-2:] == ["0", "new"]
    assert len(book.rows()) == MOST
    assert "1" not in book.rows()
    assert Notebook(book.path).rows() == book.rows()
    book.clear()
    assert book.rows() == {}


# Files that appear whole


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chmod(path, 0o600)
    with pytest.raises(UnicodeEncodeError), replacing(path, "w", encoding="ascii") as file:
        file.write("half" * 10_000 + "\N{HONEYBEE}")
    assert path.read_text() == "old"
    with replacing(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600  # what was private stays so
    assert os.listdir(tmp_path) == ["file"]
    with replacing(tmp_path / ("x" * 250)) as file:  # as long as a name may be
        file.write(b"")


FORKED = """
import os, sys, threading, time
from pathlib import Path
from verydeep.files.atomic import locked

held, free = threading.Event(), threading.Event()

def hold():
    with locked(Path(sys.argv[1]), lambda: None):
        held.set()
        free.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if not child:
    import signal
    signal.alarm(60)  # nobody else ends it
    waited = []
    with locked(Path(sys.argv[1]), lambda: waited.append(os.write(1, b"child waits, "))):
        os.write(1, b"child holds, ")
    time.sleep(600 if sys.argv[2] == "lives" else 0)
    os._exit(0)
time.sleep(0.5)  # while the parent holds it, the child does not
os.write(1, b"parent lets go, ")
free.set()
holder.join()
os.waitpid(child, 0) if sys.argv[2] == "ends" else time.sleep(0.5)
with locked(Path(sys.argv[1]), lambda: None):
    os.write(1, b"parent holds")
    grandchild = os.fork()
    if not grandchild:
        sys.exit()
    os.waitpid(grandchild, 0)
    other = os.open(sys.argv[1], os.O_RDWR)
    import fcntl
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(1, b" still")
os.kill(child, 9) if sys.argv[2] == "lives" else None
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("child", ["ends", "lives"])
def test_a_lock_is_never_a_forked_childs(tmp_path: Path, child: str) -> None:
    """It had a copy of the open file: it waited for itself, and kept the lock from its parent."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "lock"), child],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert ran.stdout == "child waits, parent lets go, child holds, parent holds still"


class HeldError(Exception):
    pass


def held() -> None:
    raise HeldError


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no file that is open")
def test_who_waits_for_a_lock_that_is_removed_holds_the_new_one(tmp_path: Path) -> None:
    path, waits, holds, free = tmp_path / "lock", *(threading.Event() for _ in range(3))

    def wait() -> None:
        with locked(path, waits.set):
            holds.set()
            free.wait(10)

    other = threading.Thread(target=wait)
    with locked(path, held):
        other.start()
        assert waits.wait(10)
        path.unlink()
    assert holds.wait(10)
    with pytest.raises(HeldError), locked(path, held):
        pass
    free.set()
    other.join()


def test_a_cache_that_is_cleared_keeps_the_locks_that_are_held(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.lock").touch()
    with locked(tmp_path / "a.lock", held):
        Cache(tmp_path).clear()
        assert os.listdir(tmp_path) == ["a.lock"]
        with pytest.raises(HeldError), locked(tmp_path / "a.lock", held):
            pass  # it is still the one that is held
    Cache(tmp_path).clear()
    assert not os.listdir(tmp_path)


def test_devices_are_written_to_and_never_replaced() -> None:
    number = os.stat(os.devnull).st_rdev
    with replacing(os.devnull) as file:
        file.write(b"gone")
    assert os.stat(os.devnull).st_rdev == number
    if os.path.exists("/dev/full"):
        with pytest.raises(OutputError, match="free some space"), replacing("/dev/full") as file:
            file.write(b"x")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="a system without /dev/fd")
def test_what_a_shell_appends_to_keeps_what_it_has(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with open(log, "a") as held, replacing(f"/dev/fd/{held.fileno()}", "w") as file:
        file.write("after\n")
    assert log.read_text() == "before\nafter\n"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    real, link, dangling = tmp_path / "deep" / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    link.symlink_to("deep/real")
    dangling.symlink_to("deep/new")
    for name in (link, dangling):
        with replacing(name, "w") as file:
            file.write("through")
        assert name.is_symlink()
        assert name.read_text() == "through"
    assert real.read_text() == "through"
    assert sorted(os.listdir(tmp_path / "deep")) == ["new", "real"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as file:
        file.write(b"through")
    reader.join(10)
    assert got == [b"through"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_what_would_be_waited_for_is_no_photo_of_a_folder(tmp_path: Path) -> None:
    """A pipe that is named like a photo: nobody writes to it, and even Ctrl-C was not heard."""
    os.mkfifo(tmp_path / "a.jpg")
    os.symlink(os.devnull, tmp_path / "b.jpg")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "c.jpg")  # said when it is opened
    photo(tmp_path / "d.jpg")
    assert [Path(path).name for path in photo_paths.find([str(tmp_path)])] == ["c.jpg", "d.jpg"]
    pipe = str(tmp_path / "a.jpg")
    assert list(photo_paths.find([pipe])) == [pipe]  # as somebody asks for it


def test_where_something_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it will be: behind a link, in a folder, or into a device, whose folder nobody may write to."""
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "old").write_text("as it was")
    before = sorted(tmp_path.iterdir())
    for out in ("link", "old", "new"):
        require_writable(tmp_path / out, tmp_path / "source")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old").read_text() == "as it was"
    if os.path.exists("/dev/null"):
        monkeypatch.setattr(os, "access", lambda path, _: Path(path) == Path("/dev/null"))
        require_writable("/dev/null")
        with pytest.raises(OutputError, match="/dev/zero: cannot be written: Permission denied"):
            require_writable("/dev/zero")


def test_csv_of_classify_may_be_a_device(tmp_path: Path, verydeep: Callable[..., object]) -> None:
    number = os.stat(os.devnull).st_rdev
    model, picture = model_file(tmp_path / "m.safetensors"), photo(tmp_path / "a.png")
    outcome = verydeep("classify", "--model", model, picture, "--csv", os.devnull)
    assert outcome.status == 0  # type: ignore[attr-defined]
    assert os.stat(os.devnull).st_rdev == number


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/file", "No such file or directory; make the folder first"), (".", "Is a directory")],
)
def test_what_cannot_be_written_gives_one_line(tmp_path: Path, name: str, reason: str) -> None:
    with (
        pytest.raises(OutputError, match=f"cannot be written: {reason}"),
        replacing(tmp_path / name),
    ):
        pass


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="free some space"), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


@contextmanager
def somebody_else() -> Iterator[None]:
    """Not root, to whom every folder is open."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="a system without users by number")
def test_a_folder_that_may_not_be_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    out = folder / "file"
    out.touch()
    book = Notebook(folder / "cache" / "notes.json")
    folder.chmod(0)
    with somebody_else():
        with pytest.raises(PermissionError):
            os.stat(out)
        with pytest.raises(
            OutputError, match="file: cannot be written: Permission denied; choose a"
        ):
            require_writable(out, folder / "source")
        require_other(out, folder / "source")
        is_replaced(out)
        assert not book.write("key", 1)
    folder.chmod(0o700)


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
def test_what_fails_as_a_file_is_finished_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with (
            pytest.raises(OutputError, match=r"file: cannot be written: Input/output error$"),
            replacing(path, "w") as file,
        ):
            file.write("new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("size", [2_000, 100_000])  # found by the flush, and by the write itself
def test_a_file_may_be_too_large_for_the_disk(tmp_path: Path, size: int) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with (
            pytest.raises(OutputError, match="written: File too large; choose a disk"),
            replacing(tmp_path / "file") as file,
        ):
            file.write(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


def test_errors_of_others_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="theirs"), replacing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "theirs")
    assert not os.listdir(tmp_path)
    if os.path.exists("/dev/fd"):
        reader, writer = os.pipe()
        os.close(reader)  # as `| head` does, of which the command line says nothing
        with pytest.raises(BrokenPipeError), replacing(f"/dev/fd/{writer}") as file:
            file.write(b"row")
        os.close(writer)


# Photos


def test_a_folder_that_cannot_be_read_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        photo(tmp_path / folder / "1.png")
    scan = os.scandir

    def scandir(path: str) -> Any:
        if path == str(tmp_path / "b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for _ in range(2):  # counted, and read
        assert list(photo_paths.find([str(tmp_path)])) == [str(tmp_path / "a" / "1.png")]
    with pytest.raises(DataError, match="no photos in"):
        photo_paths.find_some([str(tmp_path / "b")])
    assert caplog.messages == [
        f"{tmp_path / 'b'}: cannot be read (Permission denied); what is in it is left out"
    ]
    missing = str(tmp_path / "c" / "**" / "1.png")
    assert list(photo_paths.find([missing])) == [missing]  # to be reported when it is opened
    assert len(caplog.messages) == 1


def test_names_are_compared_in_one_spelling() -> None:
    one, other = "caf\u00e9", "cafe\u0301"
    assert one != other
    assert photo_paths.composed(one) == photo_paths.composed(other) == one
    assert photo_paths.composed("caf\udce9") == "caf\udce9"  # a byte that is no UTF-8
    table = class_table([one, "bar"], [])
    assert class_of(other, table) == class_of(one.upper(), table) == 0


def test_a_glob_gives_each_photo_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("deep/a.png", "deep/er/b.png"):
        photo(tmp_path / name)
    Path("-").write_bytes(b"")
    assert list(photo_paths.find(["deep/**"])) == ["deep/a.png", "deep/er/b.png"]
    assert list(photo_paths.find(["deep/*"])) == ["deep/a.png", "deep/er/b.png"]
    assert list(photo_paths.find(["d*/**/*.png"])) == ["deep/a.png", "deep/er/b.png"]
    assert list(photo_paths.find(["**/er/*.png"])) == ["deep/er/b.png"]
    assert list(photo_paths.find(["**/none/*.png"])) == ["**/none/*.png"]
    assert list(photo_paths.find(["?"])) == ["-"]  # the file of that name, and not stdin
    Path("deep/readme.txt").write_text("of no photo")
    photo(Path("deep/er/.c.png"))
    for pattern in ("deep/**/", "deep/**/*.png", "**/e?/../*.png", "deep/**/*g"):
        assert [*map(os.path.normpath, photo_paths.find([pattern]))][:1] == ["deep/a.png"], pattern
        assert "deep/readme.txt" not in photo_paths.find([pattern])
    assert list(photo_paths.find(["**/.c.png"])) == ["deep/er/.c.png"]  # asked for, though hidden


def test_links_between_folders_are_followed_once_on_a_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders that link to each other were gone through some 40 times; three had no end."""
    monkeypatch.chdir(tmp_path)
    for names, expected in (
        ("ab", ["a/b/1.png", "a/1.png", "b/a/1.png", "b/1.png"]),
        ("abc", [f"{way}/1.png" for way in (
            "a/b/c", "a/b", "a/c/b", "a/c", "a", "b/a/c", "b/a", "b/c/a", "b/c", "b",
            "c/a/b", "c/a", "c/b/a", "c/b", "c",
        )]),
    ):  # fmt: skip
        for one in names:
            photo(Path(names) / one / "1.png")
            for other in set(names) - {one}:
                (Path(names) / one / other).symlink_to(f"../{other}", target_is_directory=True)
        (Path(names) / "a" / "up").symlink_to("..", target_is_directory=True)
        photos = sorted(f"{names}/{way}" for way in expected)
        for given in (
            names,
            f"{names}/**",
            f"{names}/**/*.png",
            f"./{names}/**//1.png",
            f"{names}/**/*",
        ):
            found = [os.path.normpath(path) for path in photo_paths.find([given])]
            assert sorted(found) == photos, given


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no names that are no UTF-8")
def test_names_on_stdin_are_taken_as_the_disk_has_them(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b" start.png", b"end .png"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"")
    program = (
        "import os\nfrom verydeep.files.photo_paths import find\n"
        "print(*(os.fsencode(name) for name in find('-')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=b"\n".join([*names, b"", b"  elsewhere.png \r\n"]),
        capture_output=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert run.stdout.decode().split(" b")[0:] == [
        "b'caf\\xe9.png'", "' start.png'", "'end .png'", "'  elsewhere.png '\n",
    ]  # fmt: skip


def test_no_photos_are_given() -> None:
    with pytest.raises(
        DataError, match=r"^no photos are given; expected photos or folders that hold"
    ):
        photo_paths.find_some([])


# No home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry of the user, as in a container that runs as a number."""

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    pwd = pytest.importorskip("pwd")
    for name in ("HOME", "XDG_CACHE_HOME", "VERYDEEP_CACHE", "TORCH_HOME", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "mnn"])
def test_without_a_home_everything_works(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if engine == "mnn":
        pytest.importorskip("MNN")
    model = verydeep.load(model_file(tmp_path / "m.safetensors"), engine=engine, threads=1)
    assert len(model([photo(tmp_path / "a.png")] * 40)) == 40
    assert model.sha256
    err = capsys.readouterr().err
    assert err.count("there is no home folder, so nothing is kept") == 1
    assert "cannot be" not in err
    assert not os.path.exists("~")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_commands_say_what_to_set(verydeep: Callable[..., object]) -> None:
    assert folders.download_folders() == []
    assert verydeep("cache", "list").status == 0  # type: ignore[attr-defined]
    assert verydeep("cache", "clear").status == 0  # type: ignore[attr-defined]
    assert verydeep("weights", "list").status == 0  # type: ignore[attr-defined]


def test_a_relative_cache_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"cache-{os.urandom(4).hex()}"  # asked for in no other test
    monkeypatch.setenv("VERYDEEP_CACHE", name)
    monkeypatch.chdir(tmp_path)
    assert folders.cache_folder() == tmp_path / name
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert folders.cache_folder() == tmp_path / name


def test_the_folders_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "KERAS_HOME", "VERYDEEP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    torch, keras = folders.download_folders()
    assert keras == tmp_path / ".keras" / "models"
    monkeypatch.setenv("TORCH_HOME", "~/hub")
    assert folders.download_folders()[0] == tmp_path / "hub" / "hub" / "checkpoints"
    monkeypatch.setenv("VERYDEEP_CACHE", "~/mine")
    assert folders.cache_folder() == tmp_path / "mine"
    if sys.platform == "linux":
        assert torch == tmp_path / ".cache" / "torch" / "hub" / "checkpoints"
        monkeypatch.delenv("VERYDEEP_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
        assert folders.cache_folder() == tmp_path / ".cache" / "verydeep"


def test_two_paths_are_told_apart_by_their_shortest_ends() -> None:
    for first, second, expected in (
        ("a/x.png", "b/y.png", ("x.png", "y.png")),
        ("a/x.png", "b/x.png", ("a/x.png", "b/x.png")),
        ("r/a/m/x.png", "r/b/m/x.png", ("a/m/x.png", "b/m/x.png")),
        ("x.png", "x.png", ("x.png", "x.png")),
    ):
        told = photo_paths.told_apart(first, second)
        assert tuple(Path(one).as_posix() for one in told) == expected


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="a system without it")
def test_a_file_in_memory_is_replaced_as_any_other() -> None:
    """It lies below /dev, and was written on at its end."""
    path = Path(f"/dev/shm/verydeep-test-{os.getpid()}")
    try:
        for text in ("first, and longer", "second"):
            with replacing(path, "w") as file:
                file.write(text)
        assert path.read_text() == "second"
    finally:
        path.unlink()
