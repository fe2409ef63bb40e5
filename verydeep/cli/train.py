"""`verydeep train`: from labelled images to a classifier, by a recipe; `verydeep check`: a look at them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import DataError, log
from ..files.progress import Progress
from ..files.wording import clock, counted, plain, quoted
from . import options
from .output import output_folder, show

if TYPE_CHECKING:
    from ..training.recipes import Config


def _recipes(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what each recipe is, and its settings, and leave."""
    if not wanted:
        return
    from ..training import recipes

    texts = []
    for name in recipes.RECIPES:
        try:
            texts.append(recipes.described(name))
        except ModuleNotFoundError:
            texts.append(f'{name}\n  needs torch: pip install "verydeep[torch]"')
    click.echo("\n\n".join(texts))
    context.exit()


@click.command()
@click.argument("data", metavar="DATA", required=False)
@click.option("--val", metavar="DATA", help="A second data set to validate with.")
@click.option(
    "--recipe", metavar="NAME", default="probe", show_default=True,
    help="probe, finetune, small-images or paper.",
)  # fmt: skip
@click.option(
    "--recipes", is_flag=True, is_eager=True, expose_value=False, callback=_recipes,
    help="Show each recipe, how long it takes, and its settings; then exit.",
)  # fmt: skip
@click.option("--model", metavar="NAME", help="The network. [default: the recipe's]")
@click.option("--width", type=float, metavar="W", help="Times as many channels. [default: 1]")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Change a setting of the recipe; may be repeated.",
)  # fmt: skip
@click.option(
    "--init", metavar="NAME|FILE", help="Weights to start from: a name, a file, or a run's folder."
)
@options.path(
    "--out",
    metavar="DIR",
    help="Where the model, report.html, log.jsonl and checkpoints go. [default: runs/1, runs/2, ...]",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the run in the DIR of --out; no more need be said."
)
@options.device
@click.option(
    "--strict", is_flag=True,
    help="Look as closely as verydeep check does, and refuse data with anything odd.",
)  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write figures for TensorBoard too, into DIR.")
@click.option(
    "--find-lr", is_flag=True,
    help="Only say which learning rate suits; with --out, plot it there too.",
)  # fmt: skip
@click.option(
    "--profile", is_flag=True,
    help="Only say how fast images are read, and how fast the network learns.",
)  # fmt: skip
@options.json_object
def train(
    data: str | None,
    val: str | None,
    recipe: str,
    out: Path | None,
    resume: bool,
    strict: bool,
    tensorboard: bool,
    find_lr: bool,
    profile: bool,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Train a classifier on labelled images, by a recipe.

    DATA is a folder, tar or zip of class folders, with or without train/, val/ and test/; a CSV of paths
    and labels; an .npz of images; or WebDataset shards, as
    "train-{000..099}.tar". Shards may be streamed from elsewhere, "https://host/train-{000..099}.tar" or
    "pipe:COMMAND", by paper and by small-images with memory=false. Without anything to validate with, a
    tenth of each class (of the shards, where they are streamed) is set aside for it.
    """
    if data is None and resume and out is not None:
        return int(train.main([*_again(out), *["--json"] * as_json], standalone_mode=False))
    if data is None and resume:
        raise click.UsageError(
            f"--resume goes on with the run in a folder; name it: --out {_newest()}",
            click.get_current_context(),
        )
    if data is None:
        raise click.UsageError("Missing argument 'DATA'", click.get_current_context())
    from ..pictures import write

    if find_lr or profile:
        if find_lr and out is not None:
            output_folder(out)
        with Progress("trying learning rates" if find_lr else "measuring", ""):
            from ..training import begin

            look: Any = begin.find_rate if find_lr else begin.profile
            answer = look(recipe, data, val, **chosen)
        show(answer, as_json)
        if find_lr and out is not None:
            write(answer.page(), out / "rates.html")
            log.info(f"wrote {out / 'rates.html'}")
        return 0
    from ..training.record.folder import is_first

    first = is_first()  # of torchrun's processes: it tells
    with _Teller() if first else nullcontext() as teller:
        from ..training import begin

        result = begin.train(
            recipe, data, val, out=out, resume=resume, strict=strict, tensorboard=tensorboard,
            event=teller, **chosen,
        )  # fmt: skip
    if not first:
        return 1 if result.bad else 0
    show(result, as_json)
    if not as_json:
        place = quoted(result.folder)
        click.echo(
            f"report: {result.folder / 'report.html'}\ntry it: verydeep classify --model {place} photo.jpg"
        )
    return 1 if result.bad else 0


def _newest() -> Path | str:
    """The folder of the run that was begun last, of those that were given none; DIR where there is none."""
    from ..training.record.folder import RUNS, begun

    runs = filter(begun, RUNS.glob("*"))
    return max(runs, key=lambda run: (run / "config.json").stat().st_mtime, default="DIR")


def _again(out: Path) -> list[str]:
    """The words that began the run in that folder, and --resume: as if they were typed again, and there.

    DataError where others are given beside it, or the folder has none.
    """
    from ..training.record.folder import begun

    context = click.get_current_context()
    given = [
        f"--{'set' if name == 'settings' else name.replace('_', '-')}"
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        and name not in ("out", "resume", "as_json")
    ]
    if given:
        raise DataError(
            f"--resume without DATA goes on as the run in {out} was begun, and {given[0]} is given beside "
            f"it; leave {given[0]} out, or give DATA too"
        )
    if not out.is_dir():
        raise DataError(f"--resume: there is no folder {out}; name the --out of a run")
    known = begun(out)
    try:
        words = shlex.split(str(known.get("command", "")))[1:]
    except ValueError:  # an open quote
        words = []
    if words[:1] != ["train"] or words[1:2] in ([], ["--resume"]):
        raise DataError(
            f"--resume: {out} does not say by which command it was begun; give DATA and --recipe as they "
            "were then"
        )
    if any("pipe:" in word for word in words):  # --val=pipe:... too
        # whoever made the folder would run it here
        raise DataError(
            f"--resume: the run in {out} reads by a shell's command, which is not taken from a folder; "
            "give DATA and --recipe as they were then"
        )
    out, there = out.absolute(), str(known.get("folder", ""))
    more = ["--resume", "--out", str(out)]
    words = words[1:] if words[-3:] == more else [*words[1:], *more]
    if os.path.isdir(there):
        os.chdir(there)  # its data may be named from there
    sys.argv[1:] = ["train", *words]  # what is recorded
    return words


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--val", metavar="DATA", help="A second data set to validate with.")
@options.number(
    "--size", default=224,
    help="Pixels a side of the network's input; smaller images are reported.",
)  # fmt: skip
@click.option("--multi", type=bool, help="Of a CSV: whether a photo may have several labels.")
@click.option("--strict", is_flag=True, help="Exit with status 2 where anything is found.")
@options.json_object
def check(
    data: str, val: str | None, size: int, multi: bool | None, strict: bool, as_json: bool
) -> int:
    """Look through a data set before training on it.

    DATA is what `verydeep train` takes. It reports images that cannot be read; images to validate with
    that are also there to train on, or duplicates of such; classes that are empty, rare or not in both
    parts; and images smaller than the network's input. The exit status is 1 where anything was found.
    """
    with Progress("looking for images", ""):
        from ..datasets import check as checking

        result = checking.check(data, val, size=size, multi=multi)
    show(result, as_json)
    return 0 if not result.findings else 2 if strict else 1


class _Teller(Progress):
    """Tells people what happens: a line an epoch, and how far it is within it."""

    def __init__(self) -> None:
        super().__init__("training", "")
        self.epochs = self.steps = 0
        self.config: Config | None = None  # of a recipe with the loop
        self.before = 0.0  # seconds before the first epoch

    def __call__(self, line: Mapping[str, Any]) -> None:
        kind = line["event"]
        if kind in ("start", "resume"):
            self.say(self._start(line))
        elif kind == "chosen":
            found = _figure(line)
            self.say(
                f"chosen by cross-validation: {', '.join(line['layers'])} at {line['size']} pixels, l2 "
                f"{line['l2']:g}; held-out {found}; {line['seconds']:.1f} s"
            )
        elif kind in ("note", "warning"):
            self.say(f"{'warning: ' if kind == 'warning' else ''}{line['text']}")
        elif kind == "step":
            doing = f"epoch {line['epoch']} of {self.epochs}, loss {line['loss']:.3f}"
            if self.steps:
                doing += f", {line['images_per_second']:.0f} images/s"
            self.doing, self.unit = doing, "step"
            self.total, self.done = self.steps * self.epochs or None, line["step"]
        elif kind == "epoch":
            self.say(self._epoch(line))
        elif kind == "end":
            for what, value in line.items():
                if what.endswith(", test"):
                    self.say(f"{what}: {value:.2%}")

    def say(self, text: str) -> None:
        click.echo(plain(text), err=True)

    def _start(self, line: Mapping[str, Any]) -> str:
        config = line["config"]
        self.epochs = config["epochs"]
        if config["recipe"] == "probe":
            return f"probe: a head on {config['model']}, {_data(line, 'photo')}"
        from ..training.recipes import Config
        from ..training.start import network_of

        self.config = Config.from_dict(config)
        self.steps = line.get("steps_per_epoch", 0)
        if self.steps:
            self.effort = lambda step: self._epochs_effort(step / self.steps)
        net = network_of(self.config, line["data"]["classes"])
        return (
            f"{config['recipe']}: {net.name} of {net.widths}, {_data(line, 'image')}; "
            f"{config['precision']}, {config['layout']} layout, {line['device']}"
        )

    def _epoch(self, line: Mapping[str, Any]) -> str:
        done = line["epoch"]
        if not done:
            self.before = line["seconds"]
            judged = line.get("judged", "validation")
            return f"the head alone: {judged} {_figure(line)}, loss {line['loss']:.3f}"
        shown = f"{_figure(line)}, loss {line['loss']:.3f}; " if "loss" in line else ""
        return (
            f"epoch {done} of {self.epochs}: {shown}training loss {line['train_loss']:.3f}, top-1 "
            f"{line['train_top1']:.2%}; rate {line['rate']:.2g}; {clock(line['seconds'])}, "
            f"{self._left(done, line['seconds'])} left"
        )

    def _left(self, done: int, seconds: float) -> str:
        """The time that is left after so many epochs, from what they took."""
        behind, whole = self._epochs_effort(done), self._epochs_effort(self.epochs)
        return clock((seconds - self.before) * (whole / behind - 1))

    def _epochs_effort(self, epochs: float) -> float:
        from ..training.optim import effort

        assert self.config is not None
        return effort(self.config, epochs)


def _figure(line: Mapping[str, Any]) -> str:
    """How right the answers are, as one says it."""
    several = "mean_average_precision"
    return (
        f"mean average precision {line[several]:.2%}"
        if several in line
        else f"top-1 {line['top1']:.2%}"
    )


def _data(line: Mapping[str, Any], unit: str) -> str:
    data = line["data"]
    return (
        f"{counted(data['classes'], 'class')}, {counted(data['train'], unit)} to train on, "
        f"{data['val']:,} to validate ({data['split'] or 'none'})"
    )
