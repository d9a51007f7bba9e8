"""The HTTP endpoint as an ordinary ASGI application; the source of tokens is its argument."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.middleware.cors import CORSMiddleware

from growtx import __version__
from growtx.serving import errors
from growtx.serving.chat import Chat, ChatChunk, ChatCompletion, ChatRequest
from growtx.serving.chat_template import ChatTemplate
from growtx.serving.completions import Completions
from growtx.serving.errors import ApiError
from growtx.serving.front import STATIC, Front
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
from growtx.serving.tokenizing import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    detokenize,
    tokenize,
    tokenizer_info,
)

PAGE_FILES = resources.files("growtx.serving") / "static"
BEARER = HTTPBearer(auto_error=False)
UTF8_BOM = b"\xef\xbb\xbf"
EVENTS = "text/event-stream"
DOCS_HOST, DOCS_ICON_HOST = "https://cdn.jsdelivr.net", "https://fastapi.tiangolo.com"  # what FastAPI's page loads
Locks = Sequence[Any]  # FastAPI's dependencies that every request must pass
Body = TypeVar("Body", bound=BaseModel)
Answer = TypeVar("Answer")
Part = TypeVar("Part", Completion, ChatChunk)
ERROR_RESPONSES = {status: {**about, "model": ErrorResponse} for status, about in errors.RESPONSES.items()}


class Service:
    """What the routes share; the completions are created on the first request, when the engines can be queried."""

    def __init__(self, backend: Backend, settings: ServeSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.name = settings.served_name
        self.metrics = IngressMetrics(self.name)
        self.started = int(time.time())
        self.schemas: dict[str, Any] = {}  # of the bodies that the routes read themselves
        self._chat_template = settings.chat_template_text()
        self._key_digests = [_digest(key) for key in settings.api_keys()]
        self._completions: Completions | None = None

    async def completions(self) -> Completions:
        if self._completions is None:
            card = await self.backend.card()
            self._completions = Completions(self.backend, card, self.settings.limits, self.name, self.metrics)
        return self._completions

    async def chat_template(self) -> str | None:
        """The one that is set, or else the model's own."""
        return self._chat_template or (await self.completions()).card.chat_template

    async def chat(self) -> Chat:
        completions, source = await self.completions(), await self.chat_template()
        special = completions.card.special_tokens
        template = ChatTemplate(source, completions.codec.control_tokens, special) if source else None
        return Chat(completions, template)

    def authenticate(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        """Every key is compared, in constant time, so that nothing can be learned from how long it takes."""
        if not self._key_digests:
            return
        sent = credentials.credentials if credentials else ""
        same = sum(hmac.compare_digest(_digest(sent), known) for known in self._key_digests)
        if not sent or same == 0:
            raise ApiError(401, "Send a valid API key as `Authorization: Bearer KEY`", code="invalid_api_key")

    async def read_body(self, request: Request, kind: type[Body]) -> Body:
        """Read the body, never holding more of it in memory than allowed."""
        limit, body = self.settings.limits.max_request_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise ApiError(413, f"The body has more than {limit} bytes", code="request_too_large")
        try:
            return kind.model_validate_json(bytes(body).removeprefix(UTF8_BOM))
        except ValidationError as error:
            raise errors.from_validation(error, bytes(body)) from error

    def count_answer(self, path: str, status: int) -> None:
        if path.startswith("/v1/"):
            self.metrics.count_answer(status)

    def documented(self, kind: type[BaseModel]) -> dict[str, Any]:
        """What the OpenAPI document says of a route that reads its own body."""
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        self.schemas.update(schema.pop("$defs", {}))
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def create_app(backend: Backend, settings: ServeSettings) -> FastAPI:
    """The application.

    Raises:
        ConfigError: the file of API keys or the chat template cannot be used.
    """
    service = Service(backend, settings)

    async def authenticated(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        service.authenticate(credentials)

    app = FastAPI(title="growtx", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    locked = [Depends(authenticated)]
    _add_text_routes(app, service, locked)
    _add_model_routes(app, service, locked)
    _add_tokenizer_routes(app, service, locked)
    _add_documents(app, locked)
    _add_metrics(app, service, [] if settings.public_metrics else locked)
    _add_open_routes(app, service)
    app.mount(STATIC, StaticFiles(directory=str(PAGE_FILES)))
    _add_schemas(app, service.schemas)
    app.add_middleware(Front, count=service.count_answer)
    if settings.allowed_origins:  # outermost: a preflight has no key, and errors need the headers as well
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return app


def _add_text_routes(app: FastAPI, service: Service, locked: Locks) -> None:
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {EVENTS: {"schema": {"type": "string"}}}}}

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={**streamed, **ERROR_RESPONSES},
        dependencies=locked,
        openapi_extra=service.documented(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        """Continue one or several prompts. With `stream`, server-sent events of the same shape, then `[DONE]`."""
        body = await service.read_body(request, CompletionRequest)
        completions = await service.completions()
        if body.stream:
            return await _streamed(completions.run(body), body.stream_options)
        return _json(await _cancel_on_disconnect(request, completions.answer(body)))

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**streamed, **ERROR_RESPONSES},
        dependencies=locked,
        openapi_extra=service.documented(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation, by the model's chat template or the one that is set."""
        body = await service.read_body(request, ChatRequest)
        chat = await service.chat()
        if body.stream:
            return await _streamed(chat.run(body), body.stream_options)
        return _json(await _cancel_on_disconnect(request, chat.answer(body)))


def _add_model_routes(app: FastAPI, service: Service, locked: Locks) -> None:
    async def the_model() -> Model:
        card = (await service.completions()).card
        about = ModelDetails(
            members=list(card.members),
            rules=list(card.rules),
            depths=list(card.depths),
            context_length=card.context_length,
            vocab_size=card.vocab_size,
        )
        return Model(id=service.name, created=service.started, max_model_len=card.longest_text, growtx=about)

    @app.get("/v1/models", dependencies=locked, responses=_only(401, 503))
    async def models() -> ModelList:
        """The served model and what can be asked of it."""
        return ModelList(data=[await the_model()])

    @app.get("/v1/models/{name:path}", dependencies=locked, responses=_only(401, 404, 503))
    async def model(name: str) -> Model:
        """The same by its name."""
        (await service.completions()).check_model(name)
        return await the_model()


def _add_tokenizer_routes(app: FastAPI, service: Service, locked: Locks) -> None:
    body_errors = _only(400, 401, 404, 413, 503)

    @app.post(
        "/tokenize",
        response_model=TokenizeResponse,
        responses=body_errors,
        dependencies=locked,
        openapi_extra=service.documented(TokenizeRequest),
    )
    async def to_ids(request: Request) -> TokenizeResponse:
        """The ids of a text or a conversation."""
        body = await service.read_body(request, TokenizeRequest)
        return await tokenize(await service.completions(), await service.chat(), body)

    @app.post(
        "/detokenize",
        response_model=DetokenizeResponse,
        responses=body_errors,
        dependencies=locked,
        openapi_extra=service.documented(DetokenizeRequest),
    )
    async def to_text(request: Request) -> DetokenizeResponse:
        """The text of ids."""
        body = await service.read_body(request, DetokenizeRequest)
        return await detokenize(await service.completions(), body)

    @app.get("/tokenizer_info", dependencies=locked, response_model_exclude_none=True, responses=_only(401, 503))
    async def about() -> TokenizerInfo:
        """Special tokens and the chat template."""
        return tokenizer_info((await service.completions()).card, await service.chat_template())


def _add_metrics(app: FastAPI, service: Service, locked: Locks) -> None:
    @app.get("/metrics", dependencies=locked, response_class=PlainTextResponse, responses=_only(401))
    async def metrics() -> PlainTextResponse:
        """Metrics of all replicas in Prometheus' text format."""
        return PlainTextResponse(await service.backend.metrics(), media_type="text/plain; version=0.0.4")


def _add_documents(app: FastAPI, locked: Locks) -> None:
    @app.get("/openapi.json", include_in_schema=False, dependencies=locked)
    async def document() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False, dependencies=locked)
    async def docs() -> Response:
        """FastAPI's page, which loads Swagger UI from a CDN; its one inline script is allowed by its hash."""
        page = get_swagger_ui_html(openapi_url="openapi.json", title="growtx")
        scripts = re.findall(r"<script>(.*?)</script>", bytes(page.body).decode(), re.DOTALL)
        hashes = " ".join(f"'sha256-{base64.b64encode(_digest(script)).decode()}'" for script in scripts)
        page.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src {DOCS_HOST} {hashes}; style-src {DOCS_HOST} 'unsafe-inline'; "
            f"img-src {DOCS_ICON_HOST} data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return page


def _add_open_routes(app: FastAPI, service: Service) -> None:
    """What needs no key: the page, which asks for it, and what load balancers look at."""

    @app.get("/health", response_class=PlainTextResponse, responses=_only(503))
    @app.get("/healthz", response_class=PlainTextResponse, responses=_only(503))
    async def health() -> str:
        """200 once the engines answer."""
        await service.completions()
        return "ok\n"

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The built-in page."""
        return FileResponse(str(PAGE_FILES / "index.html"))


def _add_schemas(app: FastAPI, schemas: dict[str, Any]) -> None:
    """Add the schemas of a body that the routes read themselves to the OpenAPI document."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        described = plain()
        described["components"]["schemas"].update(schemas)
        return described

    app.openapi = document  # type: ignore[method-assign]


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERROR_RESPONSES[status] for status in statuses}


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _streamed(parts: AsyncGenerator[Part, None], options: StreamOptions | None) -> StreamingResponse:
    """Server-sent events; an overloaded engine must be a 429, and no status can follow the first byte."""
    return StreamingResponse(_events(await anext(parts), parts, options), media_type=EVENTS)


async def _events(
    first: Part, parts: AsyncGenerator[Part, None], options: StreamOptions | None
) -> AsyncGenerator[str, None]:
    with_usage = options is not None and bool(options.include_usage)
    always = options is not None and bool(options.continuous_usage_stats)

    def event(part: Part) -> str:
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


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Await `work`, and give up when the connection is closed: its places in the batch are then free for others."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "The client closed the connection")  # no one reads it
        return task.result()
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
