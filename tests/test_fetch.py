"""The download against a server that does everything a server can do wrong."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from verydeep.errors import WeightsError
from verydeep.files import hashes, progress
from verydeep.published import fetching as fetch
from verydeep.published.fetching import GoneError

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGEST = f"sha256:{SHA256[:8]}"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """What it does is the first word of the path; each request is written down."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        wanted = self.headers.get("Range")
        self.server.seen.append((how, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        tries = sum(one == how for one, _ in self.server.seen)
        getattr(self, f"do_{how}")(start, tries)

    def answer(
        self, body: bytes, start: int = 0, length: int | None = None, kind: str = ""
    ) -> None:
        """Bytes of DATA from `start` on, under a Content-Length that may lie."""
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.end_headers()
        self.wfile.write(body)

    def do_good(self, start: int, _: int) -> None:
        if start >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(DATA[start:], start)

    def do_breaks(self, start: int, _: int) -> None:  # every connection after 100,000 bytes
        self.answer(DATA[start : start + 100_000], start, length=len(DATA) - start)

    def do_norange(self, _: int, tries: int) -> None:  # breaks once, and always starts anew
        body = DATA[:100_000] if tries == 1 else DATA
        self.answer(body, length=len(DATA))

    def do_otherrange(self, start: int, _: int) -> None:
        self.answer(DATA[start and start - 10 :], start and start - 10)

    def do_toolong(self, start: int, _: int) -> None:  # promises bytes that never come
        if start >= len(DATA):
            self.answer(b"", start, length=1000)
        else:
            self.answer(DATA[start:], start, length=len(DATA) - start + 1000)

    def do_tooshort(self, start: int, _: int) -> None:
        self.answer(DATA[start:-1000], start)

    def do_wrong(self, start: int, _: int) -> None:
        self.answer(bytes(len(DATA))[start:], start)

    def do_html(self, *_: int) -> None:
        self.answer(PAGE, kind="text/html; charset=utf-8")

    def do_disguised(self, *_: int) -> None:
        self.answer(b"\n  " + PAGE)

    def do_stalls(self, start: int, tries: int) -> None:
        self.answer(DATA[start : start + 50_000], start, length=len(DATA) - start)
        if tries == 1:
            self.server.release.wait(20)

    def do_holds(self, start: int, _: int) -> None:  # half of it, the rest when released
        self.answer(DATA[start:150_000], start, length=len(DATA) - start)
        if not start:
            self.server.release.wait(20)
        self.wfile.write(DATA[max(start, 150_000) :])

    def do_busy(self, start: int, tries: int) -> None:
        if tries < 3:
            self.send_error(503)
        else:
            self.do_good(start, tries)

    def do_down(self, *_: int) -> None:
        self.send_error(502)

    def do_gone(self, *_: int) -> None:
        self.send_error(404)

    def do_moved(self, *_: int) -> None:
        self.send_response(302)
        self.send_header("Location", "/good/file.pth")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_circle(self, *_: int) -> None:
        self.send_response(302)
        self.send_header("Location", "/circle/file.pth")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_chunked(self, *_: int) -> None:  # no length at all
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(DATA)

    def do_huge(self, *_: int) -> None:
        self.answer(DATA, length=10**18)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.release = threading.Event()

    def handle_error(self, *_: object) -> None:
        pass  # clients that go away are what these tests are about

    def url(self, how: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{how}/file.pth"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 5.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file.pth"


def whole(path: Path) -> None:
    assert path.read_bytes() == DATA
    assert hashes.sealed(path) == SHA256
    assert not path.with_name("file.pth.part").exists()


@pytest.mark.parametrize("how", ["good", "breaks", "norange", "busy", "moved", "chunked"])
def test_brings_the_file_whole_from_servers_that_fail_on_the_way(
    how: str, server: Server, path: Path
) -> None:
    assert fetch.fetch(server.url(how), path, DIGEST) == path
    whole(path)


def test_bytes_that_are_promised_and_never_come_are_not_awaited_for_ever(
    server: Server, path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"connection ended after 300,000 of 301,000 bytes"):
        fetch.fetch(server.url("toolong"), path, DIGEST)
    assert not path.exists()
    assert len(server.seen) == 1 + fetch.ATTEMPTS  # the first brought something


def test_a_broken_download_goes_on_where_it_stopped(server: Server, path: Path) -> None:
    fetch.fetch(server.url("breaks"), path, DIGEST)
    assert [wanted for _, wanted in server.seen] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_from_before_is_continued(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(DATA[:12_345])
    fetch.fetch(server.url("good"), path, DIGEST)
    assert server.seen == [("good", "bytes=12345-")]
    whole(path)


def test_a_part_that_is_whole_needs_no_byte(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(DATA)
    fetch.fetch(server.url("good"), path, DIGEST)
    assert server.seen == [("good", "bytes=300000-")]
    whole(path)


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 400_000])
def test_a_part_of_another_file_is_thrown_away(part: bytes, server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(part)
    fetch.fetch(server.url("good"), path, DIGEST)
    whole(path)


def test_another_range_than_asked_for_starts_over(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(DATA[:1000])
    fetch.fetch(server.url("otherrange"), path, DIGEST)
    assert [wanted for _, wanted in server.seen] == ["bytes=1000-", None]
    assert "the server sent another range than was asked for" in capsys.readouterr().err
    whole(path)


def test_a_file_that_is_there_is_not_fetched(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert fetch.fetch(server.url("good"), path, DIGEST) == path
    assert server.seen == []


def test_a_damaged_file_that_is_there_is_fetched_again(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_bytes(DATA[:-1])
    fetch.fetch(server.url("good"), path, DIGEST)
    whole(path)
    assert "is not what sha256:" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["wrong", "tooshort"])
def test_a_wrong_file_is_refused_and_removed(how: str, server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"whose sha256 is \w{{64}}, expected .* {DIGEST[7:]}"):
        fetch.fetch(server.url(how), path, DIGEST)
    assert not path.exists()
    assert not path.with_name("file.pth.part").exists()


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_whole_digests_of_any_kind_are_checked(algorithm: str, server: Server, path: Path) -> None:
    right = hashlib.new(algorithm, DATA).hexdigest()
    with pytest.raises(WeightsError, match=algorithm):
        fetch.fetch(server.url("good"), path, f"{algorithm}:{'0' * len(right)}")
    fetch.fetch(server.url("good"), path, f"{algorithm}:{right}")
    whole(path)


@pytest.mark.parametrize("how", ["html", "disguised"])
def test_a_web_page_is_not_taken_for_weights(how: str, server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match="answered with a web page"):
        fetch.fetch(server.url(how), path, DIGEST)
    assert not path.exists()
    assert len(server.seen) == 1


def test_comments_before_a_page_are_taken_for_what_they_are() -> None:
    """Many of them, too: looked through in every way, five hundred would take for ever."""
    comments = b"<!-- a <b> -->\n<!---->" * 250
    assert fetch._PAGE.match(comments + PAGE)
    assert not fetch._PAGE.match(comments + b"x")
    assert not fetch._PAGE.match(b"<!-- not -- closed > <html>")
    assert not fetch._PAGE.match(b"<!-- --> x --> <html>")


def test_silence_is_cut_short_and_the_download_goes_on(
    server: Server,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.3)
    fetch.fetch(server.url("stalls"), path, DIGEST)
    assert server.seen[1] == ("stalls", "bytes=50000-")
    assert "no byte in 0.3 seconds; trying again" in capsys.readouterr().err
    whole(path)


def test_not_found_is_final_and_told_apart(server: Server, path: Path) -> None:
    with pytest.raises(GoneError, match="answered 404 Not Found"):
        fetch.fetch(server.url("gone"), path, DIGEST)
    assert len(server.seen) == 1


def test_a_server_that_stays_down_is_given_up(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match=r"answered 502 Bad Gateway$"):
        fetch.fetch(server.url("down"), path, DIGEST)
    assert len(server.seen) == fetch.ATTEMPTS


def test_a_circle_of_redirects_is_an_error(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match=r"302 .*infinite loop") as caught:
        fetch.fetch(server.url("circle"), path, DIGEST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/file.pth", "Connection refused"),
        ("http://no-such-host.invalid/file.pth", "."),
        ("ht!tp://x", "unknown url type"),
        ("file.pth", "is not an address"),
        ("http://127.0.0.1/my folder/file.pth", "is not an address: .* control characters"),
    ],
)
@pytest.mark.usefixtures("server")
def test_an_address_that_cannot_be_reached_gives_one_line(
    url: str, reason: str, path: Path
) -> None:
    with pytest.raises(WeightsError, match=reason) as caught:
        fetch.fetch(url, path, DIGEST)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("server")
def test_where_nobody_listens_is_not_asked_again(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match="Connection refused"):
        fetch.fetch("http://127.0.0.1:9/file.pth", path, DIGEST)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_said_before_the_first_byte(server: Server, path: Path) -> None:
    with pytest.raises(WeightsError, match=r"MB free, 1,000,000,000,000 MB are needed; make room"):
        fetch.fetch(server.url("huge"), path, DIGEST)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_fills_up_gives_one_line(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match="the disk is full; make room and start again"):
        fetch.fetch(server.url("good"), path, DIGEST)
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission_gives_one_line(
    number: int, server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the tests may run as root, who may do everything
    with pytest.raises(
        WeightsError, match=rf"{os.strerror(number)}; set VERYDEEP_CACHE to a folder that you may"
    ):
        fetch.fetch(server.url("good"), path, DIGEST)


@pytest.mark.parametrize("progress", [True, False])
def test_one_line_says_what_is_fetched(
    progress: bool, server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.fetch(server.url("good"), path, DIGEST, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"verydeep: fetching file.pth (0.3 MB) from {server.url('good')}\n"


def test_progress_is_shown_if_wanted(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Watched(progress.Progress):
        def advance(self, count: int = 1) -> None:
            super().advance(count)
            told.append(f"{self.doing}: {self.text()}")

    monkeypatch.setattr(fetch, "Progress", Watched)
    fetch.fetch(server.url("breaks"), path, DIGEST)
    # how much has come by the first line is the network's affair
    assert all(re.match(r"file\.pth: 0\.[0-3] of 0\.3 MB, .* left", line) for line in told)
    assert told
    told.clear()
    fetch.fetch(server.url("breaks"), path.with_name("again"), DIGEST, progress=False)
    assert not told


PROGRAM = """
import logging, sys
from pathlib import Path
from verydeep.published import fetching as fetch
logging.basicConfig(level="INFO")
fetch.fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


def start(url: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(path), DIGEST], stderr=subprocess.PIPE, text=True
    )


def until(ready: Callable[[], bool]) -> None:
    for _ in range(1200):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("a minute went by in vain")


def test_two_processes_fetch_once(server: Server, path: Path) -> None:
    first = start(server.url("holds"), path)
    until(lambda: bool(server.seen))
    second = start(server.url("holds"), path)
    assert second.stderr is not None
    line = second.stderr.readline()
    server.release.set()
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert line == "INFO:verydeep:another process is fetching file.pth; waiting for it\n"
    assert server.seen == [("holds", None)]
    whole(path)


def test_a_killed_download_is_continued_by_the_next(server: Server, path: Path) -> None:
    process = start(server.url("holds"), path)
    part = path.with_name("file.pth.part")
    until(lambda: part.exists() and part.stat().st_size == 150_000)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    fetch.fetch(server.url("holds"), path, DIGEST)  # the dead process's lock holds nobody
    assert server.seen == [("holds", None), ("holds", "bytes=150000-")]
    whole(path)
