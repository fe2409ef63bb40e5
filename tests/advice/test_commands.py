"""Advice of the command itself, followed: options, verbs, where files go, what to type next."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from verydeep.training import recipes

from ..conftest import Run
from ..labelled import arrays
from ..tiny import photo
from .following import brought, command, follows, said, taken


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--foo", None), ("--gpu", None), ("--confidence", None), ("--topk", "--top"), ("--bath", "--batch")],
)  # fmt: skip
def test_options_that_are_near(given: str, meant: str | None, verydeep: Run) -> None:
    """click compares the two dashes as well, and found --top near --foo."""
    text = verydeep("classify", "photo.jpg", given).err
    assert re.findall(r"Did you mean '(--\w+)'", text) == ([meant] if meant else [])


def test_duplicates_of_nothing_that_can_be_read(tmp_path: Path, model: Path, verydeep: Run) -> None:
    """It said that there were no duplicates."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no photo" + name.encode())
    done = verydeep("duplicates", tmp_path, "--model", model, "--layer", "relu1_1")
    assert (done.status, done.out) == (2, "none of 2 photos could be read\n")


@follows("; see {} --help")
def test_help_is_where_it_is_said(verydeep: Run) -> None:
    for words in (("classify", "--foo"), ("weights", "fetch"), ("--foo",), ("cache", "--foo")):
        text = verydeep(*words).err
        said("; see {} --help", text)
        helped = verydeep(*command(taken("see (.* --help)", text)))
        assert helped.status == 0
        assert "Usage:" in helped.out


