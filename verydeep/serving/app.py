"""The routes: what is asked over HTTP, in which form it is answered, and what a page is made of."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, File, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import EngineError, MissingExtraError, VerydeepError, log
from ..files.wording import plain
from ..pictures.block_figure import block_figure
from ..pictures.page import PHOTO_SCRIPT, PHOTO_STYLE, STYLE
from ..predictor import Answer
from .batching import FullError
from .guard import LOOPBACK, Guard, as_json, problem, refused
from .service import Service

PAGE = Path(__file__).parent / "page"
# path -> file, media type
STATIC = {
    "/": (PAGE / "page.html", "text/html"),
    "/page.css": (PAGE / "page.css", "text/css"),
    "/page.js": (PAGE / "page.js", "text/javascript"),
    "/style.css": (STYLE, "text/css"),
    "/photo.css": (PHOTO_STYLE, "text/css"),
    "/photo.js": (PHOTO_SCRIPT, "text/javascript"),
}


class Problem(BaseModel):
    """What went wrong, and what to do."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "The body is no form", 401: "No token, or a false one", 403: "Asked by another site's page",
        404: "No index, or no such photo in it",
        408: "The body did not come in time", 413: "Too many bytes or pixels", 415: "Not an image",
        421: "Another host's name", 422: "It makes no sense for this model", 429: "Too much at once",
        500: "The engine failed", 501: "An extra is not installed", 503: "No answer in time, or not ready",
    }.items()
}  # fmt: skip
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    if not service.ready:
        raise refused(503, "the model is being loaded; try again later")
    return service


async def _once(request: Request) -> None:
    """Each field is there once: a second photo would go unanswered."""
    names = Counts(name for name, _ in (await request.form()).multi_items())
    for name, count in names.items():
        if count > 1:
            raise refused(422, f"{name} is there several times; send each photo by itself")


Served = Annotated[Service, Depends(_service)]
Photo = Annotated[bytes, File(description="An image file: JPEG, PNG, WebP, TIFF, AVIF, GIF or BMP")]
Top = Annotated[int, Query(ge=1, le=100, description="How many at most")]
Layers = Annotated[tuple[str, ...], Query(max_length=16, description="Layers by their paper names")]
Form = Annotated[Literal["json", "png", "page"], Query(description="page: JSON with pictures")]
routes = APIRouter(prefix="/v1", responses=REFUSALS)
photos = APIRouter(dependencies=[Depends(_once)])


@photos.post("/classify")
async def classify(service: Served, file: Photo, top: Top = 5) -> Answer:
    """The most probable classes of a photo, best first."""
    return await service.classify(file, top)


@photos.post("/features")
async def features(
    service: Served, file: Photo, layer: Layers = (), pool: Literal["avg", "max", "gem"] = "avg"
) -> Response:
    """What layers make of a photo, a number a channel; by default the last ReLU of the convolutions."""
    found = await service.features(file, layer, pool)
    layers = {name: value.tolist() for name, value in found.values.items()}
    return _answered({"layers": layers, "engine": found.engine, "precision": found.precision})


@photos.post("/explain", responses=PICTURE)
async def explain(
    service: Served,
    file: Photo,
    label: Annotated[str | None, Query(description="A class by name, id or number")] = None,
    top: Annotated[int, Query(ge=1, le=5, description="Of how many of the first answers")] = 1,
    form: Form = "json",
) -> Response:
    """Where the network sees a class: heat maps, as numbers or as a picture."""
    return _answered(await service.explain(file, label, top, form))


@photos.post("/distance", responses=PICTURE)
async def distance(
    service: Served,
    a: Photo,
    b: Photo,
    metric: Literal["lpips", "dists", "content", "style"] = "lpips",
    form: Form = "json",
) -> Response:
    """How different two photos of one size look; as a picture, where (lpips and content)."""
    return _answered(await service.distance(a, b, metric, form))


@photos.post("/channels")
async def channels(
    service: Served,
    file: Photo,
    layer: Layers = (),
    strongest: Annotated[int, Query(ge=1, le=32, description="How many of each layer")] = 8,
) -> Response:
    """The strongest channels of layers, by default of each block's last ReLU, with pictures."""
    return _answered(await service.channels(file, layer, strongest))


