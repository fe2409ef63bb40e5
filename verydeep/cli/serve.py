"""`verydeep serve`: a model for programs and people, over HTTP."""

from __future__ import annotations

from typing import Any

import click

from ..errors import MissingExtraError
from . import options


@click.command()
@options.model
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="NAME",
    help="The address to answer at. Any but this machine's own needs a token.",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N",
    help="0 takes one that is free.",
)  # fmt: skip
@click.option(
    "--token", envvar="VERYDEEP_TOKEN", metavar="TEXT",
    help="What requests have to bear, as Authorization: Bearer TEXT. [env: VERYDEEP_TOKEN]",
)  # fmt: skip
@click.option(
    "--index", metavar="FILE", help="A file of `verydeep features`, to be searched by photo."
)
@click.option(
    "--layer", metavar="NAME", help="The layer to search by, where the index has several."
)
@options.number("--max-mb", default=20, metavar="MB", help="Largest body that is taken, in MiB.")
@options.number("--max-megapixels", default=40, metavar="N", help="Largest photo that is decoded.")
@options.number("--max-waiting", default=128, metavar="N", help="Requests at once; more get a 429.")
@options.number(
    "--timeout", default=60, metavar="SECONDS", help="For a photo to come, and to be answered."
)
@click.option("--log-requests", "say_requests", is_flag=True, help="Say each request, a line each.")
@options.compute
def serve(
    max_mb: int, max_megapixels: int, max_waiting: int, timeout: int, **choices: Any
) -> int:  # fmt: skip
    """Serve a model: a page for people, an API for programs.

    The page stands at the address that is printed when all is ready; /openapi.json describes the API.
    Photos are sent as forms: curl -F file=@photo.jpg http://127.0.0.1:8000/v1/classify

    Ends with exit status 0 at Ctrl-C or SIGTERM, when what is in flight is answered.
    """
    try:
        from ..serving.guard import Limits
        from ..serving.running import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError("verydeep serve", "serve") from error
    limits = Limits(max_mb << 20, max_megapixels * 1_000_000, timeout, max_waiting)
    return run(limits=limits, **choices)