@follows(
    "Try this: verydeep classify photo.jpg",
    "verydeep help VERB says more, and verydeep version which one this is.",
    "`verydeep weights list` says more",
)
def test_what_to_type_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run) -> None:
    photo(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = verydeep().err
    said("Try this: verydeep classify photo.jpg", text)
    assert verydeep(*command(taken("Try this: (.*)", text))).status == 0
    said("verydeep help VERB says more, and verydeep version which one this is.", text)
    assert (
        "Usage: verydeep classify"
        in verydeep(*command(taken("(verydeep help VERB)", text), VERB="classify")).out
    )
    assert verydeep(*command(taken("and (verydeep version)", text))).status == 0
    text = verydeep("models").out
    said("`verydeep weights list` says more", text)
    assert "vgg16" in verydeep(*command(taken("`(verydeep .*?)`", text))).out


@follows(
    'expected "224", "480x640" (height x width) or "own"', "write 224, or 480x640 for height x width",
    "is not a whole number, 1 {}", "--map draws two photos; {} pairs were given",
)  # fmt: skip
def test_sizes_and_numbers(tmp_path: Path, model: Path, verydeep: Run) -> None:
    files = [photo(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    show = ("show", model, files[0], "--size")
    text = verydeep(*show, "large").err
    said('expected "224", "480x640" (height x width) or "own"', text)
    for size in re.findall('"(.*?)"', text):
        assert verydeep(*show, size).status == 0, size
    summary = ("summary", "vgg16", "--input")
    text = verydeep(*summary, "large").err
    said("write 224, or 480x640 for height x width", text)
    for size in re.findall(r"\d+(?:x\d+)?", text.partition("write")[2].partition(" for ")[0]):
        assert verydeep(*summary, size).status == 0
    text = verydeep("classify", files[0], "--model", model, "--top", 0).err
    said("is not a whole number, 1 {}", text)
    assert (
        verydeep(
            "classify", files[0], "--model", model, "--top", taken(r"number, (\d)", text)
        ).status
        == 0
    )
    drawn = (
        "--map",
        tmp_path / "map.png",
        "--metric",
        "content",
        "--layer",
        "relu2_1",
        "--model",
        model,
    )
    said("--map draws two photos; {} pairs were given", verydeep("distance", *files, *drawn).err)
    assert verydeep("distance", *files[:2], *drawn).status == 0


@follows(
    "{}: {}; name another folder", "{} is not the name of a file; expected one",
    "is named as a photo; write model.safetensors or the like",
    "{}: is {}, and no table; name another file",
)  # fmt: skip
def test_where_results_go(tmp_path: Path, model: Path, verydeep: Run) -> None:
    first = photo(tmp_path / "0.png")
    (tmp_path / "file").touch()
    explain = ("explain", first, "--model", model, "--out")
    said("{}: {}; name another folder", verydeep(*explain, tmp_path / "file").err)
    assert verydeep(*explain, tmp_path / "another").status == 0
    classify = ("classify", first, "--model", model, "--csv")
    said("{} is not the name of a file; expected one", verydeep(*classify, "-").err)
    shutil.copy(first, other := tmp_path / "other.csv")
    said("{}: is {}, and no table; name another file", verydeep(*classify, other).err)
    assert verydeep(*classify, tmp_path / "table.csv").status == 0
    convert = ("weights", "convert", model)
    words = "is named as a photo; write model.safetensors or the like"
    text = verydeep(*convert, first).err
    said(words, text)
    assert verydeep(*convert, tmp_path / taken("write (.*?) or", text)).status == 0


@follows(
    'needs torch: pip install "verydeep[torch]"',
        "--resume: there is no folder {}; name the --out of a run",
    "--resume: {} does not say by which command it was begun; give DATA and --recipe as they were then",
    "--resume: the run in {} reads by a shell's command, which is not taken from a folder; give "
    "DATA and --recipe as they were then",
    "--resume goes on with the run in a folder; name it: --out {}",
    "try it: verydeep classify --model {} photo.jpg", "finish it with: verydeep train --resume --out {}",
)  # fmt: skip
def test_training_from_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verydeep: Run
) -> None:
    from verydeep.cli.train import _Teller

    out, data, image = (
        tmp_path / "my run",
        arrays(tmp_path / "data.npz"),
        photo(tmp_path / "photo.jpg"),
    )
    settings = {
        "checkpoint_minutes": 0,
        "epochs": 3,
        "batch": 12,
        "head": "small",
        "size": 32,
        "grow": "1",
        "warmup": 1,
    }
    words = [word for pair in settings.items() for word in ("--set", "{}={}".format(*pair))]
    words += ["--model", "vgg11_bn", "--width", "0.0625", "--device", "cpu"]

    def broken(_: str) -> str:
        raise ModuleNotFoundError("torch")

    with monkeypatch.context() as bare:
        bare.setattr(recipes, "described", broken)
        text = verydeep("train", "--recipes").out
    said('needs torch: pip install "verydeep[torch]"', text)
    assert "torch" in brought(taken('(pip install ".*?")', text))
    begin = ["train", data, *words]
    begin += ["--recipe", "small-images", "--out", out]
    tell = _Teller.__call__

    def stopping(self: _Teller, line: object) -> None:
        tell(self, line)  # type: ignore[arg-type]
        if line["event"] == "epoch" and line["epoch"] == 2:  # type: ignore[index]
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(_Teller, "__call__", stopping)
        assert verydeep(*begin).status == 130

    classify = ("classify", image, "--model", out)
    text = verydeep(*classify).err
    (place,) = said("finish it with: verydeep train --resume --out {}", text)
    assert "my run" in place
    none = "--resume: there is no folder {}; name the --out of a run"
    said(none, verydeep("train", "--resume", "--out", tmp_path / "none").err)
    older = shutil.copytree(out, tmp_path / "older")
    monkeypatch.chdir(tmp_path)
    words = "--resume goes on with the run in a folder; name it: --out {}"
    assert said(words, verydeep("train", "--resume").err) == ("DIR; see verydeep train --help",)
    for number in (2, 10):
        shutil.copytree(out, f"runs/{number}")
    os.utime("runs/2/config.json", (0, 0))
    (Path("runs") / "notes").mkdir()
    newest = verydeep("train", "--resume").err
    said(words, newest)
    assert taken("name it: --out (.*?);", newest) == os.path.join("runs", "10")
    done = verydeep(*command(f"verydeep train --resume {taken('name it: (.*?);', newest)}"))
    assert done.status == 0, done.err
    done = verydeep(*command(taken("(verydeep train.*)", text)))
    assert done.status == 0, done.err
    said("try it: verydeep classify --model {} photo.jpg", done.out)
    monkeypatch.chdir(tmp_path)
    assert verydeep(*command(taken("try it: (.*)", done.out))).status == 0
    assert verydeep(*classify).status == 0

    config = older / "config.json"  # of a version that wrote no command
    text = config.read_text(encoding="utf-8").replace('"command":', '"order":')
    config.write_text(text, encoding="utf-8")
    text = verydeep("train", "--resume", "--out", older).err
    unknown = (
        "--resume: {} does not say by which command it was begun; give DATA and --recipe as they "
        "were then"
    )
    said(unknown, text)
    for nonsense in ("verydeep train", "verydeep train --resume --out x", "verydeep train 'a", 5):
        facts = json.loads(config.read_text(encoding="utf-8")) | {"command": nonsense}
        config.write_text(json.dumps(facts), encoding="utf-8")
        said(unknown, verydeep("train", "--resume", "--out", older).err)
    ran = tmp_path / "ran"
    harm = f"verydeep train {older} {shlex.quote(f'--val=pipe:touch {ran}')} --recipe paper"
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"command": harm}),
        encoding="utf-8",
    )
    said(
        "--resume: the run in {} reads by a shell's command, which is not taken from a folder; give "
        "DATA and --recipe as they were then",
        verydeep("train", "--resume", "--out", older).err,
    )
    assert not ran.exists()
    done = verydeep(*begin[:-1], older, "--resume")
    assert done.status == 0, done.err
    assert (older / "model.safetensors").is_file()