@photos.post("/search")
async def search(service: Served, file: Photo, top: Top = 12) -> Response:
    """The photos of the index that are nearest to this one, nearest first."""
    return _answered(await service.search(file, top))


@routes.get(
    "/photo/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}}
)
async def photo(service: Served, row: int) -> Response:
    """A photo of the index, small."""
    return Response(await service.thumbnail(row), media_type="image/jpeg")


@routes.get("/model")
async def model(service: Served) -> Response:
    """What is served."""
    return _answered(service.about())


@routes.get(
    "/network", response_class=Response, responses={200: {"content": {"image/svg+xml": {}}}}
)
async def network(service: Served, narrow: bool = False) -> Response:
    """The network, drawn to scale. narrow: for a phone."""
    record = service.predictor.record
    figure = block_figure(record.network, narrow=narrow, several=bool(record.thresholds))
    return Response(figure, media_type="image/svg+xml")


routes.include_router(photos)
open_routes = APIRouter()


@open_routes.get("/health")
async def health() -> dict[str, str]:
    """Whether the server runs."""
    return {"status": "ok"}


@open_routes.get("/ready", responses={503: REFUSALS[503]})
async def ready(service: Served) -> dict[str, str]:  # noqa: ARG001  # which raises
    """Whether it can answer."""
    return {"status": "ready"}


def _answered(said: Any) -> Response:
    return Response(said, media_type="image/png") if isinstance(said, bytes) else as_json(said)


def _wrong(request: Request, error: Exception) -> Response:
    """Every error in one shape, by what it is."""
    if isinstance(error, HTTPException):
        return problem(error)
    if isinstance(error, FullError):
        return problem(refused(429, "too many requests are waiting; try again later"))
    if isinstance(error, RequestValidationError):
        form = request.headers.get("content-type", "").startswith("multipart/form-data")
        if request.method == "POST" and not form:
            return problem(
                refused(415, "expected a form (multipart/form-data) with the photo in it")
            )
        said = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return problem(refused(422, "; ".join(said)))
    status = 501 if isinstance(error, MissingExtraError) else 422
    return problem(refused(500 if isinstance(error, EngineError) else status, str(error)))


class Metrics:
    """What is counted of a service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "verydeep_requests", "Answers, by route and status", ["path", "status"], **options
        )
        self.seconds = Histogram("verydeep_request_seconds", "From first byte", ["path"], **options)
        self.batches = Histogram(
            "verydeep_batch_images", "Images in a batch", buckets=(1, 2, 4, 6, 8), **options
        )
        self.inside = Gauge("verydeep_waiting", "Asked for and not answered", **options)


def build(
    service: Service,
    metrics: Metrics,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] = LOOPBACK,
    say_requests: bool = False,
    failed: Callable[[BaseException], object] = lambda _: None,
) -> Guard:
    """The whole application. failed: told why, where the model turns out to be of no use."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        def warmed(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                failed(error)

        warming = asyncio.create_task(service.warm())
        warming.add_done_callback(warmed)
        yield
        warming.cancel()
        await service.close()

    app = FastAPI(
        title="verydeep", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="VGG over HTTP: one photo a request, as the field `file` of a form.",
    )  # fmt: skip
    app.state.service = service
    for kind in (HTTPException, RequestValidationError, VerydeepError, FullError):
        app.add_exception_handler(kind, _wrong)
    app.include_router(routes)
    app.include_router(open_routes)
    batchers = service.quick, service.slow, service.drawing
    metrics.inside.set_function(lambda: sum(one.inside for one in batchers))

    @app.get("/metrics", response_class=Response, include_in_schema=False)
    async def counted() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, (file, media) in STATIC.items():
        content = Response(file.read_bytes(), media_type=media)
        app.add_route(path, lambda _, content=content: content, include_in_schema=False)  # type: ignore[misc]

    known = {*STATIC, *app.openapi()["paths"], "/metrics"}

    def told(method: str, path: str, status: int, seconds: float) -> None:
        path = "/v1/photo" if path.startswith("/v1/photo/") else path if path in known else "other"
        metrics.requests.labels(path, status).inc()
        metrics.seconds.labels(path).observe(seconds)
        if say_requests:
            log.info(f"{plain(method)} {path} {status} in {1000 * seconds:.0f} ms")

    return Guard(app, service.limits, token, hosts, told)
