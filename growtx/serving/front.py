"""What stands before all routes: HEAD, trailing slashes, headers that browsers heed, and the count of answers."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = "/static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Front:
    """ASGI middleware.

    HEAD is answered as GET is, without the body; a path may end in a slash, and no redirect loses a body for that;
    every answer has `SAFE_HEADERS` unless its route set others.

    Args:
        count: called with path and status of every answer.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_head = scope["method"] == "HEAD"
        inner = {**scope, "method": "GET" if is_head else scope["method"], "path": _without_slash(scope)}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(inner["path"], message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        return await self._app(inner, receive, answer)


def _without_slash(scope: Scope) -> str:
    """The path without slashes at its end; the root, of an application under a prefix as well, keeps its one."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    if not below.strip("/") or below.startswith(STATIC):
        return path
    return path.rstrip("/")
