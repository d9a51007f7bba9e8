"""An S3 server in this process, which counts what is sent to it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class ObjectStore:
    """A server on a free port of this machine.

    Attributes:
        num_bytes: sent to it so far.
        num_requests: by method.
        is_down: whether every request is refused as by a server that is in trouble.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.num_bytes, self.num_requests, self.is_down = 0, dict[str, int](), False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.num_bytes += int(environ.get("CONTENT_LENGTH") or 0)
        self.num_requests[method] = self.num_requests.get(method, 0) + 1
        if self.is_down:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)  # type: ignore[no-any-return]

    @property
    def environment(self) -> dict[str, str]:
        """What the client in a process needs."""
        return {"AWS_ENDPOINT_URL": self.address, **CREDENTIALS}

    def bucket(self) -> str:
        """A new bucket; its address."""
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.address, **keys).create_bucket(Bucket=name)
        return f"s3://{name}"

    def stop(self) -> None:
        self._server.shutdown()
