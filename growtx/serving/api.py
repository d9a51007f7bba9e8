"""The HTTP endpoint as an ordinary ASGI application; the source of tokens is its argument."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError

from growtx import __version__
from growtx.serving import errors
from growtx.serving.completions import Completions
from growtx.serving.errors import ApiError
from growtx.serving.metrics import IngressMetrics
from growtx.serving.protocol import (
    Completion,
    CompletionRequest,
    ErrorResponse,
    Model,
    ModelDetails,
    ModelList,
    StreamOptions,
)
from growtx.serving.requests import Backend
from growtx.serving.settings import ServeSettings

PAGE_FILES = resources.files("growtx.serving") / "static"
BEARER = HTTPBearer(auto_error=False)
UTF8_BOM = b"\xef\xbb\xbf"


class Service:
    """What the routes share; the completions are created on the first request, when the engines can be queried."""

    def __init__(self, backend: Backend, settings: ServeSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.name = settings.served_name
        self.metrics = IngressMetrics(self.name)
        self.started = int(time.time())
        self._key_digests = [_digest(key) for key in settings.api_keys()]
        self._completions: Completions | None = None

    async def completions(self) -> Completions:
        if self._completions is None:
            card = await self.backend.card()
            self._completions = Completions(self.backend, card, self.settings.limits, self.name, self.metrics)
        return self._completions

    def authenticate(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        """Every key is compared, in constant time, so that nothing can be learned from how long it takes."""
        if not self._key_digests:
            return
        sent = _digest(credentials.credentials if credentials else "")
        if sum(hmac.compare_digest(sent, known) for known in self._key_digests) == 0:
            raise ApiError(401, "Send a valid API key as `Authorization: Bearer KEY`", code="invalid_api_key")

    async def read_body(self, request: Request) -> CompletionRequest:
        """Read the body, never holding more of it in memory than allowed."""
        limit, body = self.settings.limits.max_request_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise ApiError(413, f"The body has more than {limit} bytes", code="request_too_large")
        try:
            return CompletionRequest.model_validate_json(bytes(body).removeprefix(UTF8_BOM))
        except ValidationError as error:
            raise errors.from_validation(error, bytes(body)) from error


def create_app(backend: Backend, settings: ServeSettings) -> FastAPI:
    """The application.

    Raises:
        ConfigError: the file of API keys cannot be used.
    """
    service = Service(backend, settings)
    app = FastAPI(title="growtx", version=__version__, docs_url="/docs", redoc_url=None)
    errors.install(app)

    async def authenticated(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        service.authenticate(credentials)

    @app.middleware("http")
    async def count_answers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        if request.url.path.startswith("/v1/"):
            service.metrics.count_answer(response.status_code)
        return response

    body_schema = CompletionRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    _add_schemas(app, body_schema.pop("$defs"))
    error_responses = {status: {**about, "model": ErrorResponse} for status, about in errors.RESPONSES.items()}

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **error_responses},
        dependencies=[Depends(authenticated)],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body_schema}},
            }
        },
    )
    async def complete(request: Request) -> Response:
        """Continue one or several prompts. With `stream`, server-sent events of the same shape, then `[DONE]`."""
        body = await service.read_body(request)
        completions = await service.completions()
        if not body.stream:
            answer = await _cancel_on_disconnect(request, completions.answer(body))
            return Response(answer.model_dump_json(), media_type="application/json")
        parts = completions.run(body)
        first = await anext(parts)  # an overloaded engine must be a 429, and no status can follow the first byte
        return StreamingResponse(_events(first, parts, body.stream_options), media_type="text/event-stream")

    @app.get("/v1/models", responses=_only(error_responses, 401, 503), dependencies=[Depends(authenticated)])
    async def models() -> ModelList:
        """The served model and what can be asked of it."""
        card = (await service.completions()).card
        about = ModelDetails(
            members=list(card.members),
            rules=list(card.rules),
            depths=list(card.depths),
            context_length=card.context_length,
            vocab_size=card.vocab_size,
        )
        return ModelList(data=[Model(id=service.name, created=service.started, growtx=about)])

    @app.get("/healthz", response_class=PlainTextResponse, responses=_only(error_responses, 503))
    async def health() -> str:
        """200 once the engines answer."""
        await service.completions()
        return "ok\n"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Metrics of all replicas in Prometheus' text format."""
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The built-in page."""
        return FileResponse(str(PAGE_FILES / "index.html"))

    app.mount("/static", StaticFiles(directory=str(PAGE_FILES)))
    return app


def _add_schemas(app: FastAPI, schemas: dict[str, Any]) -> None:
    """Add the schemas of a body that the routes read themselves to the OpenAPI document."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        described = plain()
        described["components"]["schemas"].update(schemas)
        return described

    app.openapi = document  # type: ignore[method-assign]


def _only(responses: dict[int | str, dict[str, Any]], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: responses[status] for status in statuses}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _events(
    first: Completion, parts: AsyncGenerator[Completion, None], options: StreamOptions | None
) -> AsyncGenerator[str, None]:
    """Server-sent events."""
    with_usage = options is not None and bool(options.include_usage)
    always = options is not None and bool(options.continuous_usage_stats)

    def event(part: Completion) -> str:
        shown = part if always or not part.choices else part.model_copy(update={"usage": None})
        return _event(shown.model_dump_json())

    async with aclosing(parts):
        yield event(first)
        try:
            async for part in parts:
                if part.choices or with_usage:
                    yield event(part)
        except ApiError as error:  # too late for a status
            yield _event(json.dumps(error.body))
            return
        yield _event("[DONE]")


def _event(data: str) -> str:
    return f"data: {data}\n\n"


async def _cancel_on_disconnect(request: Request, work: Any) -> Completion:
    """Await `work`, and give up when the connection is closed: its places in the batch are then free for others."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "The client closed the connection")  # no one reads it
        answer: Completion = task.result()
        return answer
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
