"""Errors in OpenAI's shape. What a client can cause is a 4xx; 503 is ours alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

RETRY_AFTER_SECONDS = 1


class ApiError(Exception):
    """An answer that is not 200."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind or _kind(status), "param": param, "code": code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def _kind(status: int) -> str:
    known = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}
    return known.get(status, "invalid_request_error")


def overloaded() -> ApiError:
    """All places and the queue are taken."""
    return ApiError(429, "The server is at its limit. Try again in a moment.", code="overloaded")


def unavailable() -> ApiError:
    """No engine could take or finish the request."""
    return ApiError(503, "No engine is available. Try again in a moment.", code="unavailable")


def from_validation(error: ValidationError, body: bytes = b"") -> ApiError:
    """The first thing that is wrong with a body, by its field."""
    issue = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = issue["msg"].removeprefix("Value error, ")
    if issue["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {message}", code="invalid_json")
    param = ".".join(_sent_path(issue["loc"], body, is_missing=issue["type"] == "missing")) or None
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


def _sent_path(location: Sequence[int | str], body: bytes, *, is_missing: bool) -> list[str]:
    """The parts of a location that the client sent: those of a union name its members, too."""
    try:
        node: Any = json.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return [str(part) for part in location[:1]]
    path = []
    for part in location:
        known = isinstance(node, dict) and part in node
        if known or (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            node = node[part]  # type: ignore[index]
        elif not (is_missing and part == location[-1]):
            continue
        path.append(str(part))
    return path


def install(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def _frameworks(request: Request, error: HTTPException) -> JSONResponse:
        found: dict[int, str] = {
            404: f"There is nothing at {request.url.path}",
            405: f"{request.method} is not allowed at {request.url.path}",
        }
        response = ApiError(error.status_code, found.get(error.status_code, str(error.detail))).response()
        response.headers.update(error.headers or {})
        return response


RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is invalid; `param` names the field"},
    401: {"description": "The API key is missing or wrong"},
    404: {"description": "There is no such model"},
    413: {"description": "The body is too large"},
    429: {"description": "All places are taken; retry after `Retry-After` seconds"},
    503: {"description": "No engine is available"},
}
