"""The `verydeep` command: each verb's module is loaded when the verb is used.

Results go to stdout, progress and notes to stderr. Exit status: 0 done, 1 some inputs failed, 2 nothing
could be done or wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..errors import MissingExtraError, VerydeepError, log, nearest
from ..files.stopping import Repeat
from ..files.wording import plain

# module -> its verbs, which are functions of these names
MODULES = {
    "classify": "classify evaluate",
    "compare": "distance duplicates features similar",
    "compress": "compress",
    "doctor": "doctor",
    "explain": "explain",
    "export": "bench export quantize",
    "serve": "serve",
    "summary": "models show summary",
    "train": "check train",
    "weights": "cache weights",
}
VERBS: dict[str, str] = {}
for _module, _verbs in MODULES.items():
    VERBS |= dict.fromkeys(_verbs.split(), _module)


# as the help groups them
GROUPS = {
    "Look": "classify explain show similar duplicates",
    "Measure": "evaluate distance features bench summary",
    "Train": "check train",
    "Ship": "export quantize compress serve models weights cache doctor",
}


class _Verbs(click.Group):
    """Knows the verbs without importing them, so that each starts as fast as it can."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click gives it
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name not in VERBS:
            raise click.UsageError(f"no command {cmd_name!r}{nearest(cmd_name, VERBS)}", ctx)
        command: click.Command = getattr(import_module(f"{__name__}.{VERBS[cmd_name]}"), cmd_name)
        return command

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_text("Try this: verydeep classify photo.jpg")
        formatter.write_paragraph()
        super().format_usage(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in GROUPS.items():
            lines = [
                (f"{verb:<10}", self.get_command(ctx, verb).get_short_help_str(100))
                for verb in verbs.split()
            ]
            with formatter.section(title):
                formatter.write_dl(lines)
        formatter.write_paragraph()
        formatter.write_text(
            "verydeep help VERB says more, and verydeep version which one this is."
        )


# for every group: click keeps the help option that a command was first asked for
CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
cli = click.version_option(__version__, prog_name="verydeep")(
    _Verbs(
        "verydeep", context_settings=CONTEXT,
        help="VGG for everyone: classify photos, look inside, measure, train, convert. Works offline.",
    )
)  # fmt: skip


@cli.command("help", short_help="Say what a verb does.")
@click.argument("verb", nargs=-1)
def _help(verb: tuple[str, ...]) -> None:
    cli.main([*verb, "--help"], prog_name="verydeep", standalone_mode=False)


@cli.command("version", short_help="Say which version this is.")
def _version() -> None:
    cli.main(["--version"], prog_name="verydeep", standalone_mode=False)


def _usage(error: click.ClickException) -> str:
    """Wrong usage in one line; the whole help where nothing at all was asked for."""
    ctx = getattr(error, "ctx", None)
    if ctx and type(error).__name__ == "NoArgsIsHelpError":
        return str(ctx.get_help())
    files = []
    if isinstance(error, click.NoSuchOption):
        files = [word for word in sys.argv[2:] if word.startswith("-") and os.path.lexists(word)]
        # click compares the dashes too, and finds --top near --foo
        near = [one.lstrip("-") for one in error.possibilities or ()]
        name = error.option_name.lstrip("-")
        near = [f"--{one}" for one in get_close_matches(name, near)]
        error = click.NoSuchOption(error.option_name, possibilities=near, ctx=ctx)
    message = plain(" ".join(error.format_message().split()).rstrip("."))
    if files:
        message += f"; for the file write ./{plain(files[0])}, or -- before all names"
    return f"verydeep: {message}{f'; see {ctx.command_path} --help' if ctx else ''}"


class Stderr(logging.Handler):
    """What the package says to the person, a line each, on whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        text = plain(" ".join(record.getMessage().splitlines()))
        print(f"verydeep: {text}", file=sys.stderr, flush=True)  # above a live line


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises: whatever keeps its results at Ctrl-C keeps them then, too."""


@contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, by which `timeout`, Slurm, systemd and docker stop, raises `Terminated` in the block."""
    process, asked, repeated = os.getpid(), False, Repeat()

    def end(number: int, _: object) -> None:
        nonlocal asked
        if repeated(number):  # it would come while results are being kept
            return
        if asked or os.getpid() != process:  # or a forked child, which has nothing to keep
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = True
        raise Terminated

    # a program of which this is a part, or whoever had it ignored, has decided on it
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _color() -> bool | None:
    """False where none is wanted (no-color.org), or the terminal has none; None is by whether it is one."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def main() -> None:
    """Run the command; every error that a person can mend is one line on stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by `>&-`: print() would take the other one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    log.handlers = [Stderr()]
    log.setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files that are not UTF-8 go out as they are; what a terminal cannot show is escaped
        utf8 = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        with _ending_like_ctrl_c():
            result = cli.main(prog_name="verydeep", standalone_mode=False, color=_color())
        status = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.ClickException as error:
        print(_usage(error), file=sys.stderr)
        status = 2
    except (click.Abort, KeyboardInterrupt) as error:
        log.error("stopped")
        status = 143 if isinstance(error.__cause__ or error, Terminated) else 130
    except BrokenPipeError:
        # the reader went away (`| head`): nothing more to say, and nothing to complain about
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "torchvision"):
            raise
        verb = " ".join(["verydeep", *sys.argv[1:2]])
        log.error(MissingExtraError(f"what was asked of {verb}", "torch"))
        status = 2
    except VerydeepError as error:
        log.error(error)
        status = 2
    except OSError as error:
        log.error(": ".join(map(str, filter(None, (error.filename, error.strerror)))) or error)
        status = 2
    sys.exit(status)
