"""A real HTTP server over engines in this process, for clients that do not speak ASGI."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from growtx.serving.api import create_app
from growtx.serving.requests import Backend
from growtx.serving.settings import ServeSettings


@contextmanager
def serving(backend: Backend, settings: ServeSettings) -> Iterator[str]:
    """The address of a server that runs until the block is left."""
    app: Any = create_app(backend, settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
